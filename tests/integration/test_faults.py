"""Executors that die or stall around a job."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.faults import (
    NODE,
    STREAM,
    ZERO,
    X,
    answered_once,
    busy,
    calls,
    executors,
    halt_in_claim,
    held_by,
    holders,
)
from tests.servers import Kind, Server, wait_until

from keyside.tensorstore.errors import DeadLetter

VALKEY = pytest.mark.parametrize("server", ["valkey"], indirect=True)
"""For what takes long and does not depend on the server."""


@pytest.fixture(scope="module", params=get_args(Kind))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server where no executor runs but those of the test."""
    with Server(request.param) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[redis_py.Redis]:
    with server.client() as client:
        client.flushall()
        server.load_library()
        yield client


# --- executors


def test_an_executor_killed_while_it_runs(server: Server, db: Any) -> None:
    with executors(server, 2) as running:
        raw.store(db, "slow", more_models.slow())
        ticket = busy(db, 0.6)
        held_by(db, running).kill()
        answered_once(db, ticket)
        assert calls(db, "slow") == 1


def test_an_executor_stopped_past_its_lease_and_woken(server: Server, db: Any) -> None:
    with executors(server, 2) as running:
        raw.store(db, "slow", more_models.slow())
        ticket = busy(db, 0.4)
        zombie = held_by(db, running)
        with raw.paused(zombie):
            answered_once(db, ticket)
            db.delete("y")
        # It goes on where it was, in the middle of its run, and finds that the job is not its own any more.
        wait_until(lambda: "taken over or cancelled" in zombie.output, "it sees that")
        assert db.exists("y", ticket) == 0
        assert calls(db, "slow") == 1
        assert raw.run(db, raw.predict("slow", ZERO)).outputs["y"] == 0


def test_an_executor_stopped_with_a_large_result_in_hand(server: Server, db: Any) -> None:
    with executors(server, 1) as (zombie,):
        raw.store(db, "wide", more_models.wide(100_000))
        raw.put(db, "x", X[:, :1])
        halt_in_claim(db, zombie)
        ticket = raw.call(db, *raw.execute("wide", ["x"], ["y"]))
        held_by(db, [zombie])
        with executors(server, 1):
            assert raw.answer(db, ticket).outputs == {}
            db.delete("y")
            zombie.resume()
            wait_until(lambda: "taken over or cancelled" in zombie.output, "it sees that")
            assert db.exists("y", ticket) == 0
            assert raw.private_keys(db) == set(), "what it had staged is gone"


@VALKEY
def test_an_executor_killed_while_it_loads(server: Server, db: Any) -> None:
    with executors(server, 1) as (first,):
        halt_in_claim(db, first)
        version = raw.call(db, *raw.modelstore("m", models.affine()))
        held_by(db, [first])
        waiting = raw.call(db, *raw.predict("m", X))
        first.kill()
        with executors(server, 1):
            assert raw.answer(db, waiting).target == f"m@{version}"
            wait_until(lambda: raw.state(db, "m", version) == "ready", "the load is taken over too")


@pytest.mark.slow
@VALKEY
def test_a_job_that_kills_executors(server: Server, db: Any) -> None:
    with executors(server, 1) as (first,):
        raw.store(db, "slow", more_models.slow())
        raw.warm(db, "slow", ZERO)
        halt_in_claim(db, first)
        raw.put(db, "x", more_models.turns_for(1.5))
        jobs = [raw.execute("slow", ["x"], ["killer"])] + [raw.predict("slow", ZERO + i) for i in range(3)]
        killer, *mates = raw.at_once(db, *jobs)
        wait_until(lambda: len(holders(db)) == 4, "all of them are claimed together")
        first.kill()
        entry = killer.rpartition(b"/")[2]
        for life in (2, 3):
            with executors(server, 1) as (next_one,):
                wait_until(lambda times=life: holders(db)[entry][1] == times, "it is taken over")  # type: ignore[misc]
                next_one.kill()
        others = [times for job, (_, times) in holders(db).items() if job != entry]
        assert max(others, default=0) <= 2, "the others do not pay for it"
        with executors(server, 1):
            with pytest.raises(DeadLetter):
                raw.answer(db, killer)
            assert [int(raw.answer(db, mate).outputs["y"].item()) for mate in mates] == [0, 1, 2]
        ((_, dead),) = db.xrange(NODE.dead)
        assert dead[b"id"] == b"CPU/" + entry
        assert dead[b"reason"].startswith(b"DEADLETTER ")
        assert not db.exists("killer")
        assert db.xlen(STREAM) == 0


@VALKEY
def test_no_executor_is_alive(server: Server, db: Any) -> None:
    with executors(server, 1):
        raw.store(db, "m", models.affine())
    raw.put(db, "x", X)
    ticket = raw.call(db, *raw.execute("m", ["x"], ["y"]))
    chosen = raw.call(db, *raw.predict("m", X), "TICKET", "ks:{0}:t")
    assert db.blpop([ticket], timeout=0.2) is None
    assert db.fcall("AI_CANCEL", 0, ticket) == 1
    assert db.fcall("AI_CANCEL", 0, "ks:{0}:t", chosen) == 1
    with executors(server, 1):
        raw.run(db, raw.predict("m", X))
        assert calls(db, "m") == 1
        assert db.exists("y", ticket, "ks:{0}:t") == 0
        assert raw.private_keys(db) == set()
