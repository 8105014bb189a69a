"""Tensors that stand in the program of a graph."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import dtypes
from keyside.tensorstore.arrays import shorten
from keyside.tensorstore.errors import BadDtype

__all__ = ["GraphError", "array", "document", "shape"]

MAX_ELEMENTS = 1_000_000
MAX_BYTES = 64 << 20
_MAX_RANK = 32
_SPECIAL = {"nan": math.nan, "inf": math.inf, "-inf": -math.inf}


class GraphError(ValueError):
    """A document is not the program of a graph."""


def shape(value: object, where: str, *, least: int = 0) -> tuple[int, ...]:
    """Read a shape.

    Args:
        value: a list of dims.
        where: for the error.
        least: -1 where a dim may be of any size.

    Raises:
        GraphError: it is none.
    """
    if (
        not isinstance(value, list)
        or len(value) > _MAX_RANK
        or not all(type(dim) is int and least <= dim < 1 << 53 for dim in value)
    ):
        raise GraphError(f"{where}: shape is a list of at most {_MAX_RANK} sizes, not {shorten(value)}")
    return tuple(value)


def array(value: Mapping[str, Any], where: str) -> NDArray[Any]:
    """Make the tensor of `{"dtype", "shape", "values"}`, its values flat in C order; it cannot be written to.

    Floats that JSON lacks are the texts nan, inf and -inf.

    Raises:
        GraphError: a value does not fit the dtype, or there are too many or too few.
    """
    try:
        if not isinstance(value["dtype"], str):
            raise GraphError(f"{where}: dtype is a text, not {shorten(value['dtype'])}")
        dtype = dtypes.by_name(value["dtype"])
    except BadDtype as error:
        raise GraphError(f"{where}: {error.text}") from None
    dims = shape(value["shape"], where)
    values = value["values"]
    count = math.prod(dims)
    # As in NumPy, a 0 among the dims does not excuse the product of the others.
    if math.prod(dim for dim in dims if dim) > MAX_ELEMENTS:
        raise GraphError(f"{where}: shape {list(dims)}; at most {MAX_ELEMENTS:,} elements: make it an input")
    if not isinstance(values, list) or len(values) != count:
        given = len(values) if isinstance(values, list) else shorten(values)
        raise GraphError(f"{where}: {given} values; shape {list(dims)} has {count}, in one flat list")
    made = _strings(values, where) if dtype is dtypes.STRING else _numbers(values, dtype, where)
    made = made.reshape(dims)
    made.flags.writeable = False
    return made


def document(value: NDArray[Any]) -> dict[str, Any]:
    """Return what `array` reads as this tensor."""
    kind = value.dtype.kind
    flat: list[Any] = value.reshape(-1).tolist()
    if kind == "S":
        flat = [item.decode() for item in flat]
    elif kind == "f":
        flat = [item if math.isfinite(item) else str(item) for item in flat]
    return {"dtype": dtypes.of(value.dtype).name, "shape": list(value.shape), "values": flat}


def _strings(values: Sequence[Any], where: str) -> NDArray[Any]:
    items = []
    for item in values:
        if not isinstance(item, str):
            raise GraphError(f"{where}: {shorten(item)} is no text, as STRING needs")
        try:
            items.append(item.encode())
        except UnicodeEncodeError:
            raise GraphError(f"{where}: {shorten(item)} is not valid Unicode") from None
        if item.endswith("\0"):
            raise GraphError(
                f"{where}: {shorten(item)} ends in NUL, which a STRING tensor cannot tell from its padding"
            )
    width = max(map(len, items), default=0) or 1
    # Every element takes the width of the longest.
    if width * len(items) > MAX_BYTES:
        raise GraphError(f"{where}: {len(items):,} texts of up to {width:,} bytes make more than {MAX_BYTES:,} bytes")
    return np.array(items, dtype=f"S{width}")


def _numbers(values: Sequence[Any], dtype: dtypes.DType, where: str) -> NDArray[Any]:
    kind = dtype.numpy.kind
    if kind == "f":
        return _floats(values, dtype, where)
    low, high = (0, 1) if kind == "b" else (np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max)
    for item in values:
        if not (type(item) is int or (kind == "b" and type(item) is bool)) or not low <= item <= high:
            raise GraphError(f"{where}: {shorten(item)} is no {dtype.name}")
    return np.array(values, dtype.numpy)


def _floats(values: Sequence[Any], dtype: dtypes.DType, where: str) -> NDArray[Any]:
    numbers = []
    for item in values:
        number = _SPECIAL.get(item) if isinstance(item, str) else item
        if not isinstance(number, int | float) or isinstance(number, bool):
            raise GraphError(f"{where}: {shorten(item)} is no {dtype.name}")
        numbers.append(number)
    with np.errstate(over="ignore"):
        try:
            wide = np.array([float(number) for number in numbers], np.float64)
        except OverflowError:
            raise GraphError(f"{where}: a number is too large for {dtype.name}") from None
        made = wide.astype(dtype.numpy)
    if (np.isinf(made) & ~np.isinf(wide)).any() or any(
        math.isinf(number) and not isinstance(item, str) for number, item in zip(wide.tolist(), values, strict=True)
    ):
        raise GraphError(f"{where}: a number is too large for {dtype.name}")
    return made
