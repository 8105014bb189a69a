"""Foreign writes, by keyspace notifications: at most one run for each change, and one for several within 20 ms."""

from collections.abc import Iterable

import hiredis
import structlog

from keyside.executor.triggers.ear import Topic
from keyside.executor.triggers.fire import BATCH, Shot, fire
from keyside.executor.triggers.messages import glob_of, literally, matcher
from keyside.executor.triggers.trigger import Trigger
from keyside.executor.wire import Wire

__all__ = ["EVENTS", "Notifications", "turn_on"]

QUIET_S = 0.02
EVENTS = frozenset((b"set", b"setrange", b"append", b"rename_to", b"copy_to", b"restore"))
"""What leaves a key with another value that may be a tensor."""
NEEDED = "K$g"

_log = structlog.get_logger()
_told: set[str] = set()


def turn_on(own: Wire) -> None:
    """Have the server send the notifications that are needed, beside those that it sends; else log what to set.

    Raises:
        Unreachable: the server is gone.
    """
    (found,) = own.call_many(((b"CONFIG", b"GET", b"notify-keyspace-events"),))
    if isinstance(found, hiredis.ReplyError) or len(found) < 2:
        _tell(f"notify-keyspace-events cannot be read here: set it to {NEEDED}, or more", str(found))
        return
    flags = bytes(found[1]).decode()
    missing = [flag for flag in NEEDED if flag not in flags and not (flag != "K" and "A" in flags)]
    if not missing:
        return
    (done,) = own.call_many(((b"CONFIG", b"SET", b"notify-keyspace-events", flags + "".join(missing)),))
    if isinstance(done, hiredis.ReplyError):
        _tell(f"notify-keyspace-events cannot be set here: set it to {flags}{''.join(missing)}", str(done))
    else:
        _log.info("keyspace notifications are on", flags=flags + "".join(missing))


def _tell(what: str, error: str) -> None:
    if what not in _told:
        _told.add(what)
        _log.warning(what, error=error)


class Notifications:
    """Gathers what is said of keys until it has been quiet for a moment. For one thread.

    Args:
        database: whose keys.
        consumer: this executor.
    """

    def __init__(self, database: int, consumer: bytes) -> None:
        self._prefix = b"__keyspace@%d__:" % database
        self._consumer = consumer
        self._waiting: dict[tuple[bytes, bytes], tuple[float, int]] = {}

    def topic(self, trigger: Trigger) -> Topic:
        """Return what to listen to for a trigger."""
        return Topic(b"PSUBSCRIBE", literally(self._prefix) + glob_of(trigger.source))

    def note(self, trigger: Trigger, channel: bytes, event: bytes, now: float) -> None:
        """Take note of a notification."""
        key = channel[len(self._prefix) :]
        if event not in EVENTS or not channel.startswith(self._prefix) or not matcher(trigger.source).fullmatch(key):
            return
        when, count = self._waiting.get((trigger.name, key), (now + QUIET_S, 0))
        self._waiting[trigger.name, key] = (when, count + 1)

    def due(self, now: float) -> float:
        """Return in how many seconds a run is to begin; infinite if none is."""
        # In the order in which they were noted, so the first is the next.
        return max(0.0, next(iter(self._waiting.values()))[0] - now) if self._waiting else float("inf")

    def turn(self, own: Wire, triggers: Iterable[Trigger], now: float) -> None:
        """Begin the runs that are due.

        A write that has started its run in its own call has left a mark for its notification: so the server is told how
        many notifications of a key there were.

        Raises:
            KeysideError: the server is gone; nobody knows then which runs have begun, and none is begun again.
        """
        by_name = {trigger.name: trigger for trigger in triggers}
        ready: list[Shot] = []
        for (name, key), (when, count) in list(self._waiting.items()):
            if when > now or len(ready) >= BATCH:
                break
            del self._waiting[name, key]
            if name in by_name:
                ready.append(Shot(by_name[name], key, (b"key", key, b"events", b"%d" % count)))
        if ready:
            fire(own, self._consumer, ready)

    def forget(self) -> None:
        """Drop what was noted."""
        self._waiting.clear()
