"""Entries of users' streams: read through a consumer group, each run once, whoever reads it.

An entry is pending for the executor that read it until its run has ended; the function library acknowledges it in the
same step. Which entries have begun a run it keeps beside the stream, so an entry may be offered to it twice.
"""

import re
import time
from collections import deque
from collections.abc import Sequence

import hiredis
import structlog

from keyside.executor.triggers.fire import BATCH, Shot, fire
from keyside.executor.triggers.messages import of_entry
from keyside.executor.triggers.trigger import Trigger
from keyside.executor.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable
from keyside.tensorstore.resp import NOT_READY

__all__ = ["StreamReader"]

WINDOW = 256
"""Entries that may be pending for one executor: what has not begun can still go to another one."""
BLOCK_MS = 5000
LOOK_S = 0.01
"""How long to wait for room."""
RECOVER_S = 1.0
TIDY_S = 60.0
OWN_S = 30.0
IDLE_MS = 500
"""An entry that a dead executor, or one that took it over, has touched more recently is left alone."""
GONE_MS = 3_600_000
LATE_MS = 10_000
PAGE = 1000
_OURS = re.compile(rb".+-[0-9a-f]{8}", re.DOTALL)

Entry = tuple[bytes, Sequence[bytes]]


class StreamReader:
    """Reads one stream for one trigger. For one thread.

    Args:
        trigger: whose stream it is.
        node: names of the node's own keys.
        consumer: this executor.
        wire: for reads that wait, of its own.

    Attributes:
        unsure: the group has gone, and maybe the trigger as well: somebody is to look, and to `confirm` it.
    """

    def __init__(self, trigger: Trigger, node: keys.NodeKeys, consumer: bytes, wire: Wire) -> None:
        self.trigger = trigger
        self._node = node
        self._consumer = consumer
        self._wire = wire
        self._asked = False
        self._held: deque[Entry] = deque()
        self._pending = 0
        self._not_before = 0.0
        self._next_count = 0.0
        self._next_recovery = 0.0
        self._next_tidying = 0.0
        self._next_own = 0.0
        self.unsure = False
        self._sure = True
        self._said = ""
        self._log = structlog.get_logger()

    def confirm(self) -> None:
        """Be told that the trigger is as it was a moment ago."""
        if self.unsure:
            self.unsure, self._sure = False, True
            self._next_recovery = 0.0

    def fileno(self) -> int:
        """Return the descriptor of the connection that waits; -1 while none does."""
        return self._wire.fileno() if self._asked else -1

    def close(self) -> None:
        """Read no more; what was read and has not begun a run is found again (`_recover`)."""
        self._wire.close()
        self._asked = False
        self._held.clear()
        self._next_own = 0.0

    def due(self, now: float) -> float:
        """Return in how many seconds there is something to do, as far as is known without new entries."""
        when = self._next_recovery
        if self._held or not self._asked:
            when = min(when, self._not_before)
        return max(0.0, when - now)

    def turn(self, own: Wire, now: float, server_ms: float) -> None:
        """Do what there is to do: begin runs, see to what others have left behind, ask for more.

        Args:
            own: a connection to the node that nothing is read from in between.
            now: monotonic seconds.
            server_ms: the server's time.

        Raises:
            KeysideError: the server is gone or refuses.
        """
        if now >= self._next_recovery:
            self._next_recovery = now + RECOVER_S
            self._recover(own, now, server_ms)
        if now < self._not_before:
            return
        while self._held and now >= self._not_before:
            self._fire(own, now)
        if not self._held and not self._asked:
            self._ask(own, now)

    def take(self) -> None:
        """Take what the read has brought; called once the connection has something to say.

        Raises:
            KeysideError: the server is gone or refuses.
        """
        reply = self._wire.poll(0.0)
        if reply is NOT_READY:
            return
        self._asked = False
        if isinstance(reply, hiredis.ReplyError):
            self._refused(str(reply))
            return
        if reply:
            entries = reply[0][1]
            self._pending += len(entries)
            self._held.extend((entry_id, fields) for entry_id, fields in entries if fields is not None)

    # --- reading

    def _ask(self, own: Wire, now: float) -> None:
        room = WINDOW - self._pending
        if room < WINDOW // 2 and now >= self._next_count:
            self._pending = self._count(own)
            self._next_count = now + LOOK_S
            room = WINDOW - self._pending
        if room < WINDOW // 4:
            self._not_before = now + LOOK_S
            return
        if not self._wire.connected:
            self._wire.connect()
        trigger = self.trigger
        self._wire.send((
            (
                b"XREADGROUP", b"GROUP", trigger.group, self._consumer, b"COUNT", min(room, BATCH),
                b"BLOCK", BLOCK_MS, b"STREAMS", trigger.source, b">",
            ),
        ))  # fmt: skip
        self._asked = True

    def _count(self, own: Wire) -> int:
        """Return how many entries are pending for this executor."""
        (reply,) = own.call_many(((b"XPENDING", self.trigger.source, self.trigger.group),))
        if isinstance(reply, hiredis.ReplyError) or not reply or not reply[3]:
            return 0
        return sum(int(count) for consumer, count in reply[3] if consumer == self._consumer)

    def _refused(self, text: str) -> None:
        """A read was refused; the next recovery makes the group, should that be what lacks."""
        self._not_before = 0.0
        self._next_recovery = 0.0
        if text.startswith("NOGROUP"):
            return
        self._say(text)
        self._next_recovery = self._not_before = time.monotonic() + RECOVER_S

    def _say(self, text: str) -> None:
        if text != self._said:
            self._said = text
            self._log.warning("stream of a trigger cannot be read", trigger=_text(self.trigger.name), error=text)

    # --- starting runs

    def _fire(self, own: Wire, now: float) -> None:
        part = [self._held.popleft() for _ in range(min(BATCH, len(self._held)))]
        shots = [
            Shot(self.trigger, entry_id, self.trigger.wants(of_entry(entry_id, fields))) for entry_id, fields in part
        ]
        try:
            answers = fire(own, self._consumer, shots)
        except KeysideError:
            self._held.extendleft(reversed(part))  # those that have begun are DOUBLE
            raise
        again, waits = [], []
        for entry, answer in zip(part, answers, strict=True):
            if not answer.settled:
                again.append(entry)
                waits.append(answer.wait_s)
            elif answer.status == "FAILED":
                self._say(answer.text)  # it stays pending, and is looked at again by and by
        self._held.extendleft(reversed(again))
        if waits:
            self._not_before = now + max(min(waits), 0.002)

    # --- what others, or an earlier connection, have left behind

    def _recover(self, own: Wire, now: float, server_ms: float) -> None:
        trigger = self.trigger
        (consumers,) = own.call_many(((b"XINFO", b"CONSUMERS", trigger.source, trigger.group),))
        if isinstance(consumers, hiredis.ReplyError):
            self._make_group(own, consumers)
            return
        self._said = ""
        self._sure = False
        found = [dict(zip(flat[::2], flat[1::2], strict=True)) for flat in consumers]
        others = [one for one in found if one[b"name"] != self._consumer and _OURS.fullmatch(one[b"name"])]
        alive = own.call_many([(b"EXISTS", self._node.executor(one[b"name"])) for one in others])
        dead = [one for one, there in zip(others, alive, strict=True) if there == 0]
        if now >= self._next_own:
            # What an earlier connection was given and never got, and what has begun a run that was lost.
            self._next_own = now + OWN_S
            self._adopt(own, self._consumer, 0, server_ms)
        for one in dead:
            if one[b"pending"]:
                self._adopt(own, one[b"name"], IDLE_MS, server_ms)
        if now >= self._next_tidying:
            self._next_tidying = now + TIDY_S
            for one in dead:
                if not one[b"pending"] and one[b"idle"] > GONE_MS:
                    own.call_many(((b"XGROUP", b"DELCONSUMER", trigger.source, trigger.group, one[b"name"]),))

    def _adopt(self, own: Wire, consumer: bytes, idle_ms: int, server_ms: float) -> None:
        """Take over entries of a consumer that have begun no run and that nobody has touched for `idle_ms`."""
        trigger = self.trigger
        fired = keys.fired(trigger.source, trigger.name)
        start = b"-"
        held = {entry_id for entry_id, _ in self._held}
        while WINDOW - len(self._held) > 0:
            listed = own.call(b"XPENDING", trigger.source, trigger.group, start, b"+", PAGE, consumer)
            if not listed:
                return
            ids = [bytes(one[0]) for one in listed]
            begun = own.call(b"HMGET", fired, *ids)
            left = [
                entry_id
                for entry_id, mark in zip(ids, begun, strict=True)
                if entry_id not in held and not _under_way(mark, server_ms)
            ][: WINDOW - len(self._held)]
            if left:
                claimed = own.call(b"XCLAIM", trigger.source, trigger.group, self._consumer, idle_ms, *left)
                self._held.extend((one[0], one[1]) for one in claimed if one and one[1] is not None)
                if consumer != self._consumer and claimed:
                    self._log.warning(
                        "entries of a stream taken over", trigger=_text(trigger.name), entries=len(claimed)
                    )
            start = b"(" + ids[-1]

    def _make_group(self, own: Wire, problem: Exception) -> None:
        """Make the group, and the stream where there is none: without that nobody could wait for its first entry."""
        text = str(problem)
        if text.startswith(("WRONGTYPE", "NOPERM")):
            self._say(text)
            return
        if text.startswith(("MOVED", "ASK", "TRYAGAIN", "CLUSTERDOWN")):
            raise TryAgain(text)
        if text.startswith(("LOADING", "MASTERDOWN", "READONLY")):
            raise Unreachable(text)
        if not self._sure:
            self.unsure = True  # a group that is made for a trigger of the past begins where that began
            return
        trigger = self.trigger
        (made,) = own.call_many(((b"XGROUP", b"CREATE", trigger.source, trigger.group, self._first(own), b"MKSTREAM"),))
        if isinstance(made, hiredis.ReplyError) and not str(made).startswith("BUSYGROUP"):
            self._say(str(made))
            return
        self._sure = False
        self._next_recovery = 0.0

    def _first(self, own: Wire) -> bytes:
        """Return the id after which a new group begins.

        `$` means what comes from the moment on in which the trigger was set, which was a little before now. A stream
        whose last entry is older than that, or that is not there, has none of these.
        """
        trigger = self.trigger
        if trigger.start != b"$" or not trigger.created:
            return trigger.start
        (about,) = own.call_many(((b"XINFO", b"STREAM", trigger.source),))
        if isinstance(about, hiredis.ReplyError):
            return b"0" if "no such key" in str(about) else b"$"
        last = bytes(dict(zip(about[::2], about[1::2], strict=True)).get(b"last-generated-id", b"0-0"))
        if int(last.partition(b"-")[0]) < trigger.created:
            return last  # not $: another may have come since
        return b"%d-%d" % (trigger.created - 1, 2**64 - 1)  # those of the same millisecond count

    def leave(self, own: Wire) -> None:
        """Take this executor's name out of the group, if nothing is pending for it."""
        trigger = self.trigger
        self.close()
        try:
            if self._count(own) == 0:
                own.call_many(((b"XGROUP", b"DELCONSUMER", trigger.source, trigger.group, self._consumer),))
        except KeysideError:
            return


def _under_way(mark: bytes | None, server_ms: float) -> bool:
    """Whether the run that an entry has begun may not have ended yet; `mark`: `job deadline`."""
    try:
        return mark is not None and float(mark.rpartition(b" ")[2]) + LATE_MS > server_ms
    except ValueError:
        return False


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
