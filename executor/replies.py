"""Replies to predictions, made from a template: all of a batch differ in their elements alone."""

from collections.abc import Sequence

import numpy as np

from keyside.executor.backends.base import Array
from keyside.tensorstore import npy
from keyside.tensorstore.records import reply_parts

__all__ = ["Replies"]

_KEPT = 1024
_OUTPUTS = 16
"""Of more than these there is no template: scripts give as many as they like, and templates grow with them."""


class Replies:
    """Makes the replies of one model's jobs.

    Args:
        title: `name@version`, as the reply names it.
        limit: bytes of an npy file above which an output does not ride in the reply.
    """

    def __init__(self, title: str, limit: int) -> None:
        self._title = title
        self._limit = limit
        self._templates: dict[tuple[object, ...], list[bytes] | None] = {}

    def make(self, names: Sequence[str], results: Sequence[Array], jobs: int, rows: int) -> list[bytes] | None:
        """Return one reply for each of some jobs that have the same number of rows.

        Args:
            names: of the outputs.
            results: of the batch; with more than one job, dim 0 is `jobs` x `rows`.
            jobs: how many.
            rows: of each.

        Returns:
            None where this is not for it: an output is too large, or no plain array of numbers; or there are too many.
        """
        if not results or len(names) != len(results) or len(results) > _OUTPUTS:
            return None
        shared = rows if jobs > 1 else -1
        shapes = [(result.dtype, result.shape if jobs == 1 else result.shape[1:]) for result in results]
        form = (shared, *shapes)
        if form in self._templates:
            parts = self._templates[form]
        else:
            parts = self._template(names, results, shared)
            if len(self._templates) >= _KEPT:
                self._templates.clear()
            self._templates[form] = parts
        if parts is None:
            return None
        if len(results) == 1:
            data, front = results[0].tobytes(), parts[0]
            size = len(data) // jobs
            return [front + data[at : at + size] for at in range(0, len(data), size)]
        all_data = [result.tobytes() for result in results]
        sizes = [len(data) // jobs for data in all_data]
        replies = []
        for n in range(jobs):
            pieces: list[bytes] = []
            for front, data, size in zip(parts, all_data, sizes, strict=True):
                pieces += (front, data[n * size : (n + 1) * size])
            replies.append(b"".join(pieces))
        return replies

    def _template(self, names: Sequence[str], results: Sequence[Array], rows: int) -> list[bytes] | None:
        """Return what stands before the elements of each output; None if there cannot be a template."""
        outputs = []
        for name, result in zip(names, results, strict=True):
            if not isinstance(result, np.ndarray) or result.dtype.kind not in "fiub":
                return None
            shape = result.shape if rows < 0 else (rows, *result.shape[1:])
            header = npy.encode_header(result.dtype, shape)
            nbytes = result.dtype.itemsize
            for dim in shape:
                nbytes *= dim
            if not nbytes or len(header) + nbytes > self._limit:
                return None
            outputs.append((name, header, nbytes))
        return reply_parts(self._title, outputs)
