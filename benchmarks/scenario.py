"""The fraud scenario: a transaction [1,30] in hand and a reference [1,256] in Redis go through an MLP 286-64-32-2.

After RedisLabs' aibench, with a model that truly reads both inputs. Its opset is one that RedisAI's onnxruntime knows.
Besides: what other benchmarks share, sessions and a model of a given cost.
"""

import itertools
import statistics
import time
from typing import Any

import numpy as np
import onnx
import onnxruntime
from graphs import dense
from onnx import TensorProto, helper, numpy_helper

from keyside.tensorstore import npy

__all__ = ["REFERENCES", "Fraud", "dense_of", "session_for"]

REFERENCES = 1000


class Fraud:
    """Model, inputs and expected answers; the same for every contender.

    Attributes:
        model: the ONNX file.
        transactions: npy files, FLOAT [1,30].
        references: npy files, FLOAT [1,256], to be stored under `key(i)`.
        expected: FLOAT [1000,2], what in-process onnxruntime gives for transaction i with reference i.
    """

    def __init__(self) -> None:
        rng = np.random.default_rng(7)
        self.model = _mlp(rng)
        self._transactions = rng.standard_normal((REFERENCES, 1, 30), dtype=np.float32)
        self._references = rng.standard_normal((REFERENCES, 1, 256), dtype=np.float32)
        self.transactions = [npy.to_bytes(row) for row in self._transactions]
        self.references = [npy.to_bytes(row) for row in self._references]
        session = session_for(self.model)
        self.expected = session.run(
            None, {"transaction": self._transactions[:, 0], "reference": self._references[:, 0]}
        )[0]

    def arrays(self, i: int) -> tuple[Any, Any]:
        """Return transaction and reference i as arrays."""
        return self._transactions[i], self._references[i]

    @staticmethod
    def key(i: int) -> str:
        """Return the key of reference i."""
        return f"referenceTensor:{i}"


def session_for(model: bytes) -> Any:
    """Return an onnxruntime session with one thread, as every contender uses."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def dense_of(milliseconds: float) -> tuple[bytes, str]:
    """Return a model of `graphs.dense` that takes about so long for a row here, and a sentence on it.

    How many layers that takes depends on the machine, most of all on its cache.
    """
    found: dict[int, tuple[float, bytes]] = {}
    layers = 3
    while layers not in found and len(found) < 5:
        blob = dense(layers)
        session = session_for(blob)
        row = np.ones((1, 256), np.float32)
        times = []
        for _ in range(100):
            before = time.perf_counter()
            session.run(None, {"x": row})
            times.append(time.perf_counter() - before)
        took = statistics.median(times) * 1e3
        found[layers] = took, blob
        layers = max(1, round(layers * milliseconds / took))
    layers = min(found, key=lambda n: abs(found[n][0] - milliseconds))
    took, blob = found[layers]
    return blob, f"Dense model: {layers} layers of 1280, {took:.2f} ms for a row alone in this process"


def _mlp(rng: np.random.Generator) -> bytes:
    sizes = (286, 64, 32, 2)
    nodes = [helper.make_node("Concat", ["transaction", "reference"], ["h0"], axis=1)]
    weights = []
    for n, (rows, columns) in enumerate(itertools.pairwise(sizes)):
        matrix = rng.standard_normal((rows, columns), dtype=np.float32) / np.float32(np.sqrt(rows))
        weights += [
            numpy_helper.from_array(matrix, f"w{n}"),
            numpy_helper.from_array(np.zeros(columns, np.float32), f"b{n}"),
        ]
        nodes.append(helper.make_node("Gemm", [f"h{n}", f"w{n}", f"b{n}"], [f"g{n}"]))
        if n < 2:
            nodes.append(helper.make_node("Relu", [f"g{n}"], [f"h{n + 1}"]))
    nodes.append(helper.make_node("Softmax", ["g2"], ["probabilities"], axis=1))
    graph = helper.make_graph(
        nodes,
        "fraud",
        [
            helper.make_tensor_value_info("transaction", TensorProto.FLOAT, ["N", 30]),
            helper.make_tensor_value_info("reference", TensorProto.FLOAT, ["N", 256]),
        ],
        [helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 2])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())
