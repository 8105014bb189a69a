import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

DIGITS = Path(__file__).parents[2] / "examples" / "digits"
FILES = ["digits.onnx", "held_out_images.npy", "held_out_labels.npy"]


@pytest.fixture(scope="module")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("digits")
    subprocess.run([sys.executable, DIGITS / "train.py", folder], check=True, timeout=60)
    return folder


@pytest.mark.parametrize("name", FILES)
def test_training_again_gives_the_committed_file(reproduced: Path, name: str) -> None:
    assert (DIGITS / name).read_bytes() == (reproduced / name).read_bytes()


def test_the_committed_model_reads_the_held_out_images() -> None:
    images = np.load(DIGITS / "held_out_images.npy", allow_pickle=False)
    labels = np.load(DIGITS / "held_out_labels.npy", allow_pickle=False)
    assert (np.dtype("<f4"), (450, 64)) == (images.dtype, images.shape)
    assert (np.dtype("<i8"), (450,)) == (labels.dtype, labels.shape)

    session = onnxruntime.InferenceSession(DIGITS / "digits.onnx", providers=["CPUExecutionProvider"])
    label, probabilities = session.run(["label", "probabilities"], {"image": images})

    np.testing.assert_array_equal(np.argmax(probabilities, axis=1), label)
    np.testing.assert_allclose(probabilities.sum(axis=1), 1, rtol=1e-5)
    assert np.mean(label == labels) > 0.95
