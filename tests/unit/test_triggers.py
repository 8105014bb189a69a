"""What messages, entries, patterns and records of triggers come to, and how results read; no server."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.executor import events
from keyside.executor.extras import Extra
from keyside.executor.protocol import Job
from keyside.executor.triggers.fire import Answer
from keyside.executor.triggers.messages import glob_of, matcher, of_entry, of_message, variables_of
from keyside.executor.triggers.trigger import Trigger
from keyside.tensorstore import dtypes, npy


def _job(extra: dict[bytes, Any] | None) -> Job:
    header = [1, b"run", b"u-1", b"m", 1, 1000, b"", b"", [b"v"], [], [], 0]
    job = Job("CPU", b"1-0", header, [b""], keyed=False)
    job.extra = None if extra is None else Extra(extra)
    return job


# --- messages


def test_payload_and_channel_are_always_there() -> None:
    raw = npy.to_bytes(np.arange(3))
    assert of_message(b"c", raw) == (b"c", {b"payload": raw, b"channel": b"c"})


def test_fields_of_an_object_are_variables_as_they_were_written() -> None:
    payload = b'{"x": "k:1", "n": 1.50, "big": 12345678901234567890, "no": null, "yes": true, "deep": {"a": "b"}}'
    source, variables = of_message(b"c", payload)
    assert source == b"c"
    assert variables == {
        b"x": b"k:1", b"n": b"1.50", b"big": b"12345678901234567890", b"payload": payload, b"channel": b"c"
    }  # fmt: skip


def test_the_id_of_a_message_is_its_source() -> None:
    assert of_message(b"c", b'{"id": 17}')[0] == b"17"
    assert of_message(b"c", b'{"id": "%b"}' % (b"x" * 512))[0] == b"x" * 512
    assert of_message(b"c", b'{"id": "%b"}' % (b"x" * 513))[0] == b"c"
    assert of_message(b"c", b'{"id": null}')[0] == b"c"


def test_elements_of_an_array_are_numbered() -> None:
    assert of_message(b"c", b' ["a", 2, null, "d"]')[1] == {
        b"0": b"a", b"1": b"2", b"3": b"d", b"payload": b' ["a", 2, null, "d"]', b"channel": b"c"
    }  # fmt: skip


@pytest.mark.parametrize("payload", [b"{", b'{"a": ', b"[1,", b"{\xff}", b"[" * 100_000, b"", b"NaN"])
def test_what_only_looks_like_json_is_a_payload(payload: bytes) -> None:
    assert of_message(b"c", payload) == (b"c", {b"payload": payload, b"channel": b"c"})


@given(st.binary(max_size=64))
def test_no_message_raises(payload: bytes) -> None:
    assert of_message(b"c", payload)[1][b"payload"] == payload


def test_an_entry_has_its_fields_and_its_id() -> None:
    assert of_entry(b"5-1", [b"x", b"k", b"id", b"mine"]) == {b"x": b"k", b"id": b"5-1"}


# --- patterns


def test_captures_match_up_to_the_byte_behind_them() -> None:
    assert matcher(b"frame:{cam}").fullmatch(b"frame:{7}")
    assert matcher(b"{a}:{b}").fullmatch(b"1:2:3")
    assert matcher(b"{a}:{b}:x").fullmatch(b"1:2:x")
    assert not matcher(b"{a}:{b}:x").fullmatch(b"1:2:3:x")
    assert not matcher(b"frame:{cam}").fullmatch(b"frame:")
    assert matcher(b"a{{b}}{c}").fullmatch(b"a{b}1")
    assert matcher(b"a^{b}^").fullmatch(b"a^]-^")


def test_globs_take_what_is_special_literally() -> None:
    assert glob_of(b"fr*me:{cam}:[x]?\\") == b"fr\\*me:*:\\[x\\]\\?\\\\"
    assert glob_of(b"{{a}}") == b"{a}"


# --- records


def test_a_record_without_what_is_optional() -> None:
    found = Trigger.read(b"t", b'{"on":"stream","source":"s","run":["m","INPUTS","1","KEY","{x}"]}')
    assert found is not None
    assert (found.kind, found.source, found.group, found.start, found.paused) == ("stream", b"s", b"kst", b"$", False)
    assert found.wants({b"x": b"1", b"y": b"2", b"id": b"3"}) == [b"x", b"1"]
    assert found.wants({b"y": b"2", b"id": b"3"}) == [b"y", b"", b"id", b""], "an error is to name them"


def test_braces_that_are_doubled_are_no_variables() -> None:
    assert variables_of(b"{{x}}:{y}:{y}{{{z}}}") == (b"y", b"z")


@pytest.mark.parametrize(
    "raw", [b"", b"[]", b"{}", b'{"on":"moon"}', b'{"on":"set","run":[1]}', b'{"on":"stream","source":7}', b"\xff"]
)
def test_what_is_no_record_is_none(raw: bytes) -> None:
    assert Trigger.read(b"t", raw) is None


def test_waits_are_bounded() -> None:
    assert Answer("WAIT", "20").wait_s == 0.02
    assert Answer("WAIT", "99999999").wait_s == 10
    assert Answer("WAIT", "soon").wait_s == 0.1
    assert [Answer(status, "").settled for status in ("FIRED", "ERROR", "WAIT", "NOTNOW")] == [True, True, False, False]


# --- results


@pytest.mark.parametrize("name", [name for name in dtypes.TABLE if name != "STRING"])
def test_values_read_back_as_the_same_elements(name: str) -> None:
    dtype = dtypes.TABLE[name].numpy
    rng = np.random.default_rng(1)
    array = rng.integers(0, 2, (2, 3)).astype(dtype) if dtype.kind != "f" else rng.standard_normal((2, 3)).astype(dtype)
    found = json.loads(json.dumps(events.shown(npy.to_bytes(array))))
    assert found["dtype"] == name
    assert found["shape"] == [2, 3]
    assert np.array_equal(np.array(found["values"], dtype).reshape(2, 3), array)


def test_floats_have_the_digits_of_their_dtype() -> None:
    assert events.values(np.array([0.1, 1e-7, np.nan, np.inf, -np.inf], np.float32)) == [
        0.1,
        1e-7,
        "nan",
        "inf",
        "-inf",
    ]


def test_strings_that_are_not_utf8_are_shown_all_the_same() -> None:
    assert events.values(np.array([b"ab", "é".encode(), b"\xff"])) == ["ab", "é", "�"]


def test_a_result_is_json_whatever_the_names_are() -> None:
    job = _job({b"e": [b"t\xff", b"s", b"earlier"]})
    assert (job.trigger or [])[:2] == [b"t\xff", b"s"]
    found = json.loads(events.result(job, "CPU/1-0", "m@1", [("y", {"key": "k"})]))
    assert found["trigger"] == "t�"
    assert found["outputs"] == {"y": {"key": "k"}}
    assert set(found) == {"trigger", "run", "source", "target", "outputs", "ms"}


def test_jobs_of_callers_are_no_events() -> None:
    assert _job(None).trigger is None
    assert _job({b"f": b"fn"}).trigger is None
