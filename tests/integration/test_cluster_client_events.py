"""Triggers, their results and waiting for keys, through both clients of a cluster whose slots move."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid, move, spread, until
from tests.servers import Kind, Server
from tests.triggers import listened_to

import keyside
from keyside import OnPublish, OnSet, Payload, errors
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
async def client(connect: Connect, grid: Grid) -> Any:
    # That a trigger is gone comes to the other nodes later: none must be taken for one of this test.
    await until(lambda: all(at_rest(node) for node in grid.cluster.primaries))
    return connect(grid.url, timeout=15)


def at_rest(node: Server) -> bool:
    """Whether a node has no triggers, and nobody listens there."""
    with node.client() as db:
        return not db.fcall_ro("AI_TRIGGERSCAN", 0, 0)[1] and not listened_to(db)


def listens(grid: Grid, node: Server, key: str) -> bool:
    return bool(grid.cluster.ask(node, "PUBSUB", "NUMSUB", f"__keyspace@0__:{key}")[1])


async def test_waiting_at_each_node(client: Any, grid: Grid) -> None:
    for key in grid.apart("wait"):
        waiting = asyncio.ensure_future(client.wait_for_key(key, timeout=10))
        await until(lambda key=key: listens(grid, grid.owner(key), key))
        await client.set(key, X)
        await waiting
        waiting = asyncio.ensure_future(client.wait_for_key(key, "gone", timeout=10))
        await until(lambda key=key: listens(grid, grid.owner(key), key))
        await client.delete(key)
        await waiting


@pytest.mark.parametrize("there", [False, True])
async def test_waiting_while_the_slot_moves(client: Any, grid: Grid, there: bool) -> None:
    one, other, _ = grid.cluster.primaries
    key = grid.key_at(one, "moves")
    if there:
        await client.set(key, X)
    waiting = asyncio.ensure_future(client.wait_for_key(key, "gone" if there else "exists", timeout=15))
    await until(lambda: listens(grid, one, key))
    for _ in move(grid.cluster, keys.slot(key), one, other):
        await asyncio.sleep(0.05)
    try:
        assert not waiting.done()
        start = asyncio.get_running_loop().time()
        await until(lambda: listens(grid, other, key))
        assert asyncio.get_running_loop().time() - start < 2  # told, not found at the next look
        if there:
            await client.delete(key)
        else:
            await client.set(key, X)
        await waiting
    finally:
        await client.delete(key)
        for _ in move(grid.cluster, keys.slot(key), other, one):
            pass


async def test_setting_while_the_slot_moves(client: Any, grid: Grid) -> None:
    one, other, _ = grid.cluster.primaries
    tag = grid.key_at(one, "ask")
    names = [f"{{{tag}}}:{n}" for n in range(10)]
    for name in names[:5]:
        await client.set(name, X)
    for array in (X, np.arange(100_000.0)):
        for source, target in ((one, other), (other, one)):
            for _ in move(grid.cluster, keys.slot(tag), source, target, 2):
                for name in names:  # on either side, and some on none
                    await client.set(name, array)
                    np.testing.assert_array_equal(await client.get(name), array)
    await client.delete(*names)


async def test_a_trigger_on_each_node(client: Any, grid: Grid) -> None:
    await client.set_trigger("boxes", OnSet("frame:{cam}"), "m", ["frame:{cam}"], outputs=["boxes:{cam}"])
    tags = [f"{{{key}}}" for key in grid.apart("cam")]
    await until(
        lambda: all(grid.cluster.ask(node, "FCALL_RO", "AI_TRIGGERSCAN", 0, 0)[1] for node in grid.cluster.primaries)
    )
    async with client.subscribe("boxes") as events:
        for tag in tags:
            await client.set(f"frame:{tag}", X)
        found = {event.source: event for event in [await events.next(10) for _ in tags]}
    assert set(found) == {f"frame:{tag}" for tag in tags}
    for tag in tags:
        assert found[f"frame:{tag}"].error is None
        np.testing.assert_array_equal(next(iter(found[f"frame:{tag}"].outputs.values())), Y)
        np.testing.assert_array_equal(await client.get(f"boxes:{tag}"), Y)
    stats = await client.trigger_stats("boxes", reset=True)
    assert (stats.fired, stats.done, stats.errors) == (3, 3, 0)
    stats = await client.trigger_stats("boxes")
    assert (stats.fired, stats.done) == (0, 0)
    assert [one.name async for one in client.triggers()] == ["boxes"]
    await client.delete_trigger("boxes")
    with pytest.raises(errors.NoTrigger):
        await client.trigger("boxes")


@pytest.mark.parametrize("sharded", [False, True])
async def test_messages_on_channels_of_each_node(client: Any, grid: Grid, sharded: bool) -> None:
    word = "SHARDNUMSUB" if sharded else "NUMSUB"
    for channel in grid.apart("in"):
        await client.set_trigger("t", OnPublish(channel, sharded=sharded), "m", Payload())
        await until(lambda channel=channel: grid.cluster.ask(grid.owner(channel), "PUBSUB", word, channel)[1])
        async with client.subscribe("t") as events:
            assert await client.publish(channel, X, sharded=sharded) == 1
            event = await events.next(10)
            assert event.error is None
            np.testing.assert_array_equal(next(iter(event.outputs.values())), Y)
        await client.delete_trigger("t")
