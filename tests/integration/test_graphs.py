# ruff: noqa: E501  # programs as they are sent
"""Stored graphs and DAGs through both clients: run by an executor, in its memory, as one job."""

import inspect
import time
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.executors import Executor

import keyside
from keyside import Graph, Key, errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
BIG = np.arange(40_000, dtype=np.float32).reshape(10_000, 4)
SOURCE = """
def scale(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0] * float(args[0])

def crop(tensors: List[Tensor], keys: List[str], args: List[str]):
    return tensors[0] + tensors[1].sum()

def fail(tensors: List[Tensor], keys: List[str], args: List[str]):
    raise ValueError("no luck")
    return tensors[0]
"""


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
async def client(connect: Connect, executor: Executor) -> Any:
    made = connect(executor.url, timeout=10)
    await made.store("affine", models.affine())
    await made.store("half", models.affine(0.5, 0.0))
    return made


def inner(client: Any) -> Any:
    """The client itself: making a graph or a DAG is no I/O."""
    return getattr(client, "inner", client)


async def done(found: Any) -> Any:
    return await found if inspect.isawaitable(found) else found


def cascade() -> Graph:
    """Affine, and half of it where its largest element is more than 10."""
    g = Graph("cascade")
    x = g.input("x", "FLOAT", (-1, 4))
    y = g.run("affine", x)
    g.output("y", g.when(y.max() > 10, then=lambda: g.run("half", {"x": y}), otherwise=lambda: y))
    g.output("first", y)
    return g


async def test_a_stored_graph_is_a_target_like_any_model(client: Any, db: Any) -> None:
    stored = await client.store_graph("cascade", cascade())
    assert (stored.state, stored.info.backend) == ("ready", "GRAPH")
    assert stored.info.options == {"uses": ["affine", "half"]}
    again = await client.store_graph(cascade())
    assert again.target == stored.target
    found = await client.predict("cascade", X)
    assert list(found) == ["y", "first"]
    np.testing.assert_array_equal(found["y"], (X * 2 + 1) / 2)
    np.testing.assert_array_equal(found["first"], X * 2 + 1)
    np.testing.assert_array_equal((await client.predict("cascade@1", {"x": X[:1]}))["y"], X[:1] * 2 + 1)
    await client.set("in", X)
    await client.execute("cascade", "in", ["out", "first"])
    np.testing.assert_array_equal(await client.get("out"), (X * 2 + 1) / 2)
    large = await client.predict("cascade", BIG)
    np.testing.assert_array_equal(large["y"], (BIG * 2 + 1) / 2)
    handle = await client.submit("cascade", X)
    assert list(await handle.result()) == ["y", "first"]
    assert "cascade" in [listed.name async for listed in client.models()]
    assert (await client.model_stats("cascade")).calls == 5
    assert not [key for key in db.keys("*") if b"tmp" in key or b":cap:" in key or b":out:" in key]


async def test_graphs_in_graphs(client: Any) -> None:
    await client.store_graph("cascade", cascade())
    g = Graph()
    x = g.input("x")
    found = g.run("cascade", x)
    g.output("y", g.run("cascade@1", found["first"])["first"])
    await client.store_graph("outer", g)
    np.testing.assert_array_equal(await client.predict("outer", X), (X * 2 + 1) * 2 + 1)


async def test_a_graph_of_no_models(client: Any) -> None:
    g = Graph()
    x = g.input("x")
    g.output("y", g.when(x.rows() > 1, then=lambda: x, otherwise=np.zeros((1, 4), np.float32)))
    await client.store_graph("choose", g)
    np.testing.assert_array_equal(await client.predict("choose", X), X)
    np.testing.assert_array_equal(await client.predict("choose", X[:1]), np.zeros((1, 4), np.float32))


async def test_a_member_follows_its_name(client: Any) -> None:
    await client.store_graph("cascade", cascade())
    await client.store("affine", models.affine(3.0, 0.0))
    np.testing.assert_array_equal((await client.predict("cascade", X))["first"], X * 3)


async def test_scripts_and_rows(client: Any) -> None:
    await client.store_script("prep", SOURCE, entry_points=["scale", "crop", "fail"])
    g = Graph()
    image, boxes = g.input("image"), g.input("boxes")
    plates = g.each(boxes, lambda box: g.script("prep", "crop", image, box), limit=3)
    g.output("plates", g.script("prep", "scale", plates, args=[2]))
    await client.store_graph("read", g)
    boxes_of = np.arange(6, dtype=np.float32).reshape(3, 2)
    found = await client.predict("read", {"image": X, "boxes": boxes_of})
    np.testing.assert_array_equal(found, np.stack([X + box.sum() for box in boxes_of]) * 2)
    assert (await client.predict("read", {"image": X, "boxes": boxes_of[:0]})).shape == (0,)
    with pytest.raises(errors.RunFailed, match=r"each 'boxes': 4 rows; the limit of this step is 3"):
        await client.predict("read", {"image": X, "boxes": np.zeros((4, 2), np.float32)})
    failing = Graph()
    failing.output("y", failing.script("prep", "fail", failing.input("x")))
    await client.store_graph("failing", failing)
    with pytest.raises(errors.RunFailed, match=r"script 'prep' 'fail': .*no luck"):
        await client.predict("failing", X)


async def test_what_a_graph_cannot_do(client: Any) -> None:
    g = Graph()
    g.output("y", g.run("affine", g.input("x")))
    await client.store_graph("thin", g)
    with pytest.raises(errors.BadShape, match=r"run 'affine': input 'x' of 'affine@1' takes shape \[-1, 4\]"):
        await client.predict("thin", X[:, :3])
    with pytest.raises(errors.BadDtype, match=r"run 'affine': input 'x' of 'affine@1' takes FLOAT, got INT8"):
        await client.predict("thin", X.astype(np.int8))
    with pytest.raises(errors.BadInput):
        await client.predict("thin", [X, X])
    missing = Graph()
    missing.output("y", missing.run("nobody", missing.input("x")))
    await client.store_graph("missing", missing)
    with pytest.raises(errors.NoModel, match="no model 'nobody'"):
        await client.predict("missing", X)


@pytest.mark.parametrize(
    ("blob", "options", "text"),
    [
        (b"not json", {}, "the graph is not JSON"),
        (b'{"inputs":["x"],"outputs":["a"],"steps":[{"let":"a","from":"b"},{"let":"b","from":"a"}]}', {}, "a cycle: a -> b -> a"),
        (b'{"inputs":["x"],"outputs":["y"],"steps":[{"run":"m","inputs":["x"],"outputs":["y"]}]}', {}, "option uses lacks 'm'"),
        (b'{"inputs":["x"],"outputs":["x"],"steps":[]}', {"uses": ["m"]}, "option uses has 'm'"),
    ],
)  # fmt: skip
async def test_programs_that_are_none(client: Any, blob: bytes, options: Any, text: str) -> None:
    with pytest.raises(errors.ModelFailed, match=text):
        await client.store("bad", blob, backend="GRAPH", options=options)


async def test_a_graph_waits_for_what_it_runs(client: Any, executor: Executor) -> None:
    g = Graph()
    g.output("y", g.run("late", g.input("x")))
    await client.store_graph("waits", g)
    await client.store("late", models.affine(7.0, 0.0), wait=False)
    np.testing.assert_array_equal(await client.predict("waits", X), X * 7)
    await client.store("broken", b"no model", wait=False)
    bad = Graph()
    bad.output("y", bad.run("broken", bad.input("x")))
    await client.store_graph("waits", bad)
    with pytest.raises(errors.ModelFailed, match="broken@1"):
        await client.predict("waits", X)


# --- DAGs


async def test_a_dag(client: Any, db: Any) -> None:
    await client.set("x", X)
    dag = inner(client).dag().load("x").tensorset("one", X[:1]).modelexecute("affine", "x", "y")
    dag.modelexecute("half", ["y"], ["z"]).tensorget("y").tensorget("one").tensorget("z").persist("y", "z")
    found = await done(dag.execute())
    assert [one is None for one in found] == [True, True, True, False, False, False]
    np.testing.assert_array_equal(found[3], X * 2 + 1)
    np.testing.assert_array_equal(found[4], X[:1])
    np.testing.assert_array_equal(await client.get("z"), (X * 2 + 1) / 2)
    np.testing.assert_array_equal(await client.get("y"), X * 2 + 1)


async def test_a_dag_without_keys(client: Any, db: Any) -> None:
    dag = inner(client).dag(readonly=True).tensorset("x", X).modelexecute("affine", "x", "x").tensorget("x")
    np.testing.assert_array_equal((await done(dag.execute()))[2], X * 2 + 1)
    np.testing.assert_array_equal((await done(dag.execute()))[2], X * 2 + 1)


async def test_large_tensors_in_a_dag(client: Any, db: Any) -> None:
    dag = (
        inner(client).dag().tensorset("x", BIG).modelexecute("affine", "x", "large").tensorget("large").persist("large")
    )
    np.testing.assert_array_equal((await done(dag.execute()))[2], BIG * 2 + 1)
    np.testing.assert_array_equal(await client.get("large"), BIG * 2 + 1)
    await client.set("ref", BIG)
    dag = inner(client).dag().tensorset("r", Key("ref", "ref")).tensorget("r")
    np.testing.assert_array_equal((await done(dag.execute()))[1], BIG)
    assert not [key for key in db.keys("*") if b"tmp" in key or b":out:" in key]


async def test_nothing_is_persisted_if_an_operation_fails(client: Any, db: Any) -> None:
    await client.set("y", X)
    narrow = X[:, :3].copy()

    def dag() -> Any:
        made = inner(client).dag().tensorset("x", X).tensorset("n", narrow).modelexecute("affine", "x", "y")
        return made.modelexecute("affine", "n", "q").tensorget("q").persist("y")

    found = await done(dag().results())
    assert found[:3] == [None, None, None]
    assert isinstance(found[3], errors.BadShape)
    assert found[4] == "NA"
    with pytest.raises(errors.BadShape):
        await done(dag().execute())
    np.testing.assert_array_equal(await client.get("y"), X)


async def test_scripts_and_graphs_in_a_dag(client: Any, db: Any) -> None:
    await client.store_script("prep", SOURCE, entry_points=["scale", "crop", "fail"])
    await client.store_graph("cascade", cascade())
    dag = inner(client).dag().tensorset("x", X).scriptexecute("prep", "scale", "x", "s", args=["10"])
    dag.modelexecute("cascade", "s", ["y", "f"]).tensorget("y")
    np.testing.assert_array_equal((await done(dag.execute()))[3], (X * 20 + 1) / 2)
    dag = inner(client).dag().tensorset("x", X).scriptexecute("prep", "fail", "x", "s").tensorget("s")
    with pytest.raises(errors.RunFailed, match="no luck"):
        await done(dag.execute())


async def test_dags_that_are_refused(client: Any) -> None:
    with pytest.raises(errors.NoModel):
        await done(inner(client).dag().tensorset("x", X).modelexecute("nobody", "x", "y").execute())
    with pytest.raises(errors.BadArg, match="INPUT key cannot be found in DAG: 'q'"):
        await done(inner(client).dag().tensorset("x", X).modelexecute("affine", "q", "y").execute())


async def test_the_deadline_of_a_dag(client: Any, executor: Executor) -> None:
    executor.pause()
    began = time.monotonic()
    try:
        dag = inner(client).dag(timeout=0.3).tensorset("x", X).modelexecute("affine", "x", "y")
        with pytest.raises(errors.TimedOut):
            await done(dag.execute())
    finally:
        executor.resume()
    assert time.monotonic() - began < 5


def test_a_graph_is_public() -> None:
    assert isinstance(keyside.Graph(), Graph)
