"""The TORCH backend: TorchScript, and torch.export's programs where the operator allows code."""

import importlib.util
import io
import threading
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from keyside.executor.backends import torch_check
from keyside.executor.backends.base import Array, contiguous, gpu_index, one_line
from keyside.executor.backends.warmup import warm_up
from keyside.tensorstore.errors import BadModel, ModelFailed, RunFailed
from keyside.tensorstore.records import Signature, TensorSpec

__all__ = ["TorchBackend", "TorchModel", "device_of", "prepare", "to_numpy"]

# What a small module takes besides its weights.
MODULE_BYTES: Final = 512 << 10

_OPTIONS: Final = ("warmup",)
_set_up = threading.Lock()
_threads_set = False


class TorchBackend:
    """Loads TorchScript that has passed `torch_check`; unchecked code only where that is allowed."""

    name = "TORCH"

    def available(self) -> str:
        """Return why it cannot be used here, or an empty text."""
        if importlib.util.find_spec("torch") is None:
            return "torch is not installed; pip install 'keyside[torch]'"
        return ""

    def load(
        self,
        blob: bytes | memoryview,
        *,
        device: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        options: Mapping[str, Any],
        allow_code: bool,
        threads: int,
    ) -> "TorchModel":
        """Load a model; see `base.Backend.load`. INPUTS and OUTPUTS name what the model itself only numbers."""
        for name in options:
            if name not in _OPTIONS:
                raise BadModel(f"no option {name[:80]!r} for TORCH; there are {', '.join(_OPTIONS)}")
        for what, given in (("INPUTS", inputs), ("OUTPUTS", outputs)):
            if len(set(given)) != len(given):
                raise BadModel(f"{what} has a name twice")
        blob = bytes(blob)
        prepare(threads)
        target = device_of(device)
        kind = torch_check.kind_of(blob)
        if kind == "torchscript":
            model = _load_script(blob, target, inputs, outputs, check=not allow_code)
        elif kind == "export":
            if not allow_code:
                raise BadModel(
                    "a torch.export program is code that cannot be checked: the operator has to allow it "
                    "(--allow-code), or save the model as TorchScript or ONNX"
                )
            model = _load_export(blob, target, inputs, outputs)
        elif kind == "pickle":
            raise BadModel(
                "the blob is a pickle (torch.save), which is never loaded; save the model with "
                "torch.jit.save(torch.jit.script(model), file) or torch.jit.trace"
            )
        else:
            raise BadModel("the blob is not a TorchScript archive (torch.jit.save)")
        model.stackable = warm_up(model.signature, model.run, options.get("warmup"))
        return model


class TorchModel:
    """One module.

    Attributes:
        signature: its inputs and outputs.
        nbytes: an estimate of the memory that it holds.
        stackable: whether requests may be stacked on dim 0, as far as is known.
    """

    def __init__(
        self, call: Callable[..., Any], signature: Signature, target: Any, size: int, *, mutates: bool
    ) -> None:
        import torch

        self.signature = signature
        self.nbytes = size + MODULE_BYTES
        self.stackable = False
        self._call: Callable[..., Any] | None = call
        self._target = None if target.type == "cpu" else target
        self._mutates = mutates
        self._from_numpy = torch.from_numpy
        self._inference_mode = torch.inference_mode
        self._tensor = torch.Tensor

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the model; see `base.LoadedModel.run`."""
        call = self._call
        if call is None:
            raise RunFailed("the model has been closed")
        if len(inputs) != len(self.signature.inputs):
            raise RunFailed(f"the model takes {len(self.signature.inputs)} inputs, got {len(inputs)}")
        try:
            with self._inference_mode():
                result = call(*map(self._take, inputs))
                values = (result,) if isinstance(result, self._tensor) else result
                if not isinstance(values, tuple | list):
                    raise RunFailed(_not_tensors(values))
                results = [self._give(value) for value in values]
        except RunFailed:
            raise
        except Exception as error:  # TorchScript raises whatever its operators do
            raise RunFailed(_text(error)) from error
        expected = self.signature.outputs
        if expected is not None and len(results) != len(expected):
            raise RunFailed(f"the model gave {len(results)} outputs, not {len(expected)}")
        return results

    def close(self) -> None:
        """Give the module's memory back."""
        self._call = None

    def _take(self, array: Array) -> Any:
        if array.dtype.kind == "S":
            raise RunFailed("TORCH models take numbers, not STRING tensors")
        # A model that writes to its inputs must not write to what was received.
        tensor = self._from_numpy(np.array(array) if self._mutates else contiguous(array))
        return tensor if self._target is None else tensor.to(self._target)

    def _give(self, value: Any) -> Array:
        if not isinstance(value, self._tensor):
            raise RunFailed(_not_tensors(value))
        array = to_numpy(value)
        if array.dtype.kind == "c":
            raise RunFailed("the model gave a complex tensor; return its real and imaginary parts")
        # A model that changes tensors in place may change what it has returned, in its next run.
        return array.copy() if self._mutates else contiguous(array)


def to_numpy(tensor: Any) -> Array:
    """Return a tensor as an array: its own memory, where NumPy can look into that."""
    try:
        plain: Array = tensor.numpy()
    except (RuntimeError, TypeError):
        plain = _dense(tensor).numpy()
    return plain


def _dense(tensor: Any) -> Any:
    """Return a tensor as one that NumPy can look into."""
    import torch

    tensor = tensor.detach()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout is not torch.strided:
        tensor = tensor.to_dense()
    if tensor.dtype is torch.bfloat16:
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().cpu()


def prepare(threads: int) -> None:
    """Set torch up, once in this process: its number of threads is a global."""
    import torch

    global _threads_set  # noqa: PLW0603 - so is this
    with _set_up:
        if _threads_set:
            return
        _threads_set = True
        torch.set_num_threads(threads)
        with warnings.catch_warnings():
            # torch warns once in a process of arrays that cannot be written; ours are meant to be so.
            warnings.simplefilter("ignore")
            torch.from_numpy(np.frombuffer(b"\0", np.uint8))


def device_of(device: str) -> Any:
    """Return torch's device for a device queue.

    Raises:
        ModelFailed: it is one of a GPU that this executor does not have.
    """
    import torch

    index = gpu_index(device)
    if index is None:
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ModelFailed(f"device {device} needs torch with CUDA and a GPU; this executor has none")
    if index >= torch.cuda.device_count():
        raise ModelFailed(f"device {device}: this executor has {torch.cuda.device_count()} GPUs")
    return torch.device("cuda", index)


def _load_script(blob: bytes, target: Any, inputs: Sequence[str], outputs: Sequence[str], *, check: bool) -> TorchModel:
    import torch

    mutates = torch_check.check_archive(blob) if check else True
    try:
        module = torch.jit.load(io.BytesIO(blob), map_location=target)  # type: ignore[no-untyped-call]
    except Exception as error:  # whatever reading the archive or its code raises
        raise BadModel(f"torch cannot load it: {_text(error)}") from error
    if check:
        torch_check.check_graphs(module)
    module.eval()
    native = module._c  # noqa: SLF001 - see torch_check
    if "forward" not in native._method_names():  # noqa: SLF001
        raise BadModel("the module has no method forward")
    schema = native._get_method("forward").schema  # noqa: SLF001
    signature = Signature(_script_inputs(schema, inputs), _script_outputs(schema, outputs))
    return TorchModel(module.forward, signature, target, len(blob), mutates=mutates)


def _script_inputs(schema: Any, names: Sequence[str]) -> tuple[TensorSpec, ...]:
    """Return the tensors that forward takes: those without a default, and as many more as INPUTS names."""
    arguments = schema.arguments[1:]
    required = [argument for argument in arguments if not argument.has_default_value()]
    count = len(names) or len(required)
    if not len(required) <= count <= len(arguments):
        takes = ", ".join(argument.name for argument in arguments)
        raise BadModel(f"INPUTS has {count} names, but forward takes {len(required)} to {len(arguments)}: {takes}")
    for argument in arguments[:count]:
        if str(argument.type) not in ("Tensor", "Optional[Tensor]"):
            raise BadModel(f"forward takes {argument.name!r} as {argument.type}; inputs must be tensors")
    if not count:
        raise BadModel("forward takes no input")
    chosen = names or [argument.name for argument in arguments[:count]]
    return tuple(TensorSpec(name, "", None) for name in chosen)


def _script_outputs(schema: Any, names: Sequence[str]) -> tuple[TensorSpec, ...] | None:
    """Return what forward gives, as far as its return type tells."""
    kind = schema.returns[0].type if len(schema.returns) == 1 else None
    count = len(names)
    known = _count_tensors(kind)
    if known is None and kind is not None and str(kind).startswith("Dict["):
        raise BadModel("forward returns a dict; let it return a tensor, or a tuple or list of tensors")
    if known is not None and count and known != count:
        raise BadModel(f"OUTPUTS has {count} names, but forward returns {known} tensors")
    if known is None and not count:
        return None
    return tuple(TensorSpec(name, "", None) for name in names or _numbered(known or 0))


def _count_tensors(kind: Any) -> int | None:
    """Return how many tensors a return type stands for; None if it does not say."""
    if kind is None:
        return None
    if str(kind) == "Tensor":
        return 1
    if kind.kind() == "TupleType" and all(str(part) == "Tensor" for part in kind.elements()):
        return len(kind.elements())
    return None


def _numbered(count: int) -> list[str]:
    return [f"output_{index}" for index in range(count)]


def _load_export(blob: bytes, target: Any, inputs: Sequence[str], outputs: Sequence[str]) -> TorchModel:
    import torch

    try:
        program = torch.export.load(io.BytesIO(blob))
        if target.type != "cpu":
            from torch.export.passes import move_to_device_pass

            program = move_to_device_pass(program, target)
        module = program.module()
    except Exception as error:  # unchecked code: it may raise anything
        raise BadModel(f"torch cannot load it: {_text(error)}") from error
    given = program.graph_signature.user_inputs
    gives = program.graph_signature.user_outputs
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    for what, names, count in (("INPUTS", inputs, len(given)), ("OUTPUTS", outputs, len(gives))):
        if names and len(names) != count:
            raise BadModel(f"{what} has {len(names)} names, but the program has {count}")
    signature = Signature(
        tuple(_export_spec(name, values.get(node)) for name, node in zip(inputs or given, given, strict=True)),
        tuple(
            _export_spec(name, values.get(node))
            for name, node in zip(outputs or _numbered(len(gives)), gives, strict=True)
        ),
    )
    return TorchModel(module, signature, target, len(blob), mutates=True)


def _export_spec(name: str, value: Any) -> TensorSpec:
    import torch

    if not isinstance(value, torch.Tensor):
        raise BadModel(f"{name!r} of the program is a {type(value).__name__}; only tensors can be carried")
    dtype = _DTYPES.get(str(value.dtype).removeprefix("torch."), "")
    return TensorSpec(name, dtype, tuple(dim if isinstance(dim, int) else -1 for dim in value.shape))


_DTYPES: Final = {
    "float16": "FLOAT16",
    "float32": "FLOAT",
    "float64": "DOUBLE",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "bool": "BOOL",
    "bfloat16": "FLOAT",
}


def _not_tensors(value: object) -> str:
    return f"the model gave a {type(value).__name__}; let it return a tensor, or a tuple or list of tensors"


def _text(error: Exception) -> str:
    """Return what went wrong: torch puts it last, after a trace of the interpreter."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    if len(lines) > 1 and lines[0].startswith("The following operation failed"):
        return one_line(lines[-1])
    return one_line(error)
