"""Runs the operations of one AI_DAGEXECUTE, one after the other, on tensors that only this job knows.

The program is what `lua/lib/dag.lua` makes of the call, a msgpack map: `n`, the names of the
tensors that were loaded, which are the first inputs of the job; `o`, the operations; `p`, the names to persist. An
operation is a list that begins with its kind:

    s name input                                  TENSORSET: the data is that input of the job
    g name                                        TENSORGET
    m target [inputs] [outputs]                   MODELEXECUTE
    f target function [inputs] [outputs] [keys] [args]    SCRIPTEXECUTE
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from keyside.executor.backends.base import Array, Member, contiguous
from keyside.executor.members import call_member, run_member
from keyside.tensorstore.errors import BadArg, BadInput, KeysideError

__all__ = ["NOT_RUN", "OK", "DagResult", "run_dag"]

OK = "OK"
NOT_RUN = "NA"
"""Of an operation behind one that failed."""


@dataclass(frozen=True, slots=True)
class DagResult:
    """What a DAG has come to.

    Attributes:
        results: one for each operation: `OK`, `NA`, the error as its text, or for a TENSORGET its tensor.
        persisted: the tensors to write, in the order of the program; empty if an operation failed.
        error: of the operation that failed; None if all ran.
    """

    results: list[str | Array]
    persisted: list[Array]
    error: KeysideError | None


def run_dag(program: Any, inputs: Sequence[Array], members: Mapping[str, Member]) -> DagResult:
    """Run the operations of a DAG.

    Args:
        program: as above, with texts as bytes.
        inputs: of the job.
        members: what the operations run, by the targets that they name.

    Raises:
        BadArg: the program is none.
    """
    names, operations, persist = _read(program, len(inputs))
    local: dict[bytes, Array] = dict(zip(names, inputs, strict=False))
    results: list[str | Array] = []
    for operation in operations:
        try:
            results.append(_KINDS[operation[0]](operation, inputs, local, members))
        except KeysideError as error:
            results.append(str(error))
            return _failed(results, operations, error)
    try:
        persisted = [contiguous(_take(local, name)) for name in persist]
    except BadInput as error:
        return _failed(results, operations, error)
    return DagResult(results, persisted, None)


def _failed(results: list[str | Array], operations: Sequence[Any], error: KeysideError) -> DagResult:
    return DagResult([*results, *[NOT_RUN] * (len(operations) - len(results))], [], error)


def _set(operation: Sequence[Any], inputs: Sequence[Array], local: dict[bytes, Array], _: object) -> str | Array:
    local[operation[1]] = inputs[operation[2]]
    return OK


def _get(operation: Sequence[Any], _: object, local: dict[bytes, Array], __: object) -> str | Array:
    return contiguous(_take(local, operation[1]))


def _model(
    operation: Sequence[Any], _: object, local: dict[bytes, Array], members: Mapping[str, Member]
) -> str | Array:
    target, given, gives = operation[1:]
    arrays = [_take(local, name) for name in given]
    _keep(local, gives, run_member(members, _text(target), arrays, _positions(gives)))
    return OK


def _script(
    operation: Sequence[Any], _: object, local: dict[bytes, Array], members: Mapping[str, Member]
) -> str | Array:
    target, function, given, gives, keys, args = operation[1:]
    arrays = [_take(local, name) for name in given]
    texts = ([_text(text) for text in some] for some in (keys, args))
    _keep(local, gives, call_member(members, _text(target), _text(function), arrays, _positions(gives), *texts))
    return OK


def _positions(gives: Sequence[bytes]) -> list[str]:
    return [str(n) for n in range(len(gives))]


def _keep(local: dict[bytes, Array], gives: Sequence[bytes], found: Mapping[str, Array]) -> None:
    local.update(zip(gives, found.values(), strict=True))


def _take(local: Mapping[bytes, Array], name: bytes) -> Array:
    array = local.get(name)
    if array is None:
        raise BadInput(f"INPUT key cannot be found in DAG: {_text(name)[:80]!r}")
    return array


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


_KINDS: dict[
    bytes, Callable[[Sequence[Any], Sequence[Array], dict[bytes, Array], Mapping[str, Member]], str | Array]
] = {
    b"s": _set,
    b"g": _get,
    b"m": _model,
    b"f": _script,
}

_FORMS: dict[bytes, tuple[type, ...]] = {
    b"s": (bytes, int),
    b"g": (bytes,),
    b"m": (bytes, list, list),
    b"f": (bytes, bytes, list, list, list, list),
}


def _read(program: Any, count: int) -> tuple[list[bytes], list[list[Any]], list[bytes]]:
    """Check a program: entries are not to be trusted."""
    if not isinstance(program, dict):
        raise BadArg("the program of the DAG is not a map")
    names, operations, persist = (_listed(program.get(field)) for field in (b"n", b"o", b"p"))
    if not _are_texts(names) or not _are_texts(persist) or len(names) > count or not operations:
        raise BadArg("the program of the DAG has malformed names")
    read = []
    for operation in operations:
        parts = _operation(operation, count)
        if parts is None:
            raise BadArg("the program of the DAG has an operation that is none")
        read.append(parts)
    return names, read, persist


def _operation(operation: Any, count: int) -> list[Any] | None:
    if not isinstance(operation, list) or not operation or not isinstance(operation[0], bytes):
        return None
    form = _FORMS.get(operation[0])
    if form is None or len(operation) != len(form) + 1:
        return None
    parts: list[Any] = [operation[0]]
    for value, kind in zip(operation[1:], form, strict=True):
        if kind is list:
            found = _listed(value)
            if not _are_texts(found):
                return None
            parts.append(found)
        elif type(value) is not kind or (isinstance(value, int) and not 0 <= value < count):
            return None
        else:
            parts.append(value)
    return parts


def _listed(value: Any) -> list[Any]:
    # Lua has one kind of empty table.
    if value is None or value == {}:
        return []
    return value if isinstance(value, list) else [None]


def _are_texts(values: Sequence[Any]) -> bool:
    return all(isinstance(value, bytes) for value in values)
