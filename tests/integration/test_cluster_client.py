"""Client and AsyncClient on clusters: every public method gives what it gives on one server."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
import redis as redis_py
import redis.asyncio
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid, spread, until
from tests.lua import jobs
from tests.servers import Kind

import keyside
from keyside import errors
from keyside.tensorstore import keys
from keyside.tensorstore.command import text

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
SHAPES = [name for name in jobs.SHAPES if not name.startswith(b"ks:{")]
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)
numbers = itertools.count()


@pytest.fixture(scope="module", params=get_args(Kind))
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    with Grid(request.param) as made, keyside.Client(made.url) as client:
        for name in ("m", "{other}", "echo"):
            client.store(name, models.echo_int64() if name == "echo" else models.affine())
        spread(made.cluster)
        yield made


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
async def client(connect: Connect, grid: Grid) -> AsyncIterator[Any]:
    made = connect(grid.url, timeout=10)
    yield made
    await made.delete(*[key async for key in made.tensors()])


def nothing_left(grid: Grid) -> bool:
    """Whether no key of a request is left but for mailboxes: what was fetched is deleted behind the caller's back."""
    return not [key for key in grid.private() if b":mb:" not in key]


async def test_values_in_hand(client: Any, grid: Grid) -> None:
    for x in (X, BIG):
        for _ in range(3):
            np.testing.assert_array_equal(await client.predict("m", x), x * 2 + 1)
    assert (await client.predict("m", X.tolist())).tolist() == Y.tolist()
    assert list(await client.predict("m@1", {"x": X}, outputs="dict")) == ["y"]
    await until(lambda: nothing_left(grid))


async def test_values_in_hand_go_to_all_nodes(client: Any, grid: Grid) -> None:
    await client.reset_stats("m")
    for _ in range(40):
        await client.predict("m", X)
    stats = await client.model_stats("m")
    assert stats.calls == 40
    uid = (await client.model_info("m")).uid
    counts = []
    for node in grid.cluster.primaries:
        with node.client() as db:
            counts += [int(db.hget(key, "calls") or 0) for key in db.keys(f"ks:{{*}}:stats:{uid}-1")]
    assert sum(counts) == 40
    assert len(counts) == 3
    assert min(counts) > 0


async def test_tensors(client: Any, grid: Grid) -> None:
    names: list[str | bytes] = [*SHAPES, *grid.apart()]
    for number, key in enumerate(names):
        for value in (X + number, BIG):
            await client.set(key, value, ex=60)
            np.testing.assert_array_equal(await client.get(key), value)
            assert (await client.meta(key)).shape == value.shape
        assert await client.exists(key)
        assert await client.expire(key, 50)
        with grid.owner(key).client() as db:
            assert db.exists(key)
    listed = [key async for key in client.tensors()]
    assert sorted(listed) == sorted(text(key) for key in {*SHAPES, *map(str.encode, grid.apart())})
    assert [key async for key in client.tensors("k1")] == [key for key in grid.apart() if key.startswith("k1")]
    assert await client.delete(*listed, "not there") == len(listed)
    assert not [key async for key in client.tensors()]
    with pytest.raises(errors.NoTensor):
        await client.get("k0")
    with pytest.raises(errors.WrongType):
        await client.delete("k0", "m")


async def test_copy_and_rename_stay_in_a_slot(client: Any, grid: Grid) -> None:
    one, other, _ = grid.apart()
    await client.set(one, X)
    assert await client.copy(one, f"{{{one}}}:copy")
    await client.rename(f"{{{one}}}:copy", f"{{{one}}}:renamed")
    np.testing.assert_array_equal(await client.get(f"{{{one}}}:renamed"), X)
    for call in (client.copy(one, other), client.rename(one, other)):
        with pytest.raises(errors.CrossSlot, match=rf"'{one}' \(slot {keys.slot(one)}\).*\{{user42\}}"):
            await call
    await client.delete(one, f"{{{one}}}:renamed")


async def test_tensors_in_place(client: Any, grid: Grid) -> None:
    for node in grid.cluster.primaries:
        tag = grid.key_at(node)
        x, y = f"{{{tag}}}:x", f"{{{tag}}}:y"
        for value in (X, BIG):
            await client.set(x, value)
            await client.execute("m", x, y)
            np.testing.assert_array_equal(await client.get(y), value * 2 + 1)
            np.testing.assert_array_equal(await client.predict("m", keyside.Key(x)), value * 2 + 1)
            np.testing.assert_array_equal(await client.predict("m", {"x": keyside.Key(x, "ref")}), value * 2 + 1)
            await client.execute("m", value, y)
            np.testing.assert_array_equal(await client.get(y), value * 2 + 1)
            assert await client.predict("m", keyside.Key(x, "own")) is not None
            assert not await client.exists(x)
        await client.delete(y)


async def test_odd_names(client: Any, grid: Grid) -> None:
    for name in SHAPES:
        await client.set(name, X)
        # In the slot of the first by force, whatever braces its name has.
        out = b"{%b}out" % keys.slot_tag(keys.slot(name))
        await client.execute("m", name, out)
        np.testing.assert_array_equal(await client.get(out), Y)
        assert await client.delete(name, out) == 2


async def test_handles(client: Any, grid: Grid) -> None:
    tag = grid.key_at(grid.cluster.primaries[2])
    await client.set(f"{{{tag}}}:x", BIG)
    jobs = [await client.submit("m", value) for value in (X, BIG)]
    jobs.append(await client.submit("m", keyside.Key(f"{{{tag}}}:x")))
    for job, value in zip(jobs, (X, BIG, BIG), strict=True):
        assert "@" in job.job_id
        np.testing.assert_array_equal(await job.result(), value * 2 + 1)
        np.testing.assert_array_equal(await job.result(), value * 2 + 1)
        assert await job.done()
        assert not await job.cancel()
    job = await client.submit("m", f"{{{tag}}}:x", outputs=f"{{{tag}}}:y")
    assert await job.result() is None
    np.testing.assert_array_equal(await client.get(f"{{{tag}}}:y"), BIG * 2 + 1)
    await client.delete(f"{{{tag}}}:x", f"{{{tag}}}:y")


async def test_cancel(client: Any, grid: Grid) -> None:
    tag = grid.key_at(grid.cluster.primaries[1])
    await client.set(f"{{{tag}}}:x", X)
    for executor in grid.executors:
        executor.pause()
    try:
        jobs = [await client.submit("m", X), await client.submit("m", f"{{{tag}}}:x", outputs=f"{{{tag}}}:y")]
        for job in jobs:
            assert await job.cancel()
            with pytest.raises(errors.Cancelled):
                await job.result(timeout=5)
        waits = await client.submit("m", X)
        with pytest.raises(errors.TimedOut, match="goes on"):
            await waits.result(timeout=0.05)
    finally:
        for executor in grid.executors:
            executor.resume()
    for executor in grid.executors:
        await until(executor.registered)  # the tests after this one may count on it
    np.testing.assert_array_equal(await waits.result(), Y)
    assert not await client.exists(f"{{{tag}}}:y")


async def test_many_rows(client: Any, grid: Grid) -> None:
    rows = np.random.default_rng(2).random((3000, 4), np.float32)
    found = await client.predict_many("m", rows, batch=100, window=16)
    np.testing.assert_array_equal(found, rows * 2 + 1)
    wide = await client.predict_many("m", np.tile(rows, (10, 1)), batch=10_000)
    np.testing.assert_array_equal(wide, np.tile(rows, (10, 1)) * 2 + 1)
    with pytest.raises(errors.BadShape):
        await client.predict_many("m", rows[:, :3], batch=100)
    await until(lambda: nothing_left(grid))


async def test_keys_in_different_slots(client: Any, grid: Grid) -> None:
    one, other, third = grid.apart()
    await client.set(one, X)
    await client.set(other, BIG[:2])
    shown = rf"'{one}' \(slot {keys.slot(one)}\), '{other}' \(slot {keys.slot(other)}\).*\{{user42\}}.*move=True"
    for call in (
        client.execute("m", one, other),
        client.submit("m", one, outputs=other),
        client.predict("m", [keyside.Key(one), keyside.Key(other)]),
    ):
        with pytest.raises(errors.CrossSlot, match=shown):
            await call
    for value in (X, BIG):
        await client.set(one, value)
        await client.execute("m", one, third, move=True)
        np.testing.assert_array_equal(await client.get(third), value * 2 + 1)
        assert await (await client.submit("m", one, outputs=other, move=True)).result() is None
        np.testing.assert_array_equal(await client.get(other), value * 2 + 1)
    with pytest.raises(errors.BadInput):
        await client.predict("m", [keyside.Key(one), keyside.Key(other)], move=True)
    with pytest.raises(errors.NoTensor, match="nothing here"):
        await client.execute("m", "nothing here", third, move=True)
    await client.delete(one, other, third)
    await until(lambda: nothing_left(grid))


async def test_models(client: Any, grid: Grid) -> None:
    names = grid.apart(f"model-{next(numbers)}-")
    for name in names:
        stored = await client.store(name, models.affine(scale=3), tag="t")
        assert (stored.version, stored.state, stored.missing) == (1, "ready", ())
        assert await client.get_model(name) == models.affine(scale=3)
        assert (await client.version(name)).target == f"{name}@1"
        assert (await client.model_info(name)).versions[1].tag == "t"
        # Known at its home from the first moment on, whichever node was chosen for the call.
        for _ in range(6):
            np.testing.assert_array_equal(await client.predict(name, X), X * 3 + 1)
    spread(grid.cluster)
    assert {name async for name, _ in client.models()} >= {"m", "echo", "{other}", *names}
    for name in names:
        assert (await client.model_stats(name)).calls == 6
        await client.reset_stats(name)
        assert (await client.model_stats(name)).calls == 0
        await client.delete_model(name)
        with pytest.raises(errors.NoModel):
            await client.model_info(name)
    with pytest.raises(errors.NoModel):
        await client.predict("no such model", X)
    assert await client.ping() > 0


async def test_a_node_that_has_yet_to_hear_of_a_model(client: Any, grid: Grid) -> None:
    home = grid.owner("m")
    node = next(one for one in grid.cluster.primaries if one is not home)
    tag = grid.key_at(node)
    await client.set(f"{{{tag}}}x", X)
    own = grid.cluster.ask(node, "FCALL_RO", "AI_NODE", 0)[1]
    catalog = keys.NodeKeys(own).catalog
    with node.client() as db:
        records = db.hgetall(catalog)
        db.hdel(catalog, "m", "m@1")
        waiting = asyncio.ensure_future(client.predict("m", keyside.Key(f"{{{tag}}}x")))
        # Without a key it is asked of the home.
        for _ in range(10):
            np.testing.assert_array_equal(await client.predict("m", X), Y)
        db.hset(catalog, mapping=records)
    np.testing.assert_array_equal(await waiting, Y)
    with pytest.raises(errors.NoModel):
        await client.predict("m@7", keyside.Key(f"{{{tag}}}x"))
    with pytest.raises(errors.NoModel):
        await client.predict("no such model", keyside.Key(f"{{{tag}}}x"))


async def test_any_node_and_any_way_to_name_it(connect: Connect, grid: Grid) -> None:
    ports = [node.port for node in grid.cluster.primaries]
    addresses = [
        grid.cluster.primaries[1].url_unix,
        f"redis://127.0.0.1:1,127.0.0.1:{ports[2]},127.0.0.1:{ports[0]}",
        f"redis://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}/0",
    ]
    with redis_py.RedisCluster(port=ports[1], host="127.0.0.1") as cluster:
        clients = [connect(address) for address in (*addresses, cluster, redis.asyncio.RedisCluster.from_url(grid.url))]
    for client in clients:
        np.testing.assert_array_equal(await client.predict("m", X), Y)
        await client.set("k0", X)
        await client.delete("k0")


async def test_errors_of_the_caller_come_at_once(client: Any, grid: Grid) -> None:
    with pytest.raises(errors.BadShape):
        await client.predict("m", X[:, :3])
    with pytest.raises(errors.BadDtype):
        await client.predict("m", X.astype(np.int32))
    with pytest.raises(errors.NoTensor):
        await client.execute("m", "{q}x", "{q}y")
    with pytest.raises(errors.BadArg):
        await client.predict("m", X, timeout=0)


async def test_user_and_name_hold_for_all_nodes(connect: Connect, grid: Grid) -> None:
    nodes = grid.cluster.primaries
    for node in nodes:
        grid.cluster.ask(node, "ACL", "SETUSER", "u", "on", ">p", "~*", "+@all", "&*")
    client = connect(f"redis://u:p@127.0.0.1:{nodes[0].port}", client_name="mine")
    for _ in range(20):
        await client.predict("m", X)
    for node in nodes:
        with node.client() as db:
            assert any(one["name"] == "mine" and one["user"] == "u" for one in db.client_list())
    with pytest.raises(errors.NoPerm):
        await connect(f"redis://u:wrong@127.0.0.1:{nodes[0].port}").predict("m", X)
