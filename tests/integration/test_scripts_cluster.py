"""Scripts on a cluster: stored at their home, called on any node, with keys in the slot of the call."""

from collections.abc import Iterator

import numpy as np
import pytest
from tests.clusters import Grid
from tests.servers import Kind

import keyside
from keyside.tensorstore.errors import CrossSlot

WORDS = np.array([b"a b", b"c"])


@pytest.fixture(scope="module", params=["redis", "valkey"])
def grid(request: pytest.FixtureRequest) -> Iterator[Grid]:
    kind: Kind = request.param
    with Grid(kind, functions="tests.functions") as found:
        yield found


def test_everywhere(grid: Grid) -> None:
    with keyside.Client(grid.cluster.url) as client:
        client.store_script("f", entry_points=["tokens", "text.length"], functions=True)
        for _ in range(10):
            assert client.run_script("f", "text.length", args=["abc"]).tolist() == [3]
        for n in range(6):
            x, words, counts = (f"{name}{{{n}}}" for name in ("x", "words", "counts"))
            client.set(x, WORDS)
            client.run_script("f", "tokens", [x], keys=["of another slot"], outputs=[words, counts])
            assert client.get(words).tolist() == [b"a", b"b", b"c"]
            assert client.get(counts).tolist() == [2, 1]
            assert client.run_script("f@1", "tokens", keyside.Key(x))[1].tolist() == [2, 1]
        large = np.array([b"word " * 20_000])
        assert client.run_script("f", "tokens", large)[1].tolist() == [20_000]
        with pytest.raises(CrossSlot):
            client.run_script("f", "tokens", ["x{0}"], outputs=["words{1}", "counts{1}"])
        assert [listed.name for listed in client.scripts()] == ["f"]
        assert client.model_stats("f").calls >= 10
        client.delete_script("f")
