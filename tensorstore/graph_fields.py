"""Reads the fields of steps: each of its type, and its errors say where it stands."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from keyside.tensorstore import graph_const
from keyside.tensorstore.arrays import shorten
from keyside.tensorstore.dtypes import TABLE
from keyside.tensorstore.graph_const import GraphError
from keyside.tensorstore.graph_steps import OPERATORS, TAKES, Names, Test
from keyside.tensorstore.records import TensorSpec

__all__ = [
    "local_names", "read_bound", "read_fields", "read_inputs", "read_name", "read_names", "read_test", "read_text",
    "read_texts", "shorten_name",
]  # fmt: skip

MAX_NAMES = 1000
MAX_NAME = 512


def shorten_name(name: str) -> str:
    """Show a name in a cycle: as it is where that can be read."""
    return name if name.isprintable() and " " not in name and len(name) <= 80 else shorten(name)


def local_names(names: Names) -> tuple[str, ...]:
    """Return the local names of a step, however they are bound."""
    return tuple(names.values()) if isinstance(names, Mapping) else names


def read_fields(value: object, where: str, *, required: Sequence[str], optional: Sequence[str] = ()) -> dict[str, Any]:
    """Return an object, if it has all that it needs and nothing else."""
    if not isinstance(value, dict):
        raise GraphError(f"{where} is not an object with {', '.join(required)}")
    for name in required:
        if name not in value:
            raise GraphError(f"{where} lacks {name}")
    for name in value:
        if name not in required and name not in optional:
            raise GraphError(f"{where} has {shorten(name)}; it takes {', '.join((*required, *optional))}")
    return value


def read_inputs(value: object) -> tuple[TensorSpec, ...]:
    """Read what a graph takes."""
    if not isinstance(value, list) or not 1 <= len(value) <= MAX_NAMES:
        raise GraphError(f"inputs of the graph is not a list of 1 to {MAX_NAMES} names")
    found: dict[str, TensorSpec] = {}
    for n, one in enumerate(value):
        spec = _input(one, f"inputs[{n}]")
        if spec.name in found:
            raise GraphError(f"inputs of the graph has {spec.name!r} twice")
        found[spec.name] = spec
    return tuple(found.values())


def _input(value: object, where: str) -> TensorSpec:
    if isinstance(value, str):
        return TensorSpec(read_name(value, where), "", None)
    fields = read_fields(value, where, required=("name",), optional=("dtype", "shape"))
    name, dtype, shape = read_name(fields["name"], f"{where}: name"), fields.get("dtype", ""), fields.get("shape")
    if not isinstance(dtype, str) or (dtype and dtype.upper() not in TABLE):
        raise GraphError(f"{where}: no dtype {shorten(dtype)}; there are {', '.join(TABLE)}, and none for any")
    if shape is None:
        return TensorSpec(name, dtype.upper(), None)
    return TensorSpec(name, dtype.upper(), graph_const.shape(shape, where, least=-1))


def read_test(value: object, where: str) -> Test:
    """Read a condition."""
    fields = read_fields(value, where, required=("tensor", "is", "value"), optional=("take",))
    tensor = read_name(fields["tensor"], f"{where}: tensor")
    take, op, operand = fields.get("take", "one"), fields["is"], fields["value"]
    if isinstance(take, list):
        if not 1 <= len(take) <= 32 or not all(type(n) is int and abs(n) < 1 << 31 for n in take):
            raise GraphError(f"{where}: an index is a list of 1 to 32 whole numbers, not {shorten(take)}")
        take = tuple(take)
    elif take not in TAKES:
        raise GraphError(f"{where}: take is one of {', '.join(TAKES)} or a list of numbers, not {shorten(take)}")
    if not isinstance(op, str) or op not in OPERATORS:
        raise GraphError(f"{where}: is is one of {', '.join(OPERATORS)}, not {shorten(op)}")
    if isinstance(operand, str):
        if op not in ("==", "!=") or take in ("max", "min", "sum", "mean", "rows"):
            raise GraphError(f"{where}: a text can only be compared by == and !=, and not with {take}")
        return Test(tensor, take, op, operand.encode())
    if not isinstance(operand, int | float) or not math.isfinite(operand):
        raise GraphError(f"{where}: value is a number, true, false or a text, not {shorten(operand)}")
    if isinstance(operand, int) and not -(2**63) <= operand < 2**64:
        raise GraphError(f"{where}: value {shorten(operand)} has more than 64 bits")
    return Test(tensor, take, op, operand)


def read_name(value: object, where: str) -> str:
    """Read the name of a tensor."""
    if not isinstance(value, str) or not 0 < len(value) <= MAX_NAME:
        raise GraphError(f"{where} is a name of 1 to {MAX_NAME} characters, not {shorten(value)}")
    _check_unicode(value, where)
    return value


def read_text(value: object, where: str) -> str:
    """Read a text that is not empty: a target or the name of a function."""
    if not isinstance(value, str) or not 0 < len(value) <= 2 * MAX_NAME:
        raise GraphError(f"{where} is a text of 1 to {2 * MAX_NAME} characters, not {shorten(value)}")
    _check_unicode(value, where)
    return value


def _check_unicode(value: str, where: str) -> None:
    try:
        value.encode()
    except UnicodeEncodeError:
        raise GraphError(f"{where} is not valid Unicode: {shorten(value)}") from None


def read_texts(value: object, where: str) -> tuple[str, ...]:
    """Read a list of any texts."""
    if not isinstance(value, list) or len(value) > MAX_NAMES or not all(isinstance(one, str) for one in value):
        raise GraphError(f"{where} is a list of at most {MAX_NAMES} texts, not {shorten(value)}")
    for one in value:
        _check_unicode(one, where)
    return tuple(value)


def read_names(value: object, where: str, *, least: int = 0, twice: bool = False) -> tuple[str, ...]:
    """Read a list of names of tensors."""
    if not isinstance(value, list) or not least <= len(value) <= MAX_NAMES:
        raise GraphError(f"{where} is a list of {least} to {MAX_NAMES} names, not {shorten(value)}")
    names = [read_name(one, f"{where}[{n}]") for n, one in enumerate(value)]
    if not twice:
        _once(names, where)
    return tuple(names)


def read_bound(value: object, where: str, *, twice: bool) -> Names:
    """Read names by position or by the model's names for them."""
    if not isinstance(value, dict):
        return read_names(value, where, twice=twice)
    if len(value) > MAX_NAMES:
        raise GraphError(f"{where} has more than {MAX_NAMES} names")
    found = {read_name(key, where): read_name(one, f"{where}.{shorten_name(key)}") for key, one in value.items()}
    if not twice:
        _once(list(found.values()), where)
    return found


def _once(names: Sequence[str], where: str) -> None:
    if len(set(names)) != len(names):
        again = next(name for name in names if names.count(name) > 1)
        raise GraphError(f"{where} has {again!r} twice")
