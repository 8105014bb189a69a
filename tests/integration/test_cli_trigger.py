"""`keyside trigger` against real servers with a real executor."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from tests import models, raw
from tests.executors import Executor
from tests.servers import wait_until

from keyside.clients.cli.root import cli
from keyside.tensorstore import npy

Keyside = Callable[..., Result]
X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture
def keyside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str, executor: Executor, db: redis_py.Redis
) -> Keyside:
    """Runs a command on the server, and checks how it ends."""
    for name in list(os.environ):
        if name.startswith(("KEYSIDE_", "REDIS_URL")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    raw.store(db, "affine", models.affine())

    def run(*args: str, code: int = 0) -> Result:
        result = CliRunner().invoke(cli, ["--url", url, *args], prog_name="keyside")
        assert result.exit_code == code, result.output
        return result

    return run


def read(result: Result) -> Any:
    return json.loads(result.stdout)


def test_a_trigger_from_its_making_to_its_end(keyside: Keyside, db: redis_py.Redis) -> None:
    assert keyside("trigger", "ls").stderr == "no triggers: set one with keyside trigger add\n"
    result = keyside(
        "trigger", "add", "boxes", "--on-set", "frame:{cam}", "--run", "affine", "-i", "frame:{cam}",
        "-o", "boxes:{cam}", "--ttl", "50", "--inflight", "1", "--rate", "10/0.5",
    )  # fmt: skip
    assert result.stderr == "boxes: a tensor set at frame:{cam} runs affine, results on ks:results:boxes\n"
    assert read(keyside("--json", "trigger", "ls")) == [
        {"name": "boxes", "on": "set", "source": "frame:{cam}", "target": "affine", "state": "active"}
    ]
    assert keyside("trigger", "ls").stdout.splitlines()[1].split() == [
        "boxes",
        "set",
        "frame:{cam}",
        "affine",
        "active",
    ]
    keyside("tensor", "set", "frame:7", "1", "2", "3", "4", "--shape", "1,4", "--dtype", "FLOAT")
    wait_until(lambda: db.exists("boxes:7"), "the trigger has run")
    assert raw.get(db, "boxes:7").tolist() == [[3, 5, 7, 9]]
    shown = read(keyside("--json", "trigger", "show", "boxes"))
    assert shown["run"] == ["affine", "INPUTS", "1", "KEY", "frame:{cam}", "OUTPUTS", "1", "boxes:{cam}"]
    assert shown["rate"] == [10, 500]
    assert (shown["stats"]["fired"], shown["stats"]["done"]) == (1, 1)
    assert "inflight 1" in " ".join(keyside("trigger", "show", "boxes").stdout.split())
    assert keyside("trigger", "pause", "boxes").stderr == "boxes: paused\n"
    assert read(keyside("trigger", "show", "boxes", "--json"))["state"] == "paused"
    assert keyside("trigger", "resume", "boxes").stderr == "boxes: active\n"
    assert "fired: 1" in keyside("trigger", "stats", "boxes", "--reset").stdout
    assert read(keyside("trigger", "stats", "boxes", "--json"))["fired"] == 0
    keyside("trigger", "rm", "boxes")
    assert "NOTRIGGER" in keyside("trigger", "show", "boxes", code=1).stderr


def test_each_kind_of_source_and_of_input(keyside: Keyside, db: redis_py.Redis) -> None:
    keyside("trigger", "add", "p", "--on-publish", "in", "--sharded", "--run", "affine", "-i", "x=payload")
    keyside(
        "trigger", "add", "s", "--on-stream", "orders", "--group", "g", "--from", "0", "--run", "affine@1",
        "-i", "value:{tx}", "--results", "log", "--maxlen", "10", "--on-error", "drop", "--priority", "low",
    )  # fmt: skip
    keyside("trigger", "add", "k", "--every", "60", "--key", "a", "--key", "b", "--run", "affine", "-i", "ref:{member}")
    keyside(
        "trigger", "add", "m", "--every", "1.5", "--members", "users", "--run", "affine", "-i", "spec:OWN '{member}'"
    )
    keyside(
        "trigger", "add", "n", "--on-set", "k:{n}", "--notify", "--coalesce", "--run", "affine", "-i", "key:payload",
        "--channel", "c", "--run-timeout", "2",
    )  # fmt: skip
    runs = {
        one["name"]: read(keyside("trigger", "show", one["name"], "--json"))
        for one in read(keyside("trigger", "ls", "--json"))
    }
    assert runs["p"]["run"][3:] == ["VALUE", "{payload}", "NAMES", "1", "x"]
    assert runs["p"]["sharded"] == 1
    assert runs["s"]["run"][3:] == ["VALUE", "{tx}", "PRIORITY", "LOW"]
    assert (runs["s"]["group"], runs["s"]["from"], runs["s"]["maxlen"], runs["s"]["on_error"]) == ("g", "0", 10, "drop")
    assert (runs["k"]["every"], runs["k"]["keys"], runs["k"]["run"][3:]) == (60_000, ["a", "b"], ["REF", "{member}"])
    assert (runs["m"]["members"], runs["m"]["run"][3:]) == ("users", ["OWN", "{member}"])
    assert (runs["n"]["channel"], runs["n"]["run"][3:]) == ("c", ["KEY", "payload", "TIMEOUT", "2000"])
    for name in runs:
        assert name in keyside("trigger", "show", name).stdout
        db.fcall("AI_TRIGGERDEL", 1, name)


@pytest.mark.parametrize(
    "args",
    [
        ["--run", "m", "-i", "x"],
        ["--on-set", "a", "--on-publish", "b", "--run", "m", "-i", "x"],
        ["--on-set", "a", "--run", "m"],
        ["--on-set", "a", "-i", "x"],
        ["--on-set", "a", "--sharded", "--run", "m", "-i", "x"],
        ["--on-set", "a", "--run", "m", "-i", "a=x", "-i", "y"],
        ["--on-set", "a", "--run", "m", "-i", "a=x", "-i", "a=y"],
        ["--on-set", "a", "--run", "m", "-i", "x", "--rate", "5"],
        ["--on-publish", "a", "--members", "b", "--run", "m", "-i", "x"],
    ],
)
def test_wrong_calls(keyside: Keyside, args: list[str]) -> None:
    keyside("trigger", "add", "t", *args, code=2)


def test_what_the_server_refuses(keyside: Keyside) -> None:
    result = keyside(
        "trigger", "add", "t", "--on-set", "k:{n}", "--run", "affine", "-i", "{key}", "-o", "k:x:{n}", code=1
    )
    assert result.stderr.startswith("LOOP output ")


@pytest.mark.parametrize("as_json", [False, True])
def test_watching(keyside: Keyside, db: redis_py.Redis, url: str, as_json: bool) -> None:
    keyside("trigger", "add", "t", "--on-publish", "in", "--run", "affine", "-i", "payload")
    wait_until(lambda: db.pubsub_numsub("in")[0][1], "the executor listens")
    watcher = subprocess.Popen(
        [sys.executable, "-m", "keyside.clients.cli.main", "--url", url, "trigger", "watch", "t", "--count", "2",
         *(["--json"] if as_json else [])],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        wait_until(lambda: db.pubsub_numsub("ks:results:t")[0][1], "it listens")
        db.publish("in", npy.to_bytes(X))
        db.publish("in", "nothing")
        out, err = watcher.communicate(timeout=20)
    finally:
        watcher.kill()
    assert (watcher.returncode, err) == (0, "listening to t\n")
    one, other = sorted(out.splitlines(), key=lambda line: "BADNPY" in line)
    if as_json:
        found = json.loads(one)
        assert next(iter(found["outputs"].values())) == {"dtype": "FLOAT", "shape": [1, 4], "values": [[1, 3, 5, 7]]}
        assert found["error"] is None
        assert json.loads(other)["error"].startswith("BADNPY ")
    else:
        assert one.startswith("in: ")
        assert one.endswith("=FLOAT [1, 4] [[1. 3. 5. 7.]]")
        assert other.startswith("in: BADNPY ")


def test_watching_ends_when_nothing_comes(keyside: Keyside) -> None:
    keyside("trigger", "add", "t", "--on-set", "k:{n}", "--run", "affine", "-i", "{key}")
    assert "TIMEDOUT no event" in keyside("trigger", "watch", "t", "--timeout", "0.2", code=1).stderr
    assert "NOTRIGGER" in keyside("trigger", "watch", "u", code=1).stderr
