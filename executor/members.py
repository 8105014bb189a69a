"""The members of graphs and DAGs: what a composite calls, bound by position or by name and checked before."""

import time
from collections.abc import Mapping, Sequence

from keyside.executor.backends.base import Array, Member, one_line
from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadDtype, BadInput, BadShape, KeysideError, RunFailed
from keyside.tensorstore.records import TensorSpec

__all__ = ["call_member", "check_inputs", "find_member", "run_checked", "run_member"]


def run_member(
    members: Mapping[str, Member],
    target: str,
    inputs: Sequence[Array] | Mapping[str, Array],
    outputs: Sequence[str] | Mapping[str, str],
) -> dict[str, Array]:
    """Run a model or a graph.

    Args:
        members: all that there are, by target.
        target: which.
        inputs: by position, or by the model's names.
        outputs: local names of all that it gives, by position; or of some of it, by the model's names.

    Returns:
        What it gives, by local names.

    Raises:
        BadInput: number or names do not fit.
        BadDtype: an input does not fit. Likewise BadShape.
        RunFailed: the model fails.
        KeysideError: what else a model may raise.
    """
    member = find_member(members, target)
    if isinstance(inputs, Mapping):
        if set(inputs) != set(member.names):
            raise BadInput(f"{member.title!r} takes {', '.join(member.names)}; got {', '.join(inputs) or 'nothing'}")
        inputs = [inputs[name] for name in member.names]
    results = run_checked(member, inputs, members)
    if not isinstance(outputs, Mapping):
        return _by_position(member.title, results, outputs)
    names = member.output_names or [f"output_{n}" for n in range(len(results))]
    found = dict(zip(names, results, strict=False))
    missing = next((name for name in outputs if name not in found), None)
    if missing is not None:
        raise BadInput(f"{member.title!r} has no output {missing!r}; it gives {', '.join(names)}")
    return {local: found[name] for name, local in outputs.items()}


def run_checked(member: Member, inputs: Sequence[Array], members: Mapping[str, Member]) -> list[Array]:
    """Run a model or a graph on inputs by position, and take note of how long that took; see `run_member`."""
    began = time.perf_counter()
    try:
        member.check(inputs)
        results = member.run_with(inputs, members) if member.is_graph else member.run(inputs)
    except KeysideError:
        raise
    except Exception as error:
        raise _failed(error) from error
    member.timed(time.perf_counter() - began)
    return results


def call_member(
    members: Mapping[str, Member],
    target: str,
    function: str,
    inputs: Sequence[Array],
    outputs: Sequence[str],
    keys: Sequence[str],
    args: Sequence[str],
) -> dict[str, Array]:
    """Call a function of a script; see `run_member`."""
    member = find_member(members, target)
    began = time.perf_counter()
    try:
        results = member.call(function, inputs, keys, args)
    except KeysideError:
        raise
    except Exception as error:
        raise _failed(error) from error
    member.timed(time.perf_counter() - began)
    return _by_position(member.title, results, outputs)


def check_inputs(title: str, specs: Sequence[TensorSpec], arrays: Sequence[Array]) -> None:
    """Check arrays against a signature.

    Raises:
        BadInput: there are more or fewer than it has.
        BadDtype: the dtype of one is another.
        BadShape: the shape of one does not fit.
    """
    if len(arrays) != len(specs):
        raise BadInput(
            f"{title!r} takes {len(specs)} inputs, {', '.join(spec.name for spec in specs)}; got {len(arrays)}"
        )
    for spec, array in zip(specs, arrays, strict=True):
        _check_tensor(title, spec, array)


def _check_tensor(title: str, spec: TensorSpec, array: Array) -> None:
    if spec.dtype:
        dtype = dtypes.of(array.dtype).name
        if spec.dtype != dtype:
            raise BadDtype(f"input {spec.name!r} of {title!r} takes {spec.dtype}, got {dtype}")
    if spec.shape is not None and (
        len(spec.shape) != array.ndim
        or any(want not in (-1, got) for want, got in zip(spec.shape, array.shape, strict=True))
    ):
        raise BadShape(
            f"input {spec.name!r} of {title!r} takes shape {list(spec.shape)} (-1: any), got {list(array.shape)}"
        )


def find_member(members: Mapping[str, Member], target: str) -> Member:
    """Return a member by its target.

    Raises:
        BadInput: there is none.
    """
    member = members.get(target)
    if member is None:
        raise BadInput(f"{target!r} was not resolved when the job was submitted")
    return member


def _failed(error: Exception) -> RunFailed:
    """Return the error of a run in which something was raised that is none of ours: a plug-in may raise anything."""
    return RunFailed(f"{type(error).__name__}: {one_line(error)}")


def _by_position(title: str, results: Sequence[Array], outputs: Sequence[str]) -> dict[str, Array]:
    if len(results) != len(outputs):
        raise BadInput(f"{title!r} gives {len(results)} outputs, not {len(outputs)}")
    return dict(zip(outputs, results, strict=True))
