"""Every function in sequences of calls that make little sense, on a node that is used throughout.

`tests/lua/test_garbage_calls.py` tries each function by itself on a node that is made anew; here what one call leaves
behind is what the next one finds. After each call the node is asked whether it is well.
"""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fuzz.budget import COUNTS, few, for_a_while
from tests.lua.jobs import LUA_ERROR, Hand
from tests.lua.test_garbage_calls import FUNCTIONS, NAMES, NATIVE, SOUND, again, prepare, tokens, watchdog
from tests.servers import Cluster, Server

from keyside.tensorstore import library
from keyside.tensorstore.errors import CODES, KeysideError, LibraryMissing

SECONDS = 5.0
HEADERS = library.functions()
PUBLIC = [name for name in FUNCTIONS if name.startswith("AI_")]
WORDS_OF_CALLS = [word for words in SOUND.values() for word in words]
BIG = [b"\xff" * 70_000, "9" * 5_000, b"{" * 20_000, b"\x93NUMPY\x01\x00\xff\xff" + b" " * 66_000, "x" * 1025]
SAME_SLOT = ["{s}x", "{s}y", "{s}large", "{s}none"]

word = (
    tokens | st.sampled_from(WORDS_OF_CALLS) | st.sampled_from(BIG) | st.binary(max_size=12) | st.integers(-9, 10**18)
)
name = st.sampled_from(NAMES) | st.sampled_from(SAME_SLOT) | st.binary(max_size=12)


@st.composite
def vectors(draw: st.DrawFn) -> tuple[str, list[Any], list[Any], int | None]:
    """A function, its keys and its arguments; and a false number of keys, once in a while."""
    function = draw(st.sampled_from(FUNCTIONS) | st.sampled_from(PUBLIC))
    args = list(SOUND[function])
    for _ in range(draw(st.integers(0, 4))):
        at = draw(st.integers(0, len(args)))
        match draw(st.integers(0, 4)):
            case 0:
                args[at : at + draw(st.integers(0, 2))] = draw(st.lists(word, max_size=2))
            case 1:  # a keyword and what follows it somewhere else
                part = args[at : at + 2]
                del args[at : at + 2]
                to = draw(st.integers(0, len(args)))
                args[to:to] = part
            case 2:
                args[at:at] = args[at : at + draw(st.integers(1, 4))]
            case 3:
                del args[at:]
            case _:
                args[at : at + 1] = [draw(st.sampled_from([1, 2, 0, 1000, 10**15, 2**53, 2**64, -1, ""]))]
    if draw(st.integers(0, 15)) == 0:
        args = draw(st.lists(word, max_size=12))
    names: list[Any] = draw(st.lists(name, max_size=4))
    # Those that the arguments name are declared more often than not: else nothing goes beyond that check.
    if draw(st.integers(0, 3)):
        names = [arg for arg in dict.fromkeys(args) if arg in NAMES or arg in SAME_SLOT][:6] or names[:1]
    false = draw(st.sampled_from([0, 1, 2, 3, 10, -1])) if draw(st.integers(0, 12)) == 0 else None
    return function, names, args, false


@pytest.fixture(scope="module", params=["redis", "valkey", "valkey in a cluster"])
def target(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server that may be broken."""
    if request.param == "valkey in a cluster":
        with Cluster("valkey", primaries=1, replicas=0) as cluster:
            cluster.load_library()
            yield cluster.primaries[0]
        return
    with Server(request.param) as server:
        server.load_library()
        yield server


def probe(hand: Hand) -> None:
    """Ask the node whether its Lua still works, in the ways that executors and clients ask."""
    listed = hand.fcall("AI_MODELSCAN", [], "0", "COUNT", "10")
    assert isinstance(listed, list)
    if "AI_NODE" in HEADERS:
        hand.fcall("AI_NODE", [])
    assert hand.fcall("KS_VERSION", [])


def check(error: KeysideError, call: Any) -> None:
    """An error must have been written for callers."""
    code = error.code if error.code != "ERR" else str(error).split()[0]
    assert code in CODES.keys() | NATIVE, (error, call)
    assert not LUA_ERROR.search(str(error)), (error, call)
    assert "\n" not in str(error), (error, call)
    assert len(str(error)) < 2_000, (str(error)[:200], call)


@for_a_while
@given(calls=st.lists(vectors(), min_size=8, max_size=40), readonly=st.booleans())
@few(25)
def test_calls_that_make_no_sense(target: Server, calls: list[Any], readonly: bool) -> None:
    with Hand(target.url_unix) as hand:
        stand_for = prepare(hand)
        for function, names, args, false in calls:
            words = [stand_for.get(arg, arg) if isinstance(arg, str) else arg for arg in args]
            how = "FCALL_RO" if readonly and "no-writes" in HEADERS[function].flags else "FCALL"
            call = (how, function, len(names) if false is None else false, *names, *words)
            began = time.monotonic()
            try:
                with watchdog(target):
                    hand.do(*call)
                COUNTS["calls taken"] += 1
            except LibraryMissing:
                again(target)
                raise AssertionError(f"the node is gone, or its library: {call}") from None
            except KeysideError as error:
                check(error, call)
                COUNTS["calls refused"] += 1
            assert time.monotonic() - began < SECONDS, call
            try:
                probe(hand)
            except KeysideError as error:
                again(target)
                raise AssertionError(f"it broke the node ({error}): {call}") from None
