"""Many callers at once, each of whose answers is checked, while executors die and stall."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from tests import models, raw
from tests.executors import Executor
from tests.integration.test_faults import executors
from tests.servers import ROOT, Kind, Server, wait_until

from keyside.tensorstore.keys import NodeKeys

PROCESSES = 8
REQUESTS = 2_000
MODELS = {"echo": models.echo_int64(), "mlp": models.mlp(), "affine": models.affine()}
SETTINGS: dict[str, tuple[Any, ...]] = {
    "echo": (),
    "mlp": ("BATCHSIZE", 8),
    "affine": ("BATCHSIZE", 32, "MINBATCHSIZE", 4, "MINBATCHTIMEOUT", 2),
}
NODE = NodeKeys()
STREAM = NODE.jobs("CPU")


@pytest.fixture(scope="module")
def callers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes that send requests and check what comes back."""
    folder: Path = tmp_path_factory.mktemp("models")
    for name, blob in MODELS.items():
        (folder / f"{name}.onnx").write_bytes(blob)
    started = [
        subprocess.Popen(
            [sys.executable, "-m", "tests.load", str(folder)],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(PROCESSES)
    ]  # fmt: skip
    try:
        for process in started:
            assert said(process) == "ready"
        yield started
    finally:
        for process in started:
            process.kill()
            process.communicate()


def said(process: subprocess.Popen[str]) -> Any:
    assert process.stdout is not None
    return json.loads(process.stdout.readline())


@pytest.fixture(scope="module", params=get_args(Kind))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    with Server(request.param) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[Any]:
    with server.client() as client:
        client.flushall()
        server.load_library()
        yield client


def begin(callers: list[subprocess.Popen[str]], server: Server) -> None:
    for number, process in enumerate(callers):
        assert process.stdin is not None
        process.stdin.write(f"{server.url_unix} {number} {REQUESTS}\n")
        process.stdin.flush()


def check(callers: list[subprocess.Popen[str]], db: Any) -> None:
    """Every request was answered once and rightly, and nothing is left of any."""
    results = [said(process) for process in callers]
    assert [result["problems"] for result in results] == [[]] * PROCESSES
    assert sum(result["answered"] for result in results) == PROCESSES * REQUESTS
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    # What has no TTL would stay for ever; what has one, but for the numbers of requests, is gone within seconds.
    wait_until(lambda: not leftovers(db), "nothing is left", 25)
    for key in db.scan_iter(match="ks:{0}:seen:*"):
        assert 0 < db.pttl(key) <= 70_000


def leftovers(db: Any) -> list[bytes]:
    """Keys that neither a model nor a live executor needs, nor a caller who may repeat a request."""
    stay = (b"jobs", b"catalog", b"models", b"stats", b"executors", b"executor", b"blob", b"seen")
    found = []
    for key in db.scan_iter(count=1000):
        kind = key.partition(b"}:")[2].split(b":")[0] if key.startswith(b"ks:{") else b""
        if kind == b"bytes":
            assert db.get(key) == b"0"
        elif kind not in stay and key.decode() not in MODELS:
            found.append(key)
    return found


def store_all(db: Any) -> None:
    for name, blob in MODELS.items():
        raw.store(db, name, blob, *SETTINGS[name])


def answered(db: Any) -> int:
    """Jobs that have been completed, all models together."""
    return sum(int(db.hget(key, "calls") or 0) for key in db.scan_iter(match="ks:{0}:stats:*"))


@pytest.mark.slow
def test_many_callers_and_one_executor(callers: Any, server: Server, db: Any) -> None:
    with Executor(server):
        store_all(db)
        begin(callers, server)
        check(callers, db)
        assert answered(db) == PROCESSES * REQUESTS


@pytest.mark.slow
def test_many_callers_while_an_executor_is_killed(callers: Any, server: Server, db: Any) -> None:
    with executors(server, 2) as (one, _):
        store_all(db)
        begin(callers, server)
        wait_until(lambda: answered(db) > 4_000, "a quarter is done")
        one.kill()
        check(callers, db)
        assert answered(db) == PROCESSES * REQUESTS


@pytest.mark.slow
def test_many_callers_while_an_executor_is_stopped_and_woken(callers: Any, server: Server, db: Any) -> None:
    with executors(server, 2) as (zombie, _):
        store_all(db)
        begin(callers, server)
        wait_until(lambda: answered(db) > 4_000, "a quarter is done")
        with raw.paused(zombie):
            consumer = next(one for one in db.xinfo_consumers(STREAM, "ks") if holds(db, one["name"], zombie))["name"]
            wait_until(lambda: not db.xpending_range(STREAM, "ks", "-", "+", 1, consumer), "its jobs are taken over")
        wait_until(zombie.registered, "it is back")
        check(callers, db)
        assert answered(db) == PROCESSES * REQUESTS


def holds(db: Any, consumer: bytes, executor: Executor) -> bool:
    """Whether that is the name of this executor."""
    info = db.get(NODE.executor(consumer))
    return info is not None and json.loads(info)["pid"] == executor.pid
