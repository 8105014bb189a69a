"""Patterns of keys and templates: against what the protocol says of them, in Python, on patterns and keys at random."""

import contextlib
import re
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.lua.jobs import Hand
from tests.lua.triggers import literal, onset, write

from keyside.tensorstore.errors import KeysideError, Loop

Part = bytes | tuple[bytes]


def written(parts: list[Part]) -> bytes:
    return b"".join(literal(part) if isinstance(part, bytes) else b"{" + part[0] + b"}" for part in parts)


def captures(parts: list[Part], key: bytes) -> dict[bytes, bytes] | None:
    """What a key gives: a capture is a run without the byte behind it."""
    expression = b""
    for part, after in zip(parts, [*parts[1:], b""], strict=True):
        if isinstance(part, bytes):
            expression += re.escape(part)
        elif after:
            assert isinstance(after, bytes)
            expression += b"([^" + re.escape(after[:1]) + b"]+)"
        else:
            expression += b"(.+)"
    found = re.fullmatch(expression, key, re.DOTALL)
    names = [part[0] for part in parts if not isinstance(part, bytes)]
    return None if found is None else dict(zip(names, found.groups(), strict=True))


alphabet = st.lists(st.sampled_from([b"a", b"b", b":", b"{", b"}", b"\xff", b"\n", b"\0"]), min_size=1, max_size=4)
text = alphabet.map(b"".join)


@st.composite
def patterns(draw: st.DrawFn) -> list[Part]:
    names = [b"x", b"y", b"z", b"long.name-1"][: draw(st.integers(0, 4))]
    parts: list[Part] = []
    for n, name in enumerate(names):
        if n or draw(st.booleans()):
            parts.append(draw(text))
        parts.append((name,))
    if not names or draw(st.booleans()):
        parts.append(draw(text))
    return parts


@st.composite
def cases(draw: st.DrawFn) -> tuple[list[Part], bytes]:
    """A pattern, and a key that most often fits."""
    parts = draw(patterns())
    key = b"".join(part if isinstance(part, bytes) else draw(text) for part in parts)
    return parts, key if draw(st.integers(0, 4)) else draw(text)


@given(case=cases())
@example(case=([b"frame:", (b"cam",)], b"frame:{7}"))
@example(case=([(b"x",), b":", (b"y",)], b"a::b"))
@example(case=([b"a:", (b"x",), b"bb"], b"a:ccbbb"))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_what_a_key_gives(hand: Hand, case: tuple[list[Part], bytes]) -> None:
    parts, key = case
    hand.do("FLUSHALL")
    hand.beat("e1")
    hand.store(signature=None)  # so it takes any number of outputs
    names = [part[0] for part in parts if not isinstance(part, bytes)]
    outputs = [b"out:" + b"{" + name + b"}" for name in names]
    run: tuple[Any, ...] = ("RUN", "m", "INPUTS", 1, "KEY", "{key}")
    if outputs:
        run += ("OUTPUTS", len(outputs), *outputs)
    try:
        onset(hand, "t", written(parts), run=run)
    except Loop:
        return  # such as those that match all
    expected = captures(parts, key)
    write(hand, key)
    jobs = [job for job in hand.claim() if job.op == b"run"]
    if expected is None:
        assert jobs == []
    else:
        (job,) = jobs
        assert job.outputs == [b"out:" + expected[name] for name in names]


def may_match(hand: Hand, pattern: bytes, output: bytes) -> bool:
    try:
        onset(hand, "t", pattern, run=("RUN", "m", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, output))
    except Loop:
        return True
    return False


@given(
    parts=patterns(),
    output=st.lists(text | st.sampled_from([(b"x",), (b"y",), (b"key",)]), min_size=1, max_size=4),
    data=st.data(),
)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
def test_an_output_that_may_start_its_own_trigger_is_found(
    hand: Hand, parts: list[Part], output: list[Part], data: st.DataObject
) -> None:
    """What is taken never matches, whatever the key: tried with keys that fit."""
    names = {part[0] for part in parts if not isinstance(part, bytes)} | {b"key"}
    output = [part if isinstance(part, bytes) or part[0] in names else part[0] for part in output]
    try:
        if may_match(hand, written(parts), written(output)):
            return
    except KeysideError as error:
        raise AssertionError(str(error)) from None
    for _ in range(5):
        key = b"".join(part if isinstance(part, bytes) else data.draw(text) for part in parts)
        found = captures(parts, key)
        if found is not None:
            found[b"key"] = key
            assert (
                captures(parts, b"".join(part if isinstance(part, bytes) else found[part[0]] for part in output))
                is None
            )


@pytest.mark.parametrize(
    ("pattern", "output", "loops"),
    [
        (b"frame:{cam}", b"boxes:{cam}", False),
        (b"frame:{cam}", b"{key}", True),
        (b"frame:{cam}", b"boxes:{key}", False),
        (b"frame:{cam}:raw", b"frame:{cam}:done", False),
        (b"frame:{cam}:raw", b"frame:{cam}:x:raw", False),
        (b"frame:{cam}:raw", b"{cam}:raw", False),
        (b"frame:{cam}-raw", b"{cam}-raw", True),
        (b"{cam}", b"anything", True),
        (b"a", b"b", False),
        (b"a", b"a", True),
        (b"{x}:in", b"{x}:in:out", False),
        (b"x{{{n}}}", b"y{{{n}}}", False),
        (b"x{{{n}}}", b"x{{{n}}}", True),
    ],
)
def test_loops(hand: Hand, pattern: bytes, output: bytes, loops: bool) -> None:
    assert may_match(hand, pattern, output) is loops


def test_long_patterns_do_not_take_long(hand: Hand) -> None:
    hand.store()
    pattern = b"a" * 200 + b"{x}" + b"ab" * 100 + b"{y}" + b"b"
    onset(hand, "t", pattern)
    onset(hand, "u", b"{x}aab{y}aab{z}aab{w}")
    key = b"a" * 2_000_000
    before = hand.now()
    hand.do("SET", key, b"")
    hand.fcall("AI_TENSORCHANGED", [key])
    assert hand.now() - before < 3000
    # May anything that these give match?
    before = hand.now()
    for pattern, count in ((b"{x}aab{y}aab{z}aab{w}", 30), (b"{x}" + b"a" * 400 + b"b", 30)):
        outputs = [b"{x}" + b"a" * (400 - n) for n in range(count)]
        with contextlib.suppress(Loop):
            onset(hand, "v", pattern, run=("RUN", "m", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", count, *outputs))
    assert hand.now() - before < 3000
