"""Tensors of a graph that is being built, and the conditions on them."""

from typing import Any, NoReturn, Protocol

import numpy as np

from keyside.tensorstore.errors import BadArg

__all__ = ["Condition", "Measure", "Result", "Value"]


class Maker(Protocol):
    """What a tensor needs of its graph."""

    def fresh(self, base: str) -> "Value":
        """Return a tensor whose name nobody has."""
        ...


Number = bool | int | float | str | bytes


class Condition:
    """A test of a tensor, for `Graph.when`; it is decided when the graph runs."""

    def __init__(self, value: "Value", take: str | list[int], op: str, operand: object) -> None:
        self.value = value
        self._take, self._op = take, op
        if isinstance(operand, np.generic):
            operand = operand.item()
        if isinstance(operand, bytes):
            operand = operand.decode("utf-8", "replace")
        if not isinstance(operand, bool | int | float | str):
            raise BadArg(f"a tensor of a graph is compared with a number or a text, not {type(operand).__name__}")
        self._operand = operand

    def __bool__(self) -> NoReturn:
        raise BadArg("a condition is decided when the graph runs: use graph.when(condition, then=..., otherwise=...)")

    def document(self) -> dict[str, Any]:
        """Return what stands in the program."""
        return {"tensor": self.value.name, "take": self._take, "is": self._op, "value": self._operand}


class Measure:
    """One number of a tensor, or each of its elements, to be compared."""

    def __init__(self, value: "Value", take: str | list[int]) -> None:
        self._value = value
        self._take = take

    def __gt__(self, other: Number) -> Condition:
        return Condition(self._value, self._take, ">", other)

    def __ge__(self, other: Number) -> Condition:
        return Condition(self._value, self._take, ">=", other)

    def __lt__(self, other: Number) -> Condition:
        return Condition(self._value, self._take, "<", other)

    def __le__(self, other: Number) -> Condition:
        return Condition(self._value, self._take, "<=", other)

    def __eq__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self._value, self._take, "==", other)

    def __ne__(self, other: object) -> Condition:  # type: ignore[override]
        return Condition(self._value, self._take, "!=", other)

    __hash__ = object.__hash__

    def __bool__(self) -> NoReturn:
        raise BadArg("a tensor of a graph is known when the graph runs: compare it, and use graph.when")


class Value(Measure):
    """A tensor of a graph. Compared as it is, it must have one element when the graph runs.

    Attributes:
        graph: that it belongs to.
    """

    def __init__(self, graph: Maker, name: str) -> None:
        super().__init__(self, "one")
        self.graph = graph
        self._name = name

    @property
    def name(self) -> str:
        """What it is called in the program."""
        return self._name

    def max(self) -> Measure:
        """Return its largest element."""
        return Measure(self, "max")

    def min(self) -> Measure:
        """Return its smallest element."""
        return Measure(self, "min")

    def sum(self) -> Measure:
        """Return the sum of its elements, 0 if it has none."""
        return Measure(self, "sum")

    def mean(self) -> Measure:
        """Return their mean."""
        return Measure(self, "mean")

    def any(self) -> Measure:
        """Return its elements, one of which must pass the test."""
        return Measure(self, "any")

    def all(self) -> Measure:
        """Return its elements, all of which must pass the test."""
        return Measure(self, "all")

    def first(self) -> Measure:
        """Return its first element."""
        return Measure(self, "first")

    def rows(self) -> Measure:
        """Return its size on dim 0."""
        return Measure(self, "rows")

    def at(self, *index: int) -> Measure:
        """Return the element at an index."""
        return Measure(self, [int(n) for n in index])


class Result(Value):
    """What a model gives: taken as a tensor, its one output; or its outputs by name, as in `result["score"]`."""

    def __init__(self, graph: Maker, name: str, step: dict[str, Any]) -> None:
        super().__init__(graph, name)
        self._step = step
        self._fields: dict[str, Value] = {}

    @property
    def name(self) -> str:
        """What its one output is called in the program."""
        if self._fields:
            raise BadArg(
                f"outputs of {self._step['run']!r} are taken by name, {', '.join(self._fields)}: take each of them so"
            )
        self._step["outputs"] = [self._name]
        return self._name

    def __getitem__(self, field: str) -> Value:
        """Return an output by its name.

        Raises:
            BadArg: its one output was taken as a tensor before.
        """
        if not isinstance(field, str):
            raise BadArg("outputs of a model are taken by name; by position with graph.run(..., outputs=n)")
        if isinstance(self._step["outputs"], list):
            raise BadArg(f"the one output of {self._step['run']!r} was taken as a tensor: take each of them by name")
        if field not in self._fields:
            self._fields[field] = self.graph.fresh(field)
            self._step["outputs"][field] = self._fields[field].name
        return self._fields[field]

    def __iter__(self) -> NoReturn:
        raise BadArg("how many outputs a model has is not known here: say graph.run(..., outputs=n)")
