"""Jobs asked for later and many at a time, through both clients."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.clients import Blocking, Connect, connector
from tests.executors import Executor

from keyside import Key, errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
async def client(connect: Connect, executor: Executor) -> Any:
    made = connect(executor.url, timeout=10)
    await made.store("affine", models.affine())
    return made


def kept(db: redis_py.Redis) -> list[bytes]:
    """Keys of requests that have ended and their outputs."""
    kinds = (b"tmp", b"cap", b"out", b"t", b"ticket")
    return [key for key in db.scan_iter("ks:{*", count=1000) if key.partition(b"}:")[2].split(b":")[0] in kinds]


async def test_a_handle(client: Any) -> None:
    handle = await client.submit("affine", X)
    assert handle.job_id.startswith("CPU/")
    assert np.array_equal(await handle.result(), Y)
    assert np.array_equal(await handle.result(5), Y)
    assert await handle.done()
    assert not await handle.cancel()


async def test_a_handle_of_keys(client: Any) -> None:
    await client.set("x", X)
    handle = await client.submit("affine", "x", "y")
    assert await handle.result() is None
    assert np.array_equal(await client.get("y"), Y)


async def test_a_handle_of_what_fails(client: Any) -> None:
    with pytest.raises(errors.BadShape):
        await client.submit("affine", X[:, :2])
    await client.store("table", models.fails_out_of_range())
    handle = await client.submit("table", [99])
    for _ in range(2):
        with pytest.raises(errors.RunFailed):
            await handle.result()
    assert await handle.done()


async def test_a_handle_can_be_waited_for_in_parts(client: Any, executor: Executor) -> None:
    with raw.paused(executor):
        handle = await client.submit("affine", X)
        assert not await handle.done()
        with pytest.raises(errors.TimedOut, match="the job goes on"):
            await handle.result(0.05)
    assert np.array_equal(await handle.result(), Y)


async def test_a_handle_can_be_cancelled(client: Any, executor: Executor, db: redis_py.Redis) -> None:
    await client.set("x", X)
    with raw.paused(executor):
        handle = await client.submit("affine", "x", "y")
        waiter = asyncio.ensure_future(handle.result())
        await asyncio.sleep(0.02)
        assert await handle.cancel()
        with pytest.raises(errors.Cancelled):
            await waiter
        with pytest.raises(errors.Cancelled):
            await handle.result()
        assert await handle.done()
    await client.execute("affine", "x", "z")
    assert not db.exists("y")


async def test_a_handle_that_nobody_asks(client: Any) -> None:
    await client.store("table", models.fails_out_of_range())
    await client.submit("table", [99])
    await client.predict("affine", X)


async def ended(handle: Any) -> None:
    for _ in range(1000):
        if await handle.done():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("the job does not end")


async def test_a_reply_that_was_asked_for_too_late(client: Any, db: redis_py.Redis) -> None:
    handle = await client.submit("affine", X, timeout=5)
    await ended(handle)
    if isinstance(client, Blocking):  # the other takes the reply as it comes
        ticket = handle.inner._pending.ticket
        assert 5000 < db.pttl(ticket) <= 15_100
        # What is so a moment after the reply has gone.
        db.delete(ticket)
        handle.inner._pending.ends -= 15.1
        for _ in range(2):
            with pytest.raises(errors.TimedOut, match=r"not fetched in time.* until 10 s after the deadline"):
                await handle.result()
        assert await handle.done()
    else:
        assert np.array_equal(await handle.result(), Y)


async def test_a_large_output_that_was_asked_for_too_late(client: Any, db: redis_py.Redis) -> None:
    handle = await client.submit("affine", BIG)
    await ended(handle)
    outputs = db.keys("ks:{*}:out:*")
    assert len(outputs) == 1
    assert 50_000 < db.pttl(outputs[0]) <= 60_000
    db.delete(*outputs)
    for _ in range(2):
        with pytest.raises(errors.InputLost, match="kept for 60 s after the run") as caught:
            await handle.result()
        assert "ks:{" not in str(caught.value)


async def test_several_wait_for_one_handle(client: Any, executor: Executor, db: redis_py.Redis) -> None:
    with raw.paused(executor):
        handle = await client.submit("affine", BIG)
        waiters = [asyncio.ensure_future(handle.result()) for _ in range(5)]
        await asyncio.sleep(0.02)
        waiters.pop(0).cancel()
    for found in await asyncio.gather(*waiters):
        assert np.array_equal(found, BIG * 2 + 1)
    assert not db.keys("ks:{*}:out:*")


@pytest.mark.parametrize("turns", range(6))
async def test_a_waiter_that_is_cancelled_takes_nothing_from_the_others(client: Any, turns: int) -> None:
    handle = await client.submit("affine", BIG)
    await ended(handle)
    first, second = (asyncio.ensure_future(handle.result()) for _ in range(2))
    for _ in range(turns):
        await asyncio.sleep(0)
    first.cancel()
    assert np.array_equal(await second, BIG * 2 + 1)
    assert np.array_equal(await handle.result(), BIG * 2 + 1)


# --- many


@pytest.mark.parametrize("batch", [1, 7, 256])
async def test_many_rows_come_back_in_order(client: Any, batch: int) -> None:
    x = np.random.default_rng(1).random((1000, 4), np.float32)
    assert np.array_equal(await client.predict_many("affine", x, batch=batch, window=16), x * 2 + 1)


async def test_many_rows_of_several_inputs(client: Any) -> None:
    await client.store("two", models.two_outputs())
    a = np.random.default_rng(1).random((100, 2), np.float32)
    found = await client.predict_many("two", {"b": a, "a": a * 2}, batch=9)
    assert list(found) == ["sum", "difference"]
    assert np.array_equal(found["difference"], a)
    found = await client.predict_many("two", [a, a], batch=9, outputs="dict")
    assert np.array_equal(found["sum"], a + a)
    with pytest.raises(errors.BadInput, match="differ in their number of rows: 99, 100"):
        await client.predict_many("two", [a, a[:99]])


async def test_many_rows_larger_than_a_call(client: Any, db: redis_py.Redis) -> None:
    await client.store("same", more_models.identity())
    x = np.random.default_rng(1).random((60, 10_000), np.float32)
    assert np.array_equal(await client.predict_many("same", x, batch=7), x)
    await client.store("wide", more_models.wide(10_000))
    found = await client.predict_many("wide", x[:, :1], batch=3)
    assert np.array_equal(found, np.repeat(x[:, :1], 10_000, axis=1))
    assert not kept(db)


async def test_no_rows_and_no_such_rows(client: Any) -> None:
    assert (await client.predict_many("affine", X[:0])).shape == (0, 4)
    assert (await client.predict_many("affine", X.tolist())).shape == (2, 4)
    with pytest.raises(errors.BadInput):
        await client.predict_many("affine", np.float32(1))
    with pytest.raises(errors.BadArg):
        await client.predict_many("affine", Key("x"))
    for options in ({"batch": 0}, {"window": 0}):
        with pytest.raises(errors.BadArg):
            await client.predict_many("affine", X, **options)


async def test_the_first_of_many_that_fails_ends_the_others(client: Any, db: redis_py.Redis) -> None:
    await client.store("table", models.fails_out_of_range())
    index = np.zeros(500, np.int64)
    index[37] = 99
    with pytest.raises(errors.RunFailed):
        await client.predict_many("table", index, batch=1, window=20)
    with pytest.raises(errors.BadShape):
        await client.predict_many("affine", np.zeros((100, 3), np.float32), batch=1)
    assert np.array_equal(await client.predict("affine", X), Y)
    assert not kept(db)
