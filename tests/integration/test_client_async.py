"""What only the asyncio client has: thousands of requests in flight, cancelled tasks, event loops."""

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, raw
from tests.clusters import until
from tests.executors import Executor
from tests.servers import Server, wait_until

import keyside
from keyside import errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)
NAME = "client-of-this-module"
"""Of its connections: tests before may have left some that nobody has collected yet."""


@pytest.fixture
async def client(executor: Executor) -> AsyncIterator[keyside.AsyncClient]:
    async with keyside.AsyncClient(executor.url, client_name=NAME) as made:
        await made.store("m", models.affine())
        yield made


def connections(db: redis_py.Redis) -> int:
    return sum(item["name"] == NAME for item in db.client_list())


async def test_thousands_in_flight_on_a_handful_of_connections(
    client: keyside.AsyncClient, executor: Executor, db: redis_py.Redis
) -> None:
    await client.store("echo", models.echo_int64())
    with raw.paused(executor):
        tasks = [asyncio.ensure_future(client.predict("echo", np.array([[n]]))) for n in range(5000)]
        await queued(db, 5000)
        assert connections(db) <= 5
    for n, found in enumerate(await asyncio.gather(*tasks)):
        assert found.tolist() == [[n]]


async def queued(db: redis_py.Redis, count: int) -> None:
    """Wait until so many jobs are queued."""
    for _ in range(2000):
        if db.xlen("ks:{0}:jobs:CPU") >= count:
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"only {db.xlen('ks:{0}:jobs:CPU')} jobs are queued")


async def gone(db: redis_py.Redis) -> None:
    """Wait until no job is queued and nothing is kept for one."""
    for _ in range(500):
        if not db.xlen("ks:{0}:jobs:CPU") and not raw.private_keys(db):
            return
        await asyncio.sleep(0.01)
    raise AssertionError(f"left: {db.xlen('ks:{0}:jobs:CPU')} jobs, {raw.private_keys(db)}")


@pytest.mark.parametrize("x", [X, BIG], ids=["small", "large"])
@pytest.mark.parametrize("turns", [0, 1, 2, 3, 50])
async def test_cancelling_a_task_leaves_nothing_behind(
    client: keyside.AsyncClient, executor: Executor, db: redis_py.Redis, turns: int, x: Any
) -> None:
    with raw.paused(executor):
        tasks = [asyncio.ensure_future(client.predict("m", x)) for _ in range(10)]
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns == 50:
            await queued(db, 10)
        for task in tasks:
            task.cancel()
        assert all(
            isinstance(found, asyncio.CancelledError) for found in await asyncio.gather(*tasks, return_exceptions=True)
        )
        await gone(db)
    assert np.array_equal(await client.predict("m", X), Y)
    assert not list(db.scan_iter("ks:{0}:tmp:*"))


async def test_a_timeout_of_the_callers_own(
    client: keyside.AsyncClient, executor: Executor, db: redis_py.Redis
) -> None:
    with raw.paused(executor):
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.predict("m", X)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.predict_many("m", np.zeros((100, 4), np.float32), batch=1)
        await gone(db)


async def test_closing_takes_the_jobs_back(executor: Executor, db: redis_py.Redis) -> None:
    client = keyside.AsyncClient(executor.url, client_name=NAME)
    await client.store("m", models.affine())
    with raw.paused(executor):
        tasks = [asyncio.ensure_future(client.predict("m", X)) for _ in range(10)]
        await queued(db, 10)
        await client.close()
        for found in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(found, errors.Unreachable)
        await gone(db)
    assert not db.keys("ks:{0}:mb:*")
    await until(lambda: connections(db) == 0)


async def test_nothing_is_sent_while_nothing_is_asked(client: keyside.AsyncClient, db: redis_py.Redis) -> None:
    before = connections(db)
    await client.predict("m", X)
    assert connections(db) == before + 1
    mailbox = client._transport._mailbox
    assert mailbox is not None
    # The wait that was under way ends; then no other begins.
    for _ in range(700):
        if mailbox._reader is None:
            break
        await asyncio.sleep(0.01)
    assert mailbox._reader is None
    assert np.array_equal(await client.predict("m", X), Y)


async def test_what_others_put_into_the_mailbox_does_no_harm(client: keyside.AsyncClient, db: redis_py.Redis) -> None:
    await client.predict("m", X)
    mailbox = client._transport._mailbox
    assert mailbox is not None
    for item in (b"", b"x", b"1 OK", b"\xff\xff", b"999999999999 OK"):
        db.rpush(mailbox._key, item)
    assert np.array_equal(await client.predict("m", X), Y)


async def test_small_requests_do_not_wait_behind_large_ones(client: keyside.AsyncClient) -> None:
    large = np.zeros(8_000_000)
    await client.set("large", large)
    await asyncio.gather(*(client.get("large") for _ in range(4)), client.predict("m", X), client.set("x", X))


def test_one_loop_after_the_other(redis: Server, db_redis: redis_py.Redis) -> None:
    client = keyside.AsyncClient(redis.url_unix, client_name=NAME)

    async def use(n: int, *, close: bool) -> None:
        await client.set("x", n)
        assert await client.get("x") == n
        with pytest.raises(errors.NoModel):
            await client.predict("m", X)
        if close:
            await client.close()

    def run() -> None:
        asyncio.run(use(1, close=False))
        asyncio.run(use(2, close=False))
        asyncio.run(use(3, close=True))
        gc.collect()

    with pytest.warns(ResourceWarning):
        run()
    wait_until(lambda: connections(db_redis) == 0, "no connection is left")


async def test_two_loops_at_once_are_refused(client: keyside.AsyncClient) -> None:
    await client.exists("x")
    with pytest.raises(errors.BadArg, match="one event loop"):
        await asyncio.to_thread(lambda: asyncio.run(client.exists("x")))
