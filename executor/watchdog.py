"""The executor's second pair of eyes, on a thread and a connection of its own.

While a model runs, it keeps the leases, answers TIMEDOUT at the deadline, takes over the jobs of dead executors, and
keeps the function library in place.
"""

import heapq
import json
import os
import socket
import threading
import time
from typing import TYPE_CHECKING, Any

from keyside import __version__
from keyside.executor.abandon import Abandoner
from keyside.executor.backends import base
from keyside.executor.protocol import GROUP, BadEntry, entry_order, parse_entry
from keyside.executor.wire import Wire, checked
from keyside.tensorstore.errors import KeysideError, LibraryMissing, TryAgain, Unreachable

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Watchdog"]

TICK_S = 0.05
DRIFT_MS = 0.5
"""By how much two clocks may part in a second."""
PEEK = 100
PEEKED_MAX = 10_000
READY_MAX = 256
"""Loaded models that a heartbeat lists."""
RECOVERED_MOST = 32


class Watchdog(threading.Thread):
    """Looks after one worker until it is stopped.

    Args:
        worker: it looks after.
        abandoner: ends what takes too long.
    """

    def __init__(self, worker: "Worker", abandoner: Abandoner) -> None:
        super().__init__(name="watchdog", daemon=True)
        self._worker = worker
        self._abandoner = abandoner
        self._settings = worker.settings
        self._wire = worker.new_wire("watchdog")
        self._over = threading.Event()
        self._kick = threading.Event()
        self._next_beat = 0.0
        self._next_lease = 0.0
        self._next_recovery = 0.0
        self._clock: tuple[float, float] | None = None  # server ms - own monotonic ms, and when that was found
        self._peeked: dict[str, list[tuple[int, bytes]]] = {}
        self._peeked_to: dict[str, bytes] = {}
        self.last_beat = 0.0
        self.shared: set[str] = set()  # queues that other executors serve as well

    def now_ms(self) -> float:
        """Return the server's time in ms, a little behind and never ahead of it; 0 before the first heartbeat."""
        return time.monotonic() * 1000 + self._clock[0] if self._clock else 0.0

    def _set_clock(self, server_ms: int, before: float, after: float) -> None:
        """Learn the server's time from a call that began and ended at these moments.

        What is due here must be due there, so of what is possible the least is taken; the quickest reply tells most.
        """
        least, most = server_ms - after * 1000, server_ms + 1 - before * 1000
        if self._clock:
            offset, found = self._clock
            if offset <= most:  # else the server's clock was set back
                least = max(least, offset - (after - found) * DRIFT_MS)
        self._clock = (least, after)

    def kick(self) -> None:
        """Look for jobs to take over now: the last one taken over has ended."""
        self._next_recovery = 0.0
        self._kick.set()

    def beat_soon(self) -> None:
        """Let others know now what is new about this executor."""
        self._next_beat = 0.0
        self._kick.set()

    def stop(self) -> None:
        """End the thread."""
        self._over.set()
        self._kick.set()

    def run(self) -> None:
        """Tick until stopped."""
        log = self._worker.log
        while not self._over.is_set():
            if self._worker.standby:
                self._wire.close()
                self._over.wait(TICK_S)
                continue
            try:
                if not self._wire.connected:
                    self._wire.connect()
                self._tick(time.monotonic())
            except LibraryMissing:
                self._restore_library()
            except Unreachable as error:
                log.warning("server unreachable", error=str(error))
                self._over.wait(0.5)
            except TryAgain as error:
                log.warning("slots are on the move", error=str(error))
                self._worker.station.suspect(self._wire)
                self._over.wait(0.5)
            except KeysideError as error:
                if not self._worker.standby:
                    log.error("watchdog", error=str(error))
                self._over.wait(0.5)
            self._kick.wait(self._pause())
            self._kick.clear()
        self._wire.close()

    def beat(self, wire: Wire) -> bytes:
        """Show that this executor is alive; makes its streams and groups where they lack, and returns the node tag.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        settings = self._settings
        before = time.monotonic()
        reply = wire.call(
            b"FCALL", b"KS_BEAT", 0, self._worker.consumer, json.dumps(self._describe()),
            max(5 * settings.beat_ms, 2000), *settings.devices,
        )  # fmt: skip
        after = time.monotonic()
        self._set_clock(int(reply[0]), before, after)
        self.last_beat = after
        self._worker.serves = True
        self._worker.claims.use([bytes(word).decode() for word in reply[3]] if len(reply) > 3 else ())
        self._worker.seals.told(wire, bytes(reply[2]).decode() if len(reply) > 2 else "")
        return bytes(reply[1])

    def _look_for_others(self) -> None:
        queues = self._worker.queues
        streams = [self._worker.node.queue(queue) for queue in queues]
        replies = self._wire.call_many([(b"XINFO", b"CONSUMERS", stream, GROUP) for stream in streams])
        self.shared = {
            queue for queue, found in zip(queues, replies, strict=True) if isinstance(found, list) and len(found) > 1
        }

    def _describe(self) -> dict[str, Any]:
        worker = self._worker
        stats = worker.cache.stats()
        me = worker.chart.now.me
        return {
            "name": self._settings.name,
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "devices": list(self._settings.devices),
            "backends": list(base.names()),
            "keyside": __version__,
            "started": worker.started,
            "held": len(worker.held),
            "models": stats.models,
            "ready": worker.cache.latest(READY_MAX),
            "node": f"{me.host or worker.wire.host or '127.0.0.1'}:{me.port}" if me else "",
            "local": worker.wire.beside,
            "memory": stats.nbytes,
            "budget": self._settings.memory_budget,
            "lease_ms": self._settings.lease_ms,
        }

    def _pause(self) -> float:
        nearest = TICK_S
        now = self.now_ms()
        if now:
            for job in list(self._worker.held.values()):
                if job.deadline:
                    nearest = min(nearest, (job.deadline - now) / 1000)
        return max(nearest, 0.002)

    def _tick(self, now: float) -> None:
        worker = self._worker
        self._abandoner.look(self._wire, now)
        if now >= self._next_beat:
            self._next_beat = now + self._settings.beat_ms / 1000  # unless it is to be sooner
            tag = self.beat(self._wire)
            worker.station.sound()
            self._look_for_others()
            if tag != worker.node.tag:
                worker.station.moved(tag)
        if worker.claiming and (worker.stopping.is_set() or worker.station.moving or worker.has_room()):
            self._wire.call(b"CLIENT", b"UNBLOCK", worker.wire.client_id)
        if now >= self._next_lease:
            self._extend(now)
            self._next_lease = now + self._settings.lease_ms / 4000
        if now >= self._next_recovery and not worker.stopping.is_set():
            self._recover()
            # As often as it beats: an executor that leaves gives back what it has not ended, and tells nobody.
            self._next_recovery = now + min(self._settings.lease_ms / 2000, self._settings.beat_ms / 1000)
        self._expire()

    def _call(self, queue: str, *command: Any) -> Any:
        """Call a function on a queue; None if the queue was that of another tag and has left this node again."""
        try:
            return self._wire.call(*command)
        except TryAgain:
            if "@" not in queue:
                raise
            return None

    def _extend(self, now: float) -> None:
        young = now - self._settings.lease_ms / 4000
        by_queue: dict[str, list[bytes]] = {}
        for job in list(self._worker.held.values()):
            if job.claimed <= young:
                by_queue.setdefault(job.queue, []).append(job.id)
        for queue, ids in by_queue.items():
            for start in range(0, len(ids), 500):
                part = ids[start : start + 500]
                kept = self._call(queue, b"FCALL", b"KS_EXTEND", 0, queue, self._worker.consumer, *part) or ()
                lost = set(part) - set(kept)
                if lost:
                    # Cancelled, expired or taken over. A run under way ends for nothing; what waits need not begin.
                    self._worker.forget({(queue, entry_id) for entry_id in lost})

    def _expire(self) -> None:
        now = self.now_ms()
        due: dict[str, list[bytes]] = {}
        for job in list(self._worker.held.values()):
            if job.deadline and job.deadline <= now:
                due.setdefault(job.queue, []).append(job.id)
        for queue in self._worker.queues:
            self._peek(queue)
            heap = self._peeked.get(queue, [])
            while heap and heap[0][0] <= now:
                due.setdefault(queue, []).append(heapq.heappop(heap)[1])
        for queue, ids in due.items():
            gone = set(ids)
            answered = self._call(queue, b"FCALL", b"KS_EXPIRE", 0, queue, *ids)
            if answered is not None and answered < len(ids):
                # Some had ended otherwise, or the server's clock was set back: what is still there is looked at again.
                gone -= set(self._call(queue, b"FCALL", b"KS_EXTEND", 0, queue, self._worker.consumer, *ids) or ())
                self._unpeek(queue)
            self._worker.forget({(queue, entry_id) for entry_id in gone})

    def _unpeek(self, queue: str) -> None:
        self._peeked.pop(queue, None)
        self._peeked_to.pop(queue, None)

    def _peek(self, queue: str) -> None:
        """Learn the deadlines of jobs that nobody has claimed yet, when this executor is too busy to claim them."""
        if not self._worker.busy(queue):
            self._unpeek(queue)
            return
        stream = self._worker.node.queue(queue)
        (groups,) = self._wire.call_many(((b"XINFO", b"GROUPS", stream),))
        if not isinstance(groups, list) and "@" in queue:
            return  # it has been drained, or has gone again
        checked(groups)
        delivered = next(
            (dict(zip(g[::2], g[1::2], strict=True))[b"last-delivered-id"] for g in groups if g[1] == GROUP),
            None,
        )
        if delivered is None:
            return
        start = max(delivered, self._peeked_to.get(queue, b"0-0"), key=entry_order)
        heap = self._peeked.setdefault(queue, [])
        if len(heap) >= PEEKED_MAX:
            return
        for entry_id, fields in checked(self._wire.call(b"XRANGE", stream, b"(" + start, b"+", b"COUNT", PEEK)):
            self._peeked_to[queue] = entry_id
            try:
                job = parse_entry(queue, entry_id, fields)
            except BadEntry:
                continue
            if job.deadline:
                heapq.heappush(heap, (job.deadline, entry_id))

    def _recover(self) -> None:
        worker = self._worker
        for queue in worker.queues:
            for _ in range(RECOVERED_MOST):
                if not self._recover_one(queue):
                    break

    def _recover_one(self, queue: str) -> bool:
        """Take over one job, if there is one; return whether to look for more at once."""
        worker = self._worker
        # One at a time: should it kill us, the others are not counted as delivered once more. What was given back has
        # killed nobody.
        alone = worker.takeover.recovering(queue)
        if alone and not worker.room_for(queue):
            return False
        found = self._call(
            queue,
            b"FCALL", b"KS_RECOVER", 0, queue, worker.consumer, self._settings.lease_ms, self._settings.max_deliveries,
            *((b"BACK",) if alone else ()),
        )  # fmt: skip
        if not found:
            return False
        deliveries, (entry_id, fields) = found
        worker.takeover.adopt(self._wire, queue, entry_id, fields, int(deliveries))
        return worker.room_for(queue)

    def _restore_library(self) -> None:
        try:
            self._worker.seals.install(self._wire)
            self._worker.log.warning("function library was gone, loaded again")
        except KeysideError as error:
            self._worker.log.error("function library cannot be loaded", error=str(error))
            self._over.wait(0.5)
