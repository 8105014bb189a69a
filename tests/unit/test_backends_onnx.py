"""The ONNX backend: what it loads, what it refuses, and how it runs."""

import threading
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tests import models

from keyside.executor.backends import base
from keyside.executor.backends.onnx import OnnxBackend, OnnxModel
from keyside.tensorstore.errors import BadModel, ModelFailed, RunFailed
from keyside.tensorstore.records import Signature, TensorSpec

BACKEND = OnnxBackend()


def load(blob: bytes, **changes: Any) -> OnnxModel:
    arguments: dict[str, Any] = {
        "device": "CPU",
        "inputs": [],
        "outputs": [],
        "options": {},
        "allow_code": False,
        "threads": 1,
    }
    return BACKEND.load(blob, **arguments | changes)


def test_it_is_found_by_its_name_and_is_a_backend() -> None:
    assert isinstance(base.find("onnx"), OnnxBackend)
    assert base.find("ONNX") is base.find("ONNX")
    assert isinstance(BACKEND, base.Backend)
    assert isinstance(load(models.scalar()), base.LoadedModel)
    with pytest.raises(ModelFailed, match=r"no backend TF; this executor has .*ONNX.*, TORCH"):
        base.find("TF")


def test_affine() -> None:
    model = load(models.affine())

    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    (y,) = model.run([x])

    assert model.signature == Signature((TensorSpec("x", "FLOAT", (-1, 4)),), (TensorSpec("y", "FLOAT", (-1, 4)),))
    np.testing.assert_array_equal(y, 2 * x + 1)
    assert model.stackable
    assert model.nbytes > len(models.affine())


def test_integers_come_back_exactly() -> None:
    x = np.array([[2**63 - 1], [-(2**63)], [2**53 + 1]], np.int64)

    (y,) = load(models.echo_int64()).run([x])

    assert y.dtype == np.int64
    np.testing.assert_array_equal(y, x)


def test_mlp_of_two_inputs() -> None:
    rng = np.random.default_rng(1)
    transaction = rng.standard_normal((5, 30), dtype=np.float32)
    reference = rng.standard_normal((5, 256), dtype=np.float32)

    model = load(models.mlp())
    (got,) = model.run([transaction, reference])

    np.testing.assert_allclose(got, models.mlp_reference(transaction, reference), rtol=1e-4, atol=1e-6)
    assert model.stackable


def test_strings() -> None:
    model = load(models.string_identity())

    (y,) = model.run([np.array([b"ab", "Zürich".encode(), b""])])
    (empty,) = model.run([np.zeros(0, "S1")])
    (blank,) = model.run([np.array([b""], "S3")])

    (full,) = model.run([np.array([b"ab", b"cd", b"ef"])])  # no NUL between them
    (inner,) = model.run([np.array([b"a\0b", b"c"])])

    assert full.tolist() == [b"ab", b"cd", b"ef"]
    assert inner.tolist() == [b"a\0b", b"c"]
    assert y.dtype.kind == "S"
    assert y.tolist() == [b"ab", "Zürich".encode(), b""]
    assert (empty.dtype, empty.shape) == (np.dtype("S1"), (0,))
    assert (blank.dtype, blank.tolist()) == (np.dtype("S1"), [b""])
    with pytest.raises(RunFailed):
        model.run([np.array([b"\xff\xfe"])])


def test_scalars_and_unknown_ranks() -> None:
    scalar = load(models.scalar())
    unknown = load(models.unknown_rank())

    (y,) = scalar.run([np.array(2.5, np.float32)])

    assert scalar.signature.inputs[0].shape == ()
    assert not scalar.stackable
    assert (y.shape, float(y)) == ((), 5.0)
    assert [spec.shape for spec in unknown.signature.inputs] == [None, ()]
    assert [spec.shape for spec in unknown.signature.outputs or ()] == [None, ()]


def test_no_rows_give_no_rows() -> None:
    (y,) = load(models.affine()).run([np.zeros((0, 4), np.float32)])

    assert y.shape == (0, 4)


@pytest.mark.parametrize(
    ("blob", "stackable"),
    [
        (models.affine(), True),
        (models.two_outputs(), True),
        (models.string_identity(), True),
        (models.fails_out_of_range(), True),
        (models.fixed_batch(), False),
        (models.reduces_batch(), False),
        (models.mixes_rows(), False),
    ],
    ids=["affine", "two outputs", "strings", "table", "fixed batch", "sum of rows", "less mean of rows"],
)
def test_whether_requests_may_be_stacked(blob: bytes, stackable: bool) -> None:
    assert load(blob).stackable is stackable


def test_inputs_are_taken_as_they_lie() -> None:
    model = load(models.affine())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    shifted = np.frombuffer(b"\0" + x.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 4)
    assert not shifted.flags.aligned

    for same in (shifted, np.asfortranarray(x), np.frombuffer(x.tobytes(), np.float32).reshape(2, 4)):
        (y,) = model.run([same])
        np.testing.assert_array_equal(y, 2 * x + 1)
        assert y.flags.c_contiguous


def test_non_tensor_outputs_are_left_out() -> None:
    model = load(models.non_tensor_output())

    results = model.run([np.ones((1, 2), np.float32)])

    assert [spec.name for spec in model.signature.outputs or ()] == ["y"]
    assert len(results) == 1
    with pytest.raises(BadModel, match=r"output 'parts' is a seq\(tensor\(float\)\)"):
        load(models.non_tensor_output(), outputs=["parts"])


def test_names_put_inputs_and_outputs_in_order() -> None:
    a, b = np.full((1, 2), 5, np.float32), np.full((1, 2), 3, np.float32)

    model = load(models.two_outputs(), inputs=["b", "a"], outputs=["difference"])
    (difference,) = model.run([b, a])

    assert [spec.name for spec in model.signature.inputs] == ["b", "a"]
    assert difference.tolist() == [[2, 2]]


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"inputs": ["a", "c"]}, "INPUTS names 'c', but the model has a, b"),
        ({"inputs": ["a"]}, "INPUTS lacks b"),
        ({"inputs": ["a", "a"]}, "INPUTS has a name twice"),
        ({"outputs": ["total"]}, "OUTPUTS names 'total', but the model has sum, difference"),
        ({"options": {"threads": 1}}, "no option 'threads' for ONNX; there are .*intra_op_num_threads"),
        ({"options": {"intra_op_num_threads": -1}}, "intra_op_num_threads must be a whole number"),
        ({"options": {"intra_op_num_threads": True}}, "intra_op_num_threads must be a whole number"),
        ({"options": {"enable_mem_pattern": 1}}, "enable_mem_pattern must be true or false"),
        ({"options": {"execution_mode": "both"}}, "execution_mode must be one of sequential, parallel"),
        ({"options": {"graph_optimization_level": []}}, "must be one of disable, basic, extended, all"),
        ({"options": {"cuda": {}}}, "option cuda is for models on a GPU"),
        ({"options": {"cuda": {"path": "x"}}}, "no option 'path' within cuda"),
        ({"options": {"warmup": 7}}, "option warmup is false or an object"),
        ({"options": {"warmup": {"shapes": [[1]]}}}, "the model has 2 inputs, not 1 shapes"),
        ({"options": {"warmup": {"shapes": [[1], [-1]]}}}, "shapes is not a list of lists of sizes"),
        ({"options": {"warmup": {"shapes": [[1], [1]], "dtypes": ["X", "X"]}}}, "warmup: no dtype 'X'"),
        ({"options": {"warmup": {"shapes": [[1 << 20, 1 << 20], [1]]}}}, "at most"),
    ],
)
def test_wrong_names_and_options_are_refused(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(BadModel, match=text):
        load(models.two_outputs(), **changes)


def test_options_are_taken() -> None:
    options = {
        "intra_op_num_threads": 2,
        "inter_op_num_threads": 1,
        "execution_mode": "parallel",
        "graph_optimization_level": "basic",
        "enable_mem_pattern": False,
        "enable_cpu_mem_arena": False,
        "warmup": {"shapes": [[3, 2], [3, 2]], "dtypes": ["FLOAT", "FLOAT"]},
    }

    assert load(models.two_outputs(), options=options).stackable


def test_a_gpu_that_is_not_there() -> None:
    with pytest.raises(ModelFailed, match="device GPU:0 needs onnxruntime with CUDA"):
        load(models.affine(), device="GPU:0")
    assert base.gpu_index("gpu") == 0
    assert base.gpu_index("GPU:3") == 3
    assert base.gpu_index("CPU") is None


def test_warm_up() -> None:
    stuck = models.model(  # a reshape to two rows of two, which one element does not fill
        [helper.make_node("Reshape", ["x", "shape"], ["y"])],
        [("x", TensorProto.FLOAT, ["N"])],
        [("y", TensorProto.FLOAT, [2, 2])],
        [models.weights("shape", np.array([2, 2], np.int64))],
    )
    divides = models.model(
        [helper.make_node("Div", ["x", "x"], ["y"])],
        [("x", TensorProto.INT64, [2])],
        [("y", TensorProto.INT64, [2])],
    )

    # Sizes that we made up do not speak against a model, those that it declares or that were asked for do.
    assert load(stuck).run([np.ones(4, np.float32)])[0].shape == (2, 2)
    with pytest.raises(ModelFailed, match="the warm-up run failed"):
        load(stuck, options={"warmup": {"shapes": [[3]]}})
    with pytest.raises(ModelFailed, match=r"the warm-up run failed.*division by zero"):
        load(divides)
    load(divides, options={"warmup": False})


def test_failures_of_a_run_are_one_line() -> None:
    model = load(models.fails_out_of_range())

    with pytest.raises(RunFailed, match="out of data bounds") as caught:
        model.run([np.array([7])])
    assert "\n" not in str(caught.value)
    assert "ONNXRuntimeError" not in str(caught.value)
    assert model.run([np.array([1])])[0].tolist() == [[2, 3]]
    with pytest.raises(RunFailed, match="Unexpected input data type"):
        model.run([np.array([1.5])])
    with pytest.raises(RunFailed, match="takes 1 inputs, got 2"):
        model.run([np.array([1]), np.array([1])])


def test_it_runs_on_several_threads() -> None:
    model = load(models.affine())
    wrong: list[float] = []

    def work(number: int) -> None:
        x = np.full((2, 4), number, np.float32)
        for _ in range(100):
            wrong.extend(value for value in model.run([x])[0].flat if value != 2 * number + 1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert not wrong


def test_a_closed_model_fails() -> None:
    model = load(models.affine())
    model.close()

    with pytest.raises(RunFailed):
        model.run([np.zeros((1, 4), np.float32)])


def test_types_that_no_tensor_has_are_refused() -> None:
    blob = models.model(
        [helper.make_node("Cast", ["x"], ["y"], to=TensorProto.FLOAT)],
        [("x", TensorProto.BFLOAT16, ["N"])],
        [("y", TensorProto.FLOAT, ["N"])],
    )

    with pytest.raises(BadModel, match=r"input 'x' is a tensor\(bfloat16\)"):
        load(blob)
