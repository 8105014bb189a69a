"""One device's runs: a thread that runs batches while the worker claims and transfers the next ones."""

import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from keyside.executor.batching import Batcher
from keyside.executor.delivery import Parcel, Post
from keyside.executor.model import Model
from keyside.executor.protocol import Finished, Job, Ref
from keyside.executor.runner import Runner
from keyside.tensorstore.errors import KeysideError

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Lane"]

SOON_S = 0.02
"""A run shorter than this may begin before the server has confirmed the end of the last one."""
HOLD_S = 0.05
"""How much work, in seconds, may wait here: the more, the less is left for other executors."""


class Lane(threading.Thread):
    """The runs of one device queue that are too long for the worker's own thread.

    Args:
        worker: that claims for it and ends its jobs.
        device: the queue.
    """

    def __init__(self, worker: "Worker", device: str, runner: Runner) -> None:
        super().__init__(name=f"lane-{device}", daemon=True)
        self.device = device
        self.running: list[Job] = []
        self._worker = worker
        self._runner = runner
        self._batcher = Batcher()
        self._ended: list[Finished] = []
        self._lock = threading.Condition()
        self._cost = 0.005  # seconds of one job, smoothed: what a claim of many would hold back from others
        self._stopping = False

    def room(self, claim: int) -> int:
        """Return how many jobs to claim for this device now."""
        return min(claim, max(2, int(HOLD_S / self._cost))) - self._batcher.size

    def put(self, jobs: Sequence[tuple[Model, Job]]) -> None:
        """Queue jobs that `model.prepare` has seen, together: those that came together may run together."""
        if not jobs:
            return
        with self._lock:
            for model, job in jobs:
                self._batcher.add(model, job)
            self._lock.notify()

    def holds(self, model: Model) -> bool:
        """Whether jobs of a model wait or run here."""
        with self._lock:
            return self._batcher.holds(model) or bool(self.running and self.running[0].model == model.id)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs here; may be asked without the lock by the only thread that puts jobs here."""
        return bool(self._batcher.size or self.running)

    def end(self, finished: Finished) -> None:
        """Queue the end of a job that does not run."""
        with self._lock:
            self._ended.append(finished)
            self._lock.notify()

    def drop(self, gone: set[Ref]) -> None:
        """Forget queued jobs that have been answered otherwise."""
        with self._lock:
            self._batcher.drop(gone)

    def note_cost(self, seconds: float, jobs: int) -> None:
        """Take note of what a run has cost."""
        self._cost += 0.3 * (max(seconds / jobs, 1e-6) - self._cost)

    def stop(self) -> None:
        """End the thread once nothing waits any more."""
        with self._lock:
            self._stopping = True
            self._lock.notify()

    def run(self) -> None:
        """Run batches until stopped."""
        wire = self._worker.new_wire(f"lane-{self.device}")
        post = self._worker.new_post(wire)
        try:
            while (work := self._next(post)) is not None:
                ended, batch = work
                for parcel in self._worker.pack_failed(ended):
                    self._deliver(post, parcel)
                if batch is not None:
                    self._run_batch(post, *batch)
        finally:
            wire.close()

    def _next(self, post: Post) -> tuple[list[Finished], tuple[Model, list[Job]] | None] | None:
        while True:
            with self._lock:
                work = self._take()
            if work is not None:
                return work
            self._settle(post)  # nothing to do meanwhile
            with self._lock:
                work = self._take()
                if work is not None:
                    return work
                if self._stopping and not self._batcher.size:
                    return None
                self._lock.wait(self._batcher.wait(time.monotonic()))

    def _take(self) -> tuple[list[Finished], tuple[Model, list[Job]] | None] | None:
        batch = self._batcher.take(time.monotonic())
        if batch is None and not self._ended:
            return None
        ended, self._ended = self._ended, []
        self.running = [] if batch is None else batch[1]
        return ended, batch

    def _run_batch(self, post: Post, model: Model, batch: list[Job]) -> None:
        self._worker.wake_claim()
        if not 0.0 < model.run_s < SOON_S:
            self._settle(post)  # callers of the last batch must not wait for this one if the connection is dead
        ran = self._runner.run(model, batch)
        self.note_cost(ran.seconds, len(batch))
        self._deliver(post, self._worker.pack_ran(ran))
        self.running = []
        self._worker.wake_claim()

    def _deliver(self, post: Post, parcel: Parcel) -> None:
        try:
            post.put(parcel)
        except KeysideError as error:
            self._worker.log.error("not delivered", device=self.device, jobs=len(parcel.ended), error=str(error))
        self._worker.takeover.ended()

    def _settle(self, post: Post) -> None:
        try:
            post.settle()
        except KeysideError as error:
            self._worker.log.error("not delivered", device=self.device, error=str(error))
        self._worker.takeover.ended()
