"""Checks the source of a script before torch compiles it, gives it its names, and checks what came of it.

The compiler crashes of what nests too deep, and unrolls loops and calls without end: so the source is looked at first,
with Python's own parser, whose language contains TorchScript. Names resolve to operators of torch that only compute,
and to nothing of ours; no Python of the script is ever run.
"""

import ast
import functools
import math
import types
from collections.abc import Iterator, Sequence
from typing import Any, Final, NamedTuple

from keyside.executor.backends import torch_check
from keyside.tensorstore.errors import BadModel

__all__ = ["SIGNATURE", "Source", "check_entry_point", "check_graphs", "names", "read"]

SIGNATURE: Final = "def {}(tensors: List[Tensor], keys: List[str], args: List[str])"
MAX_SOURCE: Final = 256 << 10
MAX_DEPTH: Final = 200
MAX_DEPTHS: Final = 2_000
"""Of all functions together: those that call each other are compiled as one."""
MAX_UNROLLED: Final = 20_000
MAX_INLINED: Final = 200_000

_IMPORTS: Final = {
    "torch": None,
    "math": None,
    "typing": None,
    "torch.nn.functional": "F",
}
_REFUSED: Final = {
    "redis": "a script runs beside the server, not in it: give the keys that it needs as INPUTS, and"
    " take its results as OUTPUTS",
    "redisAI": "a script cannot run models: let a graph or AI_DAGEXECUTE run scripts and models one after the other",
}
_EXCEPTIONS: Final = (
    AssertionError, Exception, IndexError, KeyError, NotImplementedError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
_MODULES: Final = ("fft", "linalg", "special")
_KINDS_REFUSED: Final = frozenset({"fork", "awaitable", "awaitable_nowait", "PythonOp", "Closure"})


class Source(NamedTuple):
    """A script that has been looked at.

    Attributes:
        text: what is to be compiled: the source, with imports blanked.
        functions: names of its functions.
    """

    text: str
    functions: tuple[str, ...]


def read(blob: bytes) -> Source:
    """Look at the source of a script.

    Raises:
        BadModel: it is no TorchScript, or asks for what a script may not do.
    """
    text, tree = _parse(blob)
    names: list[str] = []
    depths = 0
    lines = text.splitlines()
    kept = [""] * len(lines)  # so that lines keep their numbers
    for node in tree.body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            _check_import(node)
        elif isinstance(node, ast.FunctionDef):
            if node.name in names:
                raise _bad(node, f"there are two functions {node.name!r}")
            names.append(node.name)
            depths += _check_function(node)
            end = node.end_lineno or node.lineno
            kept[node.lineno - 1 : end] = lines[node.lineno - 1 : end]
        elif not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            raise _bad(node, "outside its functions a script has nothing but imports of torch, math and typing")
    if depths > MAX_DEPTHS:
        raise BadModel(f"the functions of the script nest {depths:,} deep, all together; {MAX_DEPTHS:,} are compiled")
    if not names:
        raise BadModel("the script has no function")
    return Source("\n".join(kept) + "\n", tuple(names))


def _parse(blob: bytes) -> tuple[str, ast.Module]:
    if len(blob) > MAX_SOURCE:
        raise BadModel(f"the script has {len(blob):,} bytes; at most {MAX_SOURCE:,} are compiled")
    try:
        text = blob.decode("utf-8").replace("\r\n", "\n")
        if any(ord(letter) < 32 and letter not in "\n\t" for letter in text):
            raise BadModel("the script has control characters in it")  # some of them end lines for one parser alone
        for number, line in enumerate(text.splitlines(), 1):
            # The compiler reads types in comments, too.
            if "#" in line and sum(map(line.count, "([{")) > MAX_DEPTH:
                raise BadModel(f"the script does not compile: line {number}: more than {MAX_DEPTH} brackets")
        return text, ast.parse(text)
    except UnicodeDecodeError as error:
        raise BadModel(f"the script is not UTF-8 text: {error.reason} at byte {error.start}") from None
    except SyntaxError as error:
        raise BadModel(f"the script does not compile: line {error.lineno}: {error.msg}") from None
    except (ValueError, RecursionError, MemoryError) as error:
        raise BadModel(f"the script does not compile: {type(error).__name__}: {error}") from None


def _bad(node: Any, what: str) -> BadModel:
    return BadModel(f"the script does not compile: line {node.lineno}: {what}")


def _check_import(node: ast.Import | ast.ImportFrom) -> None:
    if isinstance(node, ast.ImportFrom):
        good = node.module == "typing" or (node.module == "torch" and [one.name for one in node.names] == ["Tensor"])
        if not good or node.level or any(one.asname for one in node.names):
            raise _bad(
                node, "a script imports nothing; `from torch import Tensor` and `from typing import ..` may stand"
            )
        return
    for one in node.names:
        if one.name not in _IMPORTS or one.asname != _IMPORTS[one.name]:
            raise _bad(
                node,
                f"a script cannot import {one.name!r}; torch, math, typing and torch.nn.functional as F may be named",
            )


def _check_function(function: ast.FunctionDef) -> int:
    """Check one function; return how deep it nests."""
    if function.decorator_list:
        raise _bad(function, "functions of a script have no decorators")
    deepest, widest = 0, 1
    loops = 0
    waiting: list[tuple[ast.AST, int, int]] = [(function, 1, 0)]
    while waiting:
        node, depth, inside = waiting.pop()
        deepest = max(deepest, depth)
        if depth > MAX_DEPTH:
            raise _bad(function, f"function {function.name!r} nests more than {MAX_DEPTH} deep")
        if isinstance(node, ast.Name) and node.id in _REFUSED:
            raise BadModel(f"the script uses {node.id} in line {node.lineno}, which there is not: {_REFUSED[node.id]}")
        if isinstance(node, ast.FunctionDef | ast.Lambda | ast.ClassDef) and node is not function:
            raise _bad(node, "functions within functions and classes cannot be compiled")
        if isinstance(node, ast.Tuple):
            widest = max(widest, len(node.elts))
        if isinstance(node, ast.For | ast.comprehension) and not _counts(node.iter):
            inside += 1
            loops = max(loops, inside)
        waiting += [(child, depth + 1, inside) for child in ast.iter_child_nodes(node)]
    # A loop over a tuple is unrolled by the compiler, and whether something is one only that knows.
    if widest**loops > MAX_UNROLLED:
        raise _bad(
            function, f"function {function.name!r} has {loops} loops within each other, and tuples of {widest} elements"
        )
    return deepest


def _counts(loop: ast.expr) -> bool:
    return isinstance(loop, ast.Call) and isinstance(loop.func, ast.Name) and loop.func.id == "range"


class _Operators(types.ModuleType):
    """Looks to the compiler like a module of torch, and has only what computes.

    It has nothing of a module's own: what is in `__dict__` of one the compiler would find.
    """

    def __init__(self, module: Any, parts: dict[str, Any]) -> None:
        super().__init__(module.__name__)
        _held[id(self)] = (module, parts)

    def __getattribute__(self, name: str) -> Any:
        module, parts = _held[id(self)]
        if name == "__name__":  # for errors of the compiler
            return module.__name__
        if name in parts:
            return parts[name]
        found = None if name.startswith("_") else getattr(module, name, None)
        if found is None or not _computes(found, module.__name__):
            raise AttributeError(f"there is no {module.__name__}.{name} in a script")
        return found


_held: dict[int, tuple[Any, dict[str, Any]]] = {}  # by id of the few that there are, which `names` keeps


def _computes(found: Any, module: str) -> bool:
    import torch
    from torch.jit._builtins import _find_builtin

    if isinstance(found, torch.dtype | torch.layout | torch.memory_format | float):
        return True
    if module == "torch.nn.functional" and isinstance(found, types.FunctionType):
        return found.__module__ == module  # Torch's own source, compiled like the script's
    builtin = _find_builtin(found)  # type: ignore[no-untyped-call]
    return callable(found) and not isinstance(found, type) and builtin is not None


@functools.cache
def names() -> dict[str, Any]:
    """Return what the names in a script stand for, beyond the compiler's own."""
    import torch
    from torch.nn import functional

    with_functional = _Operators(functional, {})
    parts: dict[str, Any] = {name: _Operators(getattr(torch, name), {}) for name in _MODULES}
    parts["nn"] = _Operators(types.ModuleType("torch.nn"), {"functional": with_functional})
    parts["device"] = torch.device
    found: dict[str, Any] = {
        "torch": _Operators(torch, parts),
        "math": _Operators(math, {}),
        "F": with_functional,
    }
    return found | {kind.__name__: kind for kind in _EXCEPTIONS}


def check_entry_point(schema: Any, name: str) -> None:
    """Check that a compiled function can be called as an entry point.

    Raises:
        BadModel: it takes other arguments.
    """
    kinds = [str(argument.type) for argument in schema.arguments]
    if len(kinds) != 3:
        raise BadModel(f"Wrong number of inputs in function {name}. Expected 3 but was {len(kinds)}")
    if kinds != ["List[Tensor]", "List[str]", "List[str]"]:
        raise BadModel(f"Wrong inputs type in function {name}. Expected signature similar to: {SIGNATURE.format(name)}")


class Habits(NamedTuple):
    """What a script does.

    Attributes:
        mutates: whether it may change the tensors that it is given.
        prints: whether it may print.
    """

    mutates: bool
    prints: bool


def check_graphs(functions: Sequence[Any]) -> Habits:
    """Check the operators of compiled functions.

    Args:
        functions: all that the script defines, each after those that it calls or before.

    Raises:
        BadModel: an operator is not allowed, or they call each other too often to be compiled into one.
    """
    sizes: dict[str, int] = {}
    calls: dict[str, list[str]] = {}
    for function in functions:
        nodes = list(_nodes(function.graph))
        sizes[function.name] = len(nodes)
        calls[function.name] = []
        for node in nodes:
            kind = node.kind()
            namespace, _, operator = kind.partition("::")
            if kind == "prim::CallFunction":
                calls[function.name].append(next(node.inputs()).node().s("name"))
            elif kind != "prim::Print" and (
                namespace not in torch_check.NAMESPACES or operator in torch_check.WORDS or operator in _KINDS_REFUSED
            ):
                raise BadModel(f"the script uses the operator {kind}, which is not allowed")
    _check_inlined(sizes, calls)
    mutates = prints = False
    for function in functions:
        # With what it calls of torch's own, such as relu, which may work in place.
        for node in _nodes(function.inlined_graph, live=True):
            prints = prints or node.kind() == "prim::Print"
            mutates = mutates or "!" in str(node.schema())  # as in `aten::add_.Tensor(Tensor(a!) self, ..`
    return Habits(mutates, prints)


def _check_inlined(sizes: dict[str, int], calls: dict[str, list[str]]) -> None:
    """Torch puts the body of a function in the place of each call."""
    totals: dict[str, int] = {}

    def total(name: str) -> int:
        if name not in totals:
            totals[name] = sizes.get(name, 100) + sum(map(total, calls.get(name, ())))
            if totals[name] > MAX_INLINED:
                raise BadModel(f"function {name!r} and what it calls would become {totals[name]:,} operators")
        return totals[name]

    for name in sizes:
        total(name)


def _nodes(graph: Any, *, live: bool = False) -> Iterator[Any]:
    """All nodes; `live`: but those in branches that a constant rules out, as `if inplace:` in a function of torch."""
    blocks = [graph]
    while blocks:
        for node in blocks.pop().nodes():
            yield node
            inner = list(node.blocks())
            if live and node.kind() == "prim::If":
                decides = next(node.inputs()).node()
                if decides.kind() == "prim::Constant" and decides.hasAttribute("value"):
                    inner = inner[:1] if decides.i("value") else inner[1:]
            blocks.extend(inner)
            blocks.extend(node.g(name) for name in node.attributeNames() if node.kindOf(name) == "g")
