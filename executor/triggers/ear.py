"""What is said on channels: one connection that is subscribed to all that this executor's triggers listen for."""

import time
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import hiredis
import structlog

from keyside.executor.wire import Wire
from keyside.tensorstore.errors import Unreachable
from keyside.tensorstore.resp import NOT_READY

__all__ = ["Ear", "Said", "Topic"]

PING_S = 10.0
DEAF_S = 25.0
MOST = 512
"""Messages to take before others have their turn."""


class Topic(NamedTuple):
    """Something to subscribe to.

    Attributes:
        how: SUBSCRIBE, SSUBSCRIBE or PSUBSCRIBE.
        name: channel or pattern.
    """

    how: bytes
    name: bytes


class Said(NamedTuple):
    """A message.

    Attributes:
        topic: for whose sake it came.
        channel: where it was said.
        payload: what was said.
        mark: the last mark that came before it.
    """

    topic: Topic
    channel: bytes
    payload: bytes
    mark: int


_HOW = {b"message": b"SUBSCRIBE", b"smessage": b"SSUBSCRIBE", b"pmessage": b"PSUBSCRIBE"}
_UNDO = {b"SUBSCRIBE": b"UNSUBSCRIBE", b"SSUBSCRIBE": b"SUNSUBSCRIBE", b"PSUBSCRIBE": b"PUNSUBSCRIBE"}


class Ear:
    """Listens. For one thread.

    Marks tell what came before from what came after: a message that has waited in the connection while this executor
    was halted may have been run by another one meanwhile.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._topics: set[Topic] = set()
        self._sent = 0
        self._come = 0
        self._last_heard = self._last_ping = 0.0
        self._log = structlog.get_logger()
        self._refused: set[str] = set()

    def connect(self) -> None:
        """Connect anew, subscribed to nothing.

        Raises:
            KeysideError: the server cannot be reached or refuses.
        """
        self._wire.connect()
        self._topics.clear()
        self._come = self._sent
        self._last_heard = self._last_ping = time.monotonic()

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()
        self._topics.clear()

    def fileno(self) -> int:
        """Return the descriptor of the connection."""
        return self._wire.fileno()

    def listen_to(self, topics: Iterable[Topic], *, mark: bool = False) -> int:
        """Be subscribed to these and no others; return the last mark.

        Args:
            topics: what to listen to.
            mark: set a mark: messages whose own is at least this one came after this call.

        Raises:
            Unreachable: the connection is gone.
        """
        wanted = set(topics)
        commands = [(_UNDO[topic.how], topic.name) for topic in self._topics - wanted]
        # One channel in each command: those of sharded pub/sub may be of different slots.
        commands += [(topic.how, topic.name) for topic in sorted(wanted - self._topics)]
        if mark:
            commands.append(self._ping())
        if commands:
            self._wire.send(commands)
        self._topics = wanted
        return self._sent

    def _ping(self) -> tuple[bytes, bytes]:
        self._sent += 1
        self._last_ping = time.monotonic()
        return b"PING", b"%d" % self._sent

    def hear(self) -> Iterator[Said]:
        """Yield what has been said, without waiting.

        Raises:
            Unreachable: the connection is gone.
        """
        now = time.monotonic()
        if now - self._last_ping > PING_S:
            self._wire.send((self._ping(),))
        if now - self._last_heard > DEAF_S:
            raise Unreachable("nothing has been heard from the server for long")
        for _ in range(MOST):
            said = self._wire.poll(0.0)
            if said is NOT_READY:
                return
            self._last_heard = now
            if isinstance(said, hiredis.ReplyError):
                self._refuse(str(said))
                continue
            how = _HOW.get(said[0])
            if how is not None:
                topic = Topic(how, said[1])
                if topic in self._topics:
                    yield Said(topic, said[-2], said[-1], self._come)
            elif said[0] == b"pong":
                self._come = max(self._come, int(said[1] or 0))
            elif said[0] == b"sunsubscribe" and len(said) > 1 and said[1] is not None:
                self._topics.discard(Topic(b"SSUBSCRIBE", said[1]))  # its slot has moved away

    def _refuse(self, text: str) -> None:
        if text not in self._refused and len(self._refused) < MOST:
            self._refused.add(text)
            self._log.warning("cannot listen to a channel", error=text)
