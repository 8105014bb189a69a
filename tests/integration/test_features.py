"""Inputs that are gathered where they live, through both clients, with an executor: against onnxruntime here."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import onnxruntime
import pytest
import redis as redis_py
from onnx import TensorProto, helper
from tests import models
from tests.clients import Connect, connector
from tests.executors import Executor

import keyside
from keyside import Key, errors
from keyside.features import Hash, ListRange, Numbers, Rows, SortedSet

FIELDS = [f"f{n}" for n in range(8)]
RNG = np.random.default_rng(5)
TRANSACTION = RNG.standard_normal((1, 3), dtype=np.float32)


def fraud() -> bytes:
    """Return transaction FLOAT [-1,3], reference FLOAT [-1,8] -> score FLOAT [-1,2]; it reads all of both."""
    weights = np.random.default_rng(6).standard_normal((11, 2), dtype=np.float32)
    return models.model(
        [
            helper.make_node("Concat", ["transaction", "reference"], ["both"], axis=1),
            helper.make_node("MatMul", ["both", "w"], ["raw"]),
            helper.make_node("Tanh", ["raw"], ["score"]),
        ],
        [("transaction", TensorProto.FLOAT, ["N", 3]), ("reference", TensorProto.FLOAT, ["N", 8])],
        [("score", TensorProto.FLOAT, ["N", 2])],
        [models.weights("w", weights)],
    )


def total() -> bytes:
    """Return x DOUBLE [-1] -> y DOUBLE [], the sum."""
    return models.model(
        [helper.make_node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [("x", TensorProto.DOUBLE, ["N"])],
        [("y", TensorProto.DOUBLE, [])],
    )


SESSION = onnxruntime.InferenceSession(fraud(), providers=["CPUExecutionProvider"])


def here(transaction: np.ndarray[Any, Any], reference: Any) -> np.ndarray[Any, Any]:
    """What onnxruntime gives in this process."""
    given = {"transaction": transaction, "reference": np.asarray(reference, np.float32)}
    return np.asarray(SESSION.run(None, given)[0])


def same(found: Any, expected: np.ndarray[Any, Any]) -> None:
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
async def client(connect: Connect, executor: Executor) -> Any:
    made = connect(executor.url, timeout=10)
    await made.store("fraud", fraud())
    await made.store("total", total())
    return made


@pytest.fixture
def profile(db: redis_py.Redis, executor: Executor) -> np.ndarray[Any, Any]:
    """The reference of user 42, which lies in a hash, and in a tensor too."""
    values = RNG.standard_normal(8, dtype=np.float32)
    db.hset("user:42", mapping={field: repr(float(value)) for field, value in zip(FIELDS, values, strict=True)})
    db.set("reference:42", keyside.tensorstore.npy.to_bytes(values[None]))
    return values[None]


async def test_a_reference_by_key_and_out_of_a_hash(client: Any, profile: np.ndarray[Any, Any]) -> None:
    expected = here(TRANSACTION, profile)
    for reference in (Key("reference:42"), Hash("user:42", FIELDS), Hash(b"user:42", FIELDS, None)):
        same(await client.predict("fraud", [TRANSACTION, reference]), expected)
        same(await client.predict("fraud", {"reference": reference, "transaction": TRANSACTION}), expected)
        same(await client.predict("fraud", [TRANSACTION.tolist(), reference]), expected)
        same((await client.predict("fraud", (TRANSACTION, reference), outputs="dict"))["score"], expected)
        same(await (await client.submit("fraud", [TRANSACTION, reference])).result(), expected)
        await client.execute("fraud", [TRANSACTION, reference], "out")
        same(await client.get("out"), expected)


async def test_hashes_become_a_matrix(client: Any, db: redis_py.Redis) -> None:
    values = RNG.standard_normal((3, 8), dtype=np.float32)
    for n, row in enumerate(values):
        db.hset(f"u{n}", mapping={field: float(value) for field, value in zip(FIELDS[1:], row[1:], strict=True)})
    values[:, 0] = 0.5
    reference = Hash([f"u{n}" for n in range(3)], FIELDS, default=0.5)
    transactions = np.repeat(TRANSACTION, 3, axis=0)
    same(await client.predict("fraud", [transactions, reference], priority="high"), here(transactions, values))
    await client.execute("fraud", {"transaction": transactions, "reference": reference}, ["out"])
    same(await client.get("out"), here(transactions, values))
    defaults = Hash("nobody", FIELDS, default=list(range(8)))
    same(await client.predict("fraud", [TRANSACTION, defaults]), here(TRANSACTION, [list(range(8))]))


async def test_the_other_places(client: Any, db: redis_py.Redis) -> None:
    db.rpush("list", *range(100))
    db.zadd("zset", {f"m{n}": n * 1.5 for n in range(10)})
    db.mset({f"n{n}": n for n in range(4)})
    table = RNG.standard_normal((1000, 8), dtype=np.float32)
    await client.set("table", table)
    assert await client.predict("total", ListRange("list", -4, dtype=None)) == 96 + 97 + 98 + 99
    assert await client.predict("total", SortedSet("zset", 0, 1, reverse=True, dtype="DOUBLE")) == 9 * 1.5 + 8 * 1.5
    assert await client.predict("total", Numbers([f"n{n}" for n in range(5)], "DOUBLE", default=0.5)) == 6.5
    found = await client.predict("fraud", [np.repeat(TRANSACTION, 2, axis=0), Rows("table", [999, 0])])
    same(found, here(np.repeat(TRANSACTION, 2, axis=0), table[[999, 0]]))


async def test_what_is_wrong_is_said(client: Any, db: redis_py.Redis, profile: np.ndarray[Any, Any]) -> None:
    db.hset("user:7", mapping={"f0": "1", "f1": "many"})
    for inputs, error, words in (
        (Hash("user:9", FIELDS), errors.NoFeature, r"'user:9'.*'f0'"),
        (Hash(["user:42", "user:7"], FIELDS), errors.NoFeature, r"'user:7' has no field 'f2'"),
        (Hash("user:7", FIELDS, default=0), errors.BadValue, r"'f1' of hash 'user:7', 'many'"),
        (Hash("user:42", FIELDS, "DOUBLE"), errors.BadDtype, "'reference'.*FLOAT.*DOUBLE"),
        (Hash("user:42", FIELDS[:7]), errors.BadShape, r"\[-1,8\].*\[1,7\]"),
        (ListRange("user:42"), errors.WrongType, "'user:42'"),
        (Rows("reference:42", -1), errors.BadValue, "'-1'.*0 to 0"),
        (Numbers("nothing"), errors.NoFeature, "'nothing'"),
    ):
        with pytest.raises(error, match=words):
            await client.predict("fraud", [TRANSACTION, inputs])
        with pytest.raises(error, match=words):
            await client.execute("fraud", [TRANSACTION, inputs], "out")
    with pytest.raises(errors.BadArg, match="predict_many"):
        await client.predict_many("fraud", [TRANSACTION, Hash("user:42", FIELDS)])
    same(await client.predict("fraud", [TRANSACTION, Hash("user:42", FIELDS)]), here(TRANSACTION, profile))
