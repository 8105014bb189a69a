"""What is refused of an ONNX file before onnxruntime sees it."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from tests import models

from keyside.executor.backends.onnx import OnnxBackend, OnnxModel
from keyside.executor.backends.onnx_scan import scan
from keyside.tensorstore.errors import BadModel, ModelFailed

GRAPH = b"\x3a\x00"


def load(blob: bytes) -> OnnxModel:
    return OnnxBackend().load(blob, device="CPU", inputs=[], outputs=[], options={}, allow_code=False, threads=1)


def test_external_data_is_refused_though_the_file_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.bin").write_bytes(np.arange(4, dtype=np.float32).tobytes())

    with pytest.raises(BadModel, match="tensor 'w' keeps its data in an external file"):
        load(models.external_data())


def external() -> onnx.TensorProto:
    tensor = TensorProto(name="hidden", data_type=TensorProto.FLOAT, dims=[1])
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def in_graph(**fields: Any) -> onnx.ModelProto:
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [], [])
    for name, value in fields.items():
        getattr(graph, name).append(value)
    return helper.make_model(graph)


def hiding_places() -> dict[str, onnx.ModelProto]:
    graph = helper.make_graph([], "inner", [], [], [external()])
    sparse_values = onnx.SparseTensorProto(values=external())
    sparse_indices = onnx.SparseTensorProto(indices=external())
    deep = graph
    for _ in range(10):
        deep = helper.make_graph([helper.make_node("If", ["c"], ["y"], then_branch=deep)], "outer", [], [])
    function = helper.make_function("org.example", "f", ["x"], ["y"], [], [helper.make_opsetid("", 17)])
    function.node.append(helper.make_node("Constant", [], ["y"], value=external()))
    with_function = in_graph()
    with_function.functions.append(function)
    training = in_graph()
    training.training_info.append(onnx.TrainingInfoProto(initialization=graph))
    by_entry = TensorProto(name="hidden")
    by_entry.external_data.add().key = "location"
    return {
        "initializer": in_graph(initializer=external()),
        "by its entries alone": in_graph(initializer=by_entry),
        "sparse values": in_graph(sparse_initializer=sparse_values),
        "sparse indices": in_graph(sparse_initializer=sparse_indices),
        "attribute": in_graph(node=helper.make_node("Constant", [], ["y"], value=external())),
        "attribute list": in_graph(node=helper.make_node("X", [], ["y"], values=[external()])),
        "sparse attribute": in_graph(node=helper.make_node("Constant", [], ["y"], sparse_value=sparse_values)),
        "subgraph": in_graph(node=helper.make_node("If", ["c"], ["y"], then_branch=graph)),
        "subgraph list": in_graph(node=helper.make_node("X", ["c"], ["y"], branches=[graph])),
        "deep": in_graph(node=helper.make_node("If", ["c"], ["y"], then_branch=deep)),
        "function": with_function,
        "training": training,
    }


@pytest.mark.parametrize("where", hiding_places())
def test_external_data_is_found_wherever_it_hides(where: str) -> None:
    with pytest.raises(BadModel, match="keeps its data in an external file"):
        scan(hiding_places()[where].SerializeToString())


def test_external_data_is_found_behind_long_runs_of_numbers() -> None:
    node = helper.make_node("Tree", [], ["y"], ints=[-1, 5, 1 << 40] * 1000, floats=[0.5] * 1000)
    node.attribute.append(helper.make_attribute("t", external()))

    with pytest.raises(BadModel, match="external file"):
        scan(in_graph(node=node).SerializeToString())


def nested(depth: int) -> bytes:
    message = b""
    for _ in range(depth):  # a graph in an attribute of a node of a graph
        for tag in (0x32, 0x2A, 0x0A):
            message = bytes([tag]) + varint(len(message)) + message
    return b"\x3a" + varint(len(message)) + message


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


@pytest.mark.parametrize(
    ("blob", "text"),
    [
        (b"", "has no graph"),
        (b"\x08\x09", "has no graph"),
        (b"hello, this is text", "not an ONNX"),
        (models.affine()[:-3], "malformed at byte"),
        (models.garbage(), "malformed at byte"),
        (GRAPH + b"\x0b\x0c", "malformed"),  # a group
        (GRAPH + b"\x88\x80\x80\x80\x80\x00\x01", "malformed"),  # a tag of six bytes
        (GRAPH + b"\x08" + b"\xff" * 10 + b"\x01", "malformed"),  # a number of eleven bytes
        (GRAPH + b"\x00\x00", "malformed"),  # field 0
        (GRAPH + b"\x0a\xff\xff\xff\xff\x0f", "malformed"),  # longer than there is
        (GRAPH + b"\x0d\x00", "malformed"),  # four bytes, of which one is there
        (b"\x0c\x00\x00\x00ORTM" + bytes(20), "ORT format"),
        (nested(1000), "too deeply"),
    ],
)
def test_malformed_files_are_refused(blob: bytes, text: str) -> None:
    with pytest.raises(BadModel, match=text):
        load(blob)


def test_subgraphs_may_nest() -> None:
    assert scan(nested(10)).operators == {("", "")}


def test_every_truncation_and_many_flips_are_refused_or_loaded_cleanly() -> None:
    blob = models.two_outputs()
    rng = np.random.default_rng(3)
    cut = (blob[:length] for length in range(0, len(blob), 7))
    flips = []
    for _ in range(150):
        damaged = bytearray(blob)
        damaged[rng.integers(len(blob))] ^= 1 << int(rng.integers(8))
        flips.append(bytes(damaged))

    texts = []
    for each in itertools.chain(cut, flips):
        try:
            load(each)
        except (BadModel, ModelFailed) as error:
            texts.append(str(error))

    assert len(texts) > 50
    assert max(map(len, texts)) < 600
    assert not any("\n" in text for text in texts)


def test_custom_operators_are_refused() -> None:
    with pytest.raises(BadModel, match=r"custom operator org\.example::Frobnicate"):
        load(models.custom_operator())
    with pytest.raises(BadModel, match="operator EPContext"):
        scan(in_graph(node=helper.make_node("EPContext", [], ["y"], domain="com.microsoft")).SerializeToString())


def test_functions_of_the_model_may_have_any_domain() -> None:
    function = helper.make_function(
        "org.example",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 17)],
    )
    blob = models.model(
        [helper.make_node("Twice", ["x"], ["y"], domain="org.example")],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, ["N"])],
        domains=["org.example"],
        functions=[function],
    )

    assert load(blob).run([np.ones(2, np.float32)])[0].tolist() == [2, 2]


def test_a_large_tree_is_scanned_quickly() -> None:
    node = helper.make_node("Tree", [], ["y"], ints=list(range(300_000)))

    found = scan(in_graph(node=node).SerializeToString())  # 0.02 s; one field at a time would take 0.3 s

    assert ("", "Tree") in found.operators
