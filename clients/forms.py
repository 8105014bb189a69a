"""Replies whose beginning has been seen before: all but the elements of the one array in them is known."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from keyside.tensorstore import npy
from keyside.tensorstore.command import Name
from keyside.tensorstore.commands import read_reply

__all__ = ["Forms"]

_ENTRIES = 1024
_START_BYTES = 4096


class _Form(NamedTuple):
    start: bytes
    shape: tuple[int, ...]
    dtype: np.dtype[Any]


class Forms:
    """Reads replies that begin, up to the elements, like one of the same length that has been checked in full."""

    def __init__(self) -> None:
        self._known: dict[tuple[Name, int], _Form] = {}

    def read(self, target: Name, reply: bytes) -> NDArray[Any] | None:
        """Return the one array in a reply, in memory of its own; None if no such reply has been seen."""
        form = self._known.get((target, len(reply)))
        if form is None or not reply.startswith(form.start):
            return None
        start, shape, dtype = form
        return np.ndarray(shape, dtype, reply, len(start)).copy()

    def learn(self, target: Name, reply: bytes) -> None:
        """Remember the form of a reply that has one output and has been found to be good."""
        found = read_reply(reply)
        value = next(iter(found.outputs.values())) if found is not None and len(found.outputs) == 1 else ""
        if isinstance(value, str) or not reply.endswith(value):
            return
        header = npy.parse_header(value, len(value))
        start = reply[: len(reply) - header.nbytes]
        if not header.nbytes or len(start) > _START_BYTES:
            return
        if len(self._known) >= _ENTRIES:
            self._known.clear()
        self._known[target, len(reply)] = _Form(start, header.shape, header.dtype)
