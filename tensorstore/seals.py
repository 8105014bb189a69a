"""Signatures of job entries: the Python side of lua/lib/seal.lua."""

import hashlib
import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

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
        return self._twice(b"id ", b"id ", self.secret.encode())[:16]

    def sign(self, values: Sequence[bytes]) -> bytes:
        """The signature over the header of an entry and its inline inputs: lua/lib/seal.lua."""
        secret = self.secret.encode()
        return self._twice(secret, secret, *(piece for one in values for piece in (b"%d:" % len(one), one))).encode()

    @staticmethod
    def _twice(outer: bytes, *inner: bytes) -> str:
        first = hashlib.sha1(usedforsecurity=False)
        for piece in inner:
            first.update(piece)
        return hashlib.sha1(outer + first.hexdigest().encode(), usedforsecurity=False).hexdigest()
