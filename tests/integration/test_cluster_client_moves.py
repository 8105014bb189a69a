"""Client and AsyncClient while the cluster changes under them: slots move, primaries give way, vanish or hang."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid, Load, move, slot_of_tag, spread, until
from tests.servers import Kind

import keyside
from keyside.tensorstore import keys

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1


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


async def test_a_slot_moves_under_load(client: Any, grid: Grid) -> None:
    one, other, _ = grid.cluster.primaries
    tag = grid.key_at(one)
    async with Load(client, tag) as load:
        for source, target in ((one, other), (other, one)):
            for _ in move(grid.cluster, keys.slot(tag), source, target, 50):
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
