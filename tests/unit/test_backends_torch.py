"""The TORCH backend: what it loads, what it refuses, and how it runs."""

import io
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests import models

from keyside.executor.backends import base
from keyside.executor.backends.torch import TorchBackend, TorchModel
from keyside.tensorstore.errors import BadModel, ModelFailed, RunFailed
from keyside.tensorstore.records import TensorSpec

torch = pytest.importorskip("torch")

BACKEND = TorchBackend()


def load(blob: bytes, **changes: Any) -> TorchModel:
    arguments: dict[str, Any] = {
        "device": "CPU",
        "inputs": [],
        "outputs": [],
        "options": {},
        "allow_code": False,
        "threads": 1,
    }
    return BACKEND.load(blob, **arguments | changes)


def names(specs: tuple[TensorSpec, ...] | None) -> list[str] | None:
    return None if specs is None else [spec.name for spec in specs]


def test_it_is_found_by_its_name_and_is_a_backend() -> None:
    assert isinstance(base.find("TORCH"), TorchBackend)
    assert isinstance(BACKEND, base.Backend)
    assert isinstance(load(models.traced_linear()), base.LoadedModel)


def test_traced() -> None:
    model = load(models.traced_linear())
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    x.flags.writeable = False

    (y,) = model.run([x])

    assert y.tolist() == [[7, 7], [23, 23]]
    assert y.dtype == np.float32
    assert model.signature.inputs == (TensorSpec("input", "", None),)
    assert names(model.signature.outputs) == ["output_0"]


def test_scripted_with_two_outputs() -> None:
    model = load(models.scripted_two_outputs(), inputs=["left", "right"], outputs=["sum", "difference"])

    total, difference = model.run([np.array([5.0]), np.array([3.0])])

    assert (total.tolist(), difference.tolist()) == ([8], [2])
    assert names(model.signature.inputs) == ["left", "right"]
    assert names(model.signature.outputs) == ["sum", "difference"]


def test_the_number_of_outputs_may_be_unknown() -> None:
    blob = models.scripted("def forward(self, x: Tensor) -> List[Tensor]:\n    return list(torch.unbind(x, 0))\n")

    model = load(blob)

    assert model.signature.outputs is None
    assert len(model.run([np.zeros((3, 2), np.float32)])) == 3
    named = load(blob, outputs=["a", "b"])
    assert names(named.signature.outputs) == ["a", "b"]
    with pytest.raises(RunFailed, match="gave 3 outputs, not 2"):
        named.run([np.zeros((3, 2), np.float32)])


def test_optional_inputs() -> None:
    blob = models.scripted(
        "def forward(self, x: Tensor, y: Optional[Tensor] = None, scale: float = 2.0):\n"
        "    if y is not None:\n"
        "        x = x + y\n"
        "    return x * scale\n"
    )

    assert load(blob).run([np.ones(1)])[0].tolist() == [2]
    assert load(blob, inputs=["x", "y"]).run([np.ones(1), np.ones(1)])[0].tolist() == [4]
    with pytest.raises(BadModel, match="'scale' as float; inputs must be tensors"):
        load(blob, inputs=["x", "y", "scale"])
    with pytest.raises(BadModel, match="4 names, but forward takes 1 to 3: x, y, scale"):
        load(blob, inputs=["a", "b", "c", "d"])


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("def forward(self, x: Tensor):\n    return {'a': x}\n", "returns a dict"),
        ("def forward(self, x: List[Tensor]):\n    return x[0]\n", "inputs must be tensors"),
        ("def forward(self):\n    return torch.zeros(1)\n", "takes no input"),
        ("def other(self, x: Tensor):\n    return x\n", "no method forward"),
    ],
)
def test_signatures_that_cannot_be_served(source: str, text: str) -> None:
    with pytest.raises(BadModel, match=text):
        load(models.scripted(source))


def test_wrong_names_and_options_are_refused() -> None:
    with pytest.raises(BadModel, match="OUTPUTS has 2 names, but forward returns 1"):
        load(models.traced_linear(), outputs=["a", "b"])
    with pytest.raises(BadModel, match="INPUTS has a name twice"):
        load(models.scripted_two_outputs(), inputs=["a", "a"])
    with pytest.raises(BadModel, match="no option 'fast' for TORCH; there are warmup"):
        load(models.traced_linear(), options={"fast": True})
    with pytest.raises(ModelFailed, match="device GPU needs torch with CUDA"):
        load(models.traced_linear(), device="GPU")


def test_warm_up_finds_failures_and_rows_that_mix() -> None:
    mixing = models.scripted("def forward(self, x: Tensor):\n    return x - x.mean(0, True)\n")

    assert load(models.traced_linear(), options={"warmup": {"shapes": [[2, 4]]}}).stackable
    assert not load(mixing, options={"warmup": {"shapes": [[2, 4]]}}).stackable
    with pytest.raises(ModelFailed, match="the warm-up run failed"):
        load(models.traced_linear(), options={"warmup": {"shapes": [[2, 5]]}})


def test_dtypes_and_shapes_come_back_as_they_are() -> None:
    echo = load(models.scripted("def forward(self, x: Tensor):\n    return x\n"))

    for dtype in ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"]:
        for shape in ((), (0, 3), (2, 1)):
            x = np.ones(shape, dtype)
            (y,) = echo.run([x])
            assert (y.dtype, y.shape) == (x.dtype, x.shape)
            np.testing.assert_array_equal(y, x)
    with pytest.raises(RunFailed, match="not STRING"):
        echo.run([np.array([b"a"])])


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("x.t()", [[1, 3], [2, 4]]),
        ("x.to(torch.bfloat16)", [[1, 2], [3, 4]]),
        ("x.to_sparse()", [[1, 2], [3, 4]]),
        ("torch._neg_view(x)", [[-1, -2], [-3, -4]]),
    ],
)
def test_what_numpy_has_not_is_converted(expression: str, expected: list[Any]) -> None:
    model = load(models.scripted(f"def forward(self, x: Tensor):\n    return {expression}\n"))

    (y,) = model.run([np.array([[1, 2], [3, 4]], np.float32)])

    assert y.flags.c_contiguous
    assert y.dtype == np.float32
    assert y.tolist() == expected


def test_failures_of_a_run() -> None:
    model = load(models.traced_linear())
    raises = load(models.scripted("def forward(self, x: Tensor):\n    assert x.numel() > 9, 'too few'\n    return x\n"))
    complex_ = load(models.scripted("def forward(self, x: Tensor):\n    return torch.complex(x, x)\n"))
    number = load(models.scripted("def forward(self, x: Tensor):\n    return x.numel()\n"))

    with pytest.raises(RunFailed, match="shapes cannot be multiplied") as caught:
        model.run([np.ones((1, 3), np.float32)])
    assert "\n" not in str(caught.value)
    assert "interpreter" not in str(caught.value)
    with pytest.raises(RunFailed, match="too few"):
        raises.run([np.ones(3)])
    with pytest.raises(RunFailed, match="takes 1 inputs, got 2"):
        model.run([np.ones((1, 4), np.float32)] * 2)
    with pytest.raises(RunFailed, match="complex"):
        complex_.run([np.ones(3)])
    with pytest.raises(RunFailed, match="gave a int; let it return a tensor"):
        number.run([np.ones(3)])
    model.close()
    with pytest.raises(RunFailed, match="closed"):
        model.run([np.ones((1, 4), np.float32)])


def test_what_was_received_is_never_written_to() -> None:
    model = load(models.scripted("def forward(self, x: Tensor):\n    x.add_(1)\n    return x\n"))
    received = b"\0" * 16

    (y,) = model.run([np.frombuffer(received, np.float32)])

    assert y.tolist() == [1, 1, 1, 1]
    assert received == b"\0" * 16


def test_layers_named_by_numbers_and_quantized_layers() -> None:
    layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 2)).eval()
    x = np.ones((3, 4), np.float32)
    expected = layers(torch.from_numpy(x)).detach().numpy()

    (y,) = load(saved(torch.jit.script(layers))).run([x])

    np.testing.assert_allclose(y, expected, rtol=1e-5)


def test_training_mode_is_left() -> None:
    dropout = torch.nn.Dropout(0.5)
    assert dropout.training

    (y,) = load(saved(torch.jit.script(dropout))).run([np.ones(100, np.float32)])

    assert y.tolist() == [1] * 100


# What is refused.


def saved(scripted: Any) -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(scripted, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("what", ["reads a file", "writes a file", "prints"])
def test_reaching_beyond_the_model_is_refused(what: str) -> None:
    blob = models.attack_scripts()[what]
    verb = {"reads a file": "opens a file"}.get(what, what)

    with pytest.raises(BadModel, match=rf"the model {verb} \(\w+\), which is not allowed"):
        load(blob)


def test_code_may_be_allowed() -> None:
    model = load(models.attack_scripts()["prints"], allow_code=True)

    assert model.run([np.ones(1)])[0].tolist() == [1]


def tampered(change: Callable[[str], str], *, add: dict[str, bytes] | None = None) -> bytes:
    """Return an archive whose source was changed by hand, as no exporter would."""
    out = io.BytesIO()
    blob = models.scripted("def forward(self, x: Tensor):\n    return x\n")
    with zipfile.ZipFile(io.BytesIO(blob)) as old, zipfile.ZipFile(out, "w") as new:
        for info in old.infolist():
            data = old.read(info)
            if info.filename.endswith(".py"):
                data = change(data.decode()).encode()
            if not info.filename.endswith(".debug_pkl"):
                new.writestr(info.filename, data)
        for name, data in (add or {}).items():
            new.writestr(name, data)
    return out.getvalue()


def body(code: str) -> Callable[[str], str]:
    lines = code.replace("; ", "\n    ")
    return lambda source: source.replace("    return x", f"    {lines}\n    return x")


def test_a_tampered_archive_loads_if_it_is_harmless() -> None:
    assert load(tampered(body("y = torch.neg(x)"))).run([np.ones(1)])[0].tolist() == [1]


@pytest.mark.parametrize(
    "code",
    [
        "torch.save(x, {path})",
        "torch . save(x, {path})",
        "torch.\\\nsave(x, {path})",
        "ops.aten.save(x, {path})",
        "torch.autograd.save(x, {path})",
        "f = torch.save; f(x, {path})",
        "getattr(torch, 'save')(x, {path})",
        "getattr(torch, 'sa' 've')(x, {path})",
        "getattr(torch, 'sa'\n 've')(x, {path})",
        "getattr(torch, 'sa\\x76e')(x, {path})",
        "getattr(torch, 'sa\\166e')(x, {path})",
        "getattr(torch, '''save''')(x, {path})",
        "y = '''#'''; torch.save(x, {path})",
        "y = '\\''; torch.save(x, {path}) #'",
        "y = \"'\"; torch.save(x, {path}) #'",
        "torch.from_file({path})",
        "print(x)",
        "ops.prim.Print(x)",
        "ops.debugprims.load_tensor({path}, [1], [1])",
        "o = ops; o.debugprims.load_tensor({path}, [1], [1])",
        "ops.image.read_file({path})",
        "ops.prim.rpc_sync({path}, 'f', (x,))",
        "r = __torch__.torch.classes.aoti.AOTIModelContainerRunnerCpu({path}, 1)",
        "c = __torch__.torch.classes; r = c.aoti.AOTIModelContainerRunnerCpu({path}, 1)",
        "t = __torch__.torch; r = t.classes.aoti.AOTIModelContainerRunnerCpu({path}, 1)",
        "t = __torch__; r = t.torch.classes.aoti.AOTIModelContainerRunnerCpu({path}, 1)",
    ],
)
def test_words_cannot_be_hidden(code: str, tmp_path: Path) -> None:
    target = tmp_path / "written"

    with pytest.raises(BadModel, match=r"not allowed|not as torch writes it"):
        load(tampered(body(code.replace("{path}", repr(str(target))))))
    assert not target.exists()


def test_code_that_would_run_while_loading_does_not(tmp_path: Path) -> None:
    target = tmp_path / "written"

    def on_load(source: str) -> str:
        return (
            source + "  def __getstate__(self) -> int:\n    return 0\n"
            f"  def __setstate__(self, state: Any) -> NoneType:\n    torch.save(state, {str(target)!r})\n"
        )

    with pytest.raises(BadModel, match="writes a file"):
        load(tampered(on_load))
    assert not target.exists()


def test_native_classes_in_pickles_are_refused() -> None:
    for spelling in (b"c__torch__.torch.classes.aoti\nRunner\n.", b"c__torch__.torch\nclasses.aoti.Runner\n."):
        with pytest.raises(BadModel, match="native class aoti"):
            load(tampered(str, add={"archive/other.pkl": b"\x80\x02" + spelling}))


def test_other_files_are_refused() -> None:
    layers = torch.nn.Linear(4, 2)
    checkpoint = io.BytesIO()
    torch.save(layers.state_dict(), checkpoint)
    bomb = io.BytesIO()
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in (("a/data.pkl", b""), ("a/constants.pkl", b""), ("a/version", b"3\n")):
            archive.writestr(name, data)
        archive.writestr("a/code/x.py", bytes(100 << 20))

    for blob, text in (
        (b"", "not a TorchScript archive"),
        (models.garbage(), "not a TorchScript archive"),
        (models.affine(), "not a TorchScript archive"),
        (b"\x80\x02}q\x00.", "is a pickle"),
        (checkpoint.getvalue(), "is a pickle"),
        (models.traced_linear()[:-100], "damaged archive"),
        (b"PK\x03\x04" + models.garbage(), "damaged archive"),
        (bomb.getvalue(), "would unpack to"),
    ):
        with pytest.raises(BadModel, match=text):
            load(blob)


@pytest.mark.slow
def test_exported_programs_need_leave() -> None:
    layers = torch.nn.Linear(4, 2).eval()
    program = torch.export.export(layers, (torch.zeros(2, 4),), dynamic_shapes=({0: torch.export.Dim("n")},))
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    x = np.ones((3, 4), np.float32)

    with pytest.raises(BadModel, match=r"torch\.export program is code .*--allow-code"):
        load(buffer.getvalue())
    model = load(buffer.getvalue(), allow_code=True)

    assert model.signature.inputs == (TensorSpec("input", "FLOAT", (-1, 4)),)
    assert [(spec.dtype, spec.shape) for spec in model.signature.outputs or ()] == [("FLOAT", (-1, 2))]
    np.testing.assert_allclose(model.run([x])[0], layers(torch.from_numpy(x)).detach().numpy(), rtol=1e-5)
