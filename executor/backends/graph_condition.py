"""The conditions of stored graphs."""

from typing import Any

import numpy as np

from keyside.executor.backends.base import Array
from keyside.tensorstore import graph
from keyside.tensorstore.errors import RunFailed

__all__ = ["decide"]


def decide(test: graph.Test, tensor: Array) -> bool:
    """Decide a condition.

    Raises:
        RunFailed: the tensor has no such element, or cannot be compared so.
    """
    name = test.tensor
    if (tensor.dtype.kind == "S") != isinstance(test.value, bytes) and test.take != "rows":
        raise RunFailed(f"{name!r} holds {tensor.dtype}, which cannot be compared with {test.value!r}")
    compare = graph.OPERATORS[test.op]
    take = test.take
    if isinstance(take, tuple):
        if len(take) != tensor.ndim:
            raise RunFailed(f"{name!r} has {tensor.ndim} dims, the index {list(take)} has {len(take)}")
        try:
            return bool(compare(tensor[take], test.value))
        except IndexError:
            raise RunFailed(f"{name!r} has shape {list(tensor.shape)}, the index {list(take)} is outside") from None
    if take == "rows":
        if not tensor.ndim:
            raise RunFailed(f"{name!r} has no dims, and so no rows")
        return bool(compare(len(tensor), test.value))
    if take == "any":
        return bool(np.any(compare(tensor, test.value)))
    if take == "all":
        return bool(np.all(compare(tensor, test.value)))
    return bool(compare(_taken(name, take, tensor), test.value))


def _taken(name: str, take: str, tensor: Array) -> Any:
    if take == "one" and tensor.size != 1:
        raise RunFailed(
            f"{name!r} has {tensor.size} elements, and the condition needs one: take max, any, first or another of it"
        )
    if not tensor.size and take != "sum":
        raise RunFailed(f"{name!r} has no elements: {take} of nothing is not known")
    if take in ("one", "first"):
        return tensor.reshape(-1)[0]
    if tensor.dtype.kind == "S":
        raise RunFailed(f"{name!r} is STRING, which has no {take}")
    if take == "max":
        return tensor.max()
    if take == "min":
        return tensor.min()
    # Sums of short integers and floats are taken in 64 bits.
    wide = np.float64 if tensor.dtype.kind == "f" else None
    return np.sum(tensor, dtype=wide) if take == "sum" else np.mean(tensor, dtype=np.float64)
