"""Train the classifier of handwritten digits that the demo serves; write it and the images held out from it.

    python examples/digits/train.py [folder]

writes `digits.onnx`, `held_out_images.npy` (float32, one row of 8 x 8 grey values 0 .. 16 per image) and
`held_out_labels.npy` (int64), byte for byte as they are committed beside this file. It needs scikit-learn,
which ships the data, and onnx.
"""

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
from onnx import TensorProto, checker, helper, numpy_helper
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression

HERE = Path(__file__).parent
HELD_OUT = 4  # every fourth image
GRID = 2.0**-12


def train(images: npt.NDArray[np.float32], labels: npt.NDArray[np.int64]) -> LogisticRegression:
    """Fit a multinomial logistic regression, solved to the end.

    Its optimum is unique, and this solver reaches it to about machine precision. What is left of the
    differences between CPUs and their linear algebra vanishes when the weights are rounded to `GRID`.
    """
    model = LogisticRegression(C=0.003, solver="newton-cholesky", tol=1e-10, max_iter=100)
    return model.fit(images.astype(np.float64), labels)


def to_onnx(model: LogisticRegression) -> bytes:
    """Write the model as a graph of three operators: image [N, 64] -> label [N], probabilities [N, 10]."""
    weights = (np.round(model.coef_.T / GRID) * GRID).astype(np.float32)
    bias = (np.round(model.intercept_ / GRID) * GRID).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("Gemm", ["image", "weights", "bias"], ["scores"]),
            helper.make_node("Softmax", ["scores"], ["probabilities"], axis=1),
            helper.make_node("ArgMax", ["scores"], ["label"], axis=1, keepdims=0),
        ],
        "digits",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["N", 64])],
        [
            helper.make_tensor_value_info("label", TensorProto.INT64, ["N"]),
            helper.make_tensor_value_info("probabilities", TensorProto.FLOAT, ["N", 10]),
        ],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(bias, "bias")],
    )
    # Versions are fixed, so that a newer onnx writes the same file and an older onnxruntime reads it.
    onnx_model = helper.make_model(
        graph, producer_name="keyside", ir_version=8, opset_imports=[helper.make_opsetid("", 17)]
    )
    checker.check_model(onnx_model, full_check=True)
    serialized: bytes = onnx_model.SerializeToString(deterministic=True)
    return serialized


def main(folder: Path = HERE) -> None:
    """Write the three files into `folder`."""
    data = load_digits()
    images, labels = data.data.astype(np.float32), data.target.astype(np.int64)
    held_out = np.arange(len(labels)) % HELD_OUT == 0
    model = train(images[~held_out], labels[~held_out])
    accuracy = model.score(images[held_out], labels[held_out])

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "digits.onnx").write_bytes(to_onnx(model))
    np.save(folder / "held_out_images.npy", images[held_out])
    np.save(folder / "held_out_labels.npy", labels[held_out])
    print(f"trained on {np.sum(~held_out)} images; {accuracy:.1%} of {np.sum(held_out)} held out are right")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
