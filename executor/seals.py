"""Signatures of entries: what this executor knows of the library's secret, and which entries it believes."""

import hmac
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import structlog

from keyside.executor import install
from keyside.executor.line import Line
from keyside.executor.wire import Wire
from keyside.tensorstore.seals import Seal

__all__ = ["Seals"]

LOOK_S = 1.0
TRANSITION_MS = 60_000
"""How long after a secret was new the entries from before are believed; as in lua/lib/seal.lua."""


class Seals:
    """Knows the secret, if the library has one; safe on any thread.

    Args:
        now_ms: the server's time.

    Attributes:
        current: the secret; None: entries are not signed, or this executor's user may not read the library.
    """

    def __init__(self, now_ms: Callable[[], float]) -> None:
        self.current: Seal | None = None
        self._now_ms = now_ms
        self._lock = threading.Lock()
        self._next_look = 0.0
        self._told = ""
        self._log = structlog.get_logger()

    def install(self, wire: Wire) -> str:
        """Load the library where that is needed, with the secret that it had, and learn that.

        Returns:
            What `install.ensure_library` has done.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        done = install.ensure_library(wire, self.current)
        self._look(wire)
        return done

    def told(self, wire: Wire, seal_id: str) -> None:
        """Take note of which secret the server has; look, if it is another.

        Raises:
            KeysideError: the server is gone.
        """
        known = self.current.id if self.current else ""
        new = seal_id not in (known, self._told)
        self._told = seal_id
        if new:
            self._look(wire)

    def why_not(self, wire: Wire | Line, entry_id: bytes, fields: Sequence[bytes]) -> str:
        """Return why an entry is not believed, or an empty text.

        Raises:
            KeysideError: the server is gone.
        """
        if self.genuine(entry_id, fields):
            return ""
        now = time.monotonic()
        with self._lock:
            look = now >= self._next_look
            self._next_look = now + LOOK_S if look else self._next_look
        if look:
            self._look(wire)  # the secret may be new
            if self.genuine(entry_id, fields):
                return ""
        return "its signature is wrong" if _signature(fields) else "it is not signed"

    def genuine(self, entry_id: bytes, fields: Sequence[bytes]) -> bool:
        """Whether the library has made an entry, as far as this executor can tell."""
        seal = self.current
        if seal is None:
            return True
        signature = _signature(fields)
        if signature and hmac.compare_digest(signature, seal.sign(fields[1:-2:2])):
            return True
        before = int(entry_id.partition(b"-")[0]) < seal.since_ms
        return before and self._now_ms() < seal.since_ms + TRANSITION_MS

    def _look(self, wire: Wire | Line) -> None:
        try:
            found = install.read_seal(wire)
        except install.Unreadable as error:
            if self.current is None and self._told:
                self._log.warning("entries are signed, and this user may not see by what", error=str(error))
            return
        if found != self.current:
            self._log.info("entries are signed from now on" if found else "entries are no longer signed")
        self.current = found


def _signature(fields: Any) -> bytes:
    return fields[-1] if len(fields) >= 4 and fields[-2] == b"s" else b""
