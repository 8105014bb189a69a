"""The shortest way for a job that came alone: with one caller at a time, every further step of Python is paid cold."""

import time
from collections.abc import Sequence

from keyside.executor.cache import ModelCache
from keyside.executor.composite import ready_whole
from keyside.executor.delivery import Delivery, Parcel
from keyside.executor.lane import Lane
from keyside.executor.model import Model
from keyside.executor.protocol import Finished, Job, Ref, parse_entry
from keyside.executor.runner import Ran, Runner
from keyside.executor.seals import Seals
from keyside.tensorstore.errors import KeysideError

__all__ = ["Express"]


class Express:
    """Runs a job that came alone, for a model that is loaded and quick, on the thread that claims.

    What is unusual about a job or fails on the way is left to the general way (`Worker._accept`), which does all again.

    Args:
        held: the jobs of this executor.
        quick_s: models whose runs take less than this are quick.
        seals: knows what entries are signed with.
    """

    def __init__(
        self,
        held: dict[Ref, Job],
        cache: ModelCache[Model],
        runner: Runner,
        delivery: Delivery,
        quick_s: float,
        seals: Seals,
    ) -> None:
        self._held = held
        self._cache = cache
        self._runner = runner
        self._delivery = delivery
        self._quick_s = quick_s
        self._seals = seals

    def take(
        self, lane: Lane, queue: str, entry_id: bytes, fields: Sequence[bytes], now: float, server_ms: float
    ) -> Parcel | None:
        """Run a job and pack its end; None if it is not for this way.

        Args:
            lane: of its device; a job must not overtake those that wait there.
            queue: the word for its queue.
            entry_id: of the entry.
            fields: of the entry.
            now: monotonic seconds.
            server_ms: the server's time.
        """
        if lane.busy or (self._seals.current is not None and not self._seals.genuine(entry_id, fields)):
            return None
        try:
            job = parse_entry(queue, entry_id, fields)
            if job.keyed or job.names or job.op != b"run" or job.deadline < server_ms:
                return None
            job.claimed = now
            if job.extra is None:
                model = self._cache.get_ready(job.model.decode())
                if model is None or not model.quicker_than(self._quick_s):
                    return None
                job.decode()
                model.prepare(job)
            else:
                model = self._composed(job)
                if model is None:
                    return None
            if not job.rows:
                return None
            self._held[job.ref] = job  # from here on the watchdog answers it at its deadline
            self._runner.running = (model, (job,))
            started = time.perf_counter()
            try:
                results = model.run(job.arrays)
            except KeysideError as error:
                if not job.composed:
                    raise
                # Not once more: a script may have counted something.
                self._runner.running = None
                ended = [Finished.failed(job, error)]
                return self._delivery.ran(Ran(model, ended, 0, time.perf_counter() - started, 0.0))
            seconds = time.perf_counter() - started
        except Exception:  # noqa: BLE001  # the general way does it once more, and says what is wrong
            self._runner.running = None
            return None
        self._runner.running = None
        model.timed(seconds)
        lane.note_cost(seconds, 1)
        ended = self._runner.finish(model, (job,), results)
        return self._delivery.ran(Ran(model, ended, job.rows, seconds, 0.0))

    def _composed(self, job: Job) -> Model | None:
        """Return what the job of a script or graph runs, if that is all here and quick; its inputs are decoded then."""
        if not job.composed or job.trigger is not None:
            return None
        if not job.is_dag:
            base = self._cache.get_ready(job.model.decode())
            if base is None or not base.quicker_than(self._quick_s):
                return None
        job.decode()
        whole = ready_whole(job, self._cache.get_ready)
        return whole if whole is not None and whole.quicker_than(self._quick_s) else None
