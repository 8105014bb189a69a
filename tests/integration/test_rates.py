"""Rates and bounds as clients meet them: exact with many at once, and what both Python clients make of BUSY."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.clients import Connect, connector
from tests.clusters import Grid
from tests.executors import Executor
from tests.servers import Server, wait_until

import keyside
from keyside import errors
from keyside.tensorstore import npy

X = np.arange(8, dtype=np.float32).reshape(2, 4)
ROW = np.array([[1, 2, 3, 4]], np.float32)
STREAM = "ks:{0}:jobs:CPU"


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def client(connect: Connect, executor: Executor) -> Any:
    return connect(executor.url)


@pytest.fixture
def held(redis: Server, db_redis: Any) -> Iterator[Any]:
    """A server with a model that nobody runs."""
    with Executor(redis):
        raw.store(db_redis, "m", models.affine())
    yield db_redis
    db_redis.flushall()


def limit(db: Any, *words: Any, model: str = "m") -> None:
    """Set limits of a model."""
    assert raw.call(db, "FCALL", "AI_LIMITSET", 1, model, *words) == b"OK"


def attack(url: str, seconds: float, users: list[str], threads: int) -> dict[str, int]:
    """Submit as fast as possible from many connections, each until it is refused, for so long at least.

    Returns:
        How many were accepted, by user.
    """
    value = npy.to_bytes(ROW)
    counts = dict.fromkeys(users, 0)
    lock = threading.Lock()
    ends = time.monotonic() + seconds
    wrong: list[BaseException] = []

    def run(number: int) -> None:
        user = users[number % len(users)]
        refused = False
        with redis_py.Redis.from_url(url) as db:
            while time.monotonic() < ends or not refused:
                try:
                    db.execute_command("FCALL", "AI_PREDICT", 0, "m", "INPUTS", 1, "VALUE", value, "USER", user)
                except redis_py.ResponseError as error:
                    if "; retry in " not in str(error):
                        wrong.append(error)
                        return
                    refused = True
                    continue
                with lock:
                    counts[user] += 1

    workers = [threading.Thread(target=run, args=(n,)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert not wrong, wrong
    return counts


def test_many_callers_get_exactly_the_rate(held: Any, redis: Server) -> None:
    most, ms = 40, 500
    limit(held, "RATE", most, "PER", ms)
    accepted = sum(attack(redis.url_unix, 3.3, ["a"], 8).values())
    times = [int(entry.partition(b"-")[0]) for entry, _ in held.xrange(STREAM)]
    assert len(times) == accepted
    assert accepted <= most * ((times[-1] - times[0] + 1) // ms + 1), "never one more than each window has"
    assert accepted >= 3 * most, "callers who come at once again find the next window open"
    # Of so many in a row at least one window lies between the first and the last. (An id may be late by a millisecond.)
    assert min(later - one for one, later in zip(times, times[2 * most :], strict=False)) >= ms - 2


def test_many_users_get_exactly_their_rates(held: Any, redis: Server) -> None:
    limit(held, "USERRATE", 7, "PER", 60_000)
    users = ["ann", "bob", "cid"]
    assert attack(redis.url_unix, 1.0, users, 6) == dict.fromkeys(users, 7)


def test_the_library_is_loaded_again_and_again_meanwhile(held: Any, redis: Server) -> None:
    limit(held, "RATE", 30, "PER", 60_000)
    over = threading.Event()

    def load() -> None:
        while not over.wait(0.02):
            redis.load_library()

    loader = threading.Thread(target=load)
    loader.start()
    try:
        assert attack(redis.url_unix, 1.0, ["a"], 4) == {"a": 30}
    finally:
        over.set()
        loader.join()


def test_a_rate_and_a_bound_survive_a_failover(held: Any, redis: Server) -> None:
    limit(held, "RATE", 5, "PER", 60_000, "JOBS", 4)
    raw.call(held, "FCALL", "AI_LIMITSET", 0, "NODE", "JOBS", 50)
    for _ in range(3):
        raw.call(held, *raw.predict("m", ROW))
    with Server("redis") as other, other.client() as db:
        db.replicaof("127.0.0.1", redis.port)
        wait_until(lambda: db.info("replication")["master_link_status"] == "up", "it has all")
        wait_until(lambda: db.xlen(STREAM) == 3, "it has the jobs")
        db.replicaof("NO", "ONE")
        raw.call(db, *raw.predict("m", ROW))
        error = raw.refused("BUSY", db, *raw.predict("m", ROW))
        assert "4 jobs" in error.text
        limit(db, "RATE", 5, "PER", 60_000)
        raw.call(db, *raw.predict("m", ROW))
        assert "takes 5 jobs" in raw.refused("BUSY", db, *raw.predict("m", ROW)).text
        assert dict(zip(*[iter(raw.call(db, "FCALL_RO", "AI_LIMITGET", 0, "NODE"))] * 2, strict=True))[b"jobs"] == 50


async def test_busy_says_when_to_come_again(client: Any) -> None:
    await client.store("m", models.affine())
    await client.set_limits("m", rate=(2, 2.0))
    for _ in range(2):
        np.testing.assert_array_equal(await client.predict("m", X), X * 2 + 1)
    calls: list[Callable[[], Any]] = [
        lambda: client.predict("m", X),
        lambda: client.predict("m", X.tolist()),
        lambda: client.predict("m", X, priority="high"),
        lambda: client.submit("m", X),
    ]
    hint = 0.0
    for call in calls:
        began = time.monotonic()
        with pytest.raises(errors.Busy) as caught:
            await call()
        assert time.monotonic() - began < 1.5, "at once, and not after tries of its own"
        assert caught.value.retry_after is not None
        hint = caught.value.retry_after
        assert 0 < hint <= 2.001
    await asyncio.sleep(hint)
    np.testing.assert_array_equal(await client.predict("m", X), X * 2 + 1)


async def test_limits_are_set_and_read(client: Any) -> None:
    await client.store("m", models.affine())
    assert await client.limits("m") == keyside.Limits()
    await client.set_limits("m", jobs=5, nbytes=1 << 20, rate=(100, 1.0), user_rate=(3, 60))
    assert await client.limits("m") == keyside.Limits(5, 1 << 20, (100, 1.0), (3, 60.0))
    await client.set_limits("m", jobs=7)
    assert await client.limits("m") == keyside.Limits(7)
    await client.set_limits("m")
    assert await client.limits("m") == keyside.Limits()
    assert await client.limits(None) == keyside.Limits(10_000, 1 << 30)
    await client.set_limits(None, jobs=9, rate=(1000, 1))
    assert await client.limits(None) == keyside.Limits(9, 1 << 30, (1000, 1.0))
    await client.set_limits(None)
    assert await client.limits(None) == keyside.Limits(10_000, 1 << 30)
    with pytest.raises(errors.NoModel):
        await client.set_limits("none", jobs=1)
    with pytest.raises(errors.BadArg):
        await client.set_limits("m", rate=(1, 0))
    with pytest.raises(errors.BadArg):
        await client.set_limits("m", jobs=-1)


async def test_who_calls_and_how_urgent_it_is(client: Any, db: Any) -> None:
    await client.store("m", models.affine())
    await client.set_limits("m", user_rate=(5, 60))
    with pytest.raises(errors.BadArg, match="USER"):
        await client.predict("m", X)
    for priority in ("high", "normal", "low"):
        np.testing.assert_array_equal(await client.predict("m", X, priority=priority, user="ann"), X * 2 + 1)
    await client.set("x", X)
    await client.execute("m", "x", "y", priority="low", user="ann")
    handle = await client.submit("m", "x", "z", priority="high", user="ann")
    await handle.result()
    with pytest.raises(errors.Busy, match="user 'ann'"):
        await client.predict("m", X, user="ann")
    assert (await client.predict_many("m", X, user="bob", priority="low")).tolist() == (X * 2 + 1).tolist()
    assert db.exists(f"{STREAM}!H", f"{STREAM}!L") == 2
    with pytest.raises(errors.BadArg, match="priority"):
        await client.predict("m", X, priority="urgent")


async def test_many_rows_go_on_where_the_queue_is_full(client: Any) -> None:
    await client.store("m", models.affine())
    rows = np.random.default_rng(0).random((300, 4), np.float32)
    for limits in ({"jobs": 3}, {"rate": (60, 0.1)}, {"nbytes": 2000}):
        await client.set_limits("m", **limits)
        found = await client.predict_many("m", rows, batch=2, window=32)
        np.testing.assert_allclose(found, rows * 2 + 1, rtol=1e-6)
    await client.set_limits("m", rate=(5, 60))
    began = time.monotonic()
    with pytest.raises(errors.Busy):
        await client.predict_many("m", rows, batch=2, window=4, timeout=2.0)
    assert time.monotonic() - began < 2.5, "it knows that it would wait in vain"


async def test_a_bound_of_the_queue_of_a_busy_executor(client: Any) -> None:
    await client.store("slow", more_models.slow())
    value = more_models.turns_for(0.05)
    await client.predict("slow", value)
    await client.set_limits(None, jobs=4)
    try:
        rows = np.repeat(value, 20, axis=0)
        assert (await client.predict_many("slow", rows, batch=1, window=16)).tolist() == rows.tolist()
    finally:
        await client.set_limits(None)


@pytest.mark.parametrize("kind", ["blocking", "asyncio"])
async def test_limits_on_a_cluster(kind: str) -> None:
    with Grid("valkey") as grid:
        async for connect in connector(kind):
            client = connect(grid.url, timeout=10)
            await client.store("m", models.affine())
            await client.set_limits(None, jobs=77)
            for node in grid.cluster.primaries:
                with node.client() as db:
                    assert db.execute_command("FCALL_RO", "AI_LIMITGET", 0, "NODE")[1] == 77
            assert (await client.limits(None)).jobs == 77
            await client.set_limits("m", jobs=2, user_rate=(1000, 60))
            for node in grid.cluster.primaries:
                with node.client() as db:
                    wait_until(lambda db=db: b'"jobs":2' in _record(db), "all nodes know the limits")  # type: ignore[misc]
            rows = np.random.default_rng(0).random((120, 4), np.float32)
            found = await client.predict_many("m", rows, batch=2, window=24, user="ann", priority="high")
            np.testing.assert_allclose(found, rows * 2 + 1, rtol=1e-6)
            for _ in range(6):
                for priority in ("low", "high"):
                    got = await client.predict("m", X, user="ann", priority=priority)
                    np.testing.assert_array_equal(got, X * 2 + 1)


def _record(db: Any) -> bytes:
    # A node that has not been told of any model yet has no catalog.
    return b"".join(db.hget(catalog, "m") or b"" for catalog in db.keys("ks:{*}:catalog"))


async def test_a_submit_that_is_refused_says_so_at_once(client: Any) -> None:
    await client.store("m", models.affine())
    await client.set_limits("m", rate=(1, 600))
    await client.predict("m", X)
    for _ in range(100):  # the refusal comes by two connections to an AsyncClient, now one first and now the other
        with pytest.raises(errors.Busy):
            await client.submit("m", X)
