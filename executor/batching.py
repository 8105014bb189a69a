"""Which jobs run next, and together. Pure: jobs and the time go in, batches come out."""

from collections import OrderedDict, deque
from typing import Any

from keyside.executor.model import Model
from keyside.executor.protocol import Job

__all__ = ["Batcher"]


class Batcher:
    """Jobs that wait for their turn, in groups that may be stacked.

    The group whose oldest job has waited longest goes first. What has gathered goes at once, up to the model's
    BATCHSIZE; only a model with MINBATCHSIZE waits for more, and never longer than its MINBATCHTIMEOUT.
    """

    def __init__(self) -> None:
        self._groups: OrderedDict[Any, tuple[Model, deque[Job]]] = OrderedDict()
        self.size = 0

    def add(self, model: Model, job: Job) -> None:
        """Let a job wait; `model.prepare` has seen it."""
        key = job.group or job.id
        group = self._groups.get(key)
        if group is None:
            self._groups[key] = (model, deque((job,)))
        else:
            group[1].append(job)
        self.size += 1

    def take(self, now: float) -> tuple[Model, list[Job]] | None:
        """Return the next batch, or None if there is nothing that should run yet.

        Args:
            now: monotonic seconds.
        """
        for key, (model, waiting) in self._groups.items():
            if model.min_rows and not self._due(model, waiting, now):
                continue
            batch = [waiting.popleft()]
            rows = batch[0].rows
            while waiting and rows + waiting[0].rows <= model.max_rows:
                rows += waiting[0].rows
                batch.append(waiting.popleft())
            if waiting:
                self._groups.move_to_end(key)
            else:
                del self._groups[key]
            self.size -= len(batch)
            return model, batch
        return None

    def wait(self, now: float) -> float | None:
        """Return the seconds until `take` has something because of the time alone; None if nothing waits."""
        left = [model.min_wait - (now - waiting[0].claimed) for model, waiting in self._groups.values()]
        return max(0.0, min(left)) if left else None

    def drop(self, gone: set[bytes]) -> int:
        """Forget jobs that have been answered otherwise, by their ids; return how many."""
        dropped = 0
        for key, (_, waiting) in list(self._groups.items()):
            kept = deque(job for job in waiting if job.id not in gone)
            if len(kept) == len(waiting):
                continue
            dropped += len(waiting) - len(kept)
            waiting.clear()
            waiting.extend(kept)
            if not waiting:
                del self._groups[key]
        self.size -= dropped
        return dropped

    @staticmethod
    def _due(model: Model, waiting: deque[Job], now: float) -> bool:
        # A job that cannot be stacked has nothing to wait for.
        if waiting[0].group is None or now - waiting[0].claimed >= model.min_wait:
            return True
        return sum(job.rows for job in waiting) >= model.min_rows
