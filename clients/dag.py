"""What one AI_DAGEXECUTE is to do, gathered step by step; no I/O here."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from keyside.clients.inputs import Key, input_spec
from keyside.clients.request import Identity, Parts, Request
from keyside.clients.topology import check_slots
from keyside.tensorstore import keys, npy, plain
from keyside.tensorstore.command import Command, Name, to_bytes
from keyside.tensorstore.commands import INLINE, InputSpec, Submit
from keyside.tensorstore.commands_graphs import (
    GetTensor,
    Operation,
    RunModel,
    RunScript,
    SetTensor,
    ai_dagexecute,
    ai_dagexecute_ro,
)
from keyside.tensorstore.errors import BadArg, KeysideError, from_reply

__all__ = ["NOT_RUN", "DagPlan", "staged_of", "values_of"]

NOT_RUN = "NA"
"""In place of what an operation behind a failed one would have given."""


class DagPlan:
    """The operations of one job. Only the job knows its names, but for those of keys that are loaded and persisted."""

    def __init__(self, *, readonly: bool) -> None:
        self._readonly = readonly
        self._loads: list[bytes] = []
        self._persists: list[bytes] = []
        self._operations: list[tuple[str, tuple[Any, ...]]] = []

    def load(self, *names: Name) -> Self:
        """Take tensor keys as they are when the job is submitted; each is a tensor of the same name."""
        self._loads += map(to_bytes, names)
        return self

    def persist(self, *names: Name) -> Self:
        """Write tensors to keys of the same name once all operations have run; if one fails, none is written.

        Raises:
            BadArg: it is a read-only DAG.
        """
        if self._readonly:
            raise BadArg("a read-only DAG persists nothing")
        self._persists += map(to_bytes, names)
        return self

    def tensorset(self, name: Name, value: object) -> Self:
        """Give a tensor a name: an array, numbers or text that become one, or a `Key`."""
        self._operations.append(("set", (name, value if isinstance(value, Key) else npy.as_array(value))))
        return self

    def tensorget(self, name: Name) -> Self:
        """Have a tensor in the reply."""
        return self._add(GetTensor(name))

    def modelexecute(self, target: Name, inputs: Name | Sequence[Name], outputs: Name | Sequence[Name]) -> Self:
        """Run a model, or a stored graph.

        Args:
            target: as for `predict`.
            inputs: names, in its order.
            outputs: names for all that it gives.
        """
        return self._add(RunModel(target, _names(inputs), _names(outputs)))

    def scriptexecute(
        self,
        target: Name,
        function: str,
        inputs: Name | Sequence[Name] = (),
        outputs: Name | Sequence[Name] = (),
        *,
        keys: Name | Sequence[Name] = (),
        args: Sequence[str | bytes] = (),
    ) -> Self:
        """Call a function of a script.

        Args:
            target: the script.
            function: one of its entry points.
            inputs: names of tensors.
            outputs: names for all that it gives.
            keys: names of keys that it gets.
            args: texts.

        Raises:
            BadArg: it is a read-only DAG.
        """
        if self._readonly:
            raise BadArg("a read-only DAG calls no script")
        return self._add(RunScript(target, function, _names(inputs), _names(outputs), _names(keys), list(args)))

    def request(self, timeout: float, identity: Identity, node: bytes, terms: tuple[Any, ...]) -> Request:
        """Make the request.

        Args:
            timeout: seconds until the deadline, 0.001 to 86,400.
            identity: of the client.
            node: as for `inputs.request`.
            terms: further words of the call.

        Raises:
            BadArg: there is nothing to do, or an argument is out of range.
            KeysideError: a value cannot be a tensor.
        """
        if not self._operations:
            raise BadArg("DAG is empty")
        if not isinstance(timeout, int | float) or not 0.001 <= timeout <= 86_400:
            raise BadArg(f"a timeout is 0.001 to 86400 seconds, not {timeout!r}")
        seq = identity.number()
        used = self._keys()
        if used and not node:
            check_slots(used)

        def parts(tag: bytes) -> Parts:
            return self._parts((identity.id, seq), tag)

        tag = keys.tag(used[0]) if used else node
        build, before, temporaries = parts(tag)
        made = Request(self._target(), build, timeout, identity, seq)
        made.before, made.temporaries = before, temporaries
        made.tag, made.keyed = tag, bool(used)
        made.terms = terms
        if temporaries:
            made.remake = parts
        return made

    def _add(self, operation: Operation) -> Self:
        self._operations.append(("do", (operation,)))
        return self

    def _keys(self) -> list[bytes]:
        """Return the keys that it names."""
        found = [*self._loads, *self._persists]
        for kind, parts in self._operations:
            if kind == "set" and isinstance(parts[1], Key):
                found.append(to_bytes(parts[1].name))
            elif isinstance(parts[0], RunScript):
                found += map(to_bytes, parts[0].keys)
        return found

    def _target(self) -> Name:
        """Return what it runs first: where that can run the DAG can."""
        for _, parts in self._operations:
            if isinstance(parts[0], RunModel | RunScript):
                return parts[0].target
        return b""

    def _parts(self, number: tuple[bytes, int], tag: bytes) -> Parts:
        operations: list[Operation] = []
        before: list[Command[None]] = []
        temporaries: list[bytes] = []
        for index, (kind, parts) in enumerate(self._operations):
            if kind == "do":
                operations.append(parts[0])
                continue
            name, value = parts
            if isinstance(value, Key):
                operations.append(SetTensor(name, input_spec(value)))
                continue
            header, data = npy.encode(value)
            if len(header) + data.nbytes <= INLINE:
                operations.append(SetTensor(name, InputSpec(b"VALUE", header + data)))
                continue
            key = keys.temporary(tag, *number, index)
            before.append(plain.set_temporary(key, header, data))
            temporaries.append(key)
            operations.append(SetTensor(name, InputSpec(b"OWN", key)))

        def build(submit: Submit) -> Command[bytes]:
            if self._readonly:
                return ai_dagexecute_ro(operations, submit, load=self._loads)
            return ai_dagexecute(operations, submit, load=self._loads, persist=self._persists)

        return Parts(build, before, temporaries)


def _names(names: Name | Sequence[Name]) -> list[Name]:
    return [names] if isinstance(names, str | bytes) else list(names)


def staged_of(results: Sequence[str | bytes | Mapping[str, str]]) -> list[str]:
    """Return the keys in which results of a DAG lie that are too large for its reply."""
    return [one["key"] for one in results if isinstance(one, Mapping)]


def values_of(
    results: Sequence[str | bytes | Mapping[str, str]], fetched: Mapping[str, NDArray[Any]]
) -> list[NDArray[Any] | KeysideError | str | None]:
    """Make out what each operation has given: its tensor, None, its error, or `NOT_RUN`.

    Args:
        results: as the reply says them.
        fetched: what lay in the keys of `staged_of`.
    """
    found: list[NDArray[Any] | KeysideError | str | None] = []
    for one in results:
        if isinstance(one, Mapping):
            found.append(fetched[one["key"]])
        elif isinstance(one, bytes):
            found.append(np.array(plain.array(one)))
        elif one == "OK":
            found.append(None)
        else:
            found.append(NOT_RUN if one == NOT_RUN else from_reply(one))
    return found
