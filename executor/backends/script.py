"""The SCRIPT backend: TorchScript source, compiled here, called by the names of its functions."""

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from keyside.executor import script_metrics
from keyside.executor.backends import script_check
from keyside.executor.backends.base import Array, contiguous, one_line
from keyside.executor.backends.torch import device_of, prepare, to_numpy
from keyside.tensorstore.errors import BadArg, BadModel, RunFailed
from keyside.tensorstore.records import Signature

__all__ = ["ScriptBackend", "ScriptModel", "entry_points"]

SCRIPT_BYTES: Final = 1 << 20
"""What a compiled script takes, about."""

_OPTION: Final = "entry_points"
_PLACE: Final = re.compile(r'File "<string>", line (\d+)(?:, in (\w+))?')


def entry_points(options: Mapping[str, Any], backend: str) -> list[str]:
    """Return the names of the functions that a script offers.

    Raises:
        BadModel: the options do not say, or say something else.
    """
    for name in options:
        if name != _OPTION:
            raise BadModel(f"no option {name[:80]!r} for {backend}; there is {_OPTION}")
    names = options.get(_OPTION)
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise BadModel(f"option {_OPTION} must be a list of names of functions: store it with AI_SCRIPTSTORE")
    if len(set(names)) != len(names):
        raise BadModel("ENTRY_POINTS has a name twice")
    return names


class ScriptBackend:
    """Compiles source without running Python; see `script_check`."""

    name = "SCRIPT"

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
        allow_code: bool,  # noqa: ARG002  # a script may never do more
        threads: int,
    ) -> "ScriptModel":
        """Compile a script and check its entry points; see `base.Backend.load`."""
        if inputs or outputs:
            raise BadModel("a script takes no INPUTS and OUTPUTS when it is stored")
        wanted = entry_points(options, self.name)
        source = script_check.read(bytes(blob))
        for name in wanted:
            if name not in source.functions:
                raise BadModel(f"Function {name} does not exist in the given script.")
        prepare(threads)
        target = device_of(device)
        unit = _compile(source.text)
        functions = {function.name: function for function in unit.get_functions()}
        habits = script_check.check_graphs(list(functions.values()))
        for name in wanted:
            script_check.check_entry_point(functions[name].schema, name)
        calls = {name: functions[name] for name in wanted}
        return ScriptModel(calls, source.text, target, habits=habits, unit=unit)


def _compile(text: str) -> Any:
    import torch

    lookup: Any = script_check.names().get  # torch's annotation says that each name is that of a function
    unit = torch._C.CompilationUnit()  # noqa: SLF001  # torch.jit's own would look names up in our frames
    try:
        with warnings.catch_warnings():
            # Functions of torch.nn.functional are compiled on the way, which torch calls deprecated.
            warnings.simplefilter("ignore")
            unit.define(text, lookup)
    except Exception as error:  # noqa: BLE001  # the compiler raises whatever it wants
        raise BadModel(f"the script does not compile: {explain(error, text)}") from None
    return unit


class ScriptModel:
    """A compiled script.

    Attributes:
        signature: empty: each function takes any number of tensors, and gives as many as it wants.
        nbytes: an estimate of the memory that it holds.
        stackable: never.
        habits: what its functions do.
    """

    stackable = False

    def __init__(
        self, functions: Mapping[str, Any], text: str, target: Any, *, habits: script_check.Habits, unit: Any
    ) -> None:
        import torch

        self.signature = Signature((), None)
        self.nbytes = SCRIPT_BYTES + 20 * len(text)
        self._functions = dict(functions)
        self._unit = unit  # owns the functions
        self._text = text
        self._target = None if target.type == "cpu" else target
        self.habits = habits
        self._listen = script_metrics.Printing if habits.prints else contextlib.nullcontext
        self._torch = torch

    def run(self, inputs: Sequence[Array]) -> list[Array]:  # noqa: ARG002  # of the protocol
        """Refuse: which of its functions is to run has to be said."""
        raise RunFailed("a script is not run like a model: call one of its functions with AI_SCRIPTEXECUTE")

    def call(self, function: str, tensors: Sequence[Array], keys: Sequence[str], args: Sequence[str]) -> list[Array]:
        """Call one of its functions.

        Args:
            function: an entry point.
            tensors: of any dtype but STRING.
            keys: names of keys, for the script to read as text.
            args: further words.

        Returns:
            What it gives, C-contiguous: one tensor, or those of the list or tuple that it returns.

        Raises:
            BadArg: there is no such function.
            RunFailed: it failed; the text names the line of the script.
        """
        found = self._functions.get(function)
        if found is None:
            raise BadArg(f"Function {function} does not exist in the given script.")
        torch = self._torch
        try:
            with self._listen(), torch.inference_mode():
                result = found([self._take(one) for one in tensors], list(keys), list(args))
                return [self._give(value) for value in _tensors(result, function, torch.Tensor)]
        except RunFailed:
            raise
        except Exception as error:  # noqa: BLE001  # TorchScript raises whatever its operators do
            raise RunFailed(explain(error, self._text)) from None

    def close(self) -> None:
        """Give its memory back."""
        self._functions.clear()
        self._unit = None

    def _take(self, array: Array) -> Any:
        if array.dtype.kind == "S":
            raise RunFailed(
                "TorchScript has no tensors of text: give STRING tensors to a Python function (FUNCTIONS), or as ARGS"
            )
        # A script that writes to its inputs must not write to what was received.
        tensor = self._torch.from_numpy(np.array(array) if self.habits.mutates else contiguous(array))
        return tensor if self._target is None else tensor.to(self._target)

    def _give(self, value: Any) -> Array:
        array = to_numpy(value)
        if array.dtype.kind == "c":
            raise RunFailed("the script gave a complex tensor; return its real and imaginary parts")
        return contiguous(array)


def _tensors(result: Any, function: str, kind: type) -> Sequence[Any]:
    values = (result,) if isinstance(result, kind) else result
    if not isinstance(values, tuple | list):
        raise RunFailed(
            f"function {function} gave a {type(values).__name__}; let it return a tensor, or a tuple or list of tensors"
        )
    for value in values:
        if not isinstance(value, kind):
            raise RunFailed(
                f"function {function} gave a {type(value).__name__} among its results; let it return tensors only"
            )
    return values


def explain(error: Exception, text: str) -> str:
    """Return what went wrong in a script, with the line where it did.

    Args:
        error: of torch: the trace of the interpreter, and then what it has to say; or from the compiler the reverse.
        text: the source.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    message = lines[-1] if lines[0].startswith("The following operation failed") else lines[0].rstrip(":")
    message = message.removesuffix(" here").removeprefix("builtins.")
    places = _PLACE.findall(str(error))
    if not places:
        return one_line(message)
    number, function = places[-1]
    source = text.splitlines()[int(number) - 1].strip() if 0 < int(number) <= len(text.splitlines()) else ""
    where = f"line {number}" + (f", in {function}" if function else "") + (f" ({source[:100]})" if source else "")
    return one_line(f"{where}: {message}")
