"""Stream entries are read with distrust: executor/protocol.py."""

from typing import Any

import msgpack
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.executor.composite import members_of
from keyside.executor.extras import NOTHING
from keyside.executor.protocol import BadEntry, Finished, Job, complete, entry_order, parse_entry
from keyside.tensorstore import npy
from keyside.tensorstore.errors import InputLost

HEADER: list[Any] = [1, "run", "u-1", "m", 1, 1000, "", "", ["v", "cks:{x}:cap:1", "rx"], [], ["y"], 7]
VALUE = npy.to_bytes(np.arange(3))


def entry(header: list[Any]) -> list[bytes]:
    return [b"h", msgpack.packb(header), b"0", VALUE]


def test_an_entry_of_ours() -> None:
    job = parse_entry("CPU", b"5-0", entry(HEADER))
    assert (job.op, job.model, job.key, job.version, job.deadline) == (b"run", b"u-1", b"m", 1, 1000)
    assert job.captures == [b"ks:{x}:cap:1"]
    assert job.missing == [1, 2]
    job.decode([npy.to_bytes(np.ones(2)), VALUE])
    assert [array.tolist() for array in job.arrays] == [[0, 1, 2], [1, 1], [0, 1, 2]]


@pytest.mark.parametrize("value", [None, ConnectionError("gone"), b"", b"a string of the user's"])
def test_an_input_that_has_gone_is_lost(value: Any) -> None:
    job = parse_entry("CPU", b"5-0", entry(HEADER))
    with pytest.raises(InputLost, match=r"input key 'ks:\{x\}:cap:1'"):
        job.decode([value, VALUE])


@given(st.lists(st.binary(max_size=200), max_size=6))
def test_any_fields_make_a_job_or_a_bad_entry(fields: list[bytes]) -> None:
    try:
        assert isinstance(parse_entry("CPU", b"5-0", fields), Job)
    except BadEntry:
        return


JUNK = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=5)
    | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(JUNK, max_size=14)
    | st.tuples(st.integers(0, 11), JUNK).map(lambda at: [*HEADER[: at[0]], at[1], *HEADER[at[0] + 1 :]])
)
def test_any_header_makes_a_job_or_a_bad_entry(header: list[Any]) -> None:
    fields = [b"h", msgpack.packb(header, strict_types=False), b"0", VALUE]
    try:
        assert isinstance(parse_entry("CPU", b"5-0", fields), Job)
    except BadEntry:
        return


def test_completion_names_the_jobs_oldest_first() -> None:
    jobs = [parse_entry("CPU", entry_id, entry(HEADER)) for entry_id in (b"10-0", b"9-1", b"9-0")]
    commands = complete("CPU", b"me", 20, b"u-1", 5, 3, [Finished(job, b"OK", [], []) for job in jobs])
    assert len(commands) == 1
    words = commands[0]
    assert words[:12] == [b"FCALL", b"KS_COMPLETE", b"0", "CPU", b"me", 20, b"u-1", 5, 3, 0, "7 7 7", 3]
    assert [word for word in words[12:] if word in (b"10-0", b"9-1", b"9-0")] == [b"9-0", b"9-1", b"10-0"]


@pytest.mark.parametrize(
    "ids",
    [
        [b"1700000000000-0", b"1700000000000-1", b"1700000000001-0"],
        [b"1700000000000-9", b"1700000000000-10"],
        [b"1700000000000-10", b"1700000000000-9"],
        [b"1700000000001-0", b"1700000000000-10"],
        [b"9-5", b"10-0"],
        [b"2-1", b"1-10"],
        [b"99-123456789012", b"1700000000000-0"],
    ],
)
def test_completion_is_in_the_order_of_the_stream(ids: list[bytes]) -> None:
    jobs = [parse_entry("CPU", entry_id, entry(HEADER)) for entry_id in ids]
    words = complete("CPU", b"me", 20, b"u-1", 5, 3, [Finished(job, b"OK", [], []) for job in jobs])[0]
    assert [word for word in words[12:] if word in ids] == sorted(ids, key=entry_order)


def test_a_job_that_counts_for_its_model() -> None:
    job = parse_entry("CPU", b"5-0", entry([*HEADER, 9]))
    assert job.mark == 9
    assert parse_entry("CPU", b"5-0", entry(HEADER)).mark is None
    other = parse_entry("CPU", b"6-0", entry(HEADER))
    command = complete("CPU", b"me", 10, b"u-1", 1, 1, [Finished(job, b"OK", [], []), Finished(other, b"OK", [], [])])
    assert command[-1][10] == "7:9:u 7"
    marks: list[Any] = [-1, 2**60, 1.5, "9", None, [], True]
    for mark in marks:
        with pytest.raises(BadEntry):
            parse_entry("CPU", b"5-0", entry([*HEADER, mark]))


EXTRA: dict[str, Any] = {
    "f": "fn",
    "k": ["key"],
    "a": ["1", b"\xff"],
    "m": [["sub@1", "u-2", "sub", 2]],
    "e": ["t", "s"],
}


def test_what_goes_along_with_a_job() -> None:
    fields = [*entry(HEADER), b"x", msgpack.packb(EXTRA)]
    job = parse_entry("CPU", b"5-0", fields)
    assert job.composed
    assert job.trigger == [b"t", b"s"]
    assert (job.extra or NOTHING)[b"a"] == [b"1", b"\xff"]
    assert members_of(job) == (("sub@1", "u-2", b"sub"),)
    plain = parse_entry("CPU", b"5-0", entry(HEADER))
    assert plain.extra is None
    assert plain.trigger is None
    assert not plain.composed
    by_event = parse_entry("CPU", b"5-0", [*entry(HEADER), b"x", msgpack.packb({"e": ["t", "s"]})])
    assert by_event.trigger
    assert not by_event.composed


def test_what_calls_have_in_common_is_read_once() -> None:
    def extra_of(fields: dict[str, Any]) -> Any:
        return parse_entry("CPU", b"5-0", [*entry(HEADER), b"x", msgpack.packb(fields)]).extra

    call = {name: EXTRA[name] for name in "fkam"}
    assert extra_of(call) is extra_of(call)
    others: list[dict[str, Any]] = [EXTRA, {"d": {"o": []}}, {**call, "z": {}}, {"a": ["x" * 3000], "f": "fn"}]
    for own in others:
        assert extra_of(own) == extra_of(own)
        assert extra_of(own) is not extra_of(own)


def test_only_a_call_may_have_no_inputs() -> None:
    header = [*HEADER[:8], [], *HEADER[9:]]
    job = parse_entry("CPU", b"5-0", [b"h", msgpack.packb(header), b"x", msgpack.packb({"f": "fn", "k": {}})])
    job.decode()
    assert job.decoded
    assert job.arrays == []
    with pytest.raises(BadEntry, match="without inputs"):
        parse_entry("CPU", b"5-0", [b"h", msgpack.packb(header)])


@given(JUNK | st.dictionaries(st.sampled_from("fkamde"), JUNK, max_size=3))
def test_anything_that_goes_along_makes_a_job_or_a_bad_entry(extra: Any) -> None:
    fields = [*entry(HEADER), b"x", msgpack.packb(extra, strict_types=False)]
    try:
        job = parse_entry("CPU", b"5-0", fields)
    except BadEntry:
        return
    members_of(job)
    assert job.trigger is None or len(job.trigger) >= 2
