"""The GRAPH backend: stored graphs, whose steps run other models and scripts, all in the memory of one executor."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np

from keyside.executor.backends.base import Array, Member, contiguous
from keyside.executor.members import call_member, run_member
from keyside.tensorstore import dtypes, graph
from keyside.tensorstore.errors import BadModel, KeysideError, RunFailed
from keyside.tensorstore.records import Signature, TensorSpec

__all__ = ["GraphBackend", "GraphModel"]

_OPTIONS: Final = ("uses",)
_STEP_BYTES: Final = 4 << 10


class GraphBackend:
    """Loads stored graphs: reads and checks their program, no more, since their members load by themselves."""

    name = "GRAPH"

    def available(self) -> str:
        """Return why it cannot be used here: it always can."""
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
    ) -> "GraphModel":
        """Load a graph; see `base.Backend.load`."""
        del device, allow_code, threads
        for name in options:
            if name not in _OPTIONS:
                raise BadModel(f"no option {name[:80]!r} for GRAPH; there is uses")
        if inputs or outputs:
            raise BadModel("INPUTS and OUTPUTS stand in the program of a graph, not in the call that stores it")
        program = graph.parse(blob)
        _check_uses(program, options.get("uses", []))
        return GraphModel(program, len(blob))


def _check_uses(program: graph.Program, given: object) -> None:
    """What may be run was decided by what OPTIONS names, at submit: the program must run that and nothing else."""
    if not isinstance(given, list) or not all(isinstance(target, str) for target in given):
        raise BadModel('option uses is not a list of targets, such as {"uses": ["detector", "plates@2"]}')
    used = set(program.uses)
    if len(given) == len(used) and set(given) == used:
        return
    missing = [target for target in program.uses if target not in set(given)]
    extra = [target for target in given if target not in used]
    what = [f"lacks {', '.join(map(repr, missing))}"] if missing else []
    if extra:
        what.append(f"has {', '.join(map(repr, extra))}, which the graph does not use")
    raise BadModel(f"option uses {' and '.join(what) or 'has a target twice'}: name each target of the graph once")


class GraphModel:
    """One graph.

    Attributes:
        signature: inputs as its program has them; outputs by name, their dtypes and shapes not known.
        nbytes: an estimate of the memory that it holds; its members hold their own.
        stackable: never: what the members make of rows is not known.
    """

    stackable = False

    def __init__(self, program: graph.Program, size: int) -> None:
        self.program = program
        self.nbytes = size + _STEP_BYTES * (1 + len(program.steps))
        self.signature = Signature(program.inputs, tuple(TensorSpec(name, "", None) for name in program.outputs))

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run a graph that runs no other; see `run_with`."""
        return self.run_with(inputs, {})

    def run_with(self, inputs: Sequence[Array], members: Mapping[str, Member]) -> list[Array]:
        """Run the graph.

        Args:
            inputs: in the order of its signature.
            members: what its steps run, by the targets that they name.

        Returns:
            Its outputs, C-contiguous.

        Raises:
            BadInput: number or names of a member's inputs or outputs do not fit. Likewise BadDtype, BadShape.
            RunFailed: a member fails, a condition cannot be decided, or rows cannot be put together.
        """
        if len(inputs) != len(self.program.inputs):
            raise RunFailed(f"the graph takes {len(self.program.inputs)} inputs, got {len(inputs)}")
        env = {spec.name: array for spec, array in zip(self.program.inputs, inputs, strict=True)}
        _run(self.program.steps, env, members)
        return [contiguous(env[name]) for name in self.program.outputs]

    def close(self) -> None:
        """Nothing: the memory goes with the last reference."""


def _run(steps: Sequence[graph.Step], env: dict[str, Array], members: Mapping[str, Member]) -> None:
    """Run steps in their order; what they assign goes into `env`."""
    for step in steps:
        try:
            _KINDS[type(step)](step, env, members)
        except KeysideError as error:
            where = _where(step)
            if not where:
                raise  # the step within has said so
            raise type(error)(f"{where}: {error.text}") from error


def _where(step: graph.Step) -> str:
    """Say in errors which step they are of."""
    match step:
        case graph.Run():
            return f"run {step.target!r}"
        case graph.Script():
            return f"script {step.target!r} {step.function!r}"
        case graph.Each():
            return f"each {step.over!r}"
    return ""


def _run_model(step: graph.Run, env: dict[str, Array], members: Mapping[str, Member]) -> None:
    env.update(run_member(members, step.target, _given(step.inputs, env), step.outputs))


def _run_script(step: graph.Script, env: dict[str, Array], members: Mapping[str, Member]) -> None:
    given = [env[name] for name in step.inputs]
    env.update(call_member(members, step.target, step.function, given, step.outputs, step.keys, step.args))


def _run_const(step: graph.Const, env: dict[str, Array], _: object) -> None:
    env[step.output] = step.value


def _run_let(step: graph.Let, env: dict[str, Array], _: object) -> None:
    env[step.name] = env[step.source]


def _run_if(step: graph.If, env: dict[str, Array], members: Mapping[str, Member]) -> None:
    try:
        holds = decide(step.test, env[step.test.tensor])
    except KeysideError as error:
        raise type(error)(f"if {step.test.tensor!r}: {error.text}") from error
    inner = dict(env)
    _run(step.then if holds else step.otherwise, inner, members)
    for name in step.gives:
        env[name] = inner[name]


def _given(names: tuple[str, ...] | Mapping[str, str], env: Mapping[str, Array]) -> list[Array] | dict[str, Array]:
    if isinstance(names, Mapping):
        return {theirs: env[local] for theirs, local in names.items()}
    return [env[local] for local in names]


def _run_each(step: graph.Each, env: dict[str, Array], members: Mapping[str, Member]) -> None:
    rows = env[step.over]
    if not rows.ndim:
        raise RunFailed(f"{step.over!r} has no dims, and so no rows")
    count = len(rows)
    if count > step.limit:
        raise RunFailed(f"{count:,} rows; the limit of this step is {step.limit:,}")
    if not count:
        for inner, outer in step.collect.items():
            env[outer] = _no_rows(step, inner, env, members)
        return
    parts: dict[str, list[Array]] = {inner: [] for inner in step.collect}
    for n in range(count):
        inside = dict(env)
        inside[step.item] = rows[n : n + 1] if step.keep else rows[n]
        try:
            _run(step.steps, inside, members)
        except KeysideError as error:
            raise type(error)(f"row {n}: {error.text}") from error
        for inner, found in parts.items():
            found.append(np.asarray(inside[inner]))
    for inner, outer in step.collect.items():
        env[outer] = _together(inner, parts[inner], keep=step.keep)


_KINDS: Final[dict[type, Callable[[Any, dict[str, Array], Mapping[str, Member]], None]]] = {
    graph.Run: _run_model,
    graph.Script: _run_script,
    graph.Const: _run_const,
    graph.Let: _run_let,
    graph.If: _run_if,
    graph.Each: _run_each,
}


def _together(name: str, parts: Sequence[Array], *, keep: bool) -> Array:
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


def _no_rows(step: graph.Each, name: str, env: Mapping[str, Array], members: Mapping[str, Member]) -> Array:
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
    # Sums of short integers and floats are taken in 64 bits.
    wide = np.float64 if tensor.dtype.kind == "f" else None
    reduce = {"max": np.max, "min": np.min}.get(take)
    if reduce is not None:
        return reduce(tensor)
    return np.sum(tensor, dtype=wide) if take == "sum" else np.mean(tensor, dtype=np.float64)
