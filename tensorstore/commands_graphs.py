"""Builders for the functions that run several operations as one job."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keyside.tensorstore.command import Command, Name, to_bytes
from keyside.tensorstore.commands import InputSpec, Submit
from keyside.tensorstore.errors import from_reply
from keyside.tensorstore.results import decode_results

__all__ = [
    "GetTensor",
    "Operation",
    "RunModel",
    "RunScript",
    "SetTensor",
    "ai_dagexecute",
    "ai_dagexecute_ro",
    "read_results",
]


class SetTensor(NamedTuple):
    """A tensor of the caller's gets a name that only the DAG knows."""

    name: Name
    value: InputSpec


class GetTensor(NamedTuple):
    """The reply shall have a tensor."""

    name: Name


class RunModel(NamedTuple):
    """Run a model or a graph."""

    target: Name
    inputs: Sequence[Name]
    outputs: Sequence[Name]


class RunScript(NamedTuple):
    """Call a function of a script."""

    target: Name
    function: str
    inputs: Sequence[Name]
    outputs: Sequence[Name]
    keys: Sequence[Name]
    args: Sequence[str | bytes]


Operation = SetTensor | GetTensor | RunModel | RunScript


def ai_dagexecute(
    operations: Sequence[Operation], submit: Submit, *, load: Sequence[Name] = (), persist: Sequence[Name] = ()
) -> Command[bytes]:
    """Run operations as one job; the result is as of `commands.ai_modelexecute`.

    Args:
        operations: in the order in which they run.
        submit: how.
        load: tensor keys, which are tensors of the same name in the DAG.
        persist: tensors of the DAG that are written to keys of the same name if all operations have run.
    """
    return _dag("AI_DAGEXECUTE", operations, submit, load, persist)


def ai_dagexecute_ro(operations: Sequence[Operation], submit: Submit, *, load: Sequence[Name] = ()) -> Command[bytes]:
    """Run operations that call no script as one job that writes no key; see `ai_dagexecute`."""
    return _dag("AI_DAGEXECUTE_RO", operations, submit, load, ())


def _dag(
    function: str, operations: Sequence[Operation], submit: Submit, load: Sequence[Name], persist: Sequence[Name]
) -> Command[bytes]:
    loads, persists = _bytes(load), _bytes(persist)
    head: list[Any] = []
    for word, names in ((b"LOAD", loads), (b"PERSIST", persists)):
        if names:
            head += (word, len(names), *names)
    used = [*loads, *persists]
    words: list[Any] = []
    for operation in operations:
        words.append(b"|>")
        words += _words(operation)
        if isinstance(operation, SetTensor) and operation.value.mode != b"VALUE":
            used.append(operation.value.data)
        elif isinstance(operation, RunScript):
            used += _bytes(operation.keys)
    if not head:
        # Something has to say where such a call is at home: its first key does, or the list for its reply.
        home = used[0] if used else submit.ticket
        head += (b"ROUTING", home)
        used.append(home)
    names = list(dict.fromkeys(used))
    return Command((b"FCALL", function, len(names), *names, *head, *submit.args(), *words), bytes)


def _words(operation: Operation) -> list[Any]:
    match operation:
        case SetTensor(name, (mode, data)):
            return [b"TENSORSET", to_bytes(name), mode, data]
        case GetTensor(name):
            return [b"TENSORGET", to_bytes(name)]
        case RunModel(target, inputs, outputs):
            return [
                b"MODELEXECUTE", to_bytes(target), b"INPUTS", len(inputs), *_bytes(inputs),
                b"OUTPUTS", len(outputs), *_bytes(outputs),
            ]  # fmt: skip
        case RunScript():
            words: list[Any] = [b"SCRIPTEXECUTE", to_bytes(operation.target), operation.function]
            lists = (operation.keys, operation.inputs, operation.args, operation.outputs)
            for word, texts in zip((b"KEYS", b"INPUTS", b"ARGS", b"OUTPUTS"), lists, strict=True):
                if texts:
                    words += (word, len(texts), *_bytes(texts))
            return words


def _bytes(names: Sequence[Name]) -> list[bytes]:
    return [to_bytes(name) for name in names]


def read_results(reply: bytes | memoryview) -> list[str | bytes | dict[str, str]]:
    """Make out what the reply to a DAG says of each operation; see `records.encode_results`.

    Raises:
        KeysideError: it did not run at all.
    """
    data = bytes(reply)
    if data[:1] >= b"\x80":
        return decode_results(data)
    raise from_reply(data.decode("utf-8", "replace"))
