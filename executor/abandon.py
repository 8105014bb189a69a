"""Ends what takes longer than it may, and with it this life of the process: no thread in a model's code ends otherwise.

Callers are answered, everything else that was claimed goes back to the other executors at once, and the process begins
anew in its place (executor/recycle.py).
"""

import threading
import time
from typing import TYPE_CHECKING, Any

from keyside.executor import recycle
from keyside.executor.delivery import Delivery
from keyside.executor.limits import Limits, OverLoad, OverRun
from keyside.executor.protocol import Finished, Job
from keyside.executor.runner import Ran
from keyside.executor.wire import Wire, checked
from keyside.tensorstore.errors import KeysideError, LibraryMissing, RunFailed

if TYPE_CHECKING:
    from keyside.executor.worker import Worker

__all__ = ["Abandoner"]

OFTEN = 3
"""A version given up so often within ten minutes is to blame, whatever it is given."""


class Abandoner:
    """Looks for what takes too long, on the watchdog's thread.

    Args:
        worker: whose runs and loads these are.
        limits: finds it.
        delivery: packs the answers.
    """

    def __init__(self, worker: "Worker", limits: Limits, delivery: Delivery) -> None:
        self._worker = worker
        self._limits = limits
        self._delivery = delivery
        self._history = recycle.History.take()
        self._struck = False
        worker.metrics.event("runs_abandoned", self._history.runs)
        worker.metrics.event("loads_abandoned", self._history.loads)

    def look(self, wire: Wire, now: float) -> None:
        """Give up what takes too long; then this does not return.

        Args:
            wire: the watchdog's connection.
            now: monotonic seconds.

        Raises:
            KeysideError: the server is gone or refuses: to be called again.
        """
        requests = self._worker.requests
        if requests is None:
            return
        over = self._limits.look(now)
        asked = requests.since(now)
        if over:
            self._strike(over)
            try:
                self._leave(wire, self._answer(wire, over))
            except KeysideError as error:
                if not any(isinstance(one, OverRun) and one.grown for one in over):
                    raise
                # It would grow until the system ends it: others take the jobs over once their leases have ended.
                self._worker.log.error("left without a word", error=str(error))
            if not asked:
                recycle.again(self._history)
        elif asked > self._worker.settings.drain_s and not self._worker.draining:
            # The thread that would act on the request has not come back from a run.
            self._worker.log.warning("stopping without the run under way", held=len(self._worker.held))
            self._leave(wire, [])
        else:
            return
        recycle.end(0)

    def _strike(self, over: list[OverRun | OverLoad]) -> None:
        if self._struck:
            return  # the server was gone when it was to be told
        self._struck = True
        log = self._worker.log
        wall = time.time()
        for one in over:
            if isinstance(one, OverRun):
                model_id, title = one.model.id.decode(), one.model.title
                self._history.runs += 1
                what = (
                    {"grown": one.grown, "limit": self._worker.settings.run_memory}
                    if one.grown
                    else {"limit": one.model.run_limit_s}
                )
                log.error(
                    "a run takes too much memory: this executor begins anew"
                    if one.grown
                    else "a run takes too long: this executor begins anew",
                    model=title, seconds=round(one.seconds, 3), jobs=len(one.jobs), **what,
                )  # fmt: skip
            else:
                model_id, title = one.ref.id, f"{one.ref.context}@{one.ref.id.rpartition('-')[2]}"
                self._history.loads += 1
                log.error(
                    "a load takes too long: this executor begins anew",
                    model=title, seconds=round(one.seconds, 3), limit=self._worker.settings.load_limit_s,
                )  # fmt: skip
            self._history.strike(model_id, wall)
            times = self._history.strikes(model_id, wall)
            if times >= OFTEN:
                log.critical(
                    "THIS VERSION HANGS ITS EXECUTOR AGAIN AND AGAIN: delete it, or give it a limit that it keeps",
                    model=title, times=times, within_s=int(recycle.WINDOW_S),
                )  # fmt: skip

    def _answer(self, wire: Wire, over: list[OverRun | OverLoad]) -> list[Job]:
        """End the jobs that are to blame; return those that may be, which keep their count of deliveries.

        Of a batch nobody knows which: each goes back to be run alone, as others do whose batch failed, unless by now it
        is known to be the model. Jobs that waited for a load that hangs are as good as run.
        """
        blamed: list[Job] = []
        held = self._worker.held
        for one in over:
            if isinstance(one, OverLoad):
                blamed += [job for job in list(held.values()) if job.model == one.ref.id.encode()]
                continue
            jobs = [job for job in one.jobs if job.ref in held]
            often = self._history.strikes(one.model.id.decode(), time.time()) >= OFTEN
            doubt = len(one.jobs) > 1 or (one.grown and len(over) > 1)  # whose memory it is nobody knows
            if doubt and not often:
                blamed += jobs
            elif jobs:
                error = self._reason(one)
                ran = Ran(one.model, [Finished.failed(job, error) for job in jobs], 0, one.seconds, 0.0)
                parcel = self._delivery.ran(ran)
                if not self._delivery.settle(parcel, wire.call_many(parcel.commands)):
                    raise LibraryMissing("KS_COMPLETE")
        return blamed

    def _reason(self, over: OverRun) -> RunFailed:
        if over.grown:
            return RunFailed(
                f"model {over.model.title!r} took {over.grown:,} bytes of memory in one run, more than it may,"
                f" {self._worker.settings.run_memory:,}: given up. If it may take as much, raise KEYSIDE_RUN_MEMORY of"
                " its executors"
            )
        return RunFailed(
            f"model {over.model.title!r} ran longer than its limit, {over.model.run_limit_s:g} s: given up."
            " If it may take that long, store it with a larger run_limit_ms in its OPTIONS, or raise"
            " KEYSIDE_RUN_LIMIT_S of its executors"
        )

    def _leave(self, wire: Wire, blamed: list[Job]) -> None:
        """Give everything back, and see to it that nothing more comes."""
        worker = self._worker
        worker.halted = True
        words: list[Any] = [f"{job.queue}/{job.id.decode()}" for job in blamed]
        replies = wire.call_many(
            (
                (b"CLIENT", b"UNBLOCK", worker.wire.client_id),
                # For a claim on its way. Refused to most users: then what it brings waits for the end of its lease.
                (b"CLIENT", b"KILL", b"ID", worker.wire.client_id),
                (b"FCALL", b"KS_LEAVE", 0, worker.consumer, *worker.queues, *((b"!", *words) if words else ())),
            )
        )
        checked(replies[-1])
        worker.log.warning("left", given_back=len(worker.held), threads=threading.active_count())
