"""Runs on a schedule: when the server says that one is due, one run for each member of a set of keys."""

from collections.abc import Iterator

import hiredis
import structlog

from keyside.executor.triggers.fire import BATCH, Shot, fire
from keyside.executor.triggers.trigger import Trigger
from keyside.executor.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError

__all__ = ["Schedule"]

WINDOW = 256
"""Runs of one trigger that may be under way: the rest of a round waits, instead of filling the queue."""
PAGE = 500
LOOK_S = 0.02
ASK_S = 5.0
"""How long a server's word that nothing is due is taken for granted at most."""


class Schedule:
    """The rounds of one trigger. For one thread.

    Args:
        trigger: it serves.
        node: names of the node's own keys.
        consumer: this executor.
    """

    def __init__(self, trigger: Trigger, node: keys.NodeKeys, consumer: bytes) -> None:
        self.trigger = trigger
        self._node = node
        self._consumer = consumer
        self._next = 0.0
        self._round: Iterator[bytes] | None = None
        self._left: list[bytes] = []
        self._due = b"0"
        self._log = structlog.get_logger()

    def due(self, now: float) -> float:
        """Return in how many seconds there is something to do."""
        return max(0.0, self._next - now)

    def turn(self, own: Wire, now: float, server_ms: float) -> None:
        """Ask whether a round is due, or go on with the one under way.

        Args:
            own: a connection to the node.
            now: monotonic seconds.
            server_ms: the server's time.

        Raises:
            KeysideError: the server is gone or refuses.
        """
        if now < self._next:
            return
        if self._round is None:
            wait_ms = int(own.call(b"FCALL", b"KS_TICK", 0, self.trigger.name, self._consumer))
            if wait_ms:
                self._next = now + min(abs(wait_ms) / 1000, ASK_S)
                return
            self._due = b"%d" % int(server_ms)
            self._round = self._members(own)
            self._left = []
        self._go_on(own, now, server_ms)

    def _go_on(self, own: Wire, now: float, server_ms: float) -> None:
        assert self._round is not None  # noqa: S101
        room = self._room(own, server_ms)
        while len(self._left) < min(room, BATCH) and (member := next(self._round, None)) is not None:
            self._left.append(member)
        if not self._left:
            self._round = None if room > 0 else self._round
            self._next = now if room > 0 else now + LOOK_S
            return
        part, self._left = self._left[:room], self._left[room:]
        if not part:
            self._next = now + LOOK_S
            return
        shots = [
            Shot(self.trigger, member, self.trigger.wants({b"member": member, b"due": self._due})) for member in part
        ]
        answers = fire(own, self._consumer, shots)
        again = [member for member, answer in zip(part, answers, strict=True) if not answer.settled]
        self._left[:0] = again
        self._next = now
        if again:
            self._next = now + min(answer.wait_s for answer in answers if not answer.settled)
        elif any(answer.status == "LOST" for answer in answers):
            self._round = None  # another executor serves the trigger

    def _room(self, own: Wire, server_ms: float) -> int:
        most = min(WINDOW, self.trigger.inflight or WINDOW)
        (under_way,) = own.call_many(((b"ZCOUNT", self._node.inflight(self.trigger.name), b"%d" % server_ms, b"+inf"),))
        return most - (under_way if isinstance(under_way, int) else 0)

    def _members(self, own: Wire) -> Iterator[bytes]:
        if not self.trigger.members:
            yield from self.trigger.keys
            return
        seen: set[bytes] = set()
        for member in self._listed(own, self.trigger.members):
            if member not in seen:  # a scan may bring one twice
                seen.add(member)
                yield member

    def _listed(self, own: Wire, key: bytes) -> Iterator[bytes]:
        kind = own.call(b"TYPE", key)
        if kind == b"list":
            start = 0
            while page := own.call(b"LRANGE", key, start, start + PAGE - 1):
                yield from map(bytes, page)
                start += PAGE
            return
        scans = {b"set": (b"SSCAN", 1), b"zset": (b"ZSCAN", 2), b"hash": (b"HSCAN", 2)}
        if kind not in scans:
            if kind != b"none":
                self._log.warning(
                    "members of a schedule must be a set, sorted set, list or hash",
                    trigger=_text(self.trigger.name), key=_text(key), type=_text(kind),
                )  # fmt: skip
            return
        command, step = scans[kind]
        cursor: bytes = b"0"
        while True:
            (reply,) = own.call_many(((command, key, cursor, b"COUNT", PAGE),))
            if isinstance(reply, hiredis.ReplyError):
                raise KeysideError(str(reply))
            cursor, page = reply
            yield from map(bytes, page[::step])
            if cursor == b"0":
                return


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
