"""Dead letters of real executors, and `keyside dead`, on a server and on a cluster."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from click.testing import CliRunner, Result
from tests import models, more_models, raw
from tests.executors import Executor
from tests.faults import QUICK, X, halt_in_claim
from tests.lua.jobs import Hand
from tests.servers import Cluster, Server, wait_until

from keyside.clients.cli.root import cli
from keyside.tensorstore import keys
from keyside.tensorstore.errors import DeadLetter

ONCE = {"max_deliveries": 1, **QUICK}
"""The first executor that dies with a job is the last."""
LONG = np.array([[10**12]], np.int64)
LARGE = np.ones((4, 20_000), np.float32)

Keyside = Callable[..., Result]


@pytest.fixture
def db(db_redis: redis_py.Redis) -> redis_py.Redis:
    return db_redis


@pytest.fixture
def keyside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, redis: Server) -> Keyside:
    """Runs `keyside dead` on the server, or another one, and checks how it ends."""
    for name in list(os.environ):
        if name.startswith(("KEYSIDE_", "REDIS_URL")):
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)

    def run(*args: str, code: int = 0, url: str = "") -> Result:
        result = CliRunner().invoke(cli, ["--url", url or redis.url_unix, "dead", *args], prog_name="keyside")
        assert result.exit_code == code, result.output
        return result

    return run


def read(result: Result) -> Any:
    return json.loads(result.stdout)


def kill_with(server: Server, db: Any, *command: Any) -> bytes:
    """An executor is killed while it holds a job; gives the job's ticket."""
    with Executor(server, **ONCE) as executor:
        wait_until(lambda: raw.state(db, "{m}slow") in ("", "ready"), "it has loaded what there is")
        ticket: bytes = raw.call(db, *command)
        wait_until(lambda: held(db), "it is claimed")
        executor.kill()
    return ticket


def held(db: Any) -> int:
    (stream,) = (key for key in db.scan_iter("ks:{*}:jobs:CPU"))
    return int(db.xpending(stream, "ks")["pending"])


def test_a_letter_from_its_death_to_its_end(redis: Server, db: Any, keyside: Keyside) -> None:
    with Executor(redis, **ONCE):
        raw.store(db, "slow", more_models.slow())
    raw.put(db, "x", LONG)
    ticket = kill_with(redis, db, *raw.execute("slow", ["x"], ["y"], "TIMEOUT", 60_000))
    assert keyside("ls").stderr == "no dead letters\n"
    with Executor(redis, **ONCE):
        with pytest.raises(DeadLetter):
            raw.answer(db, ticket)
        (letter,) = read(keyside("ls", "--json"))
        assert (letter["op"], letter["model"], letter["deliveries"]) == ("run", "slow@1", 1)
        assert letter["job"] == f"CPU/{ticket.decode().rpartition('/')[2]}"
        assert letter["reason"].startswith("DEADLETTER ")
        assert len(letter["executors"]) == 1
        listed = keyside("ls").stdout
        assert letter["id"] in listed
        assert "slow@1" in listed
        shown = keyside("show", letter["id"]).stdout
        assert "after 1 deliveries" in shown
        assert "outputs     y" in shown
        assert "int64 [1, 1]" in shown
        assert f"keyside dead retry {letter['id']}" in shown
        assert read(keyside("show", letter["id"], "--json"))["outputs"] == ["y"]
        assert read(keyside("ls", "--json", "--model", "other")) == []

        # It takes for ever: with --no-wait it can be cancelled.
        (said,) = read(keyside("retry", letter["id"], "--no-wait", "--json"))
        assert db.fcall("AI_CANCEL", 0, said["ticket"]) == 1
        assert read(keyside("ls", "--json")) == []
        assert "BADARG" in keyside("show", letter["id"], code=1).stderr
        assert "BADARG" in keyside("retry", letter["id"], code=1).stderr
        db.fcall("AI_MODELDEL", 1, "slow")


def test_retry_and_drop(redis: Server, db: Any, keyside: Keyside) -> None:
    with Executor(redis, **ONCE):
        raw.store(db, "m", models.affine())
        raw.store(db, "same", more_models.identity())
    raw.put(db, "x", X)
    raw.put(db, "large", LARGE)
    with Executor(redis, **ONCE) as executor:
        halt_in_claim(db, executor)
        raw.at_once(
            db,
            raw.execute("m", ["x"], ["y"]),
            raw.execute("same", ["large"], ["z"]),
            raw.predict("m", X),
            raw.predict("m", X),
        )
        executor.kill()
    with Executor(redis, **ONCE):
        wait_until(lambda: len(read(keyside("ls", "--json"))) == 4, "they are given up")
        *plain, large, keyed = (one["id"] for one in read(keyside("ls", "--json")))
        assert "a copy of the input" in keyside("show", large).stdout
        result = keyside("retry", keyed, large, plain[0])
        assert result.stderr == f"{keyed}: OK\n{large}: OK\n{plain[0]}: OK\n"
        np.testing.assert_allclose(raw.get(db, "y"), X * 2 + 1)
        np.testing.assert_array_equal(raw.get(db, "z"), LARGE)
        db.fcall("AI_MODELDEL", 1, "m")
        assert "NOMODEL" in keyside("retry", "--all", code=1).stderr
        for wrong in ((), ("--model", "m"), ("1-1", "--all")):
            keyside("drop", *wrong, code=2)
        assert read(keyside("drop", "--all", "--model", "same", "--json")) == {"dropped": 0}
        assert read(keyside("drop", "--all", "--json")) == {"dropped": 1}
        assert read(keyside("ls", "--json")) == []
        db.fcall("AI_MODELDEL", 1, "same")


def test_a_copy_that_has_gone(redis: Server, db: Any, keyside: Keyside) -> None:
    with Executor(redis, **ONCE):
        raw.store(db, "same", more_models.identity())
    raw.put(db, "large", LARGE)
    kill_with_stopped(redis, db, raw.execute("same", ["large"], ["z"]))
    with Executor(redis, **ONCE):
        wait_until(lambda: read(keyside("ls", "--json")), "it is given up")
        (letter,) = read(keyside("ls", "--json"))
        for capture in db.keys("*:cap:*"):
            db.delete(capture)
        assert "; gone)" in keyside("show", letter["id"]).stdout
        assert "INPUTLOST" in keyside("retry", letter["id"], code=1).stderr
        db.fcall("AI_MODELDEL", 1, "same")


def kill_with_stopped(server: Server, db: Any, command: Any) -> None:
    """A job is delivered to an executor that never wakes."""
    with Executor(server, **ONCE) as executor:
        halt_in_claim(db, executor)
        raw.call(db, *command)
        wait_until(lambda: held(db), "it is delivered")
        executor.kill()


def test_a_load_that_kills_marks_the_version(redis: Server, db: Any, keyside: Keyside) -> None:
    kill_with_stopped(redis, db, raw.modelstore("m", models.affine()))
    with Executor(redis, **ONCE):
        wait_until(lambda: raw.state(db, "m") == "failed", "it is given up")
        (letter,) = read(keyside("ls", "--json"))
        assert (letter["op"], letter["model"]) == ("load", "m@1")
        assert "store it again" in keyside("show", letter["id"]).stdout
        assert "store it again" in keyside("retry", letter["id"], code=1).stderr
        assert raw.store(db, "m", models.affine()) == 2
        db.fcall("AI_MODELDEL", 1, "m")


# --- on a cluster


@pytest.fixture(scope="module", params=["redis", "valkey"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param, replicas=0) as cluster:
        cluster.load_library()
        yield cluster


def test_on_a_cluster(cluster: Cluster, keyside: Keyside) -> None:
    node = cluster.owner("{m}")
    other = next(one for one in cluster.primaries if one is not node)
    with node.client() as db, Hand(other.url_unix) as hand:
        hand.node = keys.NodeKeys(hand.beat("e1")[1])
        with Executor(node, **ONCE):
            raw.store(db, "{m}slow", more_models.slow())
        raw.put(db, "{m}x", LONG)
        command = raw.execute("{m}slow", ["{m}x"], ["{m}y"], "TIMEOUT", 60_000)
        ticket = kill_with(node, db, *command)
        with Executor(node, **ONCE) as executor:
            with pytest.raises(DeadLetter):
                raw.answer(db, ticket)
            far = next(f"{{a{n}}}" for n in range(100) if cluster.owner(f"{{a{n}}}") is other)
            hand.store(far)
            hand.predict(target=far)
            hand.claim("e1")
            assert hand.recover("e2", limit=1) is None
            found = read(keyside("ls", "--json", url=cluster.url))
            tag = ticket.decode()[4:].partition("}")[0]
            assert {one["id"].partition("/")[0] for one in found} == {tag, hand.node.tag.decode()}
            mine = next(one["id"] for one in found if one["model"] == "{m}slow@1")
            assert mine.partition("/")[2] in keyside("show", mine.partition("/")[2], url=cluster.url).stdout
            (said,) = read(keyside("retry", mine, "--no-wait", "--json", url=cluster.url))
            assert said["ticket"].startswith(f"ks:{{{tag}}}:ticket:CPU/")
            wait_until(lambda: held(db), "it is claimed again")
            assert db.fcall("AI_CANCEL", 0, said["ticket"]) == 1
            assert read(keyside("drop", "--all", "--json", url=cluster.url)) == {"dropped": 1}
            executor.kill()
