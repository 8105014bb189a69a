"""Inputs that are gathered where they live, on clusters: the call goes where the keys are."""

from collections.abc import AsyncIterator, Iterator
from typing import Any, get_args

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Grid, spread
from tests.servers import Kind

import keyside
from keyside import Key, errors
from keyside.features import Hash, ListRange, Numbers, Rows
from keyside.tensorstore import keys

FIELDS = ["a", "b", "c", "d"]


@pytest.fixture(scope="module", params=get_args(Kind))
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    with Grid(request.param) as made, keyside.Client(made.url) as client:
        client.store("affine", models.affine())
        client.store("two", models.two_outputs())
        spread(made.cluster)
        yield made


@pytest.fixture(params=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, grid: Grid) -> AsyncIterator[Any]:
    made: Connect
    async for made in connector(request.param):
        yield made(grid.url, timeout=10)


async def test_on_every_node(client: Any, grid: Grid) -> None:
    for number, node in enumerate(grid.cluster.primaries):
        tag = f"{{{grid.key_at(node)}}}"
        row = np.arange(4, dtype=np.float32)[None] + number
        with node.client() as db:
            db.hset(f"{tag}h", mapping=dict(zip(FIELDS, row[0].tolist(), strict=True)))
            db.rpush(f"{tag}l", *row[0].tolist())
            for n, value in enumerate(row[0].tolist()):
                db.set(f"{tag}n{n}", value)
        await client.set(f"{tag}t", row)
        for feature in (
            Hash(f"{tag}h", FIELDS), ListRange(f"{tag}l"), Numbers([f"{tag}n{n}" for n in range(4)]),
            Rows(f"{tag}t", 0), Hash([f"{tag}h"], FIELDS, None),
        ):  # fmt: skip
            for inputs in (feature, [feature], {"x": feature}):
                np.testing.assert_array_equal(await client.predict("affine", inputs), row * 2 + 1)
            await client.execute("affine", feature, f"{tag}y")
            np.testing.assert_array_equal(await client.get(f"{tag}y"), row * 2 + 1)
        large = np.ones((1, 2), np.float32)
        found = await client.predict("two", [Hash(f"{tag}h", FIELDS[:2]), large])
        np.testing.assert_array_equal(found["sum"], row[:, :2] + large)
        with node.client() as db:
            db.delete(*(f"{tag}{name}" for name in ("h", "l", "t", "y", "n0", "n1", "n2", "n3")))


async def test_keys_in_different_slots(client: Any, grid: Grid) -> None:
    one, other, third = grid.apart()
    await client.set(other, np.ones((1, 2), np.float32))
    for inputs in ([Hash(one, ["a", "b"], default=2), Key(other)], [Hash([one, other], ["a", "b"])] * 2):
        with pytest.raises(errors.CrossSlot, match=rf"'{one}' \(slot {keys.slot(one)}\), '{other}'"):
            await client.predict("two", inputs)
    # The tensor is brought to what is gathered, which cannot be moved.
    found = await client.predict("two", [Key(other), Hash(one, ["a", "b"], default=2)], move=True)
    np.testing.assert_array_equal(found["sum"], [[3, 3]])
    with pytest.raises(errors.CrossSlot):
        await client.execute("two", [Key(other), Hash(one, ["a", "b"], default=2)], [third, third], move=True)
    await client.delete(other)
