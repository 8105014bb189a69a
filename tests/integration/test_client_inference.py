"""Running models through both clients."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models
from tests.clients import Connect, connector
from tests.executors import Executor
from tests.servers import Server

import keyside
from keyside import Key, errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def alone() -> Iterator[Server]:
    """A server without an executor."""
    with Server("redis") as server:
        server.load_library()
        yield server


@pytest.fixture
def alone_db(alone: Server) -> Iterator[redis_py.Redis]:
    """A plain client of that server."""
    with alone.client() as made:
        yield made


@pytest.fixture
async def client(connect: Connect, executor: Executor) -> Any:
    made = connect(executor.url, timeout=10)
    await made.store("affine", models.affine())
    return made


class Exported:
    """What has `__dlpack__` and no `__array__`, as tensors of other libraries."""

    def __init__(self, array: np.ndarray[Any, Any]) -> None:
        self._array = array

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self._array.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self._array.__dlpack_device__()


# --- what may be an input


ONE_INPUT = [
    *(X, (X,), [X], {"x": X}, Exported(X), (Exported(X),), X.tolist(), {"x": X.tolist()}, X.astype(int).tolist()),
    *(Key("x"), [Key("x")], {"x": Key(b"x")}, Key("x", "ref")),
]


@pytest.mark.parametrize("inputs", ONE_INPUT)
async def test_one_input(client: Any, inputs: Any) -> None:
    await client.set("x", X)
    assert np.array_equal(await client.predict("affine", inputs), Y)


@pytest.mark.parametrize("target", ["affine", "affine@1", b"affine"])
async def test_every_way_to_name_a_target(client: Any, target: Any) -> None:
    assert np.array_equal(await client.predict(target, X), Y)
    assert np.array_equal(await client.predict(target, X.tolist()), Y)


async def test_several_inputs_and_outputs(client: Any, db: redis_py.Redis) -> None:
    await client.store("two", models.two_outputs())
    a, b = np.ones((1, 2), np.float32), np.full((1, 2), 3, np.float32)
    await client.set("b", b)
    for inputs in ((a, b), [a, b], {"a": a, "b": b}, {"b": b, "a": a}, [a, Key("b")], {"b": Key("b"), "a": [[1, 1]]}):
        found = await client.predict("two", inputs)
        assert list(found) == ["sum", "difference"]
        assert found["sum"].tolist() == [[4, 4]]
        assert found["difference"].tolist() == [[-2, -2]]
    assert db.exists("b")
    with pytest.raises(errors.BadInput, match=r"'a' FLOAT\[-1,2\], 'b'.*got 1"):
        await client.predict("two", a)
    with pytest.raises(errors.BadInput, match=r"'a' FLOAT.*got 'a', 'c'"):
        await client.predict("two", {"a": a, "c": b})


async def test_an_own_key_is_taken_away(client: Any, db: redis_py.Redis) -> None:
    await client.set("mine", X)
    assert np.array_equal(await client.predict("affine", Key("mine", "own")), Y)
    assert not db.exists("mine")


async def test_outputs_can_be_had_as_a_dict(client: Any) -> None:
    found = await client.predict("affine", X, outputs="dict")
    assert list(found) == ["y"]
    assert np.array_equal(found["y"], Y)
    found["y"][0] = 0  # the memory is the caller's
    with pytest.raises(errors.BadArg):
        await client.predict("affine", X, outputs="list")


async def test_plain_values_become_what_the_model_takes(client: Any) -> None:
    await client.store("echo", models.echo_int64())
    await client.store("small", more_models.identity(kind=2, dims=("N",)))  # UINT8
    await client.store("text", models.string_identity())
    await client.store("scalar", models.scalar())
    assert (await client.predict("affine", [[1, 2, 3, 4]])).dtype == np.float32
    assert (await client.predict("echo", [[2**62 + 1]])).tolist() == [[2**62 + 1]]
    assert (await client.predict("small", [0, 255])).dtype == np.uint8
    assert (await client.predict("text", ["a", "déjà"])).tolist() == [b"a", "déjà".encode()]
    assert await client.predict("scalar", 3) == 6
    with pytest.raises(errors.BadValue, match="'x' takes UINT8: 256 is out of range"):
        await client.predict("small", [0, 256])
    with pytest.raises(errors.BadDtype, match="'x' takes INT64, got DOUBLE"):
        await client.predict("echo", [[1.5]])
    with pytest.raises(errors.BadDtype, match="'x' takes FLOAT, got STRING"):
        await client.predict("affine", ["a"])


async def test_arrays_are_sent_as_they_are(client: Any) -> None:
    with pytest.raises(errors.BadDtype, match="takes FLOAT, got DOUBLE"):
        await client.predict("affine", X.astype(np.float64))
    with pytest.raises(errors.BadShape, match=r"\[-1,4\].*got \[2,3\]"):
        await client.predict("affine", X[:, :3])
    with pytest.raises(errors.BadDtype):
        await client.predict("affine", X.astype(complex))


async def test_nan_and_infinity_pass_unchanged(client: Any) -> None:
    values = np.array([[np.nan, np.inf, -np.inf, -0.0]], np.float32)
    await client.store("same", more_models.identity())
    found = await client.predict("same", values)
    assert found.tobytes() == values.tobytes()


@pytest.mark.parametrize("rows", [0, 1, 2040, 2041, 2048, 40_000, 400_000])
async def test_inputs_and_outputs_of_every_size(client: Any, db: redis_py.Redis, rows: int) -> None:
    x = np.random.default_rng(1).random((rows, 4), np.float32)
    found = await client.predict("affine", x)
    assert np.array_equal(found, x * 2 + 1)
    assert found.flags.writeable
    assert not kept(db)


async def test_a_large_value_beside_a_key(client: Any, db: redis_py.Redis) -> None:
    await client.store("two", models.two_outputs())
    a = np.random.default_rng(1).random((20_000, 2), np.float32)
    await client.set("b}{", a)
    found = await client.predict("two", (a, Key("b}{")))
    assert np.array_equal(found["sum"], a + a)
    assert not kept(db)


def kept(db: redis_py.Redis) -> list[bytes]:
    """Keys of requests that have ended and their outputs."""
    kinds = (b"tmp", b"cap", b"out", b"t", b"ticket")
    return [key for key in db.scan_iter("ks:{*", count=1000) if key.partition(b"}:")[2].split(b":")[0] in kinds]


# --- keys in, keys out


async def test_execute(client: Any, db: redis_py.Redis) -> None:
    await client.set("x", X)
    for inputs, outputs in (
        ("x", "y"),
        (["x"], ["y"]),
        ({"x": "x"}, "y"),
        (Key("x", "ref"), b"y"),
        (X, "y"),
        ((X,), ("y",)),
    ):
        assert await client.execute("affine", inputs, outputs) is None
        assert np.array_equal(await client.get("y"), Y)
        await client.delete("y")
    assert not kept(db)


async def test_execute_with_several_keys(client: Any) -> None:
    await client.store("two", models.two_outputs())
    await client.set("a", np.ones((1, 2), np.float32))
    await client.execute("two", ["a", "a"], ["s", "d"])
    assert (await client.get("s")).tolist() == [[2, 2]]
    await client.execute("two", ["a", np.ones((1, 2), np.float32)], ["s", "d"])
    assert (await client.get("d")).tolist() == [[0, 0]]
    await client.execute("two", ["a", "a"], ["a", "d"])  # in place
    assert (await client.get("a")).tolist() == [[2, 2]]


async def test_large_outputs_to_keys(client: Any, db: redis_py.Redis) -> None:
    x = np.random.default_rng(1).random((50_000, 4), np.float32)
    await client.set("x", x)
    await client.execute("affine", "x", "y")
    assert np.array_equal(await client.get("y"), x * 2 + 1)
    assert db.pttl("y") == -1
    assert not kept(db)


async def test_what_is_wrong_with_keys_is_said_at_once(client: Any, db: redis_py.Redis) -> None:
    await client.set("x", X)
    db.rpush("list", 1)
    db.set("text", "hello")
    for inputs, outputs, error in (
        ("missing", "y", errors.NoTensor),
        ("list", "y", errors.WrongType),
        ("text", "y", errors.NoTensor),
        ("x", "list", errors.WrongType),
        ("x", "text", errors.WrongType),
        ("x", ["y", "z"], errors.BadInput),
        ("x", [], errors.BadArg),
        ("x", 3, errors.BadArg),
    ):
        with pytest.raises(error):
            await client.execute("affine", inputs, outputs)
    assert db.get("text") == b"hello"
    assert not db.exists("y", "z")


# --- failures of a job


async def test_a_model_that_fails_on_its_inputs(client: Any) -> None:
    await client.store("table", models.fails_out_of_range())
    assert (await client.predict("table", [1])).tolist() == [[2, 3]]
    with pytest.raises(errors.RunFailed, match="out of data bounds"):
        await client.predict("table", [99])


@pytest.mark.parametrize("seconds", [0, -1, 86_401, float("nan"), "soon"])
async def test_a_timeout_out_of_range_is_refused(client: Any, seconds: Any) -> None:
    with pytest.raises(errors.BadArg):
        await client.predict("affine", X, timeout=seconds)


async def test_a_job_that_takes_too_long(client: Any, db: redis_py.Redis) -> None:
    await client.store("slow", more_models.slow())
    with pytest.raises(errors.TimedOut) as caught:
        await client.predict("slow", more_models.turns_for(0.6), timeout=0.1)
    assert isinstance(caught.value, TimeoutError)
    with pytest.raises(errors.TimedOut):
        await client.execute("slow", more_models.turns_for(0.3), "y", timeout=0.1)
    # Both runs have ended by now, which would hold up the next test too.
    assert (await client.predict("slow", more_models.turns_for(0), timeout=30)).tolist() == [[0]]
    assert not db.exists("y")


async def test_nobody_runs_it(connect: Connect, alone: Server, alone_db: redis_py.Redis) -> None:
    client = connect(alone.url_unix)
    await client.store("m", models.affine(), wait=False)
    with pytest.raises(errors.TimedOut, match="no executor has ever run on this server; start one"):
        await client.predict("m", X, timeout=0.05)
    alone_db.fcall("KS_BEAT", 0, "someone", '{"devices": ["GPU"]}', 10_000, "GPU")
    with pytest.raises(errors.TimedOut, match="no executor on this server serves the queue CPU; those alive serve GPU"):
        await client.predict("m", X, timeout=0.05)
    assert alone_db.xlen("ks:{0}:jobs:CPU") == 1, "only the load is left"
    assert not kept(alone_db)


async def test_the_library_is_missing(connect: Connect, alone: Server, alone_db: redis_py.Redis) -> None:
    client = connect(alone.url_unix)
    alone_db.function_flush()
    with pytest.raises(errors.LibraryMissing, match="keyside install"):
        await client.predict("m", X)
    alone.load_library()
    assert await client.ping() >= 1
    alone_db.function_flush()
    with pytest.raises(errors.LibraryMissing, match="keyside install"):
        await client.predict("m", X)
    with pytest.raises(errors.LibraryMissing, match="keyside install"):
        await client.ping()


async def test_the_library_is_too_old(connect: Connect, alone: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("keyside.tensorstore.commands.MIN_LIBRARY", 1000)
    with pytest.raises(errors.LibraryTooOld, match="needs at least 1000: run `keyside install`"):
        await connect(alone.url_unix).predict("m", X)


async def test_a_call_that_is_refused_leaves_the_client_as_it_was(client: Any, db: redis_py.Redis) -> None:
    large = np.zeros((10_000, 3), np.float32)
    for _ in range(5):
        with pytest.raises(errors.NoModel):
            await client.predict("missing", X)
        with pytest.raises(errors.BadShape):
            await client.predict("affine", large)
        assert np.array_equal(await client.predict("affine", X), Y)
    # What is posted without waiting comes before this on the same connection.
    await client.exists("x")
    assert not [key for key in kept(db) if b":tmp:" in key]


async def test_many_clients_and_many_calls_at_once(client: Any) -> None:
    async def ask(n: int) -> None:
        x = np.full((1, 4), n, np.float32)
        assert np.array_equal(await client.predict("affine", x), x * 2 + 1)

    await asyncio.gather(*(ask(n) for n in range(200)))


def test_keys_say_what_is_wrong_with_them() -> None:
    with pytest.raises(errors.BadArg):
        Key("x", "borrowed")  # type: ignore[arg-type]
    with pytest.raises(errors.BadArg):
        Key(3)  # type: ignore[arg-type]


def test_the_package_is_light() -> None:
    assert keyside.Client.predict.__doc__ == keyside.AsyncClient.predict.__doc__
