"""Models that do what a model has no business with, given to a real executor by somebody who may store models."""

import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tests import models
from tests.executors import Executor
from tests.raw import add, state, store
from tests.servers import Server

import keyside
from keyside import errors

X = np.ones((2, 4), np.float32)


@pytest.fixture(scope="module")
def careful() -> Iterator[Executor]:
    """An executor as it is without further leave."""
    with Server("redis") as server:
        server.load_library()
        with Executor(server) as executor:
            yield executor


def exported() -> bytes:
    """A linear model as torch.export saves it."""
    import torch

    program = torch.export.export(
        torch.nn.Linear(4, 4), (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},)
    )
    out = io.BytesIO()
    torch.export.save(program, out)
    return out.getvalue()


def reason(executor: Executor, name: str, blob: bytes, backend: str) -> str:
    """Why an executor does not load a model."""
    with executor.server.client() as db:
        version = add(db, name, blob, backend=backend)
        assert state(db, name, version) == "failed"
        return (db.hget(name, f"{version}:reason") or b"").decode()


@pytest.mark.parametrize(
    ("what", "says"), [("reads a file", "opens a file"), ("writes a file", "writes a file"), ("prints", "prints")]
)
def test_torchscript_that_reaches_beyond_the_model(careful: Executor, what: str, says: str) -> None:
    said = reason(careful, f"script {what}", models.attack_scripts()[what], "TORCH")
    assert f"the model {says}" in said
    assert "--allow-code" in said


def test_its_caller_is_told(careful: Executor) -> None:
    with keyside.Client(careful.url, timeout=20) as client:
        with pytest.raises(errors.KeysideError, match="opens a file"):
            client.store("reads", models.attack_scripts()["reads a file"], backend="TORCH")
        with pytest.raises(errors.ModelFailed, match="opens a file"):
            client.predict("reads", X)
        client.store("good", models.affine())
        assert client.predict("good", X).tolist() == (X * 2 + 1).tolist(), "and it serves on"


def test_onnx_that_reads_files(careful: Executor, tmp_path: Path) -> None:
    (tmp_path / "secret.bin").write_bytes(b"\1" * 64)
    assert "external" in reason(careful, "external", models.external_data(str(tmp_path / "secret.bin")), "ONNX")


def test_programs_that_are_code_need_leave(careful: Executor) -> None:
    blob = exported()
    assert "--allow-code" in reason(careful, "exported", blob, "TORCH")
    with Server("redis") as server:
        server.load_library()
        with Executor(server, allow_code="yes"), server.client() as db:
            store(db, "exported", blob, backend="TORCH")
            with keyside.Client(server.url_unix, timeout=20) as client:
                assert client.predict("exported", X).shape == (2, 4)


def test_pickles_are_never_read(careful: Executor, tmp_path: Path) -> None:
    import torch

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return Path.touch, (tmp_path / "was run",)

    out = io.BytesIO()
    torch.save({"x": Attack()}, out)
    assert reason(careful, "pickle", out.getvalue(), "TORCH")
    with Server("redis") as server:
        server.load_library()
        with Executor(server, allow_code="yes") as executor:
            assert reason(executor, "pickle", out.getvalue(), "TORCH")
    assert not (tmp_path / "was run").exists()
