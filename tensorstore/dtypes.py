"""The dtypes of tensors: one table, and lookups in both directions."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from keyside.tensorstore.errors import BadDtype

__all__ = ["STRING", "TABLE", "DType", "by_name", "of"]


@dataclass(frozen=True, slots=True)
class DType:
    """A dtype of tensors.

    Attributes:
        name: RedisAI's name for it.
        numpy: NumPy's; for STRING the one without a length.
        itemsize: Bytes of one element; 0 for STRING, whose elements are as long as the tensor's longest.
        descr: What stands in an npy header; for STRING without the length.
    """

    name: str
    numpy: np.dtype[Any]
    itemsize: int
    descr: str


def _dtype(name: str, descr: str) -> DType:
    numpy = np.dtype(descr)
    return DType(name, numpy, numpy.itemsize, descr)


STRING = _dtype("STRING", "|S")

TABLE: dict[str, DType] = {
    dtype.name: dtype
    for dtype in (
        _dtype("FLOAT16", "<f2"),
        _dtype("FLOAT", "<f4"),
        _dtype("DOUBLE", "<f8"),
        _dtype("INT8", "|i1"),
        _dtype("INT16", "<i2"),
        _dtype("INT32", "<i4"),
        _dtype("INT64", "<i8"),
        _dtype("UINT8", "|u1"),
        _dtype("UINT16", "<u2"),
        _dtype("UINT32", "<u4"),
        _dtype("UINT64", "<u8"),
        _dtype("BOOL", "|b1"),
        STRING,
    )
}
"""All dtypes by name."""

_BY_DESCR = {dtype.descr: dtype for dtype in TABLE.values()}
_NAMES = " ".join(TABLE)

_ADVICE = {
    "c": "store real and imaginary parts as two tensors",
    "m": "store the count with .astype('<i8')",
    "M": "store the time with .astype('<i8')",
    "O": "convert it with .astype() to one of them; objects are never pickled",
    "U": "encode it with np.char.encode(array, 'utf-8')",
    "T": "encode it with np.char.encode(array.astype(str), 'utf-8')",
    "V": "store each field as its own tensor",
    "f": "convert it with .astype('<f8')",
}


def by_name(name: str) -> DType:
    """Find a dtype by its name, in any case.

    Args:
        name: Such as ``FLOAT``.

    Returns:
        The dtype.

    Raises:
        BadDtype: There is none of that name; the text lists all.
    """
    found = TABLE.get(name) or TABLE.get(name.upper())
    if found is None:
        raise BadDtype(f"no dtype {name[:40]!r}; there are {_NAMES}")
    return found


def of(dtype: np.dtype[Any]) -> DType:
    """Find the dtype of an array.

    Args:
        dtype: The array's.

    Returns:
        The dtype.

    Raises:
        BadDtype: Tensors cannot have it; the text says what to do instead.
    """
    if dtype.kind == "S" and dtype.itemsize:
        return STRING
    found = _BY_DESCR.get(dtype.str)
    if found is not None and found is not STRING:
        return found
    raise BadDtype(f"numpy dtype {str(dtype)[:80]} cannot be a tensor: {_advice(dtype)}; there are {_NAMES}")


def _advice(dtype: np.dtype[Any]) -> str:
    if dtype.kind == "S":
        return "strings need at least one byte, such as .astype('S1')"
    little = dtype.newbyteorder("<")
    if dtype.kind in "iuf" and little.str in _BY_DESCR:
        return f"it is big-endian, convert it with .astype('{little.str}')"
    return _ADVICE.get(dtype.kind, "convert it with .astype() to one of them")
