"""The executor's main loop: claim, fetch, dispatch, complete (DESIGN.md 4; docs/architecture.md)."""

import contextlib
import secrets
import threading
import time
from collections.abc import Sequence
from typing import Any

import hiredis
import structlog

from keyside import __version__
from keyside.executor import cores
from keyside.executor.abandon import Abandoner
from keyside.executor.batching import batches
from keyside.executor.cache import ModelCache
from keyside.executor.claims import Claims
from keyside.executor.delivery import Delivery, Parcel, Post
from keyside.executor.express import Express
from keyside.executor.intake import Intake
from keyside.executor.lane import Lane
from keyside.executor.limits import Limits
from keyside.executor.line import Line
from keyside.executor.loader import Loader
from keyside.executor.metrics import Metrics
from keyside.executor.model import Model
from keyside.executor.protocol import GROUP, Finished, Job, Ref, device_of
from keyside.executor.recycle import Requests
from keyside.executor.runner import Ran, Runner
from keyside.executor.seals import Seals
from keyside.executor.settings import Settings
from keyside.executor.watchdog import Watchdog
from keyside.executor.wire import Wire, checked
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, LibraryMissing, TryAgain, Unreachable

__all__ = ["Worker"]

TICK = 0.05
START_S = 30.0
LINGER_S = 0.0005
SPIN_CORES = 2


class Worker:
    """Serves the device queues of one shard until it is stopped.

    Args:
        settings: what it was told.

    Attributes:
        consumer: its name in the job streams, new with each start.
        held: the jobs that it has claimed and not ended.
        stopping: set to drain and stop.
        claiming: whether it may be blocked in a claim.
        draining: set once it acts on the request to stop.
        halted: set when the process is about to begin anew: then it claims nothing more.
        requests: tells of requests to stop; None where the process is not the executor's own.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.log = structlog.get_logger()
        self.consumer = f"{settings.name}-{secrets.token_hex(4)}".encode()
        self.started = time.time()
        self.held: dict[Ref, Job] = {}
        self.stopping = threading.Event()
        self.claiming = False
        self.halted = False
        self.draining = False
        self.requests: Requests | None = None
        self.node = keys.NodeKeys()  # until the server has said which node it is
        self._moved_to = b""
        self.wire = self.new_wire("claim")
        self._gave_up = threading.Event()
        self._loader = Loader(settings, self.new_wire, self.consumer)
        self.cache = ModelCache(
            settings.memory_budget,
            self._loader.load,
            threads=settings.loader_threads,
            body=lambda model: model.loaded,
        )
        self.metrics = Metrics(
            cache=self.cache.stats,
            pending=self._pending,
            info={"name": settings.name, "version": __version__},
        )
        self.seals = Seals(lambda: self.watchdog.now_ms())  # noqa: PLW0108  # there is none yet
        self._delivery = Delivery(self.consumer, self.held, self.metrics, self._install, self._gave_up)
        self._runner = Runner(self.node, self.consumer.decode())
        runners = {device: Runner(self.node, f"{self.consumer.decode()}-{device}") for device in settings.devices}
        self._runners = [self._runner, *runners.values()]
        self._lanes = {device: Lane(self, device, runner) for device, runner in runners.items()}
        self._intake = Intake(
            self.held,
            self.cache,
            self._loader,
            self._lanes,
            self._end,
            self.seals,
            lambda: self.metrics.event("entries_refused"),
        )
        self._claims = Claims(self.consumer, self._lanes, self._intake, settings.claim, lambda: self.watchdog.shared)
        self._quick_s = settings.inline_ms / 1000
        self._express = Express(self.held, self.cache, self._runner, self._delivery, self._quick_s, self.seals)
        self._planned = b""  # the next claim, if it has been worked out already
        self._belong_to(self.node.tag)
        self._line = Line(self.wire, self._delivery)
        self._room = threading.Event()
        # On one core it would be in the way of whom it waits for; under a quota it would use that up.
        self._spin_s = settings.spin_us / 1e6 if cores.allowed() >= SPIN_CORES else 0.0
        self._claim_thread = 0
        self._adopted: dict[str, Ref] = {}
        limits = Limits(self._runners, lambda: self._loader.under_way, settings.load_limit_s)
        self.watchdog = Watchdog(self, Abandoner(self, limits, self._delivery))

    def new_wire(self, role: str) -> Wire:
        """Return a connection, not yet connected."""
        return Wire(self.settings.url, name=f"keyside-{role}", timeout=30.0)

    # --- the loop

    def run(self) -> None:
        """Serve until `stopping` is set, then drain."""
        self._start()
        self.watchdog.start()
        for lane in self._lanes.values():
            lane.start()
        self._claim_thread = threading.get_ident()
        self.log.info("executor ready", consumer=self.consumer.decode(), devices=list(self.settings.devices))
        while not self.stopping.is_set():
            try:
                self._serve()
            except LibraryMissing:
                self._restore()
            except KeysideError as error:
                # The server has gone, or will not have us for now, as when a slot is on the move.
                if not self.halted:
                    self.log.warning("server unreachable", error=str(error))
                self._reconnect()
        self._drain()

    def _serve(self) -> None:
        if self._line.ahead:
            self._serve_ahead()
            return
        if self._moved_to:
            self._belong_to(self._moved_to)
        self._park()
        plan = self._planned or self._plan()
        self._planned = b""
        self.claiming = bool(plan)
        if not plan or self.stopping.is_set():
            self.claiming = False
            self._line.flush()
            self._room.wait(TICK)
            self._room.clear()
            return
        line = self._line
        try:
            line.send(plan)
            line.settle()
            # While there is nothing else to do; it holds unless what comes now goes to a lane. Where a queue was left
            # out, the watchdog has to know which until this claim is over.
            planned = b"" if self._claims.left_out or not self._claims.foreseen else self._plan()
            claimed = self.wire.read_small()
        finally:
            self.claiming = False
        self._take_all(claimed, planned)

    def _serve_ahead(self) -> None:
        """Take what the claim has brought that was made while the last batch ran."""
        self._take_all(self._line.take_ahead())

    def _take_all(self, reply: Any, planned: bytes = b"") -> None:
        """Accept what a claim has brought, even if what was sent before it has to be sent again; see `_take`."""
        missing = bool(self._line.outbox)
        self._take(reply, planned)
        if missing:
            raise LibraryMissing("KS_COMPLETE")

    def _plan(self) -> bytes:
        """Return the next claim; empty if there is no room for more jobs."""
        plan = self._claims.next()
        # Never beside a run or a load: they need the interpreter's lock now and then, and the core maybe all the time.
        self.wire.spin_s = 0.0 if self._claims.running or self._loader.busy else self._spin_s
        return plan

    def _take(self, reply: Any, planned: bytes) -> None:
        """Accept what a claim has brought.

        Args:
            reply: of the server.
            planned: the next claim, if nothing is left of this one.
        """
        if not self._claims.foreseen and not isinstance(reply, hiredis.ReplyError):
            self._claims.note(reply)
        if reply is None:
            return
        if isinstance(reply, hiredis.ReplyError):
            self._line.settle()
            # FLUSHALL, a deleted stream, a failover: the heartbeat makes streams and groups again.
            self.log.warning("claim refused", error=str(reply))
            if str(reply).startswith(("NOGROUP", "UNBLOCKED")):
                self._register()
                return
            raise Unreachable(str(reply))
        now = time.monotonic()
        if len(reply) == 1 and len(reply[0][1]) == 1:
            stream, ((entry_id, fields),) = reply[0]
            queue = self._claims.streams[stream]
            lane = self._lanes[device_of(queue)]
            parcel = self._express.take(lane, queue, entry_id, fields, now, self.watchdog.now_ms())
            if parcel is not None:
                self._line.outbox.append(parcel)
                self._planned = planned
                return
        found = [(self._claims.streams[bytes(stream)], entries) for stream, entries in reply]
        for queue, entries in found:
            self._accept(queue, entries, now)

    def _accept(self, queue: str, entries: Sequence[Any], now: float) -> None:
        jobs: list[Job] = []
        try:
            for entry_id, fields in entries:
                job = self._intake.parse(self._line, queue, entry_id, fields)
                if job is None:
                    continue
                if job.op == b"look":
                    self._look(self._line, job)
                    continue
                job.claimed = now
                self.held[job.ref] = job
                if job.op == b"load":
                    self._intake.load(job)
                else:
                    jobs.append(job)
            if not jobs:
                return
            self._intake.fetch(self._line, jobs)
        except Unreachable:
            for job in jobs:  # they are read again once there is a connection
                self.held.pop(job.ref, None)
            raise
        lane = self._lanes[device_of(queue)]
        here: list[tuple[Model, Job]] = []
        queued: list[tuple[Model, Job]] = []
        quick: dict[bytes, bool] = {}
        for ready in self._intake.ready_all(jobs, self.watchdog.now_ms()):
            model = ready[0]
            runs_here = quick.get(model.id)
            if runs_here is None:
                # A model that got faster must not overtake those of its jobs that still wait in the lane.
                runs_here = quick[model.id] = model.quicker_than(self._quick_s) and not lane.holds(model)
            (here if runs_here else queued).append(ready)
        lane.put(queued)
        if here:
            if len(entries) >= self._claims.count and not self.stopping.is_set() and not self._line.ahead:
                # More wait, most likely: they can be here when these have run.
                plan = self._claims.next(ahead=True)
                if plan:
                    with contextlib.suppress(Unreachable):  # these run all the same; the next to send notices
                        self._line.claim_ahead(plan)
            self._run_here(lane, here)

    def _look(self, wire: Wire | Line, job: Job) -> None:
        """See at once what a heartbeat would show: a queue is used for the first time."""
        stream = self.node.queue(job.queue)
        wire.call_many(((b"XACK", stream, GROUP, job.id), (b"XDEL", stream, job.id)))
        self.watchdog.beat_soon()

    def used(self, words: Sequence[str]) -> None:
        """Serve the queues of priorities that are in use; called on any thread."""
        self._claims.use(words)

    def _run_here(self, lane: Lane, jobs: Sequence[tuple[Model, Job]]) -> None:
        """Run what is quick on this thread."""
        unsent = 0.0
        for model, together in batches(jobs):
            if unsent > LINGER_S:
                # The first callers need not wait for the last. What the server says is read with the next claim.
                with contextlib.suppress(Unreachable):
                    self._line.send()
                unsent = 0.0
            ran = self._runner.run(model, together)
            unsent += ran.seconds
            lane.note_cost(ran.seconds, len(together))
            self._line.outbox.append(self._delivery.ran(ran))

    def _end(self, finished: Finished) -> None:
        """End a job that does not run: with the next claim if this is the claim thread, else on its lane."""
        if threading.get_ident() == self._claim_thread:
            self._line.outbox += self._delivery.failed((finished,))
        else:
            self._lanes[finished.job.device].end(finished)

    @property
    def stuck(self) -> bool:
        """Whether threads are still in the code of models."""
        return self._loader.busy or any(lane.is_alive() for lane in self._lanes.values())

    def why_dead(self) -> str:
        """Return why the process should be restarted, or an empty text."""
        for thread in (self.watchdog, *self._lanes.values()):
            if thread.ident and not thread.is_alive():
                return f"the thread {thread.name} has ended"
        return ""

    def why_unready(self) -> str:
        """Return why it does not serve now, or an empty text."""
        if self.stopping.is_set():
            return "stopping"
        age = time.monotonic() - self.watchdog.last_beat
        if not self.watchdog.last_beat or age > 5 * self.settings.beat_ms / 1000 + 2:
            return "no heartbeat: the server cannot be reached"
        return ""

    # --- for the lanes and the watchdog, on their threads

    def new_post(self, wire: Wire) -> Post:
        """Return what sees parcels through on a connection of its own."""
        return Post(self._delivery, wire)

    def pack_ran(self, ran: Ran) -> Parcel:
        """Return the parcel that ends the jobs of a batch."""
        return self._delivery.ran(ran)

    def pack_failed(self, ended: Sequence[Finished]) -> list[Parcel]:
        """Return the parcels that end jobs that did not run."""
        return self._delivery.failed(ended)

    def ended(self) -> None:
        """Look for the next job to take over if the last one of a queue that was has ended."""
        for queue, adopted in list(self._adopted.items()):
            if adopted not in self.held:
                self._adopted.pop(queue, None)  # lanes and the watchdog may come here at once
                self.watchdog.kick()

    def wake_claim(self) -> None:
        """Let the loop look again whether there is room to claim."""
        self._room.set()

    def _pending(self) -> dict[str, int]:
        counts = dict.fromkeys(self.settings.devices, 0)
        for job in list(self.held.values()):
            counts[job.device] += 1
        return counts

    def room_for(self, queue: str) -> bool:
        """Whether more jobs of a queue could be run soon."""
        return self._lanes[device_of(queue)].room(self.settings.claim) > 0

    def has_room(self) -> bool:
        """Whether a queue that the claim under way leaves out could be claimed from now."""
        return self._claims.has_room()

    @property
    def queues(self) -> list[str]:
        """The words for the queues that it serves."""
        return list(self._claims.streams.values())

    def busy(self, queue: str) -> bool:
        """Whether jobs of a queue may have to wait before they are claimed."""
        return bool(self._lanes[device_of(queue)].running) or not self.claiming

    def recovering(self, queue: str) -> bool:
        """Whether a job of a queue that was taken over has not ended yet."""
        adopted = self._adopted.get(queue)
        return adopted is not None and adopted in self.held

    def forget(self, refs: set[Ref]) -> None:
        """Let go of jobs that are no longer this executor's to end."""
        for ref in refs:
            self.held.pop(ref, None)
        for lane in self._lanes.values():
            lane.drop(refs)
        self.ended()

    def adopt(self, wire: Wire, queue: str, entry_id: bytes, fields: Any, deliveries: int) -> None:
        """Run a job that another executor has left behind; alone, unless that one gave it back."""
        job = self._intake.parse(wire, queue, entry_id, fields)
        if job is None:
            return
        if job.op == b"look":
            self._look(wire, job)
            return
        self.log.warning("job taken over", queue=queue, id=entry_id.decode(), delivery=deliveries)
        job.alone = deliveries > 1
        job.claimed = time.monotonic()
        self.held[job.ref] = job
        if job.alone:
            self._adopted[queue] = job.ref
        if job.op == b"load":
            self._intake.load(job)
            return
        try:
            self._intake.fetch(wire, (job,))
        except Unreachable:
            self.held.pop(job.ref, None)  # it is taken over again once its lease has ended
            self._adopted.pop(queue, None)
            raise
        model = self._intake.ready(job)
        if model is not None:
            self._lanes[job.device].put([(model, job)])

    # --- connecting and stopping

    def _start(self) -> None:
        """Connect for the first time; the server may be starting as well."""
        give_up = time.monotonic() + START_S
        pause = 0.1
        while True:
            try:
                self._connect()
            except (Unreachable, TryAgain) as error:
                if time.monotonic() > give_up or self.stopping.wait(pause):
                    raise
                pause = min(pause * 2, 5.0)
                self.log.warning("waiting for the server", error=str(error))
            else:
                return

    def _connect(self) -> None:
        self.wire.connect()
        self._install(self.wire)
        self._register()

    def _install(self, wire: Wire) -> None:
        done = self.seals.install(wire)
        if done != "present":
            self.log.info("function library", state=done)

    def _register(self) -> None:
        """Show that this executor is there; that makes its queues, and tells which node the server is."""
        self._belong_to(self.watchdog.beat(self.wire))

    def _belong_to(self, tag: bytes) -> None:
        """Serve the queues of a node from now on."""
        self._moved_to = b""
        self._planned = b""
        self._claims.refresh()
        if tag == self.node.tag and self._claims.streams:
            return
        self.node = keys.NodeKeys(tag)
        for runner in self._runners:
            runner.node = self.node
        self._intake.serve(self.node)
        self._claims.serve(self.node, self.settings.devices)

    def moved(self, tag: bytes) -> None:
        """Serve the queues of another node tag as soon as the claim under way is over; called by the watchdog."""
        self._moved_to = tag

    @property
    def moving(self) -> bool:
        """Whether the claim under way is for queues of the past."""
        return bool(self._moved_to)

    def _restore(self) -> None:
        try:
            self._line.settle()
            self._install(self.wire)
        except KeysideError as error:
            self.log.warning("function library cannot be loaded", error=str(error))
            self._reconnect()

    def _park(self) -> None:
        if self.halted:
            threading.Event().wait()  # the process is replaced under this thread

    def _reconnect(self) -> None:
        self.claiming = False
        self._line.lost()
        self._park()
        pause = 0.05
        while not self.stopping.wait(pause):
            try:
                self._connect()
                self._line.flush()
                self._own_pending()
            except KeysideError:
                self._line.lost()
                pause = min(pause * 2, 2.0)
            else:
                self.log.info("connected again")
                return

    def _own_pending(self) -> None:
        """Accept what a claim had brought when the connection broke before its reply was read."""
        now = time.monotonic()
        for stream, queue in self._claims.streams.items():
            # By the line: what the queue before has set off may not be answered yet.
            command = (b"XREADGROUP", b"GROUP", GROUP, self.consumer, b"COUNT", 1000, b"STREAMS", stream, b"0")
            reply = checked(self._line.call_many((command,))[0])
            entries = [entry for _, found in reply or () for entry in found if (queue, entry[0]) not in self.held]
            self._accept(queue, entries, now)

    def _drain(self) -> None:
        """End what was claimed, as far as the time for it goes, and leave."""
        self.draining = True
        self.log.info("stopping", held=len(self.held))
        deadline = time.monotonic() + self.settings.drain_s
        patience = threading.Timer(self.settings.drain_s, self._gave_up.set)
        patience.daemon = True
        patience.start()
        try:
            with contextlib.suppress(LibraryMissing):  # flush loads it again
                while self._line.ahead:
                    self._serve_ahead()
            self._line.flush()
            while self.held and time.monotonic() < deadline:
                self._room.wait(TICK)
                self._room.clear()
        except KeysideError as error:
            self.log.warning("not everything was delivered", error=str(error))
        patience.cancel()
        self._gave_up.set()
        left = len(self.held)
        self.watchdog.stop()  # or it would go on extending leases
        self.watchdog.join(5.0)
        # What has not begun never will; runs under way may still end, if nobody else has taken their jobs by then.
        for lane in self._lanes.values():
            lane.drop(set(self.held))
            lane.stop()
        try:
            if not self.wire.connected:
                self.wire.connect()
            self.wire.call(b"FCALL", b"KS_LEAVE", 0, self.consumer, *self.queues)
        except KeysideError as error:
            self.log.warning("could not sign off", error=str(error))
        for lane in self._lanes.values():
            lane.join(1.0)
        self.cache.close()
        self.wire.close()
        self.log.info("stopped", left=left)
