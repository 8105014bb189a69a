"""A backend's model made of a Python function, for tests of what runs models."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from keyside.executor.backends.base import Array
from keyside.executor.model import Model
from keyside.executor.protocol import Job
from keyside.tensorstore import npy
from keyside.tensorstore.records import Signature, TensorSpec, VersionInfo

__all__ = ["FunctionModel", "job", "model"]


class FunctionModel:
    """A loaded model that calls a function on its inputs."""

    def __init__(self, function: Callable[..., Any], signature: Signature, *, stackable: bool = True) -> None:
        self.signature = signature
        self.nbytes = 0
        self.stackable = stackable
        self.calls: list[list[tuple[int, ...]]] = []
        self._function = function

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Call it, taking note of the shapes."""
        self.calls.append([array.shape for array in inputs])
        found = self._function(*inputs)
        return list(found) if isinstance(found, tuple) else [found]

    def close(self) -> None:
        """There is nothing to give back."""


def model(
    function: Callable[..., Any] = lambda x: x * 2,
    *,
    inputs: int = 1,
    shape: tuple[int, ...] | None = (-1, 4),
    stackable: bool = True,
    max_batch: int = 8,
    **info: Any,
) -> tuple[Model, FunctionModel]:
    """A model of FLOAT inputs `x0`, `x1`.. and an output `y`."""
    specs = tuple(TensorSpec(f"x{n}", "FLOAT", shape) for n in range(inputs))
    loaded = FunctionModel(function, Signature(specs, (TensorSpec("y", "FLOAT", shape),)), stackable=stackable)
    version = VersionInfo(version=1, state="ready", **info)
    return Model("m", "u", version, loaded, max_batch=max_batch, min_wait_ms=100), loaded


def job(
    number: int,
    *arrays: Any,
    claimed: float = 0.0,
    outputs: Sequence[bytes] = (),
    names: Sequence[bytes] = (),
    dtype: str = "f4",
) -> Job:
    """A job whose inputs are here already."""
    header = [1, b"run", b"u-1", b"m", 1, 10**15, b"", b"", [], list(names), list(outputs), 0]
    made = Job("CPU", b"%d-0" % number, header, [], keyed=False)
    made.inputs = [npy.to_bytes(np.asarray(array, dtype)) for array in arrays]
    made.decode()
    made.claimed = claimed
    return made
