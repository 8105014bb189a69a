"""The FUNCTION backend: Python functions of the operator's own modules, called by their names."""

import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from keyside.executor import functions
from keyside.executor.backends.base import Array, contiguous, one_line
from keyside.executor.backends.script import entry_points
from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadArg, BadModel, KeysideError, ModelFailed, RunFailed
from keyside.tensorstore.records import Signature

__all__ = ["FunctionBackend", "FunctionModel"]

FUNCTION_BYTES: Final = 4 << 10


class FunctionBackend:
    """Finds the functions that a version names among those that are registered in this process."""

    name = "FUNCTION"

    def available(self) -> str:
        """Return why it cannot be used here, or an empty text."""
        return ""

    def load(
        self,
        blob: bytes | memoryview,
        *,
        device: str,  # noqa: ARG002  # what a function does with a GPU is its own affair
        inputs: Sequence[str],
        outputs: Sequence[str],
        options: Mapping[str, Any],
        allow_code: bool,  # noqa: ARG002  # the code is the operator's
        threads: int,  # noqa: ARG002
    ) -> "FunctionModel":
        """Find the functions; see `base.Backend.load`. The blob is their names, one a line, and never code."""
        if inputs or outputs:
            raise BadModel("a script takes no INPUTS and OUTPUTS when it is stored")
        wanted = entry_points(options, self.name)
        if bytes(blob) != "\n".join(wanted).encode():
            raise BadModel("the names in the blob are not those of the ENTRY_POINTS: store it with AI_SCRIPTSTORE")
        known = functions.registered()
        missing = [name for name in wanted if name not in known]
        if missing:
            raise ModelFailed(
                f"this executor has no function {', '.join(map(repr, missing))}: start it with --functions MODULE"
                f" (KEYSIDE_FUNCTIONS), naming the module that registers it with @keyside.function; it has"
                f" {', '.join(sorted(known)) or 'none'}"
            )
        return FunctionModel({name: known[name] for name in wanted})


class FunctionModel:
    """Python functions.

    Attributes:
        signature: empty: each function takes any number of tensors, and gives as many as it wants.
        nbytes: an estimate of the memory that it holds.
        stackable: never.
    """

    stackable = False

    def __init__(self, found: Mapping[str, Callable[..., Any]]) -> None:
        self.signature = Signature((), None)
        self.nbytes = FUNCTION_BYTES
        self._functions = dict(found)

    def run(self, inputs: Sequence[Array]) -> list[Array]:  # noqa: ARG002  # of the protocol
        """Refuse: which of its functions is to run has to be said."""
        raise RunFailed("a script is not run like a model: call one of its functions with AI_SCRIPTEXECUTE")

    def call(self, function: str, tensors: Sequence[Array], keys: Sequence[str], args: Sequence[str]) -> list[Array]:
        """Call one of its functions.

        Args:
            function: an entry point.
            tensors: of any dtype; the function gets them read-only.
            keys: names of keys, for the function to read as text.
            args: further words.

        Returns:
            What it gives, C-contiguous: one array, or those of the list or tuple that it returns.

        Raises:
            BadArg: there is no such function.
            RunFailed: it failed; the text names the line.
        """
        found = self._functions.get(function)
        if found is None:
            raise BadArg(f"Function {function} does not exist in the given script.")
        try:
            result = found([_read_only(array) for array in tensors], list(keys), list(args))
        except (SystemExit, Exception) as error:  # the operator's code may raise anything
            raise RunFailed(_explain(error, function)) from error
        values = result if isinstance(result, tuple | list) else (result,)
        return [_give(value, function) for value in values]

    def close(self) -> None:
        """Nothing: the functions are the operator's."""


def _read_only(array: Array) -> Array:
    if not array.flags.writeable:
        return array
    view = array.view()
    view.flags.writeable = False
    return view


def _give(value: Any, function: str) -> Array:
    try:
        array = np.asarray(value)
        if array.dtype.kind == "U":
            array = np.char.encode(array, "utf-8")
        dtypes.of(array.dtype)
    except (KeysideError, ValueError, TypeError) as error:
        raise RunFailed(
            f"function {function} gave a {type(value).__name__} that is no tensor: {one_line(error)}"
        ) from None
    return contiguous(array)


def _explain(error: BaseException, function: str) -> str:
    """Return what was raised, and the line in the function's own module where."""
    frames = traceback.extract_tb(error.__traceback__)[1:]
    home = [frame for frame in frames if frames and frame.filename == frames[0].filename]
    if not home:
        return one_line(f"{function}: {type(error).__name__}: {error}")
    frame = home[-1]
    name = frame.filename.replace("\\", "/").rpartition("/")[2]
    source = f" ({frame.line[:100]})" if frame.line else ""
    return one_line(f"{name} line {frame.lineno}, in {frame.name}{source}: {type(error).__name__}: {error}")
