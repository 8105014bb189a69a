"""Inputs that are gathered where they live, in the call that submits: what `HASH`, `LIST` and the like are in Python.

    client.predict("fraud", {"transaction": x, "reference": Hash("user:42", ["age", "income"], default=0)})

The server reads the keys, atomically with the submit, as they are then. Of numbers and strings at most 10,000 elements
are gathered, and at most 32 KiB for an input; `docs/features.md` says what to do with more.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import dtypes
from keyside.tensorstore.command import Name, encode_words, to_bytes
from keyside.tensorstore.errors import BadArg

__all__ = ["Feature", "Hash", "ListRange", "Numbers", "Rows", "SortedSet", "Value"]

Value = str | bytes | int | float | np.generic
"""One element: a number, or text, which is read as a number where the dtype is one."""

_VALUES = (str, bytes, int, float, np.generic)


@dataclass(frozen=True, slots=True)
class Feature:
    """An input that is gathered; the base of those below.

    Attributes:
        words: the spec, as it stands among the arguments of AI_PREDICT.
        wire: the same, encoded.
        names: the keys that it reads.
    """

    words: tuple[bytes, ...] = field(init=False, repr=False, compare=False)
    wire: bytes = field(init=False, repr=False, compare=False)
    names: tuple[bytes, ...] = field(init=False, repr=False, compare=False)

    def _set(self, names: tuple[bytes, ...], *parts: tuple[bytes, ...], more: "_Words | None" = None) -> None:
        words = sum(parts, ())
        wire = encode_words(words)
        if more is not None:
            words, wire = words + more.words, wire + more.wire
        for name, value in (("words", words), ("wire", wire), ("names", names)):
            object.__setattr__(self, name, value)


class _Words(NamedTuple):
    """Words that come again and again, and what they are encoded."""

    words: tuple[bytes, ...]
    wire: bytes


@dataclass(frozen=True, slots=True)
class Hash(Feature):
    """Fields of hashes: [keys, fields].

    Attributes:
        keys: the hash, or several: a row for each.
        fields: that make a row, in this order.
        dtype: of the input; None: what the model takes, which must be known (not for a model that is loading).
        default: for a field that is missing, or one for each field; None: then the call fails with NoFeature.

    Raises:
        BadArg: there are no keys or fields, or not as many defaults as fields.
        BadDtype: there is no such dtype.
    """

    keys: Name | Sequence[Name]
    fields: Name | Sequence[Name]
    dtype: str | None = "FLOAT"
    default: Value | Sequence[Value] | NDArray[Any] | None = None

    def __post_init__(self) -> None:
        names = _names(self.keys, "a hash")
        row = _row(tuple(self.fields) if isinstance(self.fields, list) else self.fields)
        if self.default is not None:
            words = _default(self.default, len(row.words) - 1)
            row = _Words(row.words + words, row.wire + encode_words(words))
        self._set(names, (b"HASH", _dtype(self.dtype)), _counted(names), more=row)


@dataclass(frozen=True, slots=True)
class Numbers(Feature):
    """Numbers in string keys, such as counters of INCR: [1, keys].

    Attributes:
        keys: that hold them.
        dtype: of the input; None: what the model takes.
        default: for a key that is missing, or one for each key; None: then the call fails with NoFeature.

    Raises:
        BadArg: there are no keys, or not as many defaults as keys.
        BadDtype: there is no such dtype.
    """

    keys: Name | Sequence[Name]
    dtype: str | None = "FLOAT"
    default: Value | Sequence[Value] | NDArray[Any] | None = None

    def __post_init__(self) -> None:
        names = _names(self.keys, "a key")
        words = (b"NUMBERS", _dtype(self.dtype))
        self._set(names, words, _counted(names), _default(self.default, len(names)))


@dataclass(frozen=True, slots=True)
class ListRange(Feature):
    """Elements of a list: [1, n].

    Attributes:
        key: the list.
        start: the first element, from 0 on; -1 is the last.
        stop: the last one, included, as for LRANGE. What of the range does not exist is left out.
        dtype: of the input; None: what the model takes.

    Raises:
        BadArg: a place is no integer.
        BadDtype: there is no such dtype.
    """

    key: Name
    start: int | str = 0
    stop: int | str = -1
    dtype: str | None = "FLOAT"

    def __post_init__(self) -> None:
        (name,) = _names(self.key, "a list", one=True)
        self._set((name,), (b"LIST", _dtype(self.dtype), name, _place(self.start), _place(self.stop)))


@dataclass(frozen=True, slots=True)
class SortedSet(Feature):
    """Scores or members of a sorted set: [1, n].

    Attributes:
        key: the sorted set.
        start: rank of the first, from 0 on; -1 is the last.
        stop: rank of the last, included, as for ZRANGE. What of the range does not exist is left out.
        take: "scores" or "members".
        reverse: from the highest score on.
        dtype: of the input; None: what the model takes.

    Raises:
        BadArg: a rank is no integer, or `take` is neither.
        BadDtype: there is no such dtype.
    """

    key: Name
    start: int | str = 0
    stop: int | str = -1
    take: Literal["scores", "members"] = "scores"
    reverse: bool = False
    dtype: str | None = "FLOAT"

    def __post_init__(self) -> None:
        (name,) = _names(self.key, "a sorted set", one=True)
        if self.take not in ("scores", "members"):
            raise BadArg(f"of a sorted set scores or members are taken, not {self.take!r}")
        words = (b"ZSET", _dtype(self.dtype), name, _place(self.start), _place(self.stop), self.take.upper().encode())
        self._set((name,), words, (b"REV",) if self.reverse else ())


@dataclass(frozen=True, slots=True)
class Rows(Feature):
    """Rows of a tensor, such as an embedding table, of which only these are read: [n, ...], of the tensor's dtype.

    Attributes:
        key: the tensor.
        indices: of the rows, from 0 on; one may be there more than once.

    Raises:
        BadArg: there are no indices, or one is no integer.
    """

    key: Name
    indices: int | str | Sequence[int | np.integer[Any] | str] | NDArray[np.integer[Any]]

    def __post_init__(self) -> None:
        (name,) = _names(self.key, "a tensor", one=True)
        found: Any = self.indices
        if isinstance(found, np.ndarray):
            found = found.ravel().tolist()
        if isinstance(found, int | str | np.integer):
            found = (found,)
        if not isinstance(found, Sequence) or not found:
            raise BadArg(f"indices of rows are one number or more, not {self.indices!r}")
        places = tuple(map(_place, found))
        object.__setattr__(self, "indices", tuple(found))
        self._set((name,), (b"ROWS", name), _counted(places))


def _names(given: Any, what: str, *, one: bool = False) -> tuple[bytes, ...]:
    if isinstance(given, str | bytes):
        return (to_bytes(given),)
    if one:
        raise BadArg(f"the name of {what} is text or bytes, not {given!r}")
    if not isinstance(given, Sequence) or not given or not all(isinstance(name, str | bytes) for name in given):
        raise BadArg(f"the name of {what} is text or bytes, or there is a list of them, not {given!r}")
    return tuple(map(to_bytes, given))


def _row(fields: Any) -> _Words:
    """Encode fields, which are the same in each call of a kind."""
    try:
        return _known_row(fields)
    except TypeError:  # it cannot be hashed
        return _known_row(_names(fields, "a field"))


@lru_cache(256)
def _known_row(fields: Name | Sequence[Name]) -> _Words:
    words = _counted(_names(fields, "a field"))
    return _Words(words, encode_words(words))


def _counted(words: tuple[bytes, ...]) -> tuple[bytes, ...]:
    return (b"%d" % len(words), *words)


def _dtype(name: str | None) -> bytes:
    return b"AUTO" if name is None else dtypes.by_name(name).name.encode()


def _place(value: object) -> bytes:
    if isinstance(value, str):  # of a trigger: a template
        return value.encode()
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise BadArg(f"a place is an integer, not {value!r}")
    return b"%d" % int(value)


def _default(given: Any, count: int) -> tuple[bytes, ...]:
    if given is None:
        return ()
    if isinstance(given, _VALUES):
        return (b"DEFAULT", _element(given))
    if not isinstance(given, Sequence | np.ndarray) or len(given) != count:
        raise BadArg(f"a default is one value, or one for each of {count}, not {given!r}")
    return (b"DEFAULTS", *_counted(tuple(map(_element, given))))


def _element(value: object) -> bytes:
    if not isinstance(value, _VALUES):
        raise BadArg(f"a default is a number or text, not {value!r}")
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, str | bytes):
        return to_bytes(value)
    return repr(int(value) if isinstance(value, bool) else value).encode()
