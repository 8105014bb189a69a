"""Small models for tests, built on the spot."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

__all__ = [
    "affine",
    "attack_scripts",
    "custom_operator",
    "echo_int64",
    "external_data",
    "fails_out_of_range",
    "fixed_batch",
    "garbage",
    "mixes_rows",
    "mlp",
    "mlp_reference",
    "model",
    "non_tensor_output",
    "reduces_batch",
    "scalar",
    "scripted_two_outputs",
    "scripted_without_end",
    "string_identity",
    "traced_linear",
    "two_outputs",
    "unknown_rank",
]

Dims = Sequence[int | str | None] | None


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[tuple[str, int, Dims]],
    outputs: Sequence[tuple[str, int, Dims]],
    initializers: Sequence[onnx.TensorProto] = (),
    domains: Sequence[str] = (),
    **kwargs: Any,
) -> bytes:
    """Return a model of these nodes as a file. A dim is a number, or a name or None for a free one."""
    graph = helper.make_graph(
        list(nodes),
        "graph",
        [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in inputs],
        [helper.make_tensor_value_info(name, kind, dims) for name, kind, dims in outputs],
        list(initializers),
    )
    opsets = [helper.make_opsetid("", 17), *(helper.make_opsetid(domain, 1) for domain in domains)]
    built: onnx.ModelProto = helper.make_model(graph, opset_imports=opsets, ir_version=9, **kwargs)
    return bytes(built.SerializeToString())


def weights(name: str, array: np.ndarray[Any, Any]) -> onnx.TensorProto:
    """Return an initializer."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor(name, kind, array.shape, array.tobytes(), raw=True)


def echo_int64() -> bytes:
    """Return x INT64 [-1, 1] -> y, the same."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.INT64, ["N", 1])],
        [("y", TensorProto.INT64, ["N", 1])],
    )


def affine(scale: float = 2.0, offset: float = 1.0, width: int = 4) -> bytes:
    """Return x FLOAT [-1, width] -> y = scale * x + offset."""
    return model(
        [
            helper.make_node("Mul", ["x", "scale"], ["scaled"]),
            helper.make_node("Add", ["scaled", "offset"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", width])],
        [("y", TensorProto.FLOAT, ["N", width])],
        [weights("scale", np.array(scale, np.float32)), weights("offset", np.array(offset, np.float32))],
    )


def _mlp_weights(seed: int) -> list[np.ndarray[Any, Any]]:
    rng = np.random.default_rng(seed)
    sizes = [(286, 64), (64,), (64, 32), (32,), (32, 2), (2,)]
    return [rng.standard_normal(size, dtype=np.float32) * 0.1 for size in sizes]


def mlp(seed: int = 0) -> bytes:
    """Return transaction [-1, 30], reference [-1, 256] -> probabilities [-1, 2], through 286-64-32-2."""
    w1, b1, w2, b2, w3, b3 = _mlp_weights(seed)
    return model(
        [
            helper.make_node("Concat", ["transaction", "reference"], ["all"], axis=1),
            helper.make_node("Gemm", ["all", "w1", "b1"], ["h1"]),
            helper.make_node("Relu", ["h1"], ["r1"]),
            helper.make_node("Gemm", ["r1", "w2", "b2"], ["h2"]),
            helper.make_node("Relu", ["h2"], ["r2"]),
            helper.make_node("Gemm", ["r2", "w3", "b3"], ["h3"]),
            helper.make_node("Softmax", ["h3"], ["probabilities"], axis=1),
        ],
        [("transaction", TensorProto.FLOAT, ["N", 30]), ("reference", TensorProto.FLOAT, ["N", 256])],
        [("probabilities", TensorProto.FLOAT, ["N", 2])],
        [
            weights(name, array)
            for name, array in zip(("w1", "b1", "w2", "b2", "w3", "b3"), (w1, b1, w2, b2, w3, b3), strict=True)
        ],
    )


def mlp_reference(
    transaction: np.ndarray[Any, Any], reference: np.ndarray[Any, Any], seed: int = 0
) -> np.ndarray[Any, Any]:
    """Return what `mlp` should give, computed by numpy."""
    w1, b1, w2, b2, w3, b3 = _mlp_weights(seed)
    hidden = np.maximum(np.concatenate((transaction, reference), axis=1) @ w1 + b1, 0)
    hidden = np.maximum(hidden @ w2 + b2, 0)
    scores = np.exp(hidden @ w3 + b3)
    result: np.ndarray[Any, Any] = scores / scores.sum(axis=1, keepdims=True)
    return result


def fixed_batch(rows: int = 2) -> bytes:
    """Return x FLOAT [rows, 3] -> y = -x, of exactly that many rows."""
    return model(
        [helper.make_node("Neg", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [rows, 3])],
        [("y", TensorProto.FLOAT, [rows, 3])],
    )


def scalar() -> bytes:
    """Return x FLOAT [] -> y = x + x, both 0-d."""
    return model(
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [("x", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT, [])],
    )


def string_identity() -> bytes:
    """Return x STRING [-1] -> y, the same."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"])],
        [("x", TensorProto.STRING, ["N"])],
        [("y", TensorProto.STRING, ["N"])],
    )


def reduces_batch() -> bytes:
    """Return x FLOAT [-1, 3] -> total [1, 3], the sum over the rows."""
    return model(
        [helper.make_node("ReduceSum", ["x", "axes"], ["total"], keepdims=1)],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("total", TensorProto.FLOAT, [None, 3])],
        [weights("axes", np.array([0], np.int64))],
    )


def mixes_rows() -> bytes:
    """Return x FLOAT [-1, 3] -> y [-1, 3], less the mean over the rows: as many rows, but not independent."""
    return model(
        [
            helper.make_node("ReduceMean", ["x"], ["mean"], axes=[0], keepdims=1),
            helper.make_node("Sub", ["x", "mean"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", 3])],
        [("y", TensorProto.FLOAT, ["N", 3])],
    )


def two_outputs() -> bytes:
    """Return a FLOAT [-1, 2], b FLOAT [-1, 2] -> sum, difference."""
    return model(
        [helper.make_node("Add", ["a", "b"], ["sum"]), helper.make_node("Sub", ["a", "b"], ["difference"])],
        [("a", TensorProto.FLOAT, ["N", 2]), ("b", TensorProto.FLOAT, ["N", 2])],
        [("sum", TensorProto.FLOAT, ["N", 2]), ("difference", TensorProto.FLOAT, ["N", 2])],
    )


def fails_out_of_range(rows: int = 5) -> bytes:
    """Return index INT64 [-1] -> row FLOAT [-1, 2] of a table; fails if any index is outside of it."""
    table = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    return model(
        [helper.make_node("Gather", ["table", "index"], ["row"], axis=0)],
        [("index", TensorProto.INT64, ["N"])],
        [("row", TensorProto.FLOAT, ["N", 2])],
        [weights("table", table)],
    )


def unknown_rank() -> bytes:
    """Return x FLOAT of any rank -> y, the same; and s, 0-d -> t, the same."""
    return model(
        [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("Identity", ["s"], ["t"])],
        [("x", TensorProto.FLOAT, None), ("s", TensorProto.FLOAT, [])],
        [("y", TensorProto.FLOAT, None), ("t", TensorProto.FLOAT, [])],
    )


def non_tensor_output() -> bytes:
    """Return x FLOAT [-1, 2] -> y, the same, and a sequence beside it, as scikit-learn's classifiers have."""
    graph = helper.make_graph(
        [
            helper.make_node("Identity", ["x"], ["y"]),
            helper.make_node("SequenceConstruct", ["x"], ["parts"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2])],
        [
            helper.make_tensor_sequence_value_info("parts", TensorProto.FLOAT, None),
            helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2]),
        ],
    )
    built: onnx.ModelProto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return bytes(built.SerializeToString())


def external_data(location: str = "secret.bin", count: int = 4) -> bytes:
    """Return a model with weights in a file beside it: x FLOAT [-1, count] -> y = x + these."""
    outside = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[count])
    outside.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(4 * count))):
        entry = outside.external_data.add()
        entry.key, entry.value = key, value
    return model(
        [helper.make_node("Add", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", count])],
        [("y", TensorProto.FLOAT, ["N", count])],
        [outside],
    )


def custom_operator(domain: str = "org.example") -> bytes:
    """Return a model with an operator that only a custom library would have."""
    return model(
        [helper.make_node("Frobnicate", ["x"], ["y"], domain=domain)],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, ["N"])],
        domains=[domain],
    )


def garbage(size: int = 1000, seed: int = 0) -> bytes:
    """Return bytes that are no model."""
    return np.random.default_rng(seed).integers(0, 256, size, np.uint8).tobytes()


def _saved(scripted: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    return buffer.getvalue()


def traced_linear() -> bytes:
    """Return a traced TorchScript model: x [n, 4] -> x @ ones(4, 2) + 1."""
    import torch

    layer = torch.nn.Linear(4, 2)
    torch.nn.init.ones_(layer.weight)
    torch.nn.init.ones_(layer.bias)
    traced = torch.jit.trace(layer.eval(), torch.zeros(1, 4))  # type: ignore[no-untyped-call]
    return _saved(traced)


def scripted_two_outputs() -> bytes:
    """Return a scripted TorchScript model with a branch: a, b -> (a + b, a - b)."""
    return scripted(
        "def forward(self, a: Tensor, b: Tensor):\n"
        "    if bool(a.numel() > 1000000):\n"
        "        a = a * 2\n"
        "    return a + b, a - b\n"
    )


def scripted_without_end() -> bytes:
    """Return a scripted TorchScript model, x -> x + 1, that never ends where x has a positive sum."""
    return scripted(
        "def forward(self, x: Tensor):\n    while bool(x.sum() > 0):\n        x = x.abs()\n    return x + 1\n"
    )


def scripted(source: str) -> bytes:
    """Return a TorchScript model of this source of `forward` (and other methods)."""
    import torch

    # A class of its own: torch keeps one forward for each class.
    module = type("Scripted", (torch.jit.ScriptModule,), {})()
    module.define(source)
    return _saved(module)


def attack_scripts() -> dict[str, bytes]:
    """Return TorchScript models that reach for what a model has no business with, by what they do."""
    return {
        "reads a file": scripted(
            "def forward(self, x: Tensor):\n    return x + torch.from_file('/etc/hostname', False, 4)\n"
        ),
        "writes a file": scripted("def forward(self, x: Tensor):\n    torch.save(x, '/tmp/x')\n    return x\n"),
        "prints": scripted("def forward(self, x: Tensor):\n    print(x)\n    return x\n"),
    }
