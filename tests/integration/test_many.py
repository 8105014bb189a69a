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
from tests.faults import executors
from tests.load import TIMEOUT_MS
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
REDIS = pytest.mark.parametrize("server", ["redis"], indirect=True)


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
    stay = (b"jobs", b"catalog", b"models", b"revs", b"stats", b"executors", b"executor", b"blob", b"seen")
    found = []
    for key in db.scan_iter(count=1000):
        kind = key.partition(b"}:")[2].split(b":")[0] if key.startswith(b"ks:{") else b""
        if kind == b"bytes":
            assert db.get(key) == b"0"
        elif kind == b"died":
            # Of a job that was taken over: it goes with the reply, 10 s after the deadline.
            assert db.pttl(key) != -1
            assert db.pttl(key) <= TIMEOUT_MS + 10_000
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
@pytest.mark.timeout(240)
def test_many_callers_and_one_executor(callers: Any, server: Server, db: Any) -> None:
    with Executor(server):
        store_all(db)
        begin(callers, server)
        check(callers, db)
        assert answered(db) == PROCESSES * REQUESTS


@pytest.mark.slow
@REDIS
@pytest.mark.timeout(240)
def test_many_callers_while_an_executor_is_killed(callers: Any, server: Server, db: Any) -> None:
    with executors(server, 2) as (one, other):
        store_all(db)
        begin(callers, server)
        wait_until(lambda: answered(db) > 4_000, "a quarter is done")
        halt_with_jobs(db, one)
        one.kill()
        check(callers, db)
        assert answered(db) == PROCESSES * REQUESTS
        assert "job taken over" in other.output


@pytest.mark.slow
@REDIS
@pytest.mark.timeout(240)
def test_many_callers_while_an_executor_is_stopped_and_woken(callers: Any, server: Server, db: Any) -> None:
    with executors(server, 2) as (zombie, other):
        store_all(db)
        begin(callers, server)
        wait_until(lambda: answered(db) > 4_000, "a quarter is done")
        consumer = halt_with_jobs(db, zombie)
        wait_until(lambda: not held(db, consumer), "its jobs are taken over")
        seconds, micros = db.time()
        woken = seconds * 1000 + micros // 1000
        zombie.resume()
        wait_until(lambda: db.zscore(NODE.executors, consumer) > woken, "it is back")
        wait_until(lambda: json.loads(db.get(NODE.executor(consumer)))["held"] == 0, "it has let go of them")
        check(callers, db)
        assert answered(db) == PROCESSES * REQUESTS
        assert "job taken over" in other.output


def halt_with_jobs(db: Any, executor: Executor) -> bytes:
    """Halt an executor at a moment when it holds jobs; gives its name."""
    consumer: bytes = next(
        one["name"] for one in db.xinfo_consumers(STREAM, "ks") if is_name(db, one["name"], executor)
    )

    def halted() -> bool:
        executor.pause()
        if held(db, consumer):
            return True
        executor.resume()
        return False

    wait_until(halted, "it holds jobs")
    return consumer


def held(db: Any, consumer: bytes) -> list[Any]:
    """Some of the jobs that it holds."""
    found: list[Any] = db.xpending_range(STREAM, "ks", "-", "+", 1, consumer)
    return found


def is_name(db: Any, consumer: bytes, executor: Executor) -> bool:
    """Whether that is the name of this executor."""
    info = db.get(NODE.executor(consumer))
    return info is not None and json.loads(info)["pid"] == executor.pid
