"""The ONNX backend: onnxruntime on CPU or CUDA."""

import contextlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np

from keyside.executor.backends.base import Array, contiguous, gpu_index, one_line
from keyside.executor.backends.onnx_scan import Scan, scan
from keyside.executor.backends.warmup import warm_up
from keyside.tensorstore.errors import BadModel, ModelFailed, RunFailed
from keyside.tensorstore.records import Signature, TensorSpec

__all__ = ["OnnxBackend", "OnnxModel"]

# What a session takes besides its weights, measured on small models.
SESSION_BYTES: Final = 128 << 10
LARGE_BYTES: Final = 1 << 20

_DTYPES: Final = {
    "tensor(float16)": "FLOAT16",
    "tensor(float)": "FLOAT",
    "tensor(double)": "DOUBLE",
    "tensor(int8)": "INT8",
    "tensor(int16)": "INT16",
    "tensor(int32)": "INT32",
    "tensor(int64)": "INT64",
    "tensor(uint8)": "UINT8",
    "tensor(uint16)": "UINT16",
    "tensor(uint32)": "UINT32",
    "tensor(uint64)": "UINT64",
    "tensor(bool)": "BOOL",
    "tensor(string)": "STRING",
}

_EXECUTION_MODES: Final = ("sequential", "parallel")
_LEVELS: Final = ("disable", "basic", "extended", "all")
_CUDA_OPTIONS: Final = (
    "arena_extend_strategy",
    "cudnn_conv1d_pad_to_nc1d",
    "cudnn_conv_algo_search",
    "cudnn_conv_use_max_workspace",
    "do_copy_in_default_stream",
    "gpu_mem_limit",
    "prefer_nhwc",
    "use_tf32",
)
_ORT_PREFIX: Final = re.compile(r"\[ONNXRuntimeError\] : \d+ : (?P<kind>\w+) : ")
_ORT_PLACE: Final = re.compile(r"/onnxruntime_src/\S+ .*?\)(?: const)? ", re.DOTALL)  # a line of its own source


class OnnxBackend:
    """Loads ONNX models into onnxruntime. They are data: what they may refer to is checked before."""

    name = "ONNX"

    def available(self) -> str:
        """Return why it cannot be used here, or an empty text."""
        if importlib.util.find_spec("onnxruntime") is None:
            return "onnxruntime is not installed; pip install 'keyside[executor]'"
        return ""

    def load(
        self,
        blob: bytes | memoryview,
        *,
        device: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        options: Mapping[str, Any],
        allow_code: bool,  # noqa: ARG002 - ONNX models are never code
        threads: int,
    ) -> "OnnxModel":
        """Load a model; see `base.Backend.load`.

        INPUTS and OUTPUTS put the model's inputs into another order, and choose among its outputs.
        """
        blob = bytes(blob)  # onnxruntime takes nothing else; free of cost for bytes
        found = scan(blob)
        session = _session(blob, device, options, threads)
        signature, chosen = _signature(session, found, inputs, outputs)
        model = OnnxModel(session, signature, chosen, len(blob))
        model.stackable = warm_up(signature, model.run, options.get("warmup"))
        return model


class OnnxModel:
    """One session, prepared so that a run does nothing that could be done before.

    Attributes:
        signature: its inputs and outputs.
        nbytes: an estimate of the memory that it holds.
        stackable: whether requests may be stacked on dim 0, as far as is known.
    """

    def __init__(self, session: Any, signature: Signature, outputs: list[str], size: int) -> None:
        self.signature = signature
        self.nbytes = size + SESSION_BYTES
        self.stackable = False
        self._inputs = [spec.name for spec in signature.inputs]
        self._outputs = outputs
        self._texts = [spec.name for spec in signature.inputs if spec.dtype == "STRING"]
        self._strings = [i for i, spec in enumerate(signature.outputs or ()) if spec.dtype == "STRING"]
        # The public run() checks names again in Python, which takes half of the time of a small model.
        inner = getattr(session, "_sess", None)
        self._session: Any = session if inner is None else inner

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the model; see `base.LoadedModel.run`."""
        try:
            feed = dict(zip(self._inputs, map(contiguous, inputs), strict=True))
            for name in self._texts:
                feed[name] = _decode(feed[name])
            results: list[Array] = self._session.run(self._outputs, feed, None)
            for index in self._strings:
                results[index] = _encode(results[index])
        except Exception as error:  # onnxruntime's errors have no common base but Exception
            if len(inputs) != len(self._inputs):
                raise RunFailed(f"the model takes {len(self._inputs)} inputs, got {len(inputs)}") from None
            if isinstance(error, RunFailed):
                raise
            raise RunFailed(_text(error)) from error
        return results

    def close(self) -> None:
        """Give the session's memory back."""
        self._session = None


def _session(blob: bytes, device: str, options: Mapping[str, Any], threads: int) -> Any:
    import onnxruntime as ort

    settings = _session_options(options, threads)
    providers = _providers(ort, device, options)
    try:
        with _readable(blob) as source:
            session = ort.InferenceSession(source, settings, providers=providers)
    except (ValueError, RuntimeError) as error:
        raise ModelFailed(_text(error)) from error
    except Exception as error:  # see OnnxModel.run
        match = _ORT_PREFIX.search(str(error))
        bad = match is not None and match["kind"] in ("INVALID_PROTOBUF", "INVALID_GRAPH", "INVALID_ARGUMENT")
        raise (BadModel if bad else ModelFailed)(_text(error)) from error
    wanted = providers[0][0]
    if wanted not in session.get_providers():
        # onnxruntime falls back to the CPU without an error when CUDA does not start.
        raise ModelFailed(f"onnxruntime could not start {wanted} for device {device}")
    session.disable_fallback()
    return session


@contextlib.contextmanager
def _readable(blob: bytes) -> Iterator[bytes | str]:
    """Give what a session can be made of: large models as a file in memory.

    From bytes, onnxruntime parses under the interpreter's lock, which stops every other thread for about a millisecond
    per MB; from a file it does not.
    """
    if len(blob) < LARGE_BYTES or not hasattr(os, "memfd_create"):
        yield blob
        return
    descriptor = os.memfd_create("keyside-model")
    try:
        view = memoryview(blob)
        while view:
            view = view[os.write(descriptor, view) :]
        yield f"/proc/self/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _session_options(options: Mapping[str, Any], threads: int) -> Any:
    import onnxruntime as ort

    settings = ort.SessionOptions()
    settings.log_severity_level = 4  # errors come back as exceptions; requests must not fill the log
    settings.intra_op_num_threads = threads
    settings.inter_op_num_threads = 1
    # Spinning threads take the cores that the server and other executors on this host need.
    settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
    settings.add_session_config_entry("session.inter_op.allow_spinning", "0")
    # Never guess the format from the bytes: only ONNX files have been checked.
    settings.add_session_config_entry("session.load_model_format", "ONNX")
    for name, value in options.items():
        setting = _OPTIONS.get(name)
        if setting is None:
            raise BadModel(f"no option {name[:80]!r} for ONNX; there are {', '.join(sorted(_OPTIONS))}")
        setting(ort, settings, name, value)
    return settings


def _providers(ort: Any, device: str, options: Mapping[str, Any]) -> list[tuple[str, dict[str, str]]]:
    cpu: tuple[str, dict[str, str]] = ("CPUExecutionProvider", {})
    index = gpu_index(device)
    if index is None:
        if "cuda" in options:
            raise BadModel(f"option cuda is for models on a GPU; this one is stored for device {device}")
        return [cpu]
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        raise ModelFailed(
            f"device {device} needs onnxruntime with CUDA (the package onnxruntime-gpu); this executor's has "
            f"{', '.join(ort.get_available_providers())}"
        )
    cuda = {name: _cuda_value(value) for name, value in options.get("cuda", {}).items()}
    return [("CUDAExecutionProvider", {"device_id": str(index), **cuda}), cpu]


def _cuda_value(value: Any) -> str:
    return ("1" if value else "0") if isinstance(value, bool) else str(value)


def _count(_: Any, settings: Any, name: str, value: Any) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= 1024:
        raise BadModel(f"option {name} must be a whole number from 0 to 1024, got {value!r:.80}")
    setattr(settings, name, value)


def _flag(_: Any, settings: Any, name: str, value: Any) -> None:
    if not isinstance(value, bool):
        raise BadModel(f"option {name} must be true or false, got {value!r:.80}")
    setattr(settings, name, value)


def _execution_mode(ort: Any, settings: Any, name: str, value: Any) -> None:
    modes = (ort.ExecutionMode.ORT_SEQUENTIAL, ort.ExecutionMode.ORT_PARALLEL)
    settings.execution_mode = modes[_choice(name, value, _EXECUTION_MODES)]


def _optimization(ort: Any, settings: Any, name: str, value: Any) -> None:
    level = ort.GraphOptimizationLevel
    levels = (level.ORT_DISABLE_ALL, level.ORT_ENABLE_BASIC, level.ORT_ENABLE_EXTENDED, level.ORT_ENABLE_ALL)
    settings.graph_optimization_level = levels[_choice(name, value, _LEVELS)]


def _choice(name: str, value: Any, known: Sequence[str]) -> int:
    if not isinstance(value, str) or value not in known:
        raise BadModel(f"option {name} must be one of {', '.join(known)}, got {value!r:.80}")
    return known.index(value)


def _cuda(_: Any, __: Any, name: str, value: Any) -> None:
    if not isinstance(value, dict):
        raise BadModel(f"option {name} must be an object, got {value!r:.80}")
    for key, setting in value.items():
        if key not in _CUDA_OPTIONS:
            raise BadModel(f"no option {key[:80]!r} within cuda; there are {', '.join(_CUDA_OPTIONS)}")
        if not isinstance(setting, str | int | bool) or len(str(setting)) > 80:
            raise BadModel(f"option cuda: {key} must be text, a number or a truth value")


def _later(*_: Any) -> None:
    """Pass over an option that is read after the session has been made."""


_OPTIONS: Final[dict[str, Callable[[Any, Any, str, Any], None]]] = {
    "intra_op_num_threads": _count,
    "inter_op_num_threads": _count,
    "execution_mode": _execution_mode,
    "graph_optimization_level": _optimization,
    "enable_mem_pattern": _flag,
    "enable_cpu_mem_arena": _flag,
    "cuda": _cuda,
    "warmup": _later,
}


def _signature(session: Any, found: Scan, inputs: Sequence[str], outputs: Sequence[str]) -> tuple[Signature, list[str]]:
    """Read the signature, in the order of the names given, and the names of the outputs to ask for."""
    takes = {node.name: node for node in session.get_inputs()}
    may_take = takes | {node.name: node for node in session.get_overridable_initializers()}
    gives = {node.name: node for node in session.get_outputs()}
    _check_names("INPUTS", inputs, may_take)
    _check_names("OUTPUTS", outputs, gives)
    if inputs:
        missing = [name for name in takes if name not in inputs]
        if missing:
            raise BadModel(f"INPUTS lacks {_listed(missing)}, which the model needs")
    for name in inputs or takes:
        if may_take[name].type not in _DTYPES:
            raise BadModel(f"input {name!r} is a {may_take[name].type}, which cannot be a tensor key")
    # scikit-learn's converters add a list of dicts (ZipMap), which nothing here could carry.
    chosen = [name for name in (outputs or gives) if gives[name].type in _DTYPES]
    for name in outputs:
        if name not in chosen:
            raise BadModel(f"output {name!r} is a {gives[name].type}, which cannot be a tensor key")
    if not chosen:
        raise BadModel("none of the model's outputs is a tensor")
    signature = Signature(
        tuple(_spec(may_take[name], found) for name in inputs or takes),
        tuple(_spec(gives[name], found) for name in chosen),
    )
    return signature, chosen


def _check_names(what: str, names: Sequence[str], known: Mapping[str, Any]) -> None:
    for name in names:
        if name not in known:
            raise BadModel(f"{what} names {name[:80]!r}, but the model has {_listed(known)}")
    if len(set(names)) != len(names):
        raise BadModel(f"{what} has a name twice")


def _listed(names: Sequence[str] | Mapping[str, Any]) -> str:
    return ", ".join(name[:40] for name in list(names)[:8]) + (", ..." if len(names) > 8 else "")


def _spec(node: Any, found: Scan) -> TensorSpec:
    shape = None
    # onnxruntime shows a value of unknown rank as if it were 0-d.
    if node.shape or found.shaped.get(node.name, False):
        shape = tuple(dim if isinstance(dim, int) and dim >= 0 else -1 for dim in node.shape)
    return TensorSpec(node.name, _DTYPES[node.type], shape)


def _decode(array: Array) -> Array:
    """Make strings of a tensor safe for onnxruntime, which reads each one up to a NUL, wherever that is."""
    if array.dtype.kind != "S":
        return array
    width = array.dtype.itemsize
    units = array.reshape(-1).view(np.uint8).reshape(-1, width)
    if ((units[:, :-1] == 0) & (units[:, 1:] != 0)).any():
        inner = np.empty(array.size, object)
        inner[:] = [item.decode() for item in array.ravel().tolist()]
        return inner.reshape(array.shape)
    return array.astype(f"S{width + 1}")


def _encode(array: Any) -> Array:
    """Turn onnxruntime's strings, Python objects, into a tensor's."""
    texts = np.asarray(array, dtype=object)
    items = [str(item).encode("utf-8", "surrogateescape") for item in texts.ravel()]
    if any(item.endswith(b"\0") for item in items):
        raise RunFailed("the model gave a string that ends in NUL, which a tensor cannot hold")
    if not items:
        return np.zeros(texts.shape, "S1")
    # An S0 would be no dtype of a tensor.
    width = max(map(len, items)) or 1
    return np.array(items, dtype=f"S{width}").reshape(texts.shape)


def _text(error: Exception) -> str:
    return one_line(_ORT_PLACE.sub("", _ORT_PREFIX.sub("", str(error))) or error)
