"""What a job runs that is more than one model: the call of a script's function, or a graph with all that it runs."""

from collections.abc import Callable, Mapping, Sequence

from keyside.executor.backends.base import Array
from keyside.executor.dag_job import DagJob
from keyside.executor.extras import NOTHING
from keyside.executor.model import Model
from keyside.executor.protocol import Job

__all__ = ["Composite", "make_whole", "members_of", "ready_whole"]


class Composite(Model):
    """A script or a graph as one job of it is to run: in place of its model, for that job alone.

    Attributes:
        base: the version that the job names.
        members: what a graph runs, by target.
    """

    base: Model
    members: Mapping[str, Model]

    def __init__(self, base: Model, job: Job, members: Mapping[str, Model]) -> None:
        vars(self).update(vars(base))
        self.base = base
        self.members = members
        self.max_rows, self.min_rows = 1, 0
        extra = job.extra or NOTHING
        self._function = extra.function
        self._keys = extra.key_names
        self._args = extra.args
        if self._function is not None:
            self.replies = base.call_replies

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run it; see `LoadedModel.run`."""
        if self._function is not None:
            return self.base.call(self._function, inputs, self._keys, self._args)
        return self.base.run_with(inputs, self.members)

    def name_outputs(self, count: int) -> list[str]:
        """Return the names of so many outputs; those of a script are called 0, 1, .."""
        return super().name_outputs(count) if self._function is None else [str(n) for n in range(count)]

    def quicker_than(self, seconds: float) -> bool:
        """Whether it is known to run in less time than that."""
        return self.base.quicker_than(seconds)

    def timed(self, seconds: float) -> None:
        """Take note of how long a run took."""
        self.base.timed(seconds)

    def prepare(self, job: Job) -> None:
        """Check the inputs as `Model.prepare` does; a script takes any. It is never stacked.

        Raises:
            KeysideError: as `Model.prepare`.
        """
        if self._function is None:
            super().prepare(job)
        else:
            self.check_name(job)
            first = job.headers[0].shape if job.headers else ()
            job.rows = max(first[0], 1) if first else 1
        job.group = None


def ready_whole(job: Job, ready: Callable[[str], Model | None]) -> Model | None:
    """Return what the job of a script, a graph or a DAG runs; None if a part of it is not in memory.

    Args:
        job: that wants it.
        ready: gives a version by its id if it is.

    Raises:
        KeysideError: a part is another model's, or the inputs do not fit.
    """
    found: dict[str, Model] = {}
    base = None
    if not job.is_dag:
        base = ready(job.model.decode())
        if base is None:
            return None
        found[""] = base
    for target, model_id, key in members_of(job):
        member = ready(model_id)
        if member is None:
            return None
        member.check_key(key)
        found[target] = member
    return make_whole(job, found)


def make_whole(job: Job, found: Mapping[str, Model]) -> Model:
    """Return what a job runs, made of its parts, which are all here: its own under the empty name.

    Raises:
        KeysideError: the inputs do not fit.
    """
    whole = DagJob(job, found) if job.is_dag else Composite(found[""], job, found)
    whole.prepare(job)
    return whole


def members_of(job: Job) -> Sequence[tuple[str, str, bytes]]:
    """Return what the graph of a job runs: target, id of the version, and key of its model."""
    return () if job.extra is None else job.extra.members
