"""Jobs that do not come from the claim under way: left behind by others, brought back, or of another tag's queue."""

import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from keyside.executor.intake import Intake
from keyside.executor.lane import Lane
from keyside.executor.protocol import Job, Ref, device_of
from keyside.executor.wire import Wire, checked
from keyside.tensorstore.errors import Unreachable

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Takeover"]


class Takeover:
    """Takes such jobs in, on the threads that bring them; all of them run in the lanes.

    Args:
        worker: whose jobs they become.
        lanes: by device queue.
    """

    def __init__(self, worker: "Worker", intake: Intake, lanes: Mapping[str, Lane]) -> None:
        self._worker = worker
        self._intake = intake
        self._lanes = lanes
        self._adopted: dict[str, Ref] = {}

    def recovering(self, queue: str) -> bool:
        """Whether a job of a queue that was taken over has not ended yet."""
        adopted = self._adopted.get(queue)
        return adopted is not None and adopted in self._worker.held

    def ended(self) -> None:
        """Look for the next job to take over if the last one of a queue that was has ended."""
        for queue, adopted in list(self._adopted.items()):
            if adopted not in self._worker.held:
                self._adopted.pop(queue, None)  # lanes and the watchdog may come here at once
                self._worker.watchdog.kick()

    def adopt(self, wire: Wire, queue: str, entry_id: bytes, fields: Any, deliveries: int) -> None:
        """Run a job that another executor has left behind; alone, unless that one gave it back."""
        job = self._intake.parse(wire, queue, entry_id, fields)
        if job is None:
            return
        self._worker.log.warning("job taken over", queue=queue, id=entry_id.decode(), delivery=deliveries)
        job.alone = deliveries > 1
        if job.alone:
            self._adopted[queue] = job.ref
        try:
            self._go_on(wire, job)
        except Unreachable:
            self._adopted.pop(queue, None)
            raise

    def again(self, wire: Wire, old: Job) -> None:
        """Run a job once more whose keys seemed to have moved and are here."""
        found = checked(wire.call(b"XRANGE", self._worker.node.queue(old.queue), old.id, old.id))
        job = self._intake.parse(wire, old.queue, *found[0]) if found else None
        if job is None:
            self._worker.held.pop(old.ref, None)
            return
        job.alone = old.alone
        self._go_on(wire, job)

    def _go_on(self, wire: Wire, job: Job) -> None:
        job.claimed = time.monotonic()
        self._worker.held[job.ref] = job
        if job.op == b"load":
            self._intake.load(job)
            return
        try:
            self._intake.fetch(wire, (job,))
        except Unreachable:
            self._worker.held.pop(job.ref, None)  # it is taken over again once its lease has ended
            raise
        model = self._intake.ready(job)
        if model is not None:
            self._lanes[job.device].put([(model, job)])

    def take_in(self, wire: Wire, queue: str, entries: Sequence[Any]) -> None:
        """Go on with what was claimed on another thread: all of it runs in the lane."""
        now = time.monotonic()
        jobs: list[Job] = []
        for entry_id, fields in entries:
            job = self._intake.parse(wire, queue, entry_id, fields)
            if job is None:
                continue
            job.claimed = now
            self._worker.held[job.ref] = job
            if job.op == b"load":
                self._intake.load(job)
            else:
                jobs.append(job)
        try:
            self._intake.fetch(wire, jobs)
        except Unreachable:
            for job in jobs:
                self._worker.held.pop(job.ref, None)
            raise
        self._lanes[device_of(queue)].put(self._intake.ready_all(jobs, self._worker.watchdog.now_ms()))
