"""The requests of one call for many rows, in rounds: what a full server refuses is submitted again, fewer at a time."""

import time
from collections import deque
from collections.abc import Callable, Iterator

from keyside.clients.request import Request
from keyside.tensorstore.errors import Busy, KeysideError, from_reply

__all__ = ["Rounds", "as_reply", "is_refusal"]

_UNKNOWN_S = 0.1


class Rounds(Iterator[Request]):
    """Gives requests to a transport until one is refused with BUSY; the next round begins when all others have ended.

    Args:
        count: of parts.
        make: a request of a part, a new one each time.
        window: requests in flight, at most.
        timeout: seconds for which a part may be refused.

    Attributes:
        window: requests in flight in this round: no more than the server took at once before.
    """

    def __init__(self, count: int, make: Callable[[int], Request], window: int, timeout: float) -> None:
        self.window = window
        self._most = window
        self._make = make
        self._timeout = timeout
        self._todo = deque(range(count))
        self._given: list[int] = []
        self._refused: dict[int, Busy] = {}
        self._since: dict[int, float] = {}  # when a part was refused for the first time

    def __next__(self) -> Request:
        if self._refused or not self._todo:
            raise StopIteration
        part = self._todo.popleft()
        self._given.append(part)
        return self._make(part)

    @property
    def left(self) -> bool:
        """Whether there is anything left to submit."""
        return bool(self._todo)

    def took(self, index: int, reply: bytes) -> int | None:
        """Return which part a reply is of; None if it was refused and will be submitted again.

        Args:
            index: which of the requests of this round it is the reply to.
            reply: as of the transport.
        """
        part = self._given[index]
        if not reply.startswith(b"BUSY "):
            self._since.pop(part, None)
            return part
        error = from_reply(reply.decode("utf-8", "replace"))
        if isinstance(error, Busy):
            self._refused[part] = error
        return None

    def end(self) -> float:
        """End a round, when all its requests have ended; return how many seconds to wait before the next one.

        Raises:
            Busy: a part has been refused for too long.
        """
        refused, self._refused = self._refused, {}
        accepted = len(self._given) - len(refused)
        self._given = []
        if not refused:
            self.window = min(2 * self.window, self._most)
            return 0.0
        self.window = max(1, min(self.window, accepted))
        now = time.monotonic()
        pause = max(_UNKNOWN_S if error.retry_after is None else error.retry_after for error in refused.values())
        for part, error in refused.items():
            if now + pause >= self._since.setdefault(part, now) + self._timeout:
                raise error
        self._todo.extendleft(sorted(refused, reverse=True))
        return pause


def as_reply(error: Busy) -> bytes:
    """Return what the server says on a ticket with a refusal."""
    return str(error).encode("utf-8", "replace")


def is_refusal(error: KeysideError) -> bool:
    """Whether a function has refused a call with BUSY, and not the server, which is busy with a script."""
    return isinstance(error, Busy) and error.retry_after is not None
