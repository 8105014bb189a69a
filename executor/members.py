"""The members of graphs and DAGs: what a composite calls, bound by position or by name and checked before."""

import time
from collections.abc import Callable, Mapping, Sequence

from keyside.executor.backends.base import Array, Member, one_line
from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadDtype, BadInput, BadShape, KeysideError, RunFailed
from keyside.tensorstore.records import TensorSpec

__all__ = ["call_member", "check_tensor", "run_member"]


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
    member = _find(members, target)
    arrays = _bind_inputs(member, inputs)
    specs = member.signature.inputs
    for spec, array in zip(specs, arrays, strict=True):
        check_tensor(member.title, spec, array)
    results = _run(member, lambda: member.run_with(arrays, members) if member.is_graph else member.run(arrays))
    if not isinstance(outputs, Mapping):
        return _by_position(member.title, results, outputs)
    names = member.output_names or [f"output_{n}" for n in range(len(results))]
    found = dict(zip(names, results, strict=False))
    missing = next((name for name in outputs if name not in found), None)
    if missing is not None:
        raise BadInput(f"{member.title!r} has no output {missing!r}; it gives {', '.join(names)}")
    return {local: found[name] for name, local in outputs.items()}


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
    member = _find(members, target)
    results = _run(member, lambda: member.call(function, inputs, keys, args))
    return _by_position(member.title, results, outputs)


def check_tensor(title: str, spec: TensorSpec, array: Array) -> None:
    """Check an array against a signature.

    Raises:
        BadDtype: its dtype is another.
        BadShape: its shape does not fit.
    """
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


def _find(members: Mapping[str, Member], target: str) -> Member:
    member = members.get(target)
    if member is None:
        raise BadInput(f"{target!r} was not resolved when the job was submitted")
    return member


def _run(member: Member, run: Callable[[], list[Array]]) -> list[Array]:
    began = time.perf_counter()
    try:
        found = run()
    except KeysideError:
        raise
    except Exception as error:  # a plug-in's backend may raise anything
        raise RunFailed(f"{type(error).__name__}: {one_line(error)}") from error
    member.timed(time.perf_counter() - began)
    return found


def _bind_inputs(member: Member, inputs: Sequence[Array] | Mapping[str, Array]) -> list[Array]:
    names = member.names
    if isinstance(inputs, Mapping):
        if set(inputs) != set(names):
            raise BadInput(f"{member.title!r} takes {', '.join(names)}; got {', '.join(inputs) or 'nothing'}")
        return [inputs[name] for name in names]
    if len(inputs) != len(names):
        raise BadInput(f"{member.title!r} takes {len(names)} inputs, {', '.join(names)}; got {len(inputs)}")
    return list(inputs)


def _by_position(title: str, results: Sequence[Array], outputs: Sequence[str]) -> dict[str, Array]:
    if len(results) != len(outputs):
        raise BadInput(f"{title!r} gives {len(results)} outputs, not {len(outputs)}")
    return dict(zip(outputs, results, strict=True))
