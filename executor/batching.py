"""Which jobs run next, and together. Pure: jobs and the time go in, batches come out."""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from keyside.executor.model import Model
from keyside.executor.protocol import Job, Ref, rank_of

__all__ = ["Batcher", "batches"]

LATER_S = (0.0, 0.05, 0.2)
"""By rank: a job runs as if it had been claimed so much later: what is urgent goes first, nothing waits for ever."""


def batches(jobs: Sequence[tuple[Model, Job]]) -> Iterator[tuple[Model, list[Job]]]:
    """Yield jobs that wait for nothing, those that may be stacked together, in the order of the oldest of each batch.

    Args:
        jobs: those of models without MINBATCHSIZE; `model.prepare` has seen them.
    """
    if len(jobs) == 1:
        model, job = jobs[0]
        yield model, [job]
        return
    groups: dict[Any, tuple[Model, list[Job]]] = {}
    for model, job in jobs:
        key = _group(job)
        group = groups.get(key)
        if group is None:
            groups[key] = (model, [job])
        else:
            group[1].append(job)
    for model, together in groups.values():
        start, rows = 0, 0
        for n, job in enumerate(together):
            if rows and rows + job.rows > model.max_rows:
                yield model, together[start:n]
                start, rows = n, 0
            rows += job.rows
        yield model, together[start:] if start else together


def _group(job: Job) -> Any:
    """Return what jobs have in common that may run together: they end together, so they are of one queue."""
    group = job.group
    if group is None:
        return job.ref
    return group if job.queue == job.device else (job.queue, group)


class Batcher:
    """Jobs that wait for their turn, in groups that may be stacked.

    The group whose oldest job has waited longest goes first; among jobs of several priorities each is taken for later
    than it is, by LATER_S. What has gathered goes at once, up to the model's
    BATCHSIZE; only a model with MINBATCHSIZE waits for more, and never longer than its MINBATCHTIMEOUT.
    """

    def __init__(self) -> None:
        # In the order of their oldest jobs. A job has a number beside it, by its arrival.
        self._groups: dict[Any, tuple[Model, deque[Job], deque[int]]] = {}
        self._arrived = 0
        self._ranked = False  # whether there was ever a job of another priority than the normal one
        self.size = 0

    def add(self, model: Model, job: Job) -> None:
        """Let a job wait; `model.prepare` has seen it."""
        key = _group(job)
        group = self._groups.get(key)
        self._arrived += 1
        if group is None:
            self._groups[key] = (model, deque((job,)), deque((self._arrived,)))
            self._ranked = self._ranked or (job.queue != job.device and rank_of(job.queue) != 1)
            if self._ranked:
                self._sort()
        else:
            group[1].append(job)
            group[2].append(self._arrived)
        self.size += 1

    def take(self, now: float) -> tuple[Model, list[Job]] | None:
        """Return the next batch, or None if there is nothing that should run yet.

        Args:
            now: monotonic seconds.
        """
        for key, (model, waiting, numbers) in self._groups.items():
            if model.min_rows and not self._due(model, waiting, now):
                continue
            batch = [waiting.popleft()]
            rows = batch[0].rows
            while waiting and rows + waiting[0].rows <= model.max_rows:
                rows += waiting[0].rows
                batch.append(waiting.popleft())
            self.size -= len(batch)
            if not waiting:
                del self._groups[key]
            else:
                for _ in batch:
                    numbers.popleft()
                self._sort()
            return model, batch
        return None

    def wait(self, now: float) -> float | None:
        """Return the seconds until `take` has something because of the time alone; None if nothing waits."""
        left = [model.min_wait - (now - waiting[0].claimed) for model, waiting, _ in self._groups.values()]
        return max(0.0, min(left)) if left else None

    def holds(self, model: Model) -> bool:
        """Whether jobs of a model wait here."""
        return any(waits is model for waits, _, _ in self._groups.values())

    def drop(self, gone: set[Ref]) -> int:
        """Forget jobs that have been answered otherwise; return how many."""
        dropped = 0
        for key, (model, waiting, numbers) in list(self._groups.items()):
            kept = [n for n, job in enumerate(waiting) if job.ref not in gone]
            if len(kept) == len(waiting):
                continue
            dropped += len(waiting) - len(kept)
            if kept:
                self._groups[key] = (model, deque(waiting[n] for n in kept), deque(numbers[n] for n in kept))
            else:
                del self._groups[key]
        self.size -= dropped
        if dropped:
            self._sort()
        return dropped

    def _sort(self) -> None:
        """Bring the groups back into their order: some have lost their oldest jobs."""
        if len(self._groups) > 1:
            self._groups = dict(sorted(self._groups.items(), key=self._ranked_turn if self._ranked else self._turn))

    @staticmethod
    def _turn(item: tuple[Any, tuple[Model, deque[Job], deque[int]]]) -> int:
        return item[1][2][0]

    @staticmethod
    def _ranked_turn(item: tuple[Any, tuple[Model, deque[Job], deque[int]]]) -> tuple[float, int]:
        _, (_, waiting, numbers) = item
        oldest = waiting[0]
        return oldest.claimed + LATER_S[rank_of(oldest.queue)], numbers[0]

    @staticmethod
    def _due(model: Model, waiting: deque[Job], now: float) -> bool:
        # A job that cannot be stacked has nothing to wait for.
        if waiting[0].group is None or now - waiting[0].claimed >= model.min_wait:
            return True
        return sum(job.rows for job in waiting) >= model.min_rows
