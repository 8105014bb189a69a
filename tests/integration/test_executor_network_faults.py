"""Networks that delay, cut, drip, swallow and fall apart between executor and server."""

import json
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from tests import models, more_models, raw
from tests.executors import Executor
from tests.faults import NODE, QUICK, STREAM, ZERO, busy, calls, held_by, holders
from tests.proxy import Proxy
from tests.servers import Server, wait_until

from keyside.executor.wire import Wire

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1


@pytest.fixture
def apart(redis_own: Server) -> Iterator[tuple[Proxy, Executor, Any]]:
    """A proxy, an executor that goes through it, and a plain client; AOF is on."""
    redis_own.load_library()
    with Proxy(redis_own) as proxy, redis_own.client() as db:
        executor = Executor(redis_own, **QUICK)
        executor.url = proxy.url
        with executor:
            raw.store(db, "slow", more_models.slow())
            raw.store(db, "m", models.affine())
            yield proxy, executor, db


def one_answer(db: Any, ticket: bytes) -> None:
    assert raw.answer(db, ticket, 15).outputs == {}
    np.testing.assert_array_equal(raw.get(db, "y"), raw.get(db, "x"))
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    assert holders(db) == {}


@pytest.mark.parametrize("how", ["partition", "blackhole"])
def test_an_executor_that_is_cut_off_for_longer_than_its_lease(apart: Any, how: str) -> None:
    """Another takes its job over; what it then says of it, or said while nobody heard, counts for nothing."""
    proxy, first, db = apart
    with Executor(first.server, **QUICK) as second:
        with raw.paused(second):
            ticket = busy(db, 1.5)
            wait_until(lambda: held_by(db, [first, second]) is first, "the first has it")
            apart_from_now = proxy.partitioned() if how == "partition" else proxy.blackholed()
            apart_from_now.__enter__()
        one_answer(db, ticket)
        assert "job taken over" in second.output
        (died,) = db.scan_iter("ks:{0}:died:*", count=1000)
        assert 0 < db.pttl(died) <= 40_500, "it goes with the reply to the job"
        db.set("y", b"mine now")
        db.delete(ticket)
        apart_from_now.__exit__(None, None, None)
    if how == "partition":
        # Its answer was on its way all the time, and arrives.
        wait_until(lambda: "taken over or cancelled" in first.output, "it is told that the job was not its own", 35)
    wait_until(lambda: first.registered() and alive(db, first), "it is back", 40)
    assert db.get("y") == b"mine now"
    assert not db.exists(ticket)
    assert calls(db, "slow") == 1
    assert raw.run(db, raw.predict("slow", ZERO)).outputs["y"] == 0
    assert raw.private_keys(db) == set()


def alive(db: Any, executor: Executor) -> bool:
    """Whether its heartbeat is younger than two beats."""
    now = db.time()[0] * 1000 + db.time()[1] // 1000
    for name, at in db.zrange(NODE.executors, 0, -1, withscores=True):
        info = db.get(NODE.executor(name))
        if info is not None and json.loads(info)["pid"] == executor.pid:
            return bool(now - at < 4 * QUICK["beat_ms"])
    return False


def test_an_executor_whose_connections_are_cut(apart: Any) -> None:
    proxy, _, db = apart
    tickets = {}
    for i in range(120):
        if i % 30 == 15:
            proxy.cut()
        x = np.full((1, 4), i, np.float32)
        tickets[raw.call(db, *raw.predict("m", x))] = x
    for ticket, x in tickets.items():
        np.testing.assert_array_equal(raw.answer(db, ticket, 15).outputs["y"], x * 2 + 1)
    assert calls(db, "m") == 120
    assert db.exists(*tickets) == 0
    assert db.xlen(STREAM) == 0


def test_an_executors_connection_more_often_than_a_pool_of_redis_py_would(redis: Server) -> None:
    wire = Wire(redis.url_unix, name="again")
    for _ in range(130):
        wire.connect()
    assert wire.call("PING") == b"PONG"
    wire.close()


@pytest.mark.parametrize("moment", ["before", "after", "replies"])
def test_a_completion_that_is_lost(apart: Any, moment: str) -> None:
    """Whether the server has heard it or not: it is answered once, and counted once."""
    proxy, _, db = apart
    raw.run(db, raw.predict("m", X))
    before = calls(db, "m")
    rule: Callable[[bytes], bool]
    rule = (
        (lambda data: data.startswith(b"$1\r\n1\r\n")) if moment == "replies" else (lambda data: b"KS_COMPLETE" in data)
    )
    happened = proxy.once(moment, rule)
    ticket = raw.call(db, *raw.predict("m", X))
    np.testing.assert_array_equal(raw.answer(db, ticket, 15).outputs["y"], Y)
    assert happened.wait(5)
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    assert not db.exists(ticket)
    assert calls(db, "m") == before + 1


@pytest.mark.parametrize("keep", [1, 40, 150])
def test_a_claim_or_completion_that_is_cut_short(apart: Any, keep: int) -> None:
    proxy, _, db = apart
    for direction, word in (("replies", b"\x93NUMPY"), ("requests", b"KS_COMPLETE")):
        before = calls(db, "m")
        fault = proxy.truncate(keep, direction, lambda data, word=word: word in data)
        ticket = raw.call(db, *raw.predict("m", X))
        np.testing.assert_array_equal(raw.answer(db, ticket, 15).outputs["y"], Y)
        assert fault.happened.wait(1)
        wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
        assert calls(db, "m") == before + 1
        assert not db.exists(ticket)


def test_an_executor_far_away(apart: Any) -> None:
    """Slow replies and slow bytes cost time and nothing else."""
    proxy, _, db = apart
    proxy.delay(0.03)
    proxy.drip(200, 0.001, "requests", lambda data: len(data) < 5_000)
    before = calls(db, "m")
    tickets = {raw.call(db, *raw.predict("m", X + i)): i for i in range(10)}
    for ticket, i in tickets.items():
        np.testing.assert_array_equal(raw.answer(db, ticket, 15).outputs["y"], (X + i) * 2 + 1)
    proxy.heal()
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    assert calls(db, "m") == before + 10
