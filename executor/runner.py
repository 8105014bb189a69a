"""Runs a batch: stack, run, split, and say what each caller gets."""

import secrets
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from keyside.executor import events
from keyside.executor.backends.base import Array, one_line
from keyside.executor.dag_job import DagJob
from keyside.executor.model import Model
from keyside.executor.protocol import INLINE_OUTPUT, Finished, Job
from keyside.tensorstore import keys, npy
from keyside.tensorstore.errors import KeysideError, RunFailed
from keyside.tensorstore.records import encode_reply
from keyside.tensorstore.results import encode_results

__all__ = ["Ran", "Runner"]

OK = b"OK"
STAGED_MS = 60_000
"""How long a staged output lives if nobody puts it in place."""


class Ran:
    """What a batch has come to.

    Attributes:
        model: that ran.
        ended: its jobs.
        samples: rows that were run with success.
        seconds: the time that the model took.
        queued: seconds that the jobs waited since they were claimed, all together.
    """

    __slots__ = ("ended", "model", "queued", "samples", "seconds")

    def __init__(self, model: Model, ended: list[Finished], samples: int, seconds: float, queued: float) -> None:
        self.model = model
        self.ended = ended
        self.samples = samples
        self.seconds = seconds
        self.queued = queued


class Runner:
    """Runs batches on one thread.

    Args:
        node: names of the node's own keys: outputs that are not for a key of the caller's lie beside them.
        name: unique to this runner, part of the names of staged outputs.

    Attributes:
        running: the model that runs now and its jobs, a new object each time, for whoever looks how long that takes.
    """

    def __init__(self, node: keys.NodeKeys, name: str) -> None:
        self.node = node
        self._name = name
        self.running: tuple[Model, Sequence[Job]] | None = None

    def run(self, model: Model, jobs: Sequence[Job]) -> Ran:
        """Run jobs that may be stacked, or one job.

        A batch that fails is run again one by one, so that one bad request never fails its neighbours. Never raises.
        """
        started = time.perf_counter()
        begun = time.monotonic()
        queued = sum([begun - job.claimed for job in jobs])
        rows = sum([job.rows for job in jobs])
        self.running = (model, jobs)
        try:
            results = self._run(model, jobs, rows)
        except Exception as error:  # noqa: BLE001  # memory may be short, too: it fails this job, not the executor
            self.running = None
            if len(jobs) > 1:
                return self._one_by_one(model, jobs)
            return Ran(
                model,
                [Finished.failed(jobs[0], _as_run_failed(model, error))],
                0,
                time.perf_counter() - started,
                queued,
            )
        self.running = None
        seconds = time.perf_counter() - started
        model.timed(seconds)
        return Ran(model, self.finish(model, jobs, results), rows, seconds, queued)

    def _one_by_one(self, model: Model, jobs: Sequence[Job]) -> Ran:
        parts = [self.run(model, (job,)) for job in jobs]
        return Ran(
            model,
            [ended for part in parts for ended in part.ended],
            sum(part.samples for part in parts),
            sum(part.seconds for part in parts),
            sum(part.queued for part in parts),
        )

    def _run(self, model: Model, jobs: Sequence[Job], rows: int) -> list[Array]:
        if rows == 0 and jobs[0].group is not None:
            return self._run_empty(model, jobs[0].arrays)
        if len(jobs) == 1:
            return model.run(jobs[0].arrays)
        results = model.run(_stack(jobs, rows))
        for result in results:
            if not result.ndim or result.shape[0] != rows:
                raise RunFailed(
                    f"Model did not generate the expected batch size: {rows} rows in, shape {list(result.shape)} out"
                )
        return results

    def _run_empty(self, model: Model, arrays: Sequence[Array]) -> list[Array]:
        """No rows give no rows; what the outputs look like is learnt from one row of zeros."""
        results = model.run([np.zeros((1, *array.shape[1:]), array.dtype) for array in arrays])
        return [result[:0] if result.ndim else result for result in results]

    def finish(self, model: Model, jobs: Sequence[Job], results: list[Array]) -> list[Finished]:
        """Split the results of a batch, and say what each caller gets; never raises."""
        ended = self._alike(model, jobs, results)
        if ended is not None:
            return ended
        if len(jobs) == 1:
            return [self._finish(model, jobs[0], results)]
        ended = []
        start = 0
        for job in jobs:
            stop = start + job.rows
            ended.append(self._finish(model, job, [result[start:stop] for result in results]))
            start = stop
        return ended

    def _alike(self, model: Model, jobs: Sequence[Job], results: list[Array]) -> list[Finished] | None:
        """Finish jobs of equal rows whose outputs go into the reply, as nearly all do; None: these do not."""
        rows = jobs[0].rows
        for job in jobs:
            if job.outputs or job.rows != rows or (job.extra is not None and (job.is_dag or job.trigger is not None)):
                return None
        try:
            replies = model.replies.make(model.name_outputs(len(results)), results, len(jobs), rows)
        except Exception:  # noqa: BLE001  # a plug-in's result may be anything: one by one it gets its error
            return None
        if replies is None:
            return None
        return [Finished(job, reply, [], []) for job, reply in zip(jobs, replies, strict=True)]

    def _finish(self, model: Model, job: Job, results: list[Array]) -> Finished:
        try:
            if isinstance(model, DagJob):
                return self._to_results(model, job)
            if job.trigger is not None:
                return self._to_event(model, job, results)
            if job.outputs:
                return self._to_keys(job, results)
            return self._to_reply(model, job, results)
        except Exception as error:  # noqa: BLE001  # a result that cannot be a tensor, or too many or too few
            return Finished.failed(job, RunFailed(f"model {model.title!r}: {one_line(error)}"))

    def _to_keys(self, job: Job, results: list[Array]) -> Finished:
        if len(results) != len(job.outputs):
            raise RunFailed(f"{len(results)} outputs for {len(job.outputs)} output keys")
        outputs: list[tuple[bytes, bytes, bytes]] = []
        staged: list[Any] = []
        for key, result in zip(job.outputs, results, strict=True):
            header, data = npy.encode(result)
            if len(header) + data.nbytes <= INLINE_OUTPUT:
                outputs.append((key, b"V", b"".join((header, data))))
            else:
                name = keys.output(key, self._stage_id())
                staged.append((name, header, data, STAGED_MS))
                outputs.append((key, b"S", name))
        return Finished(job, OK, outputs, staged)

    def _to_reply(self, model: Model, job: Job, results: list[Array]) -> Finished:
        values, outputs, staged = self._in_reply(model.name_outputs(len(results)), results, INLINE_OUTPUT)
        return Finished(job, encode_reply(model.title, values), outputs, staged)

    def _in_reply(
        self, names: Sequence[str], results: Sequence[Array], elements: int
    ) -> tuple[list[tuple[str, bytes | str]], list[tuple[bytes, bytes, bytes]], list[Any]]:
        """Return for each output its npy file, or the key where it is staged as it is too large; and what does that."""
        values: list[tuple[str, bytes | str]] = []
        outputs: list[tuple[bytes, bytes, bytes]] = []
        staged: list[Any] = []
        for name, result in zip(names, results, strict=True):
            values.append((name, self._value(result, elements, outputs, staged)))
        return values, outputs, staged

    def _value(
        self, result: Array, elements: int, outputs: list[tuple[bytes, bytes, bytes]], staged: list[Any]
    ) -> bytes | str:
        """Return an npy file; of what is too large to ride in a reply the key where it is staged."""
        header, data = npy.encode(result)
        if len(header) + data.nbytes <= INLINE_OUTPUT and np.size(result) <= elements:
            return b"".join((header, data))
        key = keys.output(None, self._stage_id(), self.node.tag)
        staged.append((key, header, data, STAGED_MS))
        outputs.append((b"", b"K", key))
        return key.decode()

    def _to_event(self, model: Model, job: Job, results: list[Array]) -> Finished:
        """A run that a trigger has started: what its subscribers read."""
        names = model.name_outputs(len(results))
        if job.outputs:
            finished = self._to_keys(job, results)
            said = [
                (name, {"key": key.decode("utf-8", "replace")}) for name, key in zip(names, job.outputs, strict=True)
            ]
        else:
            values, outputs, staged = self._in_reply(names, results, events.VALUES_MAX)
            finished = Finished(job, OK, outputs, staged)
            said = [(name, {"key": value} if isinstance(value, str) else events.shown(value)) for name, value in values]
        finished.reply = events.result(job, self._job_id(job), model.title, said)
        return finished

    def _job_id(self, job: Job) -> str:
        """Return the id of a job as callers know it: on a cluster with the tag of its queue."""
        tag = self.node.tag
        at = "" if tag == keys.STANDALONE_TAG or "@" in job.queue else f"@{tag.decode()}"
        return f"{job.queue}{at}/{job.id.decode()}"

    def _to_results(self, dag: DagJob, job: Job) -> Finished:
        """What each operation of a DAG has given; what it persists goes to keys, if all of them ran."""
        result = dag.result
        if result is None:
            raise RunFailed("it has not run")
        finished = Finished(job, OK, [], []) if result.error is not None else self._to_keys(job, result.persisted)
        finished.error = result.error
        shown: list[str | bytes | dict[str, str]] = []
        for one in result.results:
            if isinstance(one, str):
                shown.append(one)
                continue
            value = self._value(one, INLINE_OUTPUT, finished.outputs, finished.staged)
            shown.append({"key": value} if isinstance(value, str) else value)
        finished.reply = encode_results(shown)
        return finished

    def _stage_id(self) -> str:
        # Not to be guessed: whoever knows the name of an output that its caller is to fetch can fetch it.
        return f"{self._name}-{secrets.token_hex(12)}"


def _stack(jobs: Sequence[Job], rows: int) -> list[Array]:
    """Stack the inputs on dim 0: one copy, from the values as they came into the memory that the model reads."""
    stacked = []
    for n, (dtype, tail) in enumerate(jobs[0].group.forms):
        data = b"".join([job.values[n][job.headers[n].offset :] for job in jobs])
        stacked.append(np.ndarray((rows, *tail), dtype, data))
    return stacked


def _as_run_failed(model: Model, error: Exception) -> KeysideError:
    # A plug-in's backend may raise anything.
    if isinstance(error, KeysideError):
        return error
    return RunFailed(f"model {model.title!r}: {type(error).__name__}: {one_line(error)}")
