"""ONNX models for benchmarks: of a given cost, of a given size, or tiny."""

import itertools
from collections.abc import Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

__all__ = ["dense", "heavy", "image", "tiny"]

Sizes = Sequence[int | str]


def dense(layers: int) -> bytes:
    """Return x FLOAT [N, 256] -> y FLOAT [N, 10]: so many fully connected layers between, of 1280.

    Nearly all of the time for a row goes into reading their weights, 6.5 MB each, which a batch reads once: batches
    gain much.
    """
    sizes = (256, *[1280] * (layers + 1), 10)
    rng = np.random.default_rng(3)
    nodes, weights = [], []
    last = len(sizes) - 2
    for n, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        matrix = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(rows))
        weights += [_array(f"w{n}", matrix), _array(f"b{n}", np.zeros(columns, np.float32))]
        nodes.append(
            helper.make_node("Gemm", [f"h{n}" if n else "x", f"w{n}", f"b{n}"], ["y" if n == last else f"g{n}"])
        )
        if n < last:
            nodes.append(helper.make_node("Relu", [f"g{n}"], [f"h{n + 1}"]))
    return _model(nodes, ["N", sizes[0]], ["N", sizes[-1]], weights)


def image() -> bytes:
    """Return x FLOAT [N, 3, 224, 224] -> y FLOAT [N, 10]: convolutions, about 20 ms for an image on one core."""
    rng = np.random.default_rng(4)
    nodes, weights = [], []
    layers = [(3, 64, 7, 4), *4 * [(64, 64, 3, 1)], (64, 128, 3, 2), *4 * [(128, 128, 3, 1)]]
    for n, (inputs, outputs, size, stride) in enumerate(layers):
        source = f"r{n - 1}" if n else "x"
        kernel = rng.standard_normal((outputs, inputs, size, size), dtype=np.float32)
        weights.append(_array(f"k{n}", kernel / np.float32(np.sqrt(inputs * size * size))))
        pads = [size // 2] * 4
        nodes += [
            helper.make_node("Conv", [source, f"k{n}"], [f"c{n}"], strides=[stride] * 2, pads=pads),
            helper.make_node("Relu", [f"c{n}"], [f"r{n}"]),
        ]
    weights.append(_array("w", rng.standard_normal((128, 10), dtype=np.float32)))
    nodes += [
        helper.make_node("GlobalAveragePool", [f"r{len(layers) - 1}"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("MatMul", ["flat", "w"], ["y"]),
    ]
    return _model(nodes, ["N", 3, 224, 224], ["N", 10], weights)


def heavy(nbytes: int, seed: int = 0) -> bytes:
    """Return x FLOAT [N, 1] -> y FLOAT [N, 1], with so many bytes of weights that a run hardly reads.

    Args:
        nbytes: of weights.
        seed: another one gives another model.
    """
    rows = max(1, nbytes // 4096)
    # Random bits as numbers of normal size: what a compressor or a page of zeros would hide stays to be moved.
    table = np.random.default_rng(seed).random((rows, 1024), dtype=np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "first"], ["row"], axis=0),
        helper.make_node("ReduceSum", ["row"], ["sum"], keepdims=0),
        helper.make_node("Add", ["x", "sum"], ["y"]),
    ]
    return _model(nodes, ["N", 1], ["N", 1], [_array("table", table), _array("first", np.array([seed % rows]))])


def tiny(seed: int) -> bytes:
    """Return x FLOAT [N, 1] -> y = x + seed."""
    nodes = [helper.make_node("Add", ["x", "seed"], ["y"])]
    return _model(nodes, ["N", 1], ["N", 1], [_array("seed", np.array([seed], np.float32))])


def _array(name: str, values: "np.ndarray[tuple[int, ...], np.dtype[np.generic]]") -> onnx.TensorProto:
    return numpy_helper.from_array(values, name)


def _model(nodes: list[onnx.NodeProto], takes: Sizes, gives: Sizes, weights: list[onnx.TensorProto]) -> bytes:
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, takes)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, gives)]
    graph = helper.make_graph(nodes, "bench", inputs, outputs, weights)
    found = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(found.SerializeToString())
