"""Graphs and DAGs on clusters: each node resolves the members by itself, and its own executors run them."""

import asyncio
import inspect
from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid
from tests.servers import Kind

import keyside
from keyside import errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
BIG = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
Y = (X * 2 + 1) * 3


@pytest.fixture(scope="module", params=get_args(Kind))
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    with Grid(request.param) as made, keyside.Client(made.url) as client:
        client.store("first", models.affine())
        client.store("{second}", models.affine(3.0, 0.0))
        g = client.graph("cascade")
        y = g.run("first", g.input("x"))
        g.output("y", g.when(y.max() > 0, then=lambda: g.run("{second}", y), otherwise=lambda: y))
        client.store_graph(g)
        yield made


@pytest.fixture(params=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, grid: Grid) -> AsyncIterator[Any]:
    connect: Connect
    async for connect in connector(request.param):
        made = connect(grid.url, timeout=10)
        yield made
        await made.delete(*[key async for key in made.tensors()])


def inner(client: Any) -> Any:
    return getattr(client, "inner", client)


async def done(found: Any) -> Any:
    return await found if inspect.isawaitable(found) else found


async def test_a_graph_runs_on_every_node(client: Any, grid: Grid) -> None:
    await client.reset_stats("cascade")
    for x in (X, BIG):
        for _ in range(10):
            np.testing.assert_array_equal(await client.predict("cascade", x), (x * 2 + 1) * 3)
    assert (await client.model_stats("cascade")).calls == 20
    for key in grid.apart():
        await client.set(key, X)
        await client.execute("cascade", key, f"{{{key}}}:y")
        np.testing.assert_array_equal(await client.get(f"{{{key}}}:y"), Y)


async def test_dags_go_to_the_owner_of_their_keys(client: Any, grid: Grid) -> None:
    for key in grid.apart():
        await client.set(key, X)
        out = f"{{{key}}}:out"
        for value in (X, BIG):
            dag = inner(client).dag().load(key).tensorset("t", value).modelexecute("cascade", "t", out)
            found = await done(dag.tensorget(key).tensorget(out).persist(out).execute())
            np.testing.assert_array_equal(found[2], X)
            np.testing.assert_array_equal(found[3], (value * 2 + 1) * 3)
            np.testing.assert_array_equal(await client.get(out), (value * 2 + 1) * 3)


async def test_dags_without_keys_run_anywhere(client: Any, grid: Grid) -> None:
    for _ in range(12):
        for value in (X, BIG):
            dag = inner(client).dag().tensorset("x", value).modelexecute("first", "x", "y").tensorget("y")
            np.testing.assert_array_equal((await done(dag.execute()))[2], value * 2 + 1)

    def left() -> list[bytes]:
        return [key for key in grid.private() if b":tmp:" in key or b":out:" in key or b":cap:" in key]

    # What has been fetched is deleted behind the caller's back.
    for _ in range(100):
        if not left():
            break
        await asyncio.sleep(0.05)
    assert left() == []


async def test_keys_of_two_slots(client: Any, grid: Grid) -> None:
    one, other, _ = grid.apart()
    with pytest.raises(errors.CrossSlot):
        await done(inner(client).dag().load(one, other).tensorget(one).execute())
