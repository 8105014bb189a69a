"""Signatures of job entries: the Python side of lua/lib/seal.lua."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

__all__ = ["Seal"]


@dataclass(frozen=True, slots=True)
class Seal:
    """What a library signs entries with; it is kept in the text of the library on the server, and nowhere else.

    Attributes:
        secret: Hex digits.
        since_ms: Server time from which it is used.
    """

    secret: str = field(repr=False)
    since_ms: int

    @classmethod
    def new(cls, since_ms: int) -> "Seal":
        """Make one that nobody knows."""
        return cls(secrets.token_hex(32), since_ms)

    @property
    def id(self) -> str:
        """What tells it from others, as ``KS_BEAT`` says it."""
        return _twice(b"id ", self.secret.encode())[:16]

    def sign(self, values: Sequence[bytes]) -> bytes:
        """The signature over the header of an entry and its inline inputs: lua/lib/seal.lua."""
        parts: list[bytes] = []
        for one in values:
            parts += (b"%d:" % len(one), one)
        return _twice(self.secret.encode(), b"".join(parts)).encode()


def _twice(key: bytes, text: bytes) -> str:
    # Once could be continued by whoever knows the text but not the key.
    inner = _sha1(key + text).hexdigest()
    return _sha1(key + inner.encode()).hexdigest()


_sha1 = partial(hashlib.sha1, usedforsecurity=False)
