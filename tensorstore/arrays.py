"""What callers have in hand, made into arrays that can be tensors."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import dtypes
from keyside.tensorstore.errors import BadArg, BadDtype, BadValue

__all__ = ["as_array", "shorten"]


def as_array(value: object) -> NDArray[Any]:
    """Make an array that can be a tensor.

    Args:
        value: An array of NumPy, anything with ``__array__`` or ``__dlpack__`` on the CPU, a number, text, or
            nested lists of them. Text becomes UTF-8.

    Returns:
        An array; it shares memory with ``value`` where that can be.

    Raises:
        BadDtype: Its dtype is none that a tensor can have; the text says what to do instead.
        BadArg: It cannot be made an array of.
        BadValue: Text cannot be encoded, or ends in NUL, which the format cannot tell from its padding.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise BadDtype("a masked array cannot be a tensor: choose what its gaps shall be with .filled(value)")
    array = value if type(value) is np.ndarray else _convert(value)
    kind = array.dtype.kind
    if kind in "US" and isinstance(value, str | bytes | list | tuple):
        _check_text(value, str if kind != "S" else bytes)
    if kind == "f" and isinstance(value, list | tuple):
        array = _keep_integers(value, array)
    if kind in "UT":
        array = _encode_text(array)
    dtypes.of(array.dtype)
    return array


def _convert(value: object) -> NDArray[Any]:
    device = getattr(value, "__dlpack_device__", None)
    if device is not None and not hasattr(type(value), "__array_interface__"):
        kind = int(device()[0])
        if kind not in _HOST_DEVICES:
            raise BadArg("the array is not in the memory of the CPU: copy it there first, such as with .cpu()")
    try:
        if device is not None and not hasattr(value, "__array__"):
            return np.from_dlpack(value)  # type: ignore[arg-type]  # it has the two methods; checked above
        return np.asarray(value)
    except (TypeError, ValueError, RuntimeError, BufferError) as error:
        text = " ".join(str(error).split())[:300]
        raise BadArg(f"cannot make an array of {type(value).__name__}: {text}") from error


# kDLCPU, kDLCUDAHost, kDLROCMHost of dlpack.h
_HOST_DEVICES = (1, 3, 11)


def _leaves(value: object) -> Iterator[object]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _leaves(item)
    else:
        yield value


def _check_text(value: object, wanted: type[str] | type[bytes]) -> None:
    """Refuse what NumPy would silently change: numbers among text, and NULs at the end."""
    for leaf in _leaves(value):
        if isinstance(leaf, np.ndarray) and issubclass(leaf.dtype.type, wanted):
            continue
        if not isinstance(leaf, wanted):
            raise BadDtype(f"{wanted.__name__} and {type(leaf).__name__} cannot be mixed in one tensor")
        if leaf[-1:] in ("\0", b"\0"):
            raise BadValue(f"a STRING element cannot end in NUL: {shorten(leaf)}")


def _keep_integers(value: Sequence[object], array: NDArray[Any]) -> NDArray[Any]:
    """Undo or refuse it where NumPy made floats of integers, which it does of small ones beside those above 2^63."""
    if not array.size or np.abs(array).max() < 2.0**63:
        return array
    leaves = list(_leaves(value))
    if all(type(leaf) is int and 0 <= leaf < 2**64 for leaf in leaves):
        return np.array(leaves, np.uint64).reshape(array.shape)
    for leaf in leaves:
        if type(leaf) is int and abs(leaf) >= 2**53 and int(float(leaf)) != leaf:
            raise BadValue(f"the integer {shorten(leaf)} would lose digits as a float: say which dtype it has")
    return array


def _encode_text(array: NDArray[Any]) -> NDArray[Any]:
    try:
        items = [text.encode() for text in array.ravel().tolist()]
    except (UnicodeEncodeError, AttributeError) as error:
        raise BadValue(f"text that is not valid Unicode cannot be a tensor: {str(error)[:200]}") from error
    if array.dtype.kind == "T":
        _check_text(items, bytes)
    longest = max(map(len, items), default=0)
    return np.array(items, dtype=f"S{max(longest, 1)}").reshape(array.shape)


def shorten(value: object) -> str:
    """Show a value in an error, in not too many characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:80] + "..."
