"""Programs of stored graphs: read from JSON, checked, and put into an order in which they can run.

A program is one JSON object, `{"inputs": [...], "outputs": [...], "steps": [...]}` (docs/graphs.md). Steps may stand in
any order: what a step needs decides when it runs. A name is assigned once, so that it means the same everywhere.
"""

import heapq
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn

from numpy.typing import NDArray

from keyside.tensorstore import graph_const
from keyside.tensorstore.arrays import shorten
from keyside.tensorstore.errors import BadModel
from keyside.tensorstore.graph_const import GraphError
from keyside.tensorstore.graph_fields import (
    local_names,
    read_bound,
    read_fields,
    read_inputs,
    read_name,
    read_names,
    read_test,
    read_text,
    read_texts,
    shorten_name,
)
from keyside.tensorstore.graph_steps import (
    OPERATORS,
    TAKES,
    Const,
    Each,
    If,
    Let,
    Program,
    Run,
    Script,
    Step,
    Test,
)

__all__ = [
    "OPERATORS", "TAKES", "Const", "Each", "GraphError", "If", "Let", "Program", "Run", "Script", "Step", "Test",
    "check", "const_document", "parse", "to_json",
]  # fmt: skip

MAX_BYTES = 16 << 20
MAX_STEPS = 1000
MAX_DEPTH = 16
MAX_ROWS = 10_000
DEFAULT_ROWS = 100


def parse(blob: bytes | bytearray | memoryview | str) -> Program:
    """Read the program of a stored graph.

    Raises:
        BadModel: it is not JSON, or not a program; the text says where and why.
    """
    try:
        if len(blob) > MAX_BYTES:
            raise GraphError(f"a graph has at most {MAX_BYTES:,} bytes, not {len(blob):,}")
        text = blob if isinstance(blob, str) else bytes(blob).decode()
        document = json.loads(text, object_pairs_hook=_object, parse_constant=_no_constant)
    except GraphError as error:
        raise BadModel(str(error)) from None
    except (ValueError, RecursionError) as error:
        raise BadModel(f"the graph is not JSON: {error}") from None
    try:
        return check(document)
    except GraphError as error:
        raise BadModel(str(error)) from None


def to_json(document: Mapping[str, Any]) -> bytes:
    """Return the JSON of a program, as it is stored."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"), allow_nan=False).encode()


def const_document(value: NDArray[Any]) -> dict[str, Any]:
    """Return what stands as `const` in a program for this tensor."""
    return graph_const.document(value)


def check(document: object) -> Program:
    """Make a program of what its JSON says.

    Raises:
        GraphError: it is not one: cycles, unknown names, wrong types.
    """
    whole = read_fields(document, "the graph", required=("inputs", "outputs", "steps"))
    inputs = read_inputs(whole["inputs"])
    outputs = read_names(whole["outputs"], "outputs of the graph", least=1)
    reader = _Reader()
    scope = _Scope({spec.name: "an input" for spec in inputs})
    steps = _order(reader.raws(whole["steps"], "steps", 0), scope)
    for name in outputs:
        if name not in scope.here:
            raise GraphError(f"output {name!r} of the graph is {scope.unknown(name)}")
    return Program(inputs, outputs, steps, tuple(reader.uses))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise GraphError(f"a JSON object has {shorten(name)} twice")
            seen.add(name)
    return found


def _no_constant(text: str) -> NoReturn:
    raise GraphError(f'{text} is no JSON: write it as "nan", "inf" or "-inf"')


@dataclass(slots=True)
class _Scope:
    """Names that can be used at a place.

    Attributes:
        here: name -> what assigned it, of this block and all around it.
        hidden: names that are assigned in one branch only, or inside an `each`.
        taken: names that the blocks around assign, though maybe not yet: they cannot be assigned here.
    """

    here: dict[str, str]
    hidden: dict[str, str] = field(default_factory=dict)
    taken: Mapping[str, str] = field(default_factory=dict)

    def unknown(self, name: str) -> str:
        why = self.hidden.get(name)
        return f"not known: {why}" if why else "not known: nothing assigns it"


@dataclass(slots=True)
class _Raw:
    """A step that has been looked at, but whose inner blocks have not."""

    where: str
    needs: tuple[str, ...]
    gives: tuple[str, ...]
    hidden: dict[str, str]
    finish: Callable[[_Scope], Step]


class _Reader:
    """Reads blocks of steps; keeps count of them and of the targets that they use."""

    def __init__(self) -> None:
        self.uses: dict[str, None] = {}
        self._steps = 0

    def raws(self, value: object, where: str, depth: int) -> list[_Raw]:
        """Look at the steps of a block, and at those within them."""
        if not isinstance(value, list):
            raise GraphError(f"{where} is not a list of steps")
        if depth > MAX_DEPTH:
            raise GraphError(f"{where}: steps within steps go {MAX_DEPTH} deep at most")
        self._steps += len(value)
        if self._steps > MAX_STEPS:
            raise GraphError(f"a graph has at most {MAX_STEPS} steps: store a part of it as a graph of its own")
        return [self._step(step, f"{where}[{n}]", depth) for n, step in enumerate(value)]

    def _step(self, value: object, where: str, depth: int) -> _Raw:
        if not isinstance(value, dict):
            raise GraphError(f"{where} is not an object")
        found = [kind for kind in _KINDS if kind in value]
        if len(found) != 1:
            have = " and ".join(found) or ", ".join(shorten(name) for name in list(value)[:4]) or "nothing"
            raise GraphError(f"{where} has {have}: a step has exactly one of {', '.join(_KINDS)}")
        read: Callable[[dict[str, Any], str, int], _Raw] = getattr(self, f"_read_{found[0]}")
        return read(value, where, depth)

    def _use(self, value: object, where: str) -> str:
        target = read_text(value, f"{where}: the target")
        self.uses[target] = None
        return target

    def _read_run(self, value: dict[str, Any], where: str, _: int) -> _Raw:
        read_fields(value, where, required=("run", "inputs", "outputs"))
        target = self._use(value["run"], where)
        where = f"{where} (run {target!r})"
        inputs = read_bound(value["inputs"], f"{where}: inputs", twice=True)
        outputs = read_bound(value["outputs"], f"{where}: outputs", twice=False)
        step = Run(target, inputs, outputs)
        return _Raw(where, local_names(inputs), local_names(outputs), {}, lambda _: step)

    def _read_script(self, value: dict[str, Any], where: str, _: int) -> _Raw:
        read_fields(value, where, required=("script", "function", "outputs"), optional=("inputs", "keys", "args"))
        target = self._use(value["script"], where)
        function = read_text(value["function"], f"{where}: function")
        where = f"{where} (script {target!r} {function!r})"
        inputs = read_names(value.get("inputs", []), f"{where}: inputs", twice=True)
        outputs = read_names(value["outputs"], f"{where}: outputs")
        keys = read_texts(value.get("keys", []), f"{where}: keys")
        args = read_texts(value.get("args", []), f"{where}: args")
        step = Script(target, function, inputs, outputs, keys, args)
        return _Raw(where, inputs, outputs, {}, lambda _: step)

    def _read_const(self, value: dict[str, Any], where: str, _: int) -> _Raw:
        read_fields(value, where, required=("const", "output"))
        output = read_name(value["output"], f"{where}: output")
        where = f"{where} (const {output!r})"
        read_fields(value["const"], f"{where}: const", required=("dtype", "shape", "values"))
        step = Const(output, graph_const.array(value["const"], where))
        return _Raw(where, (), (output,), {}, lambda _: step)

    def _read_let(self, value: dict[str, Any], where: str, _: int) -> _Raw:
        read_fields(value, where, required=("let", "from"))
        step = Let(read_name(value["let"], f"{where}: let"), read_name(value["from"], f"{where}: from"))
        return _Raw(f"{where} (let {step.name!r})", (step.source,), (step.name,), {}, lambda _: step)

    def _read_if(self, value: dict[str, Any], where: str, depth: int) -> _Raw:
        read_fields(value, where, required=("if", "then"), optional=("else",))
        test = read_test(value["if"], f"{where}: if")
        then = self.raws(value["then"], f"{where}.then", depth + 1)
        otherwise = self.raws(value.get("else", []), f"{where}.else", depth + 1)
        first, second = ([name for raw in raws for name in raw.gives] for raws in (then, otherwise))
        gives = tuple(name for name in dict.fromkeys(first) if name in set(second))
        hidden = {
            name: f"{where} assigns it in one branch only" for name in (*first, *second) if name not in set(gives)
        }
        for raw in (*then, *otherwise):
            hidden.update(raw.hidden)
        needs = (test.tensor, *_free(then), *_free(otherwise))

        def finish(scope: _Scope) -> Step:
            # Names that both assign are assigned by this step: within a branch they are the branch's own.
            taken = {name: by for name, by in scope.taken.items() if name not in gives}
            branches = (_Scope(dict(scope.here), dict(scope.hidden), taken) for _ in range(2))
            blocks = [_order(raws, branch) for raws, branch in zip((then, otherwise), branches, strict=True)]
            return If(test, blocks[0], blocks[1], gives)

        return _Raw(where, needs, gives, hidden, finish)

    def _read_each(self, value: dict[str, Any], where: str, depth: int) -> _Raw:
        read_fields(value, where, required=("each", "as", "steps", "collect"), optional=("limit", "keep"))
        over, item = read_name(value["each"], f"{where}: each"), read_name(value["as"], f"{where}: as")
        where = f"{where} (each {over!r})"
        inner = self.raws(value["steps"], f"{where}.steps", depth + 1)
        collect = read_bound(value["collect"], f"{where}: collect", twice=False)
        if not isinstance(collect, Mapping) or not collect:
            raise GraphError(f"{where}: collect is not an object from names inside to names outside")
        limit, keep = value.get("limit", DEFAULT_ROWS), value.get("keep", False)
        if type(limit) is not int or not 1 <= limit <= MAX_ROWS:
            raise GraphError(f"{where}: limit is a whole number from 1 to {MAX_ROWS:,}, not {shorten(limit)}")
        if not isinstance(keep, bool):
            raise GraphError(f"{where}: keep is true or false, not {shorten(keep)}")
        given = [name for raw in inner for name in raw.gives]
        # What is collected may be a tensor from outside as well: then it is needed.
        free = [name for name in (*_free(inner), *collect) if name != item and name not in set(given)]
        hidden = dict.fromkeys((item, *given), f"{where} assigns it for each row: collect it")
        for raw in inner:
            hidden.update(raw.hidden)

        def finish(scope: _Scope) -> Step:
            if item in scope.here or item in scope.taken:
                other = scope.here.get(item) or scope.taken[item]
                raise GraphError(
                    f"{where} calls its rows {item!r}, which {other} has assigned: a name is assigned once"
                )
            scope.here[item] = where
            steps = _order(inner, scope)
            for name in collect:
                if name not in scope.here:
                    raise GraphError(f"{where}: collect has {name!r}, which is {scope.unknown(name)}")
            return Each(over, item, steps, collect, limit, keep)

        return _Raw(where, (over, *free), tuple(collect.values()), hidden, finish)


_KINDS = ("run", "script", "const", "let", "if", "each")


def _free(raws: Sequence[_Raw]) -> list[str]:
    """Return the names that steps need from outside."""
    given = {name for raw in raws for name in raw.gives}
    return [name for raw in raws for name in raw.needs if name not in given]


def _order(raws: Sequence[_Raw], scope: _Scope) -> tuple[Step, ...]:
    """Finish the steps of a block, each behind those that it needs; the scope then has their names."""
    given: dict[str, str] = {}
    for raw in raws:
        for name in raw.gives:
            other = given.get(name) or scope.here.get(name) or scope.taken.get(name)
            if other:
                raise GraphError(f"{raw.where} assigns {name!r}, which {other} has assigned: a name is assigned once")
            given[name] = raw.where
    for raw in raws:
        for name, why in raw.hidden.items():
            scope.hidden.setdefault(name, why)
    taken = {**scope.taken, **given}
    ordered: list[Step] = []
    for raw in _sorted(raws, scope, given):
        ordered.append(raw.finish(_Scope(dict(scope.here), dict(scope.hidden), taken)))
        scope.here.update(dict.fromkeys(raw.gives, raw.where))
    return tuple(ordered)


def _sorted(raws: Sequence[_Raw], scope: _Scope, given: Mapping[str, str]) -> Iterable[_Raw]:
    """Sort steps so that each stands behind those that it needs, else as they are written."""
    for raw in raws:
        for name in raw.needs:
            if name not in given and name not in scope.here:
                raise GraphError(f"{raw.where} needs {name!r}, which is {scope.unknown(name)}")
    makers = {name: number for number, raw in enumerate(raws) for name in raw.gives}
    waits = [{makers[name] for name in raw.needs if name in makers} for raw in raws]
    waiting: dict[int, list[int]] = {}
    for number, awaited in enumerate(waits):
        for other in awaited:
            waiting.setdefault(other, []).append(number)
    # Of those that can run, the one that is written first.
    ready = [number for number, awaited in enumerate(waits) if not awaited]
    ordered: list[int] = []
    while ready:
        number = heapq.heappop(ready)
        ordered.append(number)
        for other in waiting.get(number, ()):
            waits[other].discard(number)
            if not waits[other]:
                heapq.heappush(ready, other)
    if len(ordered) < len(raws):
        left = sorted(set(range(len(raws))) - set(ordered))
        raise GraphError(f"a cycle: {_cycle(raws, makers, left)}")
    return [raws[number] for number in ordered]


def _cycle(raws: Sequence[_Raw], makers: Mapping[str, int], left: Sequence[int]) -> str:
    """Return names that need each other, `a -> b -> a`: each is needed for the next."""
    stuck = set(left)
    number = left[0]
    path: list[str] = []
    seen: dict[int, int] = {}
    while number not in seen:
        seen[number] = len(path)
        name = next(name for name in raws[number].needs if makers.get(name) in stuck)
        path.append(name)
        number = makers[name]
    around = path[seen[number] :]
    around.reverse()  # from what is needed to what needs it
    return " -> ".join(map(shorten_name, (*around, around[0])))
