"""What the rows of an `each` give, put together: also where there are none, and only the form of a row is known."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from keyside.executor.backends.base import Array, Member
from keyside.tensorstore import dtypes, graph
from keyside.tensorstore.errors import RunFailed
from keyside.tensorstore.records import TensorSpec

__all__ = ["no_rows", "together"]


def together(name: str, parts: Sequence[Array], *, keep: bool) -> Array:
    """Join or stack what rows have given; text may be of different widths."""
    first = parts[0]
    start = 1 if keep else 0
    for n, part in enumerate(parts):
        if part.dtype != first.dtype and not part.dtype.kind == first.dtype.kind == "S":
            raise RunFailed(f"{name!r} is {first.dtype} in row 0 and {part.dtype} in row {n}")
        if part.ndim != first.ndim or part.ndim < start or part.shape[start:] != first.shape[start:]:
            raise RunFailed(
                f"{name!r} has shape {list(first.shape)} in row 0 and {list(part.shape)} in row {n}: "
                f"they cannot be {'joined on dim 0' if keep else 'stacked'}"
            )
    return np.concatenate(parts) if keep else np.stack(parts)


def no_rows(step: graph.Each, name: str, env: Mapping[str, Array], members: Mapping[str, Member]) -> Array:
    """Return what no rows give: none, of the dtype and the dims that each would have had, as far as is known."""
    dtype, shape = _form(step.steps, name, {**env, step.item: _row_form(step, env)}, members)
    if shape is not None and step.keep:
        shape = shape[1:] if shape else None
    known = shape is not None and all(dim >= 0 for dim in shape)
    return np.zeros((0, *shape) if known and shape is not None else (0,), dtype)


def _row_form(step: graph.Each, env: Mapping[str, Array]) -> Array:
    rows = env[step.over]
    return np.zeros((1, *rows.shape[1:]) if step.keep else rows.shape[1:], rows.dtype)


_DEFAULT = np.dtype(np.float32)


def _numpy(name: str) -> "np.dtype[Any]":
    dtype = dtypes.by_name(name) if name else None
    if dtype is None:
        return _DEFAULT
    return dtype.numpy if dtype.itemsize else np.dtype("S1")


def _form(
    steps: Sequence[graph.Step], name: str, env: Mapping[str, Array], members: Mapping[str, Member]
) -> tuple["np.dtype[Any]", tuple[int, ...] | None]:
    """Return dtype and shape that a name inside of an `each` would have; None: not known; -1: any size."""
    found = env.get(name)
    if found is not None:
        return found.dtype, found.shape
    for step in steps:
        match step:
            case graph.Const(output=output, value=value) if output == name:
                return value.dtype, value.shape
            case graph.Let(name=local, source=source) if local == name:
                return _form(steps, source, env, members)
            case graph.If(gives=gives) if name in gives:
                return _form((*step.then, *steps), name, env, members)
            case graph.Run():
                spec = _output_spec(step, name, members)
                if spec is not None:
                    return _numpy(spec.dtype), spec.shape
    return _DEFAULT, None


def _output_spec(step: graph.Run, name: str, members: Mapping[str, Member]) -> TensorSpec | None:
    member = members.get(step.target)
    specs = member.signature.outputs if member is not None else None
    if specs is None:
        return None
    if isinstance(step.outputs, Mapping):
        return next((spec for spec in specs if step.outputs.get(spec.name) == name), None)
    return next((spec for spec, local in zip(specs, step.outputs, strict=False) if local == name), None)
