"""A DAG as one job that a lane runs: in place of a model, for that job alone."""

from collections.abc import Mapping, Sequence

from keyside.executor.backends.base import Array
from keyside.executor.dag import DagResult, run_dag
from keyside.executor.extras import NOTHING
from keyside.executor.model import Model
from keyside.executor.protocol import INLINE_OUTPUT, Job
from keyside.executor.replies import Replies
from keyside.tensorstore.records import Signature

__all__ = ["DagJob"]


class DagJob(Model):
    """The operations of one AI_DAGEXECUTE, and what they run. It has no name and no counters.

    Attributes:
        result: what it has come to, once it has run.
    """

    def __init__(self, job: Job, members: Mapping[str, Model]) -> None:
        # What those who run models and count runs look at; nothing of it is loaded from anywhere.
        self.id = b""
        self.key, self.version, self.title = "DAG", 0, "the DAG"
        self.signature = Signature((), None)
        self.names, self.output_names = [], None
        self.is_graph = False
        self.digest = ""
        self.nbytes = 0
        self.max_rows, self.min_rows, self.min_wait = 1, 0, 0.0
        # Whether it is quick its members know, once they have run; each may run more than once.
        known = [member.run_s for member in members.values()]
        self.run_s = sum(known) * self._count(job) + 1e-6 if all(known) else 0.0
        limits = [member.run_limit_s for member in members.values()]
        self.run_limit_s = sum(limits) if all(limits) else 0.0
        self.replies = Replies(self.title, INLINE_OUTPUT)
        self.result: DagResult | None = None
        self._program = (job.extra or NOTHING).get(b"d")
        self._members = members

    @staticmethod
    def _count(job: Job) -> int:
        program = (job.extra or NOTHING).get(b"d")
        operations = program.get(b"o") if isinstance(program, dict) else None
        return len(operations) if isinstance(operations, list) else 1

    @property
    def stackable(self) -> bool:
        """Never."""
        return False

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """Run it; `result` has what it gives.

        Raises:
            BadArg: the program is none.
        """
        self.result = run_dag(self._program, inputs, self._members)
        return []

    def prepare(self, job: Job) -> None:
        """Take any inputs: what runs on them checks them."""
        job.rows, job.group = 1, None
