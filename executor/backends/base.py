"""What a backend is, and how one is found by its name."""

import functools
import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from keyside.tensorstore.errors import ModelFailed
from keyside.tensorstore.records import Signature

__all__ = [
    "Array",
    "Backend",
    "GraphModel",
    "LoadedModel",
    "Member",
    "ScriptModel",
    "contiguous",
    "find",
    "gpu_index",
    "names",
    "one_line",
]

GROUP = "keyside.backends"
REASON_LIMIT = 500
_GPU = re.compile(r"GPU:?(\d{1,3})?", re.ASCII)

Array = npt.NDArray[Any]


@runtime_checkable
class LoadedModel(Protocol):
    """A model in memory, ready to run.

    `run` may be called from any thread; `close` only when no run is under way.
    """

    @property
    def signature(self) -> Signature:
        """What it takes and gives."""
        ...

    @property
    def nbytes(self) -> int:
        """An estimate of the memory that it holds."""
        ...

    @property
    def stackable(self) -> bool:
        """Whether requests may be stacked on dim 0: False where the model is known to mix or fix its rows."""
        ...

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run the model on arrays in the order of its signature; the results are C-contiguous.

        Raises:
            RunFailed: the model does not take these inputs, or fails on them.
        """
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


@runtime_checkable
class ScriptModel(Protocol):
    """What a `LoadedModel` has besides if its functions are called by name."""

    def call(self, function: str, tensors: Sequence[Array], keys: Sequence[str], args: Sequence[str]) -> list[Array]:
        """Call a function.

        Args:
            function: name of an entry point.
            tensors: of any dtype and shape; they are not to be changed.
            keys: names of keys, as its caller gave them.
            args: texts.

        Returns:
            What it gives, C-contiguous.

        Raises:
            BadArg: there is no such function.
            RunFailed: it failed; the text has the line.
        """
        ...


class Member(Protocol):
    """A model, script or graph as a graph sees it (executor/model.py).

    Attributes:
        title: `name@version`.
        names: of its inputs, in order.
        output_names: of its outputs; None where they are known only after a run.
        signature: what it takes and gives.
        is_graph: whether it is to be run by `run_with`.
    """

    title: str
    names: list[str]
    output_names: list[str] | None
    signature: Signature
    is_graph: bool

    def check(self, inputs: Sequence[Array]) -> None:
        """Check arrays against its signature; see `members.check_inputs`."""
        ...

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run it on arrays in the order of its signature."""
        ...

    def timed(self, seconds: float) -> None:
        """Take note of how long a run took."""
        ...

    def run_with(self, inputs: Sequence[Array], members: Mapping[str, Any]) -> list[Array]:
        """Run a graph; see `GraphModel.run_with`."""
        ...

    def call(self, function: str, tensors: Sequence[Array], keys: Sequence[str], args: Sequence[str]) -> list[Array]:
        """Call a function of a script."""
        ...


@runtime_checkable
class GraphModel(Protocol):
    """What a `LoadedModel` has besides if it runs others."""

    def run_with(self, inputs: Sequence[Array], members: Mapping[str, Any]) -> list[Array]:
        """Run it.

        Args:
            inputs: in the order of its signature.
            members: what it runs, each a `Member`, by target; those of the graphs in it too.

        Raises:
            KeysideError: a member failed.
        """
        ...


@runtime_checkable
class Backend(Protocol):
    """A way to run models of one kind."""

    name: str

    def available(self) -> str:
        """Return why it cannot be used here, or an empty text."""
        ...

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
    ) -> LoadedModel:
        """Make a model ready to run: check it, load it and warm it up.

        Args:
            blob: the model's file.
            device: the device queue that it is stored for, such as CPU, GPU or GPU:1.
            inputs: names given with INPUTS; empty if none were.
            outputs: names given with OUTPUTS; empty if none were.
            options: what was given with OPTIONS.
            allow_code: whether the operator lets models be code.
            threads: threads that one run may use.

        Raises:
            BadModel: the blob is not what this backend loads, or asks for what is refused.
            ModelFailed: it is, but cannot be made to run here.
        """
        ...


@functools.cache
def names() -> tuple[str, ...]:
    """Return the names of the backends that are installed."""
    return tuple(sorted({point.name for point in importlib.metadata.entry_points(group=GROUP)}))


@functools.cache
def find(name: str) -> Backend:
    """Return a backend by its name; letters may be of either case.

    Raises:
        ModelFailed: there is none of that name, or it cannot be used here.
    """
    for point in importlib.metadata.entry_points(group=GROUP):
        if point.name.upper() == name.upper():
            try:
                backend = point.load()()
            except Exception as error:
                raise ModelFailed(f"backend {name} cannot be used: {one_line(error)}") from error
            if not isinstance(backend, Backend):
                raise ModelFailed(f"backend {name} cannot be used: {point.value} is not a backend")
            reason = backend.available()
            if reason:
                raise ModelFailed(f"backend {name} cannot be used: {reason}")
            return backend
    raise ModelFailed(f"no backend {name}; this executor has {', '.join(names()) or 'none'}")


def one_line(error: object, limit: int = REASON_LIMIT) -> str:
    """Return the text of an error on one line, cut to a length that fits into a reply."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 3] + "..."


def contiguous(array: Array) -> Array:
    """Return the array as native code needs it: in C order and aligned; a copy only where it must be."""
    flags = array.flags
    if flags.c_contiguous and flags.aligned:
        return array
    return np.array(array, order="C", copy=True)


def gpu_index(device: str) -> int | None:
    """Return which GPU a device queue such as GPU, GPU:1 or GPU0 stands for; None if it is none of a GPU."""
    match = _GPU.match(device.upper())
    return None if match is None else int(match[1] or 0)
