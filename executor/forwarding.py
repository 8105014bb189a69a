"""Jobs whose keys have moved to another node, and replies whose tickets have: brought there.

A job was captured on this node, and then the slot of its keys was moved. Its entry stays here, held, while it is handed
on: first it is queued on the owner of the slot (KS_FORWARD takes each origin once, however often it is tried), then
dropped here.
"""

import heapq
import itertools
import threading
import time
from typing import TYPE_CHECKING

import hiredis

from keyside.executor.peers import moved_to, on_the_move
from keyside.executor.protocol import Job, device_of
from keyside.executor.wire import Wire, checked
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Forwarder", "keys_of", "origin_of"]

FIRST_S = 0.02
LONGEST_S = 0.5
TRIES = 5
GRACE_MS = 10_000
"""How long a reply outlives its job's deadline (docs/protocol.md section 5)."""


class Forwarder(threading.Thread):
    """Hands jobs and replies on, on a thread of its own that sleeps as long as there are none.

    What cannot be brought to an end now, since the slot is still on its way or a node is away, is tried again until its
    deadline.
    """

    def __init__(self, worker: "Worker") -> None:
        super().__init__(name="forwarder", daemon=True)
        self._worker = worker
        self._peers = worker.new_peers("forward")
        self._lock = threading.Condition()
        self._due: list[tuple[float, int, float, Job | tuple[bytes, bytes, int]]] = []
        self._numbers = itertools.count()
        self._over = False

    def moved(self, job: Job) -> None:
        """Take a job of this executor whose keys are not here."""
        job.let_go()
        self._put(job, FIRST_S)

    def relay(self, ticket: bytes, reply: bytes, deadline: int) -> None:
        """Take a reply whose ticket is on another node."""
        self._put((ticket, reply, deadline), 0.0)

    def _put(self, what: Job | tuple[bytes, bytes, int], pause: float) -> None:
        with self._lock:
            heapq.heappush(self._due, (time.monotonic() + pause, next(self._numbers), pause, what))
            self._lock.notify()

    @property
    def waiting(self) -> int:
        """How many jobs and replies have not been brought on."""
        return len(self._due)

    def stop(self) -> None:
        """End the thread; jobs that are left are taken over by others once their leases end."""
        with self._lock:
            self._over = True
            self._lock.notify()

    def run(self) -> None:
        """Hand on until stopped."""
        while True:
            with self._lock:
                while not self._over and (not self._due or self._due[0][0] > time.monotonic()):
                    self._lock.wait(self._due[0][0] - time.monotonic() if self._due else None)
                if self._over:
                    break
                _, _, pause, what = heapq.heappop(self._due)
            try:
                done = self._job(what) if isinstance(what, Job) else self._reply(*what)
            except (TryAgain, Unreachable):
                done = False
            except KeysideError as error:
                self._worker.log.error("not forwarded", error=str(error))
                if isinstance(what, Job):
                    self._worker.forget({what.ref})  # whoever takes it over tries again
                done = True
            except Exception:
                self._worker.log.exception("not forwarded")
                done = True
            if not done:
                self._put(what, min(max(pause, FIRST_S) * 2, LONGEST_S))
        self._peers.close()

    def _reply(self, ticket: bytes, reply: bytes, deadline: int) -> bool:
        now = self._worker.watchdog.now_ms()
        if now > deadline + GRACE_MS:
            return True
        length = self._peers.call(ticket, b"RPUSH", ticket, reply)
        # Other replies may wait on the same list: none of them goes before its time.
        last = () if length == 1 else (b"GT",)
        for _ in range(TRIES):  # of this alone: a reply is not to be pushed twice
            try:
                self._peers.call(ticket, b"PEXPIREAT", ticket, deadline + GRACE_MS, *last)
                break
            except (TryAgain, Unreachable):
                time.sleep(FIRST_S)
        return True

    def _job(self, job: Job) -> bool:
        worker = self._worker
        if worker.held.get(job.ref) is not job or worker.standby:
            return True  # answered, cancelled, or taken over
        wire = self._peers.own()
        key = self._where(wire, job)
        if key is None:
            return False
        if not key:
            worker.takeover.again(wire, job)
            return True
        stream = worker.node.queue(job.queue)
        found = checked(wire.call(b"XRANGE", stream, job.id, job.id))
        if found:
            queue = job.queue.partition("@")[0]
            origin = origin_of(worker.node, job)
            ticket = _server_ticket(worker.node, job)
            self._peers.call(key, b"FCALL", b"KS_FORWARD", 1, key, queue, origin, job.deadline, ticket, *found[0][1])
            checked(wire.call(b"FCALL", b"KS_DROP", 0, job.queue, worker.consumer, job.id))
            worker.log.info("job forwarded: its keys have moved", id=origin, device=device_of(job.queue))
            worker.metrics.event("jobs_forwarded", 1)
        worker.forget({job.ref})
        return True

    def _where(self, wire: Wire, job: Job) -> bytes | None:
        """Return a key of the job that is on another node; an empty one if they are here; None while they move."""
        names = keys_of(job)
        replies = wire.call_many([(b"EXISTS", name) for name in names])
        for name, reply in zip(names, replies, strict=True):
            redirected = moved_to(reply)
            if redirected is not None and redirected[0] == "MOVED":
                return name
        for reply in replies:
            if on_the_move(reply):
                return None
            if isinstance(reply, hiredis.ReplyError):
                checked(reply)
        return b""


def keys_of(job: Job) -> list[bytes]:
    """Return the keys that decide where a job belongs: of a load, the model."""
    if job.op == b"load":
        return [job.key]
    return [source[0] for source in job.inputs if type(source) is tuple] + job.outputs


def origin_of(node: keys.NodeKeys, job: Job) -> str:
    """Return what a job is called on other nodes: tag, queue and entry."""
    queue, _, tag = job.queue.partition("@")
    return f"{tag or node.tag.decode()}/{queue}/{job.id.decode()}"


def _server_ticket(node: keys.NodeKeys, job: Job) -> bytes:
    """Return the ticket that the server chose for a job, where the caller has named none."""
    queue, _, tag = job.queue.partition("@")
    names = keys.NodeKeys(tag.encode()) if tag else node
    return names.ticket(f"{queue}/{job.id.decode()}")
