"""The npy codec: arrays to and from the values of tensor keys, without copies where that can be.

A value is one ``.npy`` file, format version 1.0::

    0-5        magic, 93 4E 55 4D 50 59
    6-7        version, MUST be 01 00
    8-9        H, length of the header, unsigned little-endian
    10..10+H   ASCII dict literal with the keys descr, fortran_order (MUST be False) and shape
    10+H..     the elements, C order, little-endian, exactly product(shape) x itemsize bytes

Values come from anyone who may write to the database, so a header is matched against a small grammar, never
evaluated, and everything is checked before the data is touched. Nothing is ever unpickled. Headers that
passed are remembered by their bytes: real traffic has few different ones.
"""

import math
import operator
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import dtypes
from keyside.tensorstore.arrays import as_array, shorten
from keyside.tensorstore.errors import BadNpy, BadShape

__all__ = [
    "MAGIC",
    "MAX_RANK",
    "Header",
    "as_array",
    "decode",
    "encode",
    "encode_header",
    "header_size",
    "over",
    "parse_header",
    "read_header",
    "to_bytes",
]

MAX_RANK = 32
MAGIC = b"\x93NUMPY\x01\x00"

_ALIGN = 64
_SMALLEST = 10
_MAX_BYTES = 2**63 - 1
_CACHE_ENTRIES = 4096
# A header may be 64 KiB of spaces; remembering those would let a writer fill the reader's memory.
_CACHE_HEADER_BYTES = 1024

Buffer = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class Header:
    """What the header of a tensor says.

    Attributes:
        dtype: Of the elements.
        shape: Of the tensor.
        offset: Where the elements begin.
        nbytes: How many bytes they take.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int
    nbytes: int


# --- encoding


@lru_cache(maxsize=_CACHE_ENTRIES)
def encode_header(dtype: np.dtype[Any], shape: tuple[int, ...]) -> bytes:
    """Make the header of a tensor.

    Args:
        dtype: One that tensors can have.
        shape: At most 32 dimensions.

    Returns:
        All that stands before the elements; its length is a multiple of 64.

    Raises:
        BadDtype: Tensors cannot have the dtype.
        BadShape: The shape has too many dimensions, or they are out of range.
    """
    dtypes.of(dtype)
    try:
        dims = tuple(map(operator.index, shape))
    except TypeError:
        raise BadShape(f"a shape is a tuple of integers, not {shorten(shape)}") from None
    if len(dims) > MAX_RANK:
        raise BadShape(f"{len(dims)} dimensions; a tensor has at most {MAX_RANK}")
    if any(dim < 0 for dim in dims) or _extent(dtype.itemsize, dims) > _MAX_BYTES:
        raise BadShape(f"dimensions out of range: {shorten(dims)}")
    # repr of the str of a dtype and of a tuple of ints is exactly what NumPy itself writes
    text = f"{{'descr': {dtype.str!r}, 'fortran_order': False, 'shape': {dims!r}, }}".encode("ascii")
    size = len(MAGIC) + 2 + len(text) + 1
    text += b" " * (-size % _ALIGN) + b"\n"
    return MAGIC + len(text).to_bytes(2, "little") + text


def encode(value: object) -> tuple[bytes, memoryview]:
    """Lay out a tensor as header and elements.

    Args:
        value: An array, or what ``as_array`` makes one of.

    Returns:
        The header, and the array's own memory (a copy if it is not in C order).

    Raises:
        KeysideError: ``value`` is nothing that can be a tensor; the text says what to do instead.
    """
    array = value if type(value) is np.ndarray and value.dtype.kind not in "UT" else as_array(value)
    header = encode_header(array.dtype, array.shape)
    if not array.size:
        return header, memoryview(b"")
    view = array.data
    if not view.c_contiguous:
        array = np.ascontiguousarray(array)
        view = array.data
    if array.dtype.kind == "S":
        # memoryview.cast knows the numeric formats only; any other array is looked at as bytes by NumPy
        view = array.reshape(-1).view(np.uint8).data
    return header, view.cast("B")


def to_bytes(value: object) -> bytes:
    """Lay out a tensor as one bytes object.

    Args:
        value: As for ``encode``.

    Returns:
        The npy file.

    Raises:
        KeysideError: As for ``encode``.
    """
    return b"".join(encode(value))


# --- decoding

_HEADERS: dict[bytes, Header] = {}


def decode(buf: Buffer) -> NDArray[Any]:
    """Read a tensor.

    Args:
        buf: An npy file. It must not change as long as the array is used.

    Returns:
        An array over the memory of ``buf``, read-only if that is. It is a copy only if the elements lie at
        odd addresses, which model runtimes do not take.

    Raises:
        BadNpy: ``buf`` is not a well-formed tensor; the text says what is wrong.
    """
    return over(read_header(buf), buf)


def read_header(buf: Buffer) -> Header:
    """Read and check the header of a whole npy file.

    Args:
        buf: The file.

    Returns:
        What the header says; equal headers give the same object, as long as it is remembered.

    Raises:
        BadNpy: ``buf`` is not a well-formed tensor; the text says what is wrong.
    """
    if type(buf) is not bytes:
        view = _as_view(buf)
        total = len(view)
        known = _HEADERS.get(view[: 10 + view[8] + (view[9] << 8)].tobytes()) if total >= _SMALLEST else None
        return known if known is not None and total - known.offset == known.nbytes else parse_header(view, total)
    try:
        header = _HEADERS[buf[: 10 + buf[8] + (buf[9] << 8)]]
    except (KeyError, IndexError):
        return parse_header(buf, len(buf))
    if len(buf) - header.offset != header.nbytes:
        _mismatch(header, len(buf))
    return header


def over(header: Header, buf: Buffer) -> NDArray[Any]:
    """Make an array over the memory of an npy file.

    Args:
        header: What ``read_header`` said of it.
        buf: The file.

    Returns:
        The array; see ``decode``.
    """
    data = buf if type(buf) is bytes else _as_view(buf)
    array: NDArray[Any] = np.ndarray(header.shape, header.dtype, data, header.offset)
    return array if array.flags.aligned else _aligned(array)


def decode_received(buf: NDArray[np.uint8]) -> NDArray[Any] | None:
    """Read a tensor from memory that it was received into, two bytes more, if its header is known.

    Returns:
        An array over that memory, as of ``decode``; None: ``decode`` has to look at it.
    """
    header = _HEADERS.get(buf[: 10 + int(buf[8]) + (int(buf[9]) << 8)].tobytes())
    if header is None or len(buf) - 2 - header.offset != header.nbytes or header.offset % _ALIGN:
        return None
    return np.ndarray(header.shape, header.dtype, buf, header.offset)


def _aligned(array: NDArray[Any]) -> NDArray[Any]:
    copy = array.copy()
    copy.flags.writeable = array.flags.writeable
    return copy


def header_size(prefix: Buffer) -> int:
    """Read from the first ten bytes how long the header is.

    Args:
        prefix: The beginning of an npy file, at least ten bytes.

    Returns:
        Where the elements begin.

    Raises:
        BadNpy: It is too short, or no npy file of version 1.0.
    """
    start = bytes(_as_view(prefix)[:10])
    if start[:6] != MAGIC[:6]:
        if MAGIC.startswith(start):
            raise BadNpy(f"truncated: {len(start)} bytes, the fixed part alone has 10")
        raise BadNpy(f"not an npy file: it begins with {start[:6]!r} instead of {MAGIC[:6]!r}")
    if len(start) < 10:
        raise BadNpy(f"truncated: {len(start)} bytes, the fixed part alone has 10")
    if start[6:8] != MAGIC[6:8]:
        raise BadNpy(f"npy version {start[6]}.{start[7]}; only 1.0 is taken: np.save writes it for plain dtypes")
    return 10 + start[8] + (start[9] << 8)


def parse_header(prefix: Buffer, total: int) -> Header:
    """Read and check the header of a tensor.

    Args:
        prefix: The beginning of an npy file, at least the whole header.
        total: The length of the whole file.

    Returns:
        What the header says; that it agrees with ``total`` is checked.

    Raises:
        BadNpy: It is not a well-formed tensor; the text says what is wrong.
    """
    view = _as_view(prefix)
    size = header_size(view)
    if size > total:
        raise BadNpy(f"truncated: the header ends at byte {size}, the value has {total} bytes")
    if size > len(view):
        raise BadNpy(f"the header has {size} bytes, only {len(view)} of them were read")
    raw = view[:size].tobytes()
    header = _HEADERS.get(raw)
    if header is None:
        header = _parse(raw)
        if size <= _CACHE_HEADER_BYTES:
            if len(_HEADERS) >= _CACHE_ENTRIES:
                _HEADERS.clear()
            _HEADERS[raw] = header
    if total - header.offset != header.nbytes:
        _mismatch(header, total)
    return header


# One item of the dict. What its value may be is told by its first character, so that no input makes the match
# go back and forth.
_ITEM = re.compile(
    rb"""[ \t\n]*(?P<quote>['"])(?P<key>[a-z_]{1,16})(?P=quote)[ \t\n]*:[ \t\n]*"""
    rb"""(?:(?P<q>['"])(?P<text>[^'"\\\n]{0,64})(?P=q)|(?P<bool>True|False)|\((?P<dims>[-0-9, \t\n]*)\)"""
    rb"""|(?P<struct>\[))[ \t\n]*"""
)
_DIM = re.compile(rb"0|[1-9][0-9]{0,18}", re.ASCII)
_STRING_DESCR = re.compile(r"\|S([1-9][0-9]{0,9})")
_DESCRS = {dtype.descr: dtype.numpy for dtype in dtypes.TABLE.values() if dtype.itemsize}
_DESCRS |= {"<i1": np.dtype("i1"), "<u1": np.dtype("u1")}


def _parse(raw: bytes) -> Header:
    """Parse a whole header, magic included."""
    fields = _fields(raw[10:])
    for key in ("descr", "fortran_order", "shape"):
        if key not in fields:
            raise BadNpy(f"the header lacks {key!r}")
    fortran = fields["fortran_order"]
    if not isinstance(fortran, bool):
        raise BadNpy("fortran_order must be False")
    if fortran:
        raise BadNpy("Fortran order is not taken: save np.ascontiguousarray(array)")
    dtype = _parse_descr(fields["descr"])
    shape = fields["shape"]
    if not isinstance(shape, tuple):
        raise BadNpy("the shape must be a tuple of integers")
    if _extent(dtype.itemsize, shape) > _MAX_BYTES:
        raise BadNpy(f"the shape overflows: {shorten(shape)}")
    return Header(dtype, shape, len(raw), math.prod(shape, start=dtype.itemsize))


def _fields(text: bytes) -> dict[str, object]:
    text = text.strip(b" \t\n")
    if text[:1] != b"{" or text[-1:] != b"}":
        raise BadNpy(f"the header is not a dict literal: {shorten(text)}")
    fields: dict[str, object] = {}
    at, end = 1, len(text) - 1
    while text[at:end].strip(b" \t\n"):
        item = _ITEM.match(text, at, end)
        if item is None:
            raise BadNpy(f"the header is not a dict literal of descr, fortran_order and shape: {shorten(text[at:])}")
        key = item["key"].decode("ascii")
        if key not in ("descr", "fortran_order", "shape"):
            raise BadNpy(f"the header has an unknown key {key!r}")
        if key in fields:
            raise BadNpy(f"the header has {key!r} twice")
        if item["struct"] is not None:
            raise BadNpy(f"{key!r} is a list: structured dtypes are not taken, save each field as its own tensor")
        fields[key] = _parse_value(item)
        at = item.end()
        if at < end:
            if text[at : at + 1] != b",":
                raise BadNpy(f"the header lacks a comma: {shorten(text[at:])}")
            at += 1
    return fields


def _parse_value(item: re.Match[bytes]) -> object:
    if item["dims"] is not None:
        return _parse_shape(item["dims"])
    if item["bool"] is not None:
        return item["bool"] == b"True"
    return item["text"].decode("latin-1")


def _parse_shape(text: bytes) -> tuple[int, ...]:
    dims = [dim.strip(b" \t\n") for dim in text.split(b",", MAX_RANK + 1)]
    if len(dims) == 1:
        if dims[0]:
            raise BadNpy(f"the shape ({shorten(text)}) is not a tuple: one dimension is written (n,)")
        return ()
    if not dims[-1]:
        dims.pop()
    if len(dims) > MAX_RANK:
        raise BadNpy(f"more than {MAX_RANK} dimensions")
    for dim in dims:
        if not _DIM.fullmatch(dim):
            what = "is negative" if dim.startswith(b"-") else "is not a number or is too large"
            raise BadNpy(f"a dimension {what}: {shorten(dim)}")
    return tuple(map(int, dims))


def _parse_descr(descr: object) -> np.dtype[Any]:
    if not isinstance(descr, str):
        raise BadNpy("descr must be a string")
    found = _DESCRS.get(descr)
    if found is not None:
        return found
    string = _STRING_DESCR.fullmatch(descr)
    if string and int(string[1]) < 2**31:
        return np.dtype(descr)
    raise BadNpy(f"descr {shorten(descr)} is not taken: {_descr_advice(descr)}")


def _descr_advice(descr: str) -> str:
    kind = descr[1:2]
    if descr[:1] == ">" and "<" + descr[1:] in _DESCRS:
        return f"it is big-endian, save array.astype('<{descr[1:]}')"
    if kind == "O" or descr[:1] == "O":
        return "objects would have to be unpickled, which never happens"
    if kind == "U":
        return "save np.char.encode(array, 'utf-8')"
    return f"there are {' '.join(dtype.descr for dtype in dtypes.TABLE.values())}<n>"


def _as_view(buf: Buffer) -> memoryview:
    view = memoryview(buf)
    if view.ndim == 1 and view.format == "B" and view.c_contiguous:
        return view
    try:
        return view.cast("B")
    except TypeError:
        # zeros in its shape, strides, or a format that memoryview does not know
        return memoryview(view.tobytes())


def _extent(itemsize: int, dims: tuple[int, ...]) -> int:
    """Compute the bytes that NumPy checks for overflow: zeros are left out of the product."""
    return math.prod((dim for dim in dims if dim > 0), start=itemsize)


def _mismatch(header: Header, total: int) -> NoReturn:
    got = total - header.offset
    what = f"the shape {shorten(header.shape)} of {header.dtype.str}"
    raise BadNpy(f"{what} takes {header.nbytes} bytes, there are {got}")
