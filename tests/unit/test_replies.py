"""Replies from a template: executor/replies.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.executor.replies import Replies
from keyside.tensorstore import npy
from keyside.tensorstore.records import encode_reply, reply_parts

NAMES = ["y", "a name of more than thirty-one characters", "ü"]
DTYPES = [np.dtype(code) for code in ("f4", "f2", "i8", "u1", "?")]


@given(
    st.lists(st.tuples(st.sampled_from(DTYPES), st.integers(1, 300)), min_size=1, max_size=3),
    st.integers(1, 5),
    st.integers(1, 4),
)
def test_they_are_what_encoding_each_would_give(forms: list[tuple[np.dtype, int]], jobs: int, rows: int) -> None:
    results = [np.arange(jobs * rows * width).reshape(jobs * rows, width).astype(dtype) for dtype, width in forms]
    names = NAMES[: len(results)]
    made = Replies("m@1", 1 << 20).make(names, results, jobs, rows)
    assert made is not None
    for n in range(jobs):
        own = [npy.to_bytes(result[n * rows : (n + 1) * rows]) for result in results]
        assert made[n] == encode_reply("m@1", zip(names, own, strict=True))


def test_one_job_may_get_any_shape() -> None:
    replies = Replies("m@1", 1 << 20)
    for result in (np.array(3, "f4"), np.zeros((2, 3, 4)), np.ones(5, np.int8)):
        assert replies.make(["y"], [result], 1, 1) == [encode_reply("m@1", [("y", npy.to_bytes(result))])]


@pytest.mark.parametrize("result", [np.zeros((2, 0)), np.zeros((2, 100)), np.array([b"ab", b"c"])])
def test_what_is_not_for_it(result: np.ndarray) -> None:
    assert Replies("m@1", 512).make(["y"], [result], 1, 2) is None


def test_a_missing_output() -> None:
    assert Replies("m@1", 512).make(["y", "z"], [np.zeros((2, 1))], 1, 2) is None


def test_results_that_are_each_another_number_leave_no_templates_behind() -> None:
    replies = Replies("m@1", 1 << 20)
    for count in (16, 17, 1000):
        made = replies.make([str(n) for n in range(count)], [np.zeros(1)] * count, 1, 1)
        assert (made is None) == (count > 16)


@pytest.mark.parametrize("count", [1, 15, 16, 70])
def test_parts_of_replies_with_many_outputs(count: int) -> None:
    header = npy.encode_header(np.dtype("f4"), (1,))
    outputs = [(f"output_{n}", header, 4) for n in range(count)]
    parts = reply_parts("m@1", outputs)
    whole = b"".join(part + b"abcd" for part in parts)
    assert whole == encode_reply("m@1", [(name, header + b"abcd") for name, _, _ in outputs])
