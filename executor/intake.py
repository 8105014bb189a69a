"""From a claimed entry to a job that can run: read with distrust, inputs fetched, model found."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import structlog

from keyside.executor.cache import ModelCache, ModelRef
from keyside.executor.composite import make_whole, members_of
from keyside.executor.lane import Lane
from keyside.executor.line import Line
from keyside.executor.loader import Loader
from keyside.executor.model import Model
from keyside.executor.peers import on_the_move
from keyside.executor.protocol import GROUP, BadEntry, Finished, Job, Ref, parse_entry
from keyside.executor.seals import Seals
from keyside.executor.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import BadModel, KeysideError, ModelFailed, TryAgain, Unreachable

__all__ = ["Intake"]


class Intake:
    """Makes jobs of entries; safe on any thread.

    Args:
        held: the jobs of this executor.
        lanes: by device queue; they take what has waited for its model.
        end: ends a job that does not run.
        moved: takes a job whose inputs are not on this node now.
        seals: knows what entries are signed with.
        refused: counts an entry that was dropped.
        look: is told that there may be other queues than before.
    """

    def __init__(
        self,
        held: dict[Ref, Job],
        cache: ModelCache[Model],
        loader: Loader,
        lanes: Mapping[str, Lane],
        end: Callable[[Finished], None],
        moved: Callable[[Job], None],
        seals: Seals,
        refused: Callable[[], None],
        look: Callable[[], None],
    ) -> None:
        self._moved = moved
        self._held = held
        self._cache = cache
        self._loader = loader
        self._lanes = lanes
        self._end = end
        self._seals = seals
        self._refused = refused
        self._look = look
        self._node = keys.NodeKeys()
        self._parked = Counter[str]()
        self._log = structlog.get_logger()

    def serve(self, node: keys.NodeKeys) -> None:
        """Take note of which node it is."""
        self._node = node

    def parked(self, device: str) -> int:
        """Return how many jobs of a device wait for a model to be loaded."""
        return self._parked[device]

    def parse(self, wire: Wire | Line, queue: str, entry_id: bytes, fields: Any) -> Job | None:
        """Read an entry; one that the function library has not made is dropped."""
        try:
            if fields is None:
                raise BadEntry("it was deleted")
            if self._seals.current is not None and (why := self._seals.why_not(wire, entry_id, fields)):
                raise BadEntry(why)
            job = parse_entry(queue, bytes(entry_id), fields)
        except BadEntry as error:
            if fields is not None:
                self._refused()
            self._log.warning(
                "entry dropped: not made by the function library", queue=queue, id=entry_id, why=str(error)
            )
            self._drop(wire, queue, entry_id)
            return None
        if job.op == b"look":
            # What the next heartbeat would show: a queue is used for the first time.
            self._drop(wire, queue, entry_id)
            self._look()
            return None
        return job

    def _drop(self, wire: Wire | Line, queue: str, entry_id: bytes) -> None:
        stream = self._node.queue(queue)
        wire.call_many(((b"XACK", stream, GROUP, entry_id), (b"XDEL", stream, entry_id)))

    def fetch(self, wire: Wire | Line, jobs: Sequence[Job]) -> None:
        """Read the inputs that lie in keys, all in one round trip."""
        wanted = [source[0] for job in jobs if job.keyed for source in job.inputs if type(source) is tuple]
        values = iter(wire.call_many([(b"GET", key) for key in wanted]) if wanted else ())
        for job in jobs:
            found = [next(values) for _ in job.missing]
            if found and any(map(on_the_move, found)):
                self._moved(job)
                continue
            try:
                job.decode(found)
            except KeysideError as error:
                self._fail(job, error)

    def ready_all(self, jobs: Sequence[Job], now_ms: float) -> list[tuple[Model, Job]]:
        """Return those jobs that can run now, with their models; as `ready`.

        Args:
            jobs: of one claim.
            now_ms: the server's time; what is past its deadline is left to the watchdog.
        """
        found: dict[bytes, Model] = {}
        ready = []
        for job in jobs:
            if job.deadline < now_ms or not job.decoded:
                continue
            if job.composed:
                whole = self.ready(job)
                if whole is not None:
                    ready.append((whole, job))
                continue
            model = found.get(job.model)
            if model is None:
                model = self.ready(job)
                if model is None:
                    continue
                found[job.model] = model
            elif not self._fits(model, job):
                continue
            ready.append((model, job))
        return ready

    def ready(self, job: Job) -> Model | None:
        """Return the model of a job, which fits it; None if the job fails, or waits until the model is loaded."""
        if job.ref not in self._held or not job.decoded:
            return None
        if job.composed:
            return self._composite(job)
        # No lock, and no hold on it: an evicted model lives on until the last job that runs on it lets go.
        model = self._cache.get_ready(job.model.decode())
        if model is None:
            self._parked[job.device] += 1
            self._cache.request(self._ref(job), lambda loaded, error: self._loaded(job, loaded, error))
            return None
        return model if self._fits(model, job) else None

    def _composite(self, job: Job) -> Model | None:
        """Return what the job of a script or a graph runs, once all of it is loaded; as `ready`."""
        wanted = {} if job.is_dag else {"": self._ref(job)}
        for target, model_id, key in members_of(job):
            wanted[target] = ModelRef(model_id, context=key.decode("utf-8", "surrogateescape"))
        found: dict[str, Model] = {}
        if self._lacks(wanted, found):
            self._parked[job.device] += 1
            self._gather(job, wanted, found)
            return None
        return self._whole(job, found)

    def _lacks(self, wanted: dict[str, ModelRef], found: dict[str, Model]) -> bool:
        """Take what is in memory; return whether anything is not."""
        for target, ref in list(wanted.items()):
            model = self._cache.get_ready(ref.id)
            if model is not None:
                found[target] = model
                del wanted[target]
        return bool(wanted)

    def _gather(self, job: Job, wanted: dict[str, ModelRef], found: dict[str, Model]) -> None:
        """Have what is missing loaded, one after the other, and hold on to what is here."""
        target, ref = next(iter(wanted.items()))

        def loaded(model: Model | None, error: KeysideError | None) -> None:
            if model is None:
                self._loaded(job, None, error, ref)
                return
            found[target] = model
            del wanted[target]
            if self._lacks(wanted, found):  # not one by one: those in memory would call back from within each other
                self._gather(job, wanted, found)
                return
            self._parked[job.device] -= 1
            whole = self._whole(job, found)
            if whole is not None:
                self._lanes[job.device].put([(whole, job)])

        self._cache.request(ref, loaded)

    def _whole(self, job: Job, found: dict[str, Model]) -> Model | None:
        try:
            for target, _, key in members_of(job):
                found[target].check_key(key)
            whole = make_whole(job, found)
        except KeysideError as error:
            self._fail(job, error)
            return None
        return whole

    def _fits(self, model: Model, job: Job) -> bool:
        try:
            model.prepare(job)
        except KeysideError as error:
            self._fail(job, error)
            return False
        return True

    def _fail(self, job: Job, error: KeysideError) -> None:
        job.let_go()
        self._end(Finished.failed(job, error))

    @staticmethod
    def _ref(job: Job) -> ModelRef:
        return ModelRef(job.model.decode(), context=job.key.decode("utf-8", "surrogateescape"))

    def _loaded(
        self, job: Job, model: Model | None, error: KeysideError | None, member: ModelRef | None = None
    ) -> None:
        """Go on with a job that waited for its model; called on a loader thread."""
        self._parked[job.device] -= 1
        if isinstance(error, Unreachable | TryAgain):
            # Nothing is wrong with the job: once its lease has ended somebody, maybe this executor, takes it over.
            self._held.pop(job.ref, None)
        elif model is None:
            if isinstance(error, BadModel):
                # What a submit will say from now on.
                name = f"{job.key.decode(errors='replace')}@{job.version}" if member is None else _title(member)
                error = ModelFailed(f"model '{name}' failed to load: {error}")
            self._fail(job, error or ModelFailed("the model was not loaded"))
        elif self._fits(model, job):
            self._lanes[job.device].put([(model, job)])

    def load(self, job: Job) -> None:
        """Load a version that was just stored; then it serves."""

        def loaded(model: Model | None, error: KeysideError | None) -> None:
            try:
                if isinstance(error, Unreachable | TryAgain):
                    # Nothing is wrong with the model: another executor, or this one later, takes the job over.
                    raise error
                self._loader.publish(job, model, error)
            except TryAgain as problem:
                if problem is not error:
                    self._moved(job)  # the model has, with its slot
                    return
            except KeysideError as problem:
                self._log.error("load not published", model=job.key.decode(errors="replace"), error=str(problem))
            self._held.pop(job.ref, None)

        self._cache.request(self._ref(job), loaded)


def _title(ref: ModelRef) -> str:
    name = str(ref.context).encode("utf-8", "surrogateescape").decode(errors="replace")
    return f"{name}@{ref.id.rpartition('-')[2]}"
