"""More small models for tests: those that show how they are run, are slow on purpose, or break at a chosen moment."""

from functools import cache
from time import process_time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper
from tests.models import Dims, model, weights

__all__ = [
    "batch_size",
    "batch_size_of_two",
    "fails_at_warm_up",
    "identity",
    "slow",
    "turns_for",
    "unknown_operator",
    "wide",
]


def batch_size(dims: Dims = ("N", "W"), kind: int = TensorProto.FLOAT) -> bytes:
    """Return x [-1, ..] -> rows INT64 [-1]: beside each row, how many rows there were in the run."""
    return model(
        [
            helper.make_node("Shape", ["x"], ["count"], start=0, end=1),
            helper.make_node("Expand", ["count", "count"], ["rows"]),
        ],
        [("x", kind, dims)],
        [("rows", TensorProto.INT64, ["N"])],
    )


def batch_size_of_two() -> bytes:
    """Return a FLOAT [-1, 2], b FLOAT [-1, 2] of as many rows or others -> rows INT64 [-1], those of a."""
    return model(
        [
            helper.make_node("ReduceSum", ["b"], ["sum"], keepdims=0),
            helper.make_node("Add", ["a", "sum"], ["both"]),
            helper.make_node("Shape", ["both"], ["count"], start=0, end=1),
            helper.make_node("Expand", ["count", "count"], ["rows"]),
        ],
        [("a", TensorProto.FLOAT, ["N", 2]), ("b", TensorProto.FLOAT, ["M", 2])],
        [("rows", TensorProto.INT64, ["N"])],
    )


def identity(kind: int = TensorProto.FLOAT, dims: Dims = ("N", None)) -> bytes:
    """Return x [-1, -1] -> y, the same."""
    return model([helper.make_node("Identity", ["x"], ["y"])], [("x", kind, dims)], [("y", kind, dims)])


def wide(width: int) -> bytes:
    """Return x FLOAT [-1, 1] -> y [-1, width], x beside itself: a large output of a small input."""
    return model(
        [helper.make_node("Add", ["x", "zeros"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", 1])],
        [("y", TensorProto.FLOAT, ["N", width])],
        [weights("zeros", np.zeros((1, width), np.float32))],
    )


def slow(offset: int = 0, turns_per_row: int = 0, turns: int = 0) -> bytes:
    """Return x INT64 [-1, 1] -> y = x + offset, after as many turns of a loop as the largest x says.

    And some more for each row but the first, and some in any case.
    """
    number = TensorProto.INT64
    body = helper.make_graph(
        [
            helper.make_node("Identity", ["going"], ["goes_on"]),
            helper.make_node("Add", ["sum", "turn"], ["sum_out"]),
        ],
        "body",
        [
            helper.make_tensor_value_info("turn", number, []),
            helper.make_tensor_value_info("going", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum", number, []),
        ],
        [
            helper.make_tensor_value_info("goes_on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("sum_out", number, []),
        ],
    )
    return model(
        [
            helper.make_node("ReduceMax", ["x"], ["largest"], keepdims=0),
            helper.make_node("Size", ["x"], ["rows"]),
            helper.make_node("Sub", ["rows", "one"], ["more"]),
            helper.make_node("Mul", ["more", "per_row"], ["extra"]),
            helper.make_node("Add", ["largest", "extra"], ["by_rows"]),
            helper.make_node("Add", ["by_rows", "always"], ["turns"]),
            helper.make_node("Loop", ["turns", "", "zero"], ["sum"], body=body),
            # The loop must be run for its result, which then counts for nothing.
            helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
            helper.make_node("Add", ["x", "nothing"], ["same"]),
            helper.make_node("Add", ["same", "offset"], ["y"]),
        ],
        [("x", number, ["N", 1])],
        [("y", number, ["N", 1])],
        [
            weights(name, np.array(value, np.int64))
            for name, value in (
                ("zero", 0),
                ("one", 1),
                ("per_row", turns_per_row),
                ("always", turns),
                ("offset", offset),
            )
        ],
    )


@cache
def _turns_per_second() -> float:
    session = onnxruntime.InferenceSession(slow(), providers=["CPUExecutionProvider"])
    best = 0.0
    for _ in range(5):
        began = process_time()  # what else runs on this machine does not count
        session.run(None, {"x": np.array([[10_000]], np.int64)})
        best = max(best, 10_000 / (process_time() - began))
    return best


def turns_for(seconds: float) -> "np.ndarray[tuple[int, int], np.dtype[np.int64]]":
    """Return the input with which `slow` takes so long on this machine, or longer if that is busy."""
    return np.array([[int(seconds * _turns_per_second())]], np.int64)


def fails_at_warm_up() -> bytes:
    """Return index INT64 [1] -> row FLOAT [1, 2]: every size is known, and it fails on zeros."""
    return model(
        [
            helper.make_node("Add", ["index", "far"], ["outside"]),
            helper.make_node("Gather", ["table", "outside"], ["row"], axis=0),
        ],
        [("index", TensorProto.INT64, [1])],
        [("row", TensorProto.FLOAT, [1, 2])],
        [
            weights("table", np.zeros((2, 2), np.float32)),
            weights("far", np.array([100], np.int64)),
        ],
    )


def unknown_operator() -> bytes:
    """Return a model with an operator that ONNX does not have."""
    return model(
        [helper.make_node("Frobnicate", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, ["N"])],
    )
