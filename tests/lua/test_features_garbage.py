"""Specs of inputs that make no sense: an error that was written for callers, and a node in good health."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.lua.jobs import LUA_ERROR, Hand, healthy
from tests.lua.test_garbage_calls import NATIVE, tokens
from tests.servers import Cluster, Server

from keyside.tensorstore import npy
from keyside.tensorstore.errors import CODES, KeysideError
from keyside.tensorstore.records import Signature, TensorSpec

FREE = Signature((TensorSpec("x", "", None),), (TensorSpec("y", "FLOAT", None),))
KEYS = ["{k}hash", "{k}list", "{k}zset", "{k}number", "{k}table", "{k}text", "{k}none"]
SPECS: list[list[Any]] = [
    ["HASH", "FLOAT", 2, "{k}hash", "{k}none", 2, "a", "b", "DEFAULTS", 2, 1, 2],
    ["HASH", "STRING", 1, "{k}hash", 2, "a", "b"],
    ["LIST", "INT64", "{k}list", 0, -1],
    ["ZSET", "DOUBLE", "{k}zset", 0, -1, "SCORES", "REV"],
    ["NUMBERS", "FLOAT", 2, "{k}number", "{k}none", "DEFAULT", 0],
    ["ROWS", "{k}table", 2, 0, 3],
]
SCRAPS = tokens | st.sampled_from(
    [*KEYS, "HASH", "LIST", "ZSET", "NUMBERS", "ROWS", "DEFAULT", "DEFAULTS", "SCORES", "MEMBERS", "REV", "AUTO", "-1"]
)


@pytest.fixture(scope="module", params=["redis", "valkey", "valkey in a cluster"])
def target(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server of its own: one command on keys of two slots would break Lua on a Valkey in a cluster."""
    if request.param == "valkey in a cluster":
        with Cluster("valkey", primaries=1, replicas=0) as cluster:
            cluster.load_library()
            yield cluster.primaries[0]
        return
    with Server(request.param) as server:
        server.load_library()
        yield server


@pytest.fixture
def ready(target: Server) -> Iterator[Hand]:
    """A model that takes anything, and data of all kinds: anew for each test, since garbage may take it away."""
    with Hand(target.url_unix) as hand:
        hand.do("FLUSHALL")
        hand.node = type(hand.node)(hand.beat("e1")[1])
        hand.store("{k}m", signature=FREE)
        hand.wire.call_many(
            [
                ("HSET", "{k}hash", "a", "1", "b", "-2.5", "c", "text", "d", ""), ("RPUSH", "{k}list", *range(9)),
                ("ZADD", "{k}zset", "1", "a", "1e300", "b", "-inf", "c"), ("SET", "{k}number", "17"),
                ("SET", "{k}table", npy.to_bytes(np.ones((4, 3)))), ("SET", "{k}text", "\x93NUMPY"),
            ]
        )  # fmt: skip
        yield hand


@st.composite
def damaged(draw: st.DrawFn) -> list[Any]:
    """A sound spec with a few arguments replaced, left out, doubled or added."""
    spec = list(draw(st.sampled_from(SPECS)))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(spec)))
        spec[at : at + draw(st.integers(0, 2))] = draw(st.lists(SCRAPS, max_size=2))
    return spec


@pytest.mark.parametrize("spec", SPECS)
def test_the_sound_specs_are_taken(ready: Hand, spec: list[Any]) -> None:
    ready.fcall("AI_PREDICT", KEYS, "{k}m", "INPUTS", 1, *spec)


@given(specs=st.lists(damaged(), min_size=1, max_size=2), count=st.integers(0, 3))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
def test_garbage_is_refused_politely(ready: Hand, specs: list[list[Any]], count: int) -> None:
    error = None
    words = [word for spec in specs for word in spec]
    try:
        ready.fcall("AI_PREDICT", KEYS, "{k}m", "INPUTS", count or len(specs), *words, "TIMEOUT", 10)
    except KeysideError as refused:
        error = refused
    if error is not None:
        assert error.code in CODES.keys() | NATIVE, error
        assert not LUA_ERROR.search(str(error)), error
        assert "\n" not in str(error)
    assert healthy(ready)
