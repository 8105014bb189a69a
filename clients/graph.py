"""Builds stored graphs: what calls are made here becomes the steps of a program.

g = client.graph()
x = g.input("image")
found = g.run("detector", x)
plate = g.when(found["score"] > 0.5, then=lambda: g.run("plates", x), otherwise=lambda: found["coarse"])
g.output("plate", plate)
client.store_graph("cascade", g)
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

from keyside.clients.graph_values import Condition, Measure, Result, Value
from keyside.tensorstore import graph as programs
from keyside.tensorstore import npy
from keyside.tensorstore.command import Name, text
from keyside.tensorstore.errors import BadArg, KeysideError
from keyside.tensorstore.graph_fields import shorten_name

__all__ = ["Graph"]

T = TypeVar("T")

_MARK = "#"
"""In names that a graph gives itself, so that they are no names of its user's."""


class Graph:
    """A program of steps that one executor runs as one job.

    Args:
        name: under which it is stored, if it is not named then.
    """

    def __init__(self, name: str = "") -> None:
        self.name = name
        self._inputs: dict[str, Any] = {}
        self._outputs: list[str] = []
        self._blocks: list[list[dict[str, Any]]] = [[]]
        self._count = 0

    def __repr__(self) -> str:
        return f"<Graph {self.name!r} of {len(self._blocks[0])} steps>"

    def input(self, name: str, dtype: str = "", shape: Sequence[int] | None = None) -> Value:
        """Name an input.

        Args:
            name: as callers name it.
            dtype: that it must have, such as FLOAT; empty: any.
            shape: that it must have, -1 for any size; None: any.

        Raises:
            BadArg: there is one of that name.
        """
        self._own_name(name)
        if name in self._inputs:
            raise BadArg(f"the graph has an input {name!r} already")
        whole = {"name": name, "dtype": dtype, "shape": None if shape is None else [int(dim) for dim in shape]}
        self._inputs[name] = whole if dtype or shape is not None else name
        return Value(self, name)

    def run(self, target: Name, *inputs: object, outputs: int | Sequence[str] | None = None) -> Any:
        """Run a model or another graph.

        Args:
            target: as for `predict`.
            inputs: tensors of the graph or arrays, by position; or one mapping of them by name.
            outputs: how many it has, or names of those that are wanted.

        Returns:
            A `Result`; with `outputs` a tuple of tensors.
        """
        given: Any
        if len(inputs) == 1 and isinstance(inputs[0], Mapping):
            given = {str(name): self._tensor(value).name for name, value in inputs[0].items()}
        else:
            given = [self._tensor(value).name for value in inputs]
        label = text(target)
        step: dict[str, Any] = {"run": label, "inputs": given, "outputs": {}}
        self._blocks[-1].append(step)
        result = Result(self, self._fresh_name(label), step)
        if outputs is None:
            return result
        if isinstance(outputs, int):
            found = [self.fresh(label) for _ in range(outputs)]
            step["outputs"] = [value.name for value in found]
            return tuple(found)
        return tuple(result[name] for name in outputs)

    def script(
        self,
        target: Name,
        function: str,
        *inputs: object,
        outputs: int = 1,
        keys: Sequence[Name] = (),
        args: Sequence[object] = (),
    ) -> Any:
        """Call a function of a script.

        Args:
            target: the script.
            function: one of its entry points.
            inputs: tensors of the graph or arrays.
            outputs: how many tensors it gives.
            keys: names that it gets as keys.
            args: texts; numbers are written in decimal.

        Returns:
            The tensor; a tuple of them unless `outputs` is 1.
        """
        given = [self._tensor(value).name for value in inputs]
        found = [self.fresh(function) for _ in range(outputs)]
        step = {
            "script": text(target), "function": function, "inputs": given, "outputs": [value.name for value in found],
            "keys": [text(key) for key in keys], "args": [_argument(arg) for arg in args],
        }  # fmt: skip
        self._blocks[-1].append(step)
        return found[0] if outputs == 1 else tuple(found)

    def constant(self, value: object) -> Value:
        """Put a tensor into the program.

        Args:
            value: an array, or numbers or text that become one.
        """
        array = npy.as_array(value)
        made = self.fresh("const")
        self._blocks[-1].append({"const": programs.const_document(array), "output": made.name})
        return made

    def when(self, condition: Condition, then: object, otherwise: object = None) -> Any:
        """Run some steps if a condition holds, and others if it does not.

        Args:
            condition: such as `y["score"] > 0.5`.
            then: a function that makes the steps, and returns a tensor, a tuple or a dict of tensors, or nothing; or
                simply that.
            otherwise: likewise; it must give as many tensors under the same names.

        Returns:
            What the branch that runs gives, in the form in which both return it.

        Raises:
            BadArg: the branches give different things.
        """
        if not isinstance(condition, Condition):
            raise BadArg(f"a condition is a comparison of a tensor of the graph, not {type(condition).__name__}")
        first, steps = self._block(then)
        second, others = self._block(otherwise)
        if list(first) != list(second):
            raise BadArg(f"one branch gives {_shape(first)} and the other {_shape(second)}: both must give the same")
        found = {key: self.fresh("when") for key in first}
        for given, block in ((first, steps), (second, others)):
            block += [{"let": found[key].name, "from": value.name} for key, value in given.items()]
        self._blocks[-1].append({"if": condition.document(), "then": steps, "else": others})
        return _formed(found)

    def each(
        self, rows: Value, do: Callable[[Value], T], *, limit: int = programs.DEFAULT_ROWS, keep: bool = False
    ) -> T:
        """Do something for each row of a tensor: for each of the objects that a detector has found, say.

        Args:
            rows: the tensor; the rows lie on its dim 0.
            do: makes the steps for a row, and returns a tensor, a tuple or a dict of tensors.
            limit: rows at most; with more the run fails.
            keep: a row keeps its dim 0, of size 1, and results are joined on theirs. Otherwise a row has no such dim,
                and results, which must be of one shape, are stacked.

        Returns:
            The results of all rows together, in the form in which `do` returns them.
        """
        over = self._tensor(rows).name
        item = self.fresh("row")
        given, steps = self._block(lambda: do(item))
        found = {key: self.fresh("each") for key in given}
        collect: dict[str, str] = {}
        for key, value in given.items():
            name = value.name
            if name in collect:
                name = self._fresh_name("same")
                steps.append({"let": name, "from": value.name})
            collect[name] = found[key].name
        if not collect:
            raise BadArg("what is done for each row must return a tensor")
        self._blocks[-1].append(
            {"each": over, "as": item.name, "steps": steps, "collect": collect, "limit": limit, "keep": keep}
        )
        return _formed(found)  # type: ignore[no-any-return]

    def output(self, name: str, value: object) -> None:
        """Name an output.

        Raises:
            BadArg: there is one of that name, or this is within a branch.
        """
        self._own_name(name)
        if len(self._blocks) > 1:
            raise BadArg(f"output {name!r} is named within a branch: return the tensor, and name it outside")
        if name in self._outputs:
            raise BadArg(f"the graph has an output {name!r} already")
        source = self._tensor(value).name
        if source != name:
            self._blocks[0].append({"let": name, "from": source})
        self._outputs.append(name)

    def document(self) -> dict[str, Any]:
        """Return the program, which has been checked.

        Raises:
            BadArg: it is not one that could run: a tensor of one branch is used outside of it, say.
        """
        whole = {"inputs": list(self._inputs.values()), "outputs": list(self._outputs), "steps": self._blocks[0]}
        self._check(whole)
        return whole

    def to_json(self) -> tuple[bytes, list[str]]:
        """Return the program as it is stored, and the targets that it runs.

        Raises:
            BadArg: as `document`.
        """
        whole = self.document()
        return programs.to_json(whole), list(self._check(whole).uses)

    def fresh(self, base: str) -> Value:
        """Return a tensor whose name nobody has."""
        return Value(self, self._fresh_name(base))

    @staticmethod
    def _check(whole: Mapping[str, Any]) -> programs.Program:
        try:
            return programs.check(whole)
        except programs.GraphError as error:
            raise BadArg(f"the graph cannot run: {error}") from None

    def _fresh_name(self, base: str) -> str:
        self._count += 1
        return f"{base[:200]}{_MARK}{self._count}"

    def _own_name(self, name: str) -> None:
        if not isinstance(name, str) or not name or _MARK in name:
            raise BadArg(f"names of inputs and outputs are texts without {_MARK}, not {name!r:.80}")

    def _tensor(self, value: object) -> Value:
        if isinstance(value, Value):
            if value.graph is not self:
                raise BadArg(f"{shorten_name(value.name)} is a tensor of another graph")
            return value
        if isinstance(value, Measure | Condition):
            raise BadArg("what a test looks at is no tensor: compute it in a model or a script")
        try:
            return self.constant(value)
        except KeysideError as error:
            raise BadArg(
                f"{type(value).__name__} is neither a tensor of the graph nor an array: {error.text}"
            ) from None

    def _block(self, make: object) -> tuple[dict[str | int | None, Value], list[dict[str, Any]]]:
        """Gather the steps that a function makes, and the tensors that it returns; or take those tensors."""
        steps: list[dict[str, Any]] = []
        self._blocks.append(steps)
        try:
            made = make() if callable(make) else make
            items: dict[str | int | None, object]
            if made is None:
                items = {}
            elif isinstance(made, Mapping):
                items = {str(name): value for name, value in made.items()}
            elif isinstance(made, tuple):
                items = dict(enumerate(made))
            else:
                items = {None: made}
            return {key: self._tensor(value) for key, value in items.items()}, steps
        finally:
            self._blocks.pop()


def _formed(found: Mapping[str | int | None, Value]) -> Any:
    """Return tensors in the form in which a function returned others."""
    if not found:
        return None
    if None in found:
        return found[None]
    return tuple(found.values()) if 0 in found else dict(found)


def _shape(given: Mapping[str | int | None, Value]) -> str:
    if not given:
        return "nothing"
    if None in given:
        return "a tensor"
    return f"{len(given)} tensors" if 0 in given else ", ".join(map(str, given))


def _argument(value: object) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, str) else str(value)
