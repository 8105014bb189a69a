"""Client and AsyncClient when primaries give way to replicas, vanish, hang, or have broken Lua."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid, Load, spread, until
from tests.executors import Executor
from tests.servers import Kind, Server, wait_until

import keyside
from keyside import errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1


@pytest.fixture(scope="module", params=get_args(Kind))
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    with Grid(request.param, 3, 3) as made, keyside.Client(made.url) as client:
        client.store("m", models.affine())
        spread(made.cluster)
        yield made


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
async def client(connect: Connect, grid: Grid) -> Any:
    for node in grid.cluster.nodes:  # whichever of them the tests before have promoted
        if is_primary(grid, node):
            await serve(grid, node)
    return connect(",".join((grid.url, *(f"127.0.0.1:{node.port}" for node in grid.cluster.nodes[1:]))), timeout=15)


def replica_of(grid: Grid, primary: Server) -> Server:
    """A replica of a primary."""
    node_id = grid.cluster.ask(primary, "CLUSTER", "MYID").decode()
    wait_until(lambda: grid.cluster.ask(primary, "CLUSTER", "REPLICAS", node_id), f"{primary} has a replica")
    lines = grid.cluster.ask(primary, "CLUSTER", "REPLICAS", node_id)
    port = int(lines[0].decode().split()[1].split("@")[0].rpartition(":")[2])
    return next(node for node in grid.cluster.nodes if node.port == port)


def is_primary(grid: Grid, node: Server) -> bool:
    return bool(grid.cluster.ask(node, "ROLE")[0] == b"master")


async def serve(grid: Grid, node: Server) -> None:
    """Have an executor at a node that was promoted."""
    if not any(executor.server is node and executor.process is not None for executor in grid.executors):
        grid.executors.append(await asyncio.to_thread(Executor(node, lease_ms=1000, beat_ms=100).start))


async def test_a_primary_gives_way_under_load(client: Any, grid: Grid) -> None:
    primary = grid.owner("{t}")
    replica = replica_of(grid, primary)
    async with Load(client, "t") as load:
        await until(lambda: b"connected" in grid.cluster.ask(replica, "ROLE"))
        grid.cluster.ask(replica, "CLUSTER", "FAILOVER")
        await until(lambda: is_primary(grid, replica))
        await serve(grid, replica)
        await load.more(50)
    assert load.slowest < 10


async def test_who_waits_or_listens_goes_on_at_the_replica(client: Any, grid: Grid) -> None:
    primary = grid.owner("{t}")
    replica = replica_of(grid, primary)
    await until(lambda: b"connected" in grid.cluster.ask(replica, "ROLE"))
    channel = grid.key_at(primary, "news")
    try:
        async with client.subscribe("any", channel=channel) as events:
            waiting = asyncio.ensure_future(client.wait_for_key("{t}:comes", timeout=30))
            await until(lambda: grid.cluster.ask(primary, "PUBSUB", "NUMSUB", "__keyspace@0__:{t}:comes")[1])
            primary.kill()
            await until(lambda: is_primary(grid, replica))
            heard = asyncio.ensure_future(events.next(30))
            await until(lambda: events.breaks)
            await client.set("{t}:comes", X)
            await waiting
            while not heard.done():  # until it listens again, what is said is lost
                await client.publish(channel, "news")
                await asyncio.sleep(0.1)
            assert isinstance((await heard).error, errors.BadValue)
        await serve(grid, replica)  # the tests after this one may begin here
    finally:
        await asyncio.to_thread(primary.start)
        await until(lambda: not is_primary(grid, primary))
        await client.delete("{t}:comes")


async def test_a_primary_is_killed_under_load(client: Any, grid: Grid) -> None:
    primary = grid.owner("{t}")
    replica = replica_of(grid, primary)
    await until(lambda: b"connected" in grid.cluster.ask(replica, "ROLE"))
    try:
        async with Load(client, "t", lossy=True) as load:
            primary.kill()
            await until(lambda: is_primary(grid, replica))
            await serve(grid, replica)
            await load.more(50)
    finally:
        primary.start()
    await until(lambda: replica_of(grid, replica) is primary)
    assert load.slowest < 12


async def test_a_primary_hangs_and_is_replaced(client: Any, grid: Grid) -> None:
    primary = grid.owner("{t}")
    replica = replica_of(grid, primary)
    await until(lambda: b"connected" in grid.cluster.ask(replica, "ROLE"))
    async with Load(client, "t", lossy=True) as load:
        primary.pause()
        try:
            await until(lambda: is_primary(grid, replica))
            await serve(grid, replica)
            await load.more(50)
        finally:
            primary.resume()
    # Until it knows that it was replaced, it takes what is then lost: that is not for the tests after this one.
    await until(lambda: not is_primary(grid, primary) and replica_of(grid, replica) is primary)
    assert load.slowest < 12


async def test_nothing_hangs_beyond_its_deadline(client: Any, grid: Grid) -> None:
    await client.set("{t}x", X)
    with contextlib.suppress(errors.TimedOut):  # the failover of the test before may take this one along
        await client.predict("m", keyside.Key("{t}x"))
    np.testing.assert_array_equal(await client.predict("m", keyside.Key("{t}x")), Y)
    nodes = grid.cluster.nodes
    for node in nodes:
        node.pause()
    try:
        began = time.monotonic()
        calls = [
            client.predict("m", X, timeout=1),
            client.predict("m", keyside.Key("{t}x"), timeout=1),
            client.execute("m", "{t}x", "{t}y", timeout=1),
            client.submit("m", X, timeout=1),
        ]
        found = await asyncio.gather(*calls, return_exceptions=True)
        took = time.monotonic() - began
    finally:
        for node in nodes:
            node.resume()
    assert all(isinstance(error, errors.Unreachable | errors.TimedOut) for error in found), found
    assert took < 3
    np.testing.assert_array_equal(await client.predict("m", X), Y)


@pytest.fixture(scope="module")
def fragile() -> Iterator[Grid]:
    with Grid("valkey", 3) as made, keyside.Client(made.url) as client:
        client.store("m", models.affine())
        spread(made.cluster)
        yield made


async def test_a_node_without_an_executor_is_named(connect: Connect, fragile: Grid) -> None:
    client = connect(fragile.url, timeout=10)
    tag = fragile.key_at(fragile.cluster.primaries[0])
    node = fragile.owner(tag)
    (served,) = (executor for executor in fragile.executors if executor.server is node)
    await client.set(f"{{{tag}}}x", X)
    await asyncio.to_thread(served.stop)
    try:
        text = rf"no answer within 0\.5 s: no executor .* on the node 127\.0\.0\.1:{node.port}, which has its queue;"
        with pytest.raises(errors.TimedOut, match=text):
            await client.predict("m", keyside.Key(f"{{{tag}}}x"), timeout=0.5)
        np.testing.assert_array_equal(await client.predict("m", X), Y)
    finally:
        await asyncio.to_thread(served.start)


def queued(node: Server) -> int:
    """How many jobs are queued at a node."""
    with node.client() as db:
        return sum(db.xlen(key) for key in db.keys("ks:{*}:jobs:CPU"))


@pytest.mark.parametrize("how", ["stop", "kill"])
async def test_what_may_run_anywhere_does_not_wait_where_no_executor_is_left(
    connect: Connect, fragile: Grid, how: str
) -> None:
    client = connect(fragile.url, timeout=30)
    node = fragile.cluster.primaries[-1]
    (served,) = (executor for executor in fragile.executors if executor.server is node)
    big = np.ones((20_000, 4), np.float32)
    for _ in range(10):
        np.testing.assert_array_equal(await client.predict("m", X), Y)
    served.pause()  # what comes to it now it may have claimed, or not
    inputs = [big if n % 8 == 0 else X + n for n in range(40)] + [(X + n).tolist() for n in range(10)]
    calls = [asyncio.ensure_future(client.predict("m", x)) for x in inputs]
    await until(lambda: queued(node))
    began = time.monotonic()
    try:
        if how == "kill":
            served.kill()
        else:  # as an executor that stops and has said so
            served.resume()
            await asyncio.to_thread(served.stop)
        for x, call in zip(inputs, calls, strict=True):
            np.testing.assert_array_equal(await call, np.asarray(x) * 2 + 1)
        assert time.monotonic() - began < 15
        np.testing.assert_array_equal(await client.predict("m", X), Y)
    finally:
        await asyncio.to_thread(served.start)


def added(db: Any) -> dict[bytes, int]:
    """How many jobs the queues of a node have ever had."""
    return {key: db.xinfo_stream(key)["entries-added"] for key in db.keys("ks:{*}:jobs:CPU")}


async def test_a_client_that_was_idle_looks_before_it_chooses(connect: Connect, fragile: Grid) -> None:
    client = connect(fragile.url, timeout=30)
    np.testing.assert_array_equal(await client.predict("m", X), Y)
    node = fragile.cluster.primaries[-1]
    (served,) = (executor for executor in fragile.executors if executor.server is node)
    await asyncio.to_thread(served.stop)
    try:
        await asyncio.sleep(3.1)  # what it knows is outdated then
        with node.client() as db:
            before = added(db)
            for _ in range(10):
                np.testing.assert_array_equal(await client.predict("m", X), Y)
            assert added(db) == before
    finally:
        await asyncio.to_thread(served.start)


async def test_a_node_whose_lua_is_broken(connect: Connect, fragile: Grid) -> None:
    client = connect(fragile.url, timeout=10)
    grid = fragile
    home = grid.owner("m")
    broken = next(node for node in grid.cluster.primaries if node is not home)
    tag = grid.key_at(broken)
    await client.set(f"{{{tag}}}x", X)
    for _ in range(10):
        np.testing.assert_array_equal(await client.predict("m", X), Y)
    with pytest.raises(Exception, match=r"non local|slot"):
        grid.cluster.ask(broken, "EVAL", "return redis.call('MSET', 'a', 1, 'b', 2)", 0)
    began = time.monotonic()
    for _ in range(50):
        np.testing.assert_array_equal(await client.predict("m", X), Y)
    assert time.monotonic() - began < 5
    rows = np.ones((500, 4), np.float32)
    np.testing.assert_array_equal(await client.predict_many("m", rows, batch=10), rows * 2 + 1)
    began = time.monotonic()
    with pytest.raises(errors.TryAgain, match=rf"127.0.0.1:{broken.port}.*non local key.*restart"):
        await client.execute("m", f"{{{tag}}}x", f"{{{tag}}}y", timeout=1.5)
    assert time.monotonic() - began < 2.5
    np.testing.assert_array_equal(await client.get(f"{{{tag}}}x"), X)
    broken.restart()
    await asyncio.to_thread(grid.cluster._await, [broken], "cluster_state:ok", "CLUSTER", "INFO")
    await asyncio.to_thread(grid.cluster.load_library)
    for executor in grid.executors:
        if executor.server is broken:
            executor.stop()
            await asyncio.to_thread(executor.start)
    await asyncio.to_thread(spread, grid.cluster)
    await client.set(f"{{{tag}}}x", X)
    await client.execute("m", f"{{{tag}}}x", f"{{{tag}}}y")
    np.testing.assert_array_equal(await client.get(f"{{{tag}}}y"), Y)
