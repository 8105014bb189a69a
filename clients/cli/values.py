"""Tensors out of text and files, and back: .npy, .npz, .csv, .json, and numbers as they are typed."""

import csv
import io
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import dtypes, npy
from keyside.tensorstore.arrays import as_array
from keyside.tensorstore.errors import BadArg, BadDtype, BadNpy, BadShape, BadValue

__all__ = [
    "cast", "from_words", "read_file", "read_literal", "reshape", "to_csv", "to_json", "to_text", "write_file",
]  # fmt: skip

Array = NDArray[Any]

_INTEGER = re.compile(r"[+-]?\d+", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf|infinity|nan)", re.ASCII | re.IGNORECASE)
_BOOLEANS = {"true": 1, "false": 0, "0": 0, "1": 1}
_ZIP = b"PK\x03\x04"
_OF_TEXT = {"i": "INT64", "u": "UINT64", "f": "FLOAT"}


# --- reading


def read_file(path: str, dtype: str | None = None) -> Array:
    """Read a tensor from a file.

    Args:
        path: A .npy, .npz, .csv or .json file; `-` for stdin, of which the beginning tells what it is; `file.npz#name`
            for one array of several.
        dtype: The dtype that numbers in text shall have; an .npy file keeps its own.

    Returns:
        The tensor, in C order and little-endian.

    Raises:
        KeysideError: It is no such file.
        OSError: It cannot be read.
    """
    if path == "-":
        return _sniff(sys.stdin.buffer.read(), "stdin", dtype)
    file, member = Path(path), ""
    if "#" in path and not file.exists():
        path, _, member = path.partition("#")
        file = Path(path)
    data = file.read_bytes()
    suffix = file.suffix.lower()
    readers = {".npy": _npy, ".json": _json, ".csv": _csv, ".tsv": _csv, ".txt": _csv}
    if suffix == ".npz":
        return cast(_npz(data, path, member), dtype)
    if suffix in readers:
        return readers[suffix](data, path, dtype)
    return _sniff(data, path, dtype)


def _sniff(data: bytes, name: str, dtype: str | None) -> Array:
    if data.startswith(npy.MAGIC[:6]):
        return _npy(data, name, dtype)
    if data.startswith(_ZIP):
        return cast(_npz(data, name, ""), dtype)
    if data.lstrip()[:1] in (b"[", b"{", b'"'):
        return _json(data, name, dtype)
    return _csv(data, name, dtype)


def _npy(data: bytes, name: str, dtype: str | None) -> Array:
    try:
        array = npy.decode(data)
    except BadNpy:
        # Versions 2 and 3, Fortran order, big-endian: files that NumPy reads and tensors are not.
        array = _numpy_load(data, name)
    return cast(_plain(array), dtype)


def _npz(data: bytes, name: str, member: str) -> Array:
    archive = _numpy_load(data, name)
    names = list(getattr(archive, "files", ()))
    if not member:
        if len(names) != 1:
            raise BadArg(f"{name} holds {', '.join(names) or 'nothing'}: choose one with {name}#NAME")
        member = names[0]
    if member not in names:
        raise BadArg(f"{name} has no {member!r}, but {', '.join(names) or 'nothing'}")
    try:
        return _plain(archive[member])
    except (ValueError, EOFError, OSError) as error:
        _not_numpy(name, error)


def _numpy_load(data: bytes, name: str) -> Any:
    import zipfile

    try:
        return np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError, OSError, SyntaxError, zipfile.BadZipFile) as error:
        _not_numpy(name, error)


def _not_numpy(name: str, error: Exception) -> NoReturn:
    text = " ".join(str(error).split())[:200]
    if "allow_pickle" in text:
        text = "it holds Python objects, which are never read: convert it with .astype() to numbers or text"
    raise BadNpy(f"{name} cannot be read: {text}") from None


def _plain(array: Array) -> Array:
    if array.dtype.byteorder == ">" or (array.dtype.byteorder == "=" and sys.byteorder == "big"):
        array = array.astype(array.dtype.newbyteorder("<"))
    return np.ascontiguousarray(as_array(array)).reshape(array.shape)  # the former makes 0-d 1-d


def _json(data: bytes, name: str, dtype: str | None) -> Array:
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BadArg(f"{name} is not JSON: {error}") from None
    return _of_json(value, name, dtype)


def _of_json(value: Any, name: str, dtype: str | None) -> Array:
    shape = None
    if isinstance(value, dict):
        # What `keyside tensor get --json` writes.
        if "values" not in value:
            raise BadArg(f"{name}: an object must have dtype, shape and values, as `tensor get --json` writes it")
        dtype, shape, value = dtype or value.get("dtype"), value.get("shape"), value["values"]
    words = _flat(value)
    if dtype and any(isinstance(word, str) for word in words) and dtypes.by_name(dtype) is not dtypes.STRING:
        # Numbers that JSON does not have: nan, inf.
        array = from_words([str(word) for word in words], dtype)
        shape = shape if shape is not None else as_array(value).shape
    else:
        array = _typed(as_array(value), dtype)
    return array if shape is None else reshape(array, tuple(shape))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, list):
        return [leaf for item in value for leaf in _flat(item)]
    return [value]


def _typed(array: Array, dtype: str | None) -> Array:
    """Give numbers in text their dtype: INT64 or FLOAT if none is named."""
    return cast(array, dtype or _OF_TEXT.get(array.dtype.kind))


def _csv(data: bytes, name: str, dtype: str | None) -> Array:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise BadArg(f"{name} is not text in UTF-8") from None
    delimiter = "\t" if "\t" in text.partition("\n")[0] else ","
    rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if row]
    if not rows:
        raise BadArg(f"{name} is empty")
    rows = [[word.strip() for word in row] for row in rows]
    as_text = dtype is not None and dtypes.by_name(dtype) is dtypes.STRING
    if len(rows) > 1 and not as_text and not any(map(_is_number, rows[0])) and any(map(_is_number, rows[1])):
        rows = rows[1:]  # the names of the columns
    width = len(rows[0])
    for number, row in enumerate(rows, 1):
        if len(row) != width:
            raise BadShape(f"{name}: row {number} has {len(row)} columns, and the first has {width}")
    return from_words([word for row in rows for word in row], dtype).reshape(len(rows), width)


def read_literal(text: str, dtype: str | None = None) -> Array:
    """Read a tensor that is typed: JSON such as `[[1, 2]]`, a number, or numbers with commas.

    Raises:
        KeysideError: It is neither.
    """
    stripped = text.strip()
    if stripped[:1] in ("[", "{", '"'):
        return _json(stripped.encode(), "the value", dtype)
    words = [word.strip() for word in stripped.split(",")]
    array = from_words(words, dtype)
    return array.reshape(()) if len(words) == 1 else array


def from_words(words: Sequence[str], dtype: str | None = None) -> Array:
    """Make a tensor of words: whole numbers are INT64, other numbers FLOAT, all else STRING, unless a dtype is given.

    Raises:
        KeysideError: A word is not of the dtype.
    """
    if dtype is None:
        if all(map(_INTEGER.fullmatch, words)):
            numbers = [int(word) for word in words]
            fits = all(-(2**63) <= number < 2**63 for number in numbers)
            return np.array(numbers, np.int64) if fits else cast(as_array(numbers), "UINT64")
        dtype = "FLOAT" if all(map(_is_number, words)) else "STRING"
    kind = dtypes.by_name(dtype)
    if kind is dtypes.STRING:
        return as_array(list(words))
    if kind.numpy.kind == "b":
        if wrong := next((word for word in words if word.lower() not in _BOOLEANS), None):
            raise BadValue(f"{wrong[:40]!r} is not a BOOL: write 0, 1, true or false")
        return np.array([_BOOLEANS[word.lower()] for word in words], bool)
    if wrong := next((word for word in words if not _is_number(word)), None):
        raise BadValue(f"{wrong[:40]!r} is not a number")
    if kind.numpy.kind in "iu" and all(map(_INTEGER.fullmatch, words)):
        limits = np.iinfo(kind.numpy)
        for word in words:
            if not limits.min <= int(word) <= limits.max:
                raise BadValue(f"{word[:40]} does not fit into {kind.name}")
        return np.array([int(word) for word in words], kind.numpy)
    wide = np.array([float(word) for word in words])
    if kind.numpy.kind == "f":
        endless = [word.lstrip("+-").lower() in ("inf", "infinity") for word in words]
        _check_overflow(np.isinf(wide) & ~np.array(endless, bool), kind.name)
    return cast(wide, kind.name)


def _is_number(word: str) -> bool:
    return _NUMBER.fullmatch(word) is not None


def cast(array: Array, dtype: str | None) -> Array:
    """Convert to a dtype, if every element can have it; None leaves it as it is.

    Raises:
        BadDtype: Text to numbers or the other way round.
        BadValue: An element does not fit.
    """
    if dtype is None:
        return array
    target = dtypes.by_name(dtype)
    if target is dtypes.of(array.dtype):
        return array
    if not array.size:
        return np.zeros(array.shape, "S1" if target is dtypes.STRING else target.numpy)
    if target is dtypes.STRING or array.dtype.kind == "S":
        raise BadDtype(f"{dtypes.of(array.dtype).name} cannot be made {target.name}")
    kind = target.numpy.kind
    if kind in "iub":
        if array.dtype.kind == "f":
            whole = np.isfinite(array) & (array == np.trunc(array))
            if not whole.all():
                raise BadValue(f"{array[~whole][0]} is not a whole number, as {target.name} needs")
        low, high = (0, 1) if kind == "b" else (np.iinfo(target.numpy).min, np.iinfo(target.numpy).max)
        # In Python's integers: NumPy would compare as floats, which are not exact at the ends of 64 bits.
        smallest, largest = int(array.min()), int(array.max())
        if smallest < low or largest > high:
            raise BadValue(f"{smallest if smallest < low else largest} does not fit into {target.name}")
        return array.astype(target.numpy)
    with np.errstate(over="ignore"):
        converted = array.astype(target.numpy)
    if array.dtype.kind == "f":
        _check_overflow(np.isinf(converted) & ~np.isinf(array), target.name)
    return converted


def _check_overflow(wrong: Array, dtype: str) -> None:
    if wrong.any():
        raise BadValue(f"{int(wrong.sum())} of the numbers are too large for {dtype}")


def reshape(array: Array, shape: Sequence[int]) -> Array:
    """Give a tensor another shape.

    Raises:
        BadShape: It has another number of elements.
    """
    try:
        return array.reshape(tuple(shape))
    except (ValueError, TypeError):
        raise BadShape(f"{array.size} elements cannot have the shape {list(shape)}") from None


# --- writing


def to_json(array: Array) -> dict[str, Any]:
    """Return dtype, shape and values as JSON can have them: nan and inf as text, floats with their shortest digits."""
    name = dtypes.of(array.dtype).name
    return {"dtype": name, "shape": list(array.shape), "values": _nested(array)}


def _nested(array: Array) -> Any:
    if array.ndim:
        return [_nested(item) for item in array] if array.ndim > 1 else [_element(item) for item in array]
    return _element(array[()])


def _element(item: Any) -> Any:
    if isinstance(item, bytes):
        return item.decode("utf-8", "backslashreplace")
    if isinstance(item, np.floating):
        return float(str(item)) if np.isfinite(item) else str(item)
    return item.item()


def to_csv(array: Array) -> str:
    """Return rows of a tensor of at most two dimensions.

    Raises:
        BadShape: It has more.
    """
    if array.ndim > 2:
        raise BadShape(f"a tensor of {array.ndim} dimensions is no table: take .npy or .json")
    out = io.StringIO()
    rows = array.reshape(-1, 1) if array.ndim < 2 else array
    csv.writer(out, lineterminator="\n").writerows([[_element(item) for item in row] for row in rows])
    return out.getvalue()


def to_text(array: Array) -> str:
    """Return a tensor for people to read; the middle of a large one is left out."""
    name = dtypes.of(array.dtype).name
    head = f"{name} {list(array.shape)}"
    if array.dtype.kind == "S":
        array = np.char.decode(array, "utf-8", "backslashreplace")
    return f"{head}\n{np.array2string(array, threshold=200, max_line_width=100)}"


def write_file(path: str, array: Array) -> None:
    """Write a tensor to a file, whose name says the format: .npy, .csv or .json.

    Raises:
        KeysideError: The format is none of these, or cannot hold the tensor.
        OSError: It cannot be written.
    """
    file = Path(path)
    suffix = file.suffix.lower()
    if suffix == ".npy":
        with file.open("wb") as out:
            for piece in npy.encode(array):
                out.write(piece)
    elif suffix == ".json":
        file.write_text(json.dumps(to_json(array), ensure_ascii=False) + "\n", encoding="utf-8")
    elif suffix == ".csv":
        file.write_text(to_csv(array), encoding="utf-8")
    else:
        raise BadArg(f"{path}: the name must end in .npy, .csv or .json")
