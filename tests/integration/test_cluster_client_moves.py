"""Client and AsyncClient while the cluster changes under them: slots move, primaries give way, vanish or hang."""

import asyncio
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid, move, slot_of_tag, spread
from tests.executors import Executor
from tests.servers import Kind, wait_until

import keyside
from keyside import errors
from keyside.tensorstore import keys

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)


@pytest.fixture(scope="module", params=get_args(Kind))
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    with Grid(request.param) as made, keyside.Client(made.url) as client:
        client.store("m", models.affine())
        spread(made.cluster)
        yield made


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def client(connect: Connect, grid: Grid) -> Any:
    return connect(grid.url, timeout=15)


class Load:
    """Callers that go on and on; each result must be right."""

    def __init__(self, client: Any, tag: str) -> None:
        self.client = client
        self.tag = tag
        self.count = 0
        self.slowest = 0.0
        self._over = False

    async def __aenter__(self) -> "Load":
        await self.client.set(f"{{{self.tag}}}x", X)
        await self.client.set(f"{{{self.tag}}}big", BIG)
        steps = (self.values, self.values, self.large, self.in_place, self.key, self.tensors, self.handle)
        self._tasks = [asyncio.ensure_future(self._go(step)) for step in steps]
        await self.more(20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _go(self, step: Any) -> None:
        number = 0
        while not self._over:
            began = time.monotonic()
            await step(number)
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.count += 1
            number += 1

    async def more(self, count: int) -> None:
        """Wait until so many more calls have ended well."""
        wanted = self.count + count
        while self.count < wanted:
            failed = [task for task in self._tasks if task.done()]
            for task in failed:
                task.result()
            await asyncio.sleep(0.005)

    async def values(self, number: int) -> None:
        np.testing.assert_array_equal(await self.client.predict("m", X + number), (X + number) * 2 + 1)

    async def large(self, number: int) -> None:
        np.testing.assert_array_equal(await self.client.predict("m", BIG + number), (BIG + number) * 2 + 1)

    async def in_place(self, number: int) -> None:
        source = ("x", X) if number % 2 else ("big", BIG)
        await self.client.execute("m", f"{{{self.tag}}}{source[0]}", f"{{{self.tag}}}y")
        np.testing.assert_array_equal(await self.client.get(f"{{{self.tag}}}y"), source[1] * 2 + 1)

    async def key(self, number: int) -> None:
        np.testing.assert_array_equal(await self.client.predict("m", keyside.Key(f"{{{self.tag}}}x")), Y)

    async def tensors(self, number: int) -> None:
        await self.client.set(f"{{{self.tag}}}z", X + number)
        np.testing.assert_array_equal(await self.client.get(f"{{{self.tag}}}z"), X + number)
        assert (await self.client.meta(f"{{{self.tag}}}z")).shape == (2, 4)

    async def handle(self, number: int) -> None:
        job = await self.client.submit("m", X + number)
        np.testing.assert_array_equal(await job.result(), (X + number) * 2 + 1)


async def test_a_slot_moves_under_load(client: Any, grid: Grid) -> None:
    one, other, _ = grid.cluster.primaries
    tag = grid.key_at(one)
    async with Load(client, tag) as load:
        for source, target in ((one, other), (other, one)):
            for _ in move(grid.cluster, keys.slot(tag), source, target, 1):
                await asyncio.sleep(0.02)
            await load.more(20)


async def test_the_slot_of_a_tag_moves_under_load(client: Any, grid: Grid) -> None:
    one, other, _ = grid.cluster.primaries
    slot = slot_of_tag(grid.cluster, one)
    async with Load(client, grid.key_at(one)) as load:
        for _ in move(grid.cluster, slot, one, other, 10):
            await asyncio.sleep(0.01)
        await load.more(50)
        for _ in move(grid.cluster, slot, other, one, 10):
            await asyncio.sleep(0.01)
        await load.more(50)


async def test_what_waits_for_a_result_goes_on_where_its_slot_is_now(client: Any, grid: Grid) -> None:
    one, other, _ = grid.cluster.primaries
    tag = grid.key_at(one)
    await client.set(f"{{{tag}}}x", X)
    grid.executors[0].pause()
    try:
        waiting = asyncio.ensure_future(client.predict("m", keyside.Key(f"{{{tag}}}x")))
        job = await client.submit("m", keyside.Key(f"{{{tag}}}x"))
        asked = asyncio.ensure_future(job.result())
        queued = f"ks:{{{keys.slot_tag(slot_of_tag(grid.cluster, one)).decode()}}}:jobs:CPU"
        await until(lambda: grid.cluster.ask(one, "XLEN", queued) == 2)
        for _ in move(grid.cluster, keys.slot(tag), one, other):
            await asyncio.sleep(0.05)
    finally:
        grid.executors[0].resume()
    try:
        np.testing.assert_array_equal(await waiting, Y)
        np.testing.assert_array_equal(await asked, Y)
    finally:
        for _ in move(grid.cluster, keys.slot(tag), other, one):
            pass


async def until(condition: Any) -> None:
    """`wait_until` for asyncio."""
    await asyncio.to_thread(wait_until, condition, "it is so")
