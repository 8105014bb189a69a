"""KS_FIRE: asks the server to start the run of an event. It decides; here is only what to do with its answer."""

from collections.abc import Sequence
from typing import NamedTuple

import hiredis

from keyside.executor.triggers.trigger import Trigger
from keyside.executor.wire import Wire, as_error
from keyside.tensorstore.errors import LibraryMissing, TryAgain, Unreachable

__all__ = ["BATCH", "Answer", "Shot", "fire"]

BATCH = 64
"""Calls in one write: others of this server wait for no more than these."""

_NOT_NOW = ("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "NOREPLICAS", "MISCONF", "OOM")


class Shot(NamedTuple):
    """An event that is to start a run.

    Attributes:
        trigger: whose event it is.
        source: of the event, as its result names it; of a stream, the id of the entry.
        flat: names and values of variables, one after the other.
    """

    trigger: Trigger
    source: bytes
    flat: Sequence[bytes]


class Answer(NamedTuple):
    """What the server says.

    Attributes:
        status: FIRED, DOUBLE, DROPPED, WAIT, LOST or ERROR, as KS_FIRE says. NOTNOW: the server cannot take it now;
            FAILED: the function fails; in both cases nothing has happened.
        text: more about it.
    """

    status: str
    text: str

    @property
    def settled(self) -> bool:
        """Whether there is nothing more to do about this event."""
        return self.status not in ("WAIT", "NOTNOW")

    @property
    def wait_s(self) -> float:
        """Seconds after which to ask again."""
        try:
            return min(max(int(float(self.text)), 1), 10_000) / 1000
        except ValueError:
            return 0.1


def fire(wire: Wire, consumer: bytes, shots: Sequence[Shot]) -> list[Answer]:
    """Ask for some runs, at most `BATCH`, in one write.

    Raises:
        Unreachable: the connection is gone: nobody knows which of them have begun.
    """
    replies = wire.call_many(
        [
            (
                b"FCALL", b"KS_FIRE", 0, shot.trigger.name, consumer, shot.source, len(shot.flat) // 2, *shot.flat,
            )
            for shot in shots
        ]
    )  # fmt: skip
    return [_read(reply) for reply in replies]


def _read(reply: object) -> Answer:
    if isinstance(reply, hiredis.ReplyError):
        error = as_error(reply)
        first = str(reply).split()[:2]
        if isinstance(error, TryAgain | LibraryMissing | Unreachable) or any(word in _NOT_NOW for word in first):
            return Answer("NOTNOW", str(error))
        return Answer("FAILED", str(error))
    if not isinstance(reply, list) or not reply or not isinstance(reply[0], bytes):
        return Answer("FAILED", f"KS_FIRE answers {reply!r}")
    text = reply[1] if len(reply) > 1 else b""
    return Answer(
        reply[0].decode("utf-8", "replace"),
        text.decode("utf-8", "replace") if isinstance(text, bytes) else str(text),
    )
