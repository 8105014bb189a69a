"""What stored graphs are made of: steps, and the conditions in them."""

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from keyside.tensorstore.records import TensorSpec

__all__ = ["OPERATORS", "TAKES", "Const", "Each", "If", "Let", "Names", "Program", "Run", "Script", "Step", "Test"]

OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    ">": operator.gt, ">=": operator.ge, "<": operator.lt, "<=": operator.le, "==": operator.eq, "!=": operator.ne,
}  # fmt: skip
"""How a condition compares."""

TAKES = ("one", "max", "min", "sum", "mean", "any", "all", "first", "rows")
"""What a condition looks at: `one` needs a tensor of one element, `any` and `all` compare each element."""

Names = tuple[str, ...] | Mapping[str, str]
"""Local names by position, or by the names that a model has for them."""


@dataclass(frozen=True, slots=True)
class Run:
    """Run a model or another graph."""

    target: str
    inputs: Names
    outputs: Names


@dataclass(frozen=True, slots=True)
class Script:
    """Call a function of a script."""

    target: str
    function: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keys: tuple[str, ...]
    args: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Const:
    """A tensor that is always the same."""

    output: str
    value: NDArray[Any]


@dataclass(frozen=True, slots=True)
class Let:
    """Another name for a tensor."""

    name: str
    source: str


@dataclass(frozen=True, slots=True)
class Test:
    """A condition on a tensor.

    Attributes:
        tensor: its name.
        take: one of `TAKES`, or the index of an element.
        op: one of `OPERATORS`.
        value: what it is compared with; bytes for STRING tensors.
    """

    __test__ = False  # it is no class of tests

    tensor: str
    take: str | tuple[int, ...]
    op: str
    value: bool | int | float | bytes


@dataclass(frozen=True, slots=True)
class If:
    """Run some steps if a condition holds, and others if it does not; `gives` are the names that both assign."""

    test: Test
    then: tuple["Step", ...]
    otherwise: tuple["Step", ...]
    gives: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Each:
    """Run some steps for each row of a tensor.

    Attributes:
        over: the tensor.
        item: the name of a row inside.
        steps: what to do with it.
        collect: names inside, whose tensors are put together, and what the whole is called.
        limit: rows at most.
        keep: a row keeps its dim 0, and results are joined there; else it has none, and results are stacked.
    """

    over: str
    item: str
    steps: tuple["Step", ...]
    collect: Mapping[str, str]
    limit: int
    keep: bool


Step = Run | Script | Const | Let | If | Each


@dataclass(frozen=True, slots=True)
class Program:
    """A graph, its steps in an order in which they can run.

    Attributes:
        inputs: what it takes; dtype "" and shape None where any will do.
        outputs: names of what it gives.
        steps: what it does.
        uses: the targets that it runs, each once, in the order in which they are written.
    """

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    uses: tuple[str, ...]
