"""Ends jobs: replies and outputs to the server, through lost connections and a lost function library."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

import hiredis
import structlog

from keyside.executor.metrics import Metrics
from keyside.executor.protocol import Finished, Job, Ref, complete, entry_order
from keyside.executor.runner import Ran
from keyside.executor.wire import Wire, as_error
from keyside.tensorstore.errors import KeysideError, LibraryMissing, Unreachable

__all__ = ["Delivery", "Parcel", "Post"]


_ELSEWHERE = ord("5")

# What a server says that cannot take a write now; from a function it may stand behind an ERR.
NOT_NOW = frozenset(("READONLY", "LOADING", "MASTERDOWN", "CLUSTERDOWN", "BUSY", "NOREPLICAS", "MISCONF"))


class Parcel:
    """Commands that end jobs, until the server has answered them.

    Sending them twice does no harm: the second time the entries are no longer pending, and nothing is written.
    """

    __slots__ = ("commands", "ended", "queue", "ran")

    def __init__(self, queue: str, commands: list[list[Any]], ended: Sequence[Finished], ran: Ran | None) -> None:
        self.queue = queue
        self.commands = commands
        self.ended = ended
        self.ran = ran


class Delivery:
    """Makes parcels and sees them through.

    Args:
        consumer: this executor in the job streams.
        held: the jobs that it holds; those that have ended are taken out.
        install: loads the function library again.
        gave_up: whether to stop trying.
        moved: takes the jobs whose outputs belong to another node now: they have not ended.
        relay: takes a reply whose ticket is on another node: name, reply and deadline.

    Attributes:
        muted: while the node is a replica: what could not be written is dropped, since others run those jobs.
    """

    def __init__(
        self,
        consumer: bytes,
        held: dict[Ref, Job],
        metrics: Metrics,
        install: Callable[[Wire], None],
        gave_up: threading.Event,
        moved: Callable[[Job], None],
        relay: Callable[[bytes, bytes, int], None],
    ) -> None:
        self.muted = False
        self._moved = moved
        self._relay = relay
        self._consumer = consumer
        self._held = held
        self._metrics = metrics
        self._install = install
        self._gave_up = gave_up
        self._log = structlog.get_logger()

    def ran(self, ran: Ran) -> Parcel:
        """Pack the jobs of a batch; they are of one queue."""
        queue = ran.ended[0].job.queue
        commands = complete(
            queue,
            self._consumer,
            len(self._held) + 16,
            ran.model.id,
            int(ran.seconds * 1e6),
            ran.samples,
            ran.ended,
        )
        return Parcel(queue, commands, ran.ended, ran)

    def failed(self, ended: Sequence[Finished]) -> list[Parcel]:
        """Pack jobs that did not run, those of each queue together."""
        queues: dict[str, list[Finished]] = {}
        for one in ended:
            queues.setdefault(one.job.queue, []).append(one)
        return [
            Parcel(queue, complete(queue, self._consumer, len(self._held) + 16, b"", 0, 0, ended), ended, None)
            for queue, ended in queues.items()
        ]

    def send(self, wire: Wire, parcel: Parcel) -> None:
        """Deliver a parcel, connecting again and loading the library again where that is needed.

        Raises:
            KeysideError: the executor was told to stop before it could be delivered.
        """
        pause = 0.05
        while not self.muted:
            try:
                if not wire.connected:
                    wire.connect()
                if self.settle(parcel, wire.call_many(parcel.commands)):
                    return
                self._install(wire)
            except KeysideError:  # the server is gone, or has no room for the library
                if self._gave_up.wait(pause):
                    raise
                pause = min(pause * 2, 2.0)
        self._forget(parcel)

    def settle(self, parcel: Parcel, replies: Sequence[Any]) -> bool:
        """Take the replies to a parcel; False if it has to be sent again once the library is there.

        Raises:
            Unreachable: the server cannot take it now.
        """
        status = replies[-1]
        if isinstance(status, hiredis.ReplyError):
            error = as_error(status)
            if isinstance(error, LibraryMissing):
                return False
            if NOT_NOW & set(str(status).split()[:2]):
                raise Unreachable(str(status))
            self._log.error("completion refused", error=str(error), jobs=len(parcel.ended))
            self._forget(parcel)
            return True
        if type(status) is list or status.count(b"1") != len(parcel.ended):
            self._look_closer(parcel, status)
        self._count(parcel)
        self._forget(parcel)
        return True

    def _forget(self, parcel: Parcel) -> None:
        for ended in parcel.ended:
            self._held.pop(ended.job.ref, None)

    def _look_closer(self, parcel: Parcel, reply: Any) -> None:
        """Some jobs did not end as they should."""
        status, *relays = reply if type(reply) is list else (reply,)
        status = bytes(status)
        if lost := status.count(b"0"):
            self._log.warning("jobs were taken over or cancelled meanwhile", queue=parcel.queue, jobs=lost)
            self._metrics.event("jobs_lost", lost)
        # As KS_COMPLETE got them (protocol.complete).
        ended = sorted(parcel.ended, key=lambda one: entry_order(one.job.id))
        for number, ticket, text in zip(relays[::3], relays[1::3], relays[2::3], strict=True):
            self._relay(bytes(ticket), bytes(text), ended[number - 1].job.deadline)
        if b"5" not in status:
            return
        there = []
        for one, digit in zip(ended, status, strict=True):
            if digit == _ELSEWHERE:
                self._moved(one.job)
            else:
                there.append(one)
        parcel.ended = there

    def _count(self, parcel: Parcel) -> None:
        ran = parcel.ran
        if ran is not None:
            self._metrics.observe_batch(
                ran.model.key, str(ran.model.version), len(ran.ended), ran.samples, ran.queued * 1e6, ran.seconds * 1e6,
                sum(ended.error is not None for ended in ran.ended),
            )  # fmt: skip
            return
        for ended in parcel.ended:
            code = "ERR" if ended.error is None else ended.error.code
            self._metrics.observe_failure(ended.job.key.decode(errors="replace"), str(ended.job.version), code)


class Post:
    """Parcels on a connection of their own: sent at once, what the server says to them read later.

    So the next batch runs while the server ends the jobs of the last one. For one thread.
    """

    def __init__(self, delivery: Delivery, wire: Wire) -> None:
        self._delivery = delivery
        self._wire = wire
        self._sent: list[Parcel] = []

    def put(self, parcel: Parcel) -> None:
        """Send a parcel.

        Raises:
            KeysideError: the executor was told to stop before it could be delivered.
        """
        self.settle()
        try:
            if not self._wire.connected:
                self._wire.connect()
            self._wire.send(parcel.commands)
        except Unreachable:
            self._delivery.send(self._wire, parcel)
        else:
            self._sent.append(parcel)

    def settle(self) -> None:
        """See through what was sent; afterwards its jobs have ended.

        Raises:
            KeysideError: the executor was told to stop before it could be delivered.
        """
        while self._sent:
            parcel = self._sent.pop(0)
            try:
                done = self._delivery.settle(parcel, [self._wire.read() for _ in parcel.commands])
            except Unreachable:
                done = False
            if not done:
                self._delivery.send(self._wire, parcel)
