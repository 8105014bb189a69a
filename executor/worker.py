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
from keyside.executor.forwarding import Forwarder
from keyside.executor.intake import Intake
from keyside.executor.lane import Lane
from keyside.executor.limits import Limits
from keyside.executor.line import Line
from keyside.executor.loader import Loader
from keyside.executor.metrics import Metrics
from keyside.executor.model import Model
from keyside.executor.peers import Peers
from keyside.executor.protocol import Finished, Job, Ref, device_of
from keyside.executor.recycle import Requests
from keyside.executor.replicator import Replicator
from keyside.executor.runner import Ran, Runner
from keyside.executor.seals import Seals
from keyside.executor.settings import Settings
from keyside.executor.station import TICK, Station
from keyside.executor.strays import Strays
from keyside.executor.takeover import Takeover
from keyside.executor.topology import Chart
from keyside.executor.triggers.keeper import Keeper
from keyside.executor.watchdog import Watchdog
from keyside.executor.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, LibraryMissing, Unreachable

__all__ = ["Worker"]

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
        node: names of the node's own keys.
        serves: whether it has served its node, so that the node is known.
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
        self.serves = False
        self.chart = Chart()
        self.wire = self.new_wire("claim")
        gave_up = threading.Event()
        self._station = Station(self, gave_up)
        self._loader = Loader(settings, self.new_peers, self.consumer, self.chart)
        self.cache = ModelCache(
            settings.memory_budget,
            self._loader.load,
            threads=settings.loader_threads,
            body=lambda model: model.loaded,
            changed=self._loaded,
        )
        self.metrics = Metrics(
            cache=self.cache.stats,
            pending=self._pending,
            info={"name": settings.name, "version": __version__},
        )
        self._forwarder = Forwarder(self)
        self.seals = Seals(lambda: self.watchdog.now_ms())  # noqa: PLW0108  # there is none yet
        self._delivery = Delivery(
            self.consumer, self.held, self.metrics, self._station.install, gave_up,
            self._forwarder.moved, self._forwarder.relay,
        )  # fmt: skip
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
            self._forwarder.moved,
            self.seals,
            lambda: self.metrics.event("entries_refused"),
            lambda: self.watchdog.beat_soon(),  # noqa: PLW0108  # there is none yet
        )
        self.claims = Claims(self.consumer, self._lanes, self._intake, settings.claim, lambda: self.watchdog.shared)
        self._quick_s = settings.inline_ms / 1000
        self._express = Express(self.held, self.cache, self._runner, self._delivery, self._quick_s, self.seals)
        self._planned = b""  # the next claim, if it has been worked out already
        self.belong_to(self.node.tag)
        self.line = Line(self.wire, self._delivery)
        self._room = threading.Event()
        # On one core it would be in the way of whom it waits for; under a quota it would use that up.
        self._spin_s = settings.spin_us / 1e6 if cores.allowed() >= SPIN_CORES else 0.0
        self._claim_thread = 0
        limits = Limits(self._runners, lambda: self._loader.under_way, settings.load_limit_s, settings.run_memory)
        self.watchdog = Watchdog(self, Abandoner(self, limits, self._delivery))
        self.takeover = Takeover(self, self._intake, self._lanes)
        self.strays = Strays(self)
        self._replicator = Replicator(self)
        self._keeper = Keeper(self)

    def new_wire(self, role: str) -> Wire:
        """Return a connection, not yet connected."""
        return Wire(self.settings.url, name=f"keyside-{role}", timeout=30.0)

    def new_peers(self, role: str, *, readonly: bool = False) -> Peers:
        """Return connections to all nodes of the cluster, for one thread."""
        settings = self.settings
        return Peers(settings.url, settings.peer_url, self.chart, self.new_wire, role, readonly=readonly)

    # --- the loop

    def run(self) -> None:
        """Serve until `stopping` is set, then drain."""
        self._station.start()
        for thread in self._threads:
            thread.start()
        self._claim_thread = threading.get_ident()
        state = "standing by" if self.standby else "executor ready"
        self.log.info(state, consumer=self.consumer.decode(), devices=list(self.settings.devices))
        while not self.stopping.is_set():
            try:
                if self.standby:
                    self._station.stand_by()
                else:
                    self._serve()
            except LibraryMissing:
                self._station.restore()
            except KeysideError as error:
                # The server has gone, or will not have us for now, as when a slot is on the move.
                if not self.halted:
                    self.log.warning("server unreachable", error=str(error))
                self._station.reconnect()
        self._station.drain()

    @property
    def _threads(self) -> list[threading.Thread]:
        return [self.watchdog, *self._lanes.values(), self._replicator, self.strays, self._forwarder, self._keeper]

    def _serve(self) -> None:
        if self.line.ahead:
            self.serve_ahead()
            return
        if self._station.moving:
            self._station.follow()
        self.park()
        plan = self._planned or self._plan()
        self._planned = b""
        self.claiming = bool(plan)
        if not plan or self.stopping.is_set():
            self.claiming = False
            self.line.flush()
            self._room.wait(TICK)
            self._room.clear()
            return
        line = self.line
        try:
            line.send(plan)
            line.settle()
            # While there is nothing else to do; it holds unless what comes now goes to a lane. Where a queue was left
            # out, the watchdog has to know which until this claim is over.
            planned = b"" if self.claims.left_out or not self.claims.foreseen else self._plan()
            claimed = self.wire.read_small()
        finally:
            self.claiming = False
        self._take_all(claimed, planned)

    def serve_ahead(self) -> None:
        """Take what the claim has brought that was made while the last batch ran."""
        self._take_all(self.line.take_ahead())

    def _take_all(self, reply: Any, planned: bytes = b"") -> None:
        """Accept what a claim has brought, even if what was sent before it has to be sent again; see `_take`."""
        missing = bool(self.line.outbox)
        self._take(reply, planned)
        if missing:
            raise LibraryMissing("KS_COMPLETE")

    def _plan(self) -> bytes:
        """Return the next claim; empty if there is no room for more jobs."""
        plan = self.claims.next()
        # Never beside a run or a load: they need the interpreter's lock now and then, and the core maybe all the time.
        self.wire.spin_s = 0.0 if self.claims.running or self._loader.busy else self._spin_s
        return plan

    def _take(self, reply: Any, planned: bytes) -> None:
        """Accept what a claim has brought.

        Args:
            reply: of the server.
            planned: the next claim, if nothing is left of this one.
        """
        if not self.claims.foreseen and not isinstance(reply, hiredis.ReplyError):
            self.claims.note(reply)
        if reply is None:
            return
        if isinstance(reply, hiredis.ReplyError):
            self.line.settle()
            # FLUSHALL, a deleted stream, a failover: the heartbeat makes streams and groups again.
            self.log.warning("claim refused", error=str(reply))
            if str(reply).startswith(("NOGROUP", "UNBLOCKED")):
                self._station.register()
                return
            raise Unreachable(str(reply))
        now = time.monotonic()
        if len(reply) == 1 and len(reply[0][1]) == 1:
            stream, ((entry_id, fields),) = reply[0]
            queue = self.claims.streams[stream]
            lane = self._lanes[device_of(queue)]
            parcel = self._express.take(lane, queue, entry_id, fields, now, self.watchdog.now_ms())
            if parcel is not None:
                self.line.outbox.append(parcel)
                self._planned = planned
                return
        found = [(self.claims.streams[bytes(stream)], entries) for stream, entries in reply]
        for queue, entries in found:
            self.accept(queue, entries, now)

    def accept(self, queue: str, entries: Sequence[Any], now: float) -> None:
        """Go on with what was claimed, on the claim thread."""
        jobs: list[Job] = []
        try:
            for entry_id, fields in entries:
                job = self._intake.parse(self.line, queue, entry_id, fields)
                if job is None:
                    continue
                job.claimed = now
                self.held[job.ref] = job
                if job.op == b"load":
                    self._intake.load(job)
                else:
                    jobs.append(job)
            if not jobs:
                return
            self._intake.fetch(self.line, jobs)
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
            if len(entries) >= self.claims.count and not self.stopping.is_set() and not self.line.ahead:
                # More wait, most likely: they can be here when these have run.
                plan = self.claims.next(ahead=True)
                if plan:
                    with contextlib.suppress(Unreachable):  # these run all the same; the next to send notices
                        self.line.claim_ahead(plan)
            self._run_here(lane, here)

    def _run_here(self, lane: Lane, jobs: Sequence[tuple[Model, Job]]) -> None:
        """Run what is quick on this thread."""
        unsent = 0.0
        for model, together in batches(jobs):
            if unsent > LINGER_S:
                # The first callers need not wait for the last. What the server says is read with the next claim.
                with contextlib.suppress(Unreachable):
                    self.line.send()
                unsent = 0.0
            ran = self._runner.run(model, together)
            unsent += ran.seconds
            lane.note_cost(ran.seconds, len(together))
            self.line.outbox.append(self._delivery.ran(ran))

    def _end(self, finished: Finished) -> None:
        """End a job that does not run: with the next claim if this is the claim thread, else on its lane."""
        if threading.get_ident() == self._claim_thread:
            self.line.outbox += self._delivery.failed((finished,))
        else:
            self._lanes[finished.job.device].end(finished)

    @property
    def stuck(self) -> bool:
        """Whether threads are still in the code of models."""
        return self._loader.busy or any(lane.is_alive() for lane in self._lanes.values())

    def why_dead(self) -> str:
        """Return why the process should be restarted, or an empty text."""
        for thread in self._threads:
            if thread.ident and not thread.is_alive():
                return f"the thread {thread.name} has ended"
        return ""

    def why_unready(self) -> str:
        """Return why it does not serve now, or an empty text."""
        if self.stopping.is_set():
            return "stopping"
        if self._station.broken:
            return self._station.broken
        if self.standby:
            return f"standby: {self.standby}"
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
        return self.claims.has_room()

    @property
    def queues(self) -> list[str]:
        """The words for the queues that it serves."""
        return [*self.claims.streams.values(), *self.strays.words]

    def busy(self, queue: str) -> bool:
        """Whether jobs of a queue may have to wait before they are claimed."""
        return bool(self._lanes[device_of(queue)].running) or not self.claiming

    def forget(self, refs: set[Ref]) -> None:
        """Let go of jobs that are no longer this executor's to end."""
        for ref in refs:
            self.held.pop(ref, None)
        for lane in self._lanes.values():
            lane.drop(refs)
        self.takeover.ended()

    def room(self, device: str) -> int:
        """Return how many jobs of a device to claim now."""
        return self._lanes[device].room(self.settings.claim)

    def _loaded(self) -> None:
        self.watchdog.beat_soon()

    # --- for the station, on the claim thread

    @property
    def standby(self) -> str:
        """Why it does not serve now, or an empty text."""
        return self._station.standby

    @property
    def station(self) -> Station:
        """Where it stands."""
        return self._station

    def belong_to(self, tag: bytes) -> None:
        """Serve the queues of a node from now on."""
        self._planned = b""
        self.claims.refresh()
        if tag == self.node.tag and self.claims.streams:
            return
        self.node = keys.NodeKeys(tag)
        for runner in self._runners:
            runner.node = self.node
        self._intake.serve(self.node)
        self.claims.serve(self.node, self.settings.devices)

    def let_go(self) -> None:
        """Drop all jobs without a word to the server."""
        self._delivery.muted = True
        self.claiming = False
        self.strays.leave()
        self.line.lost()
        self.line.outbox.clear()
        self._planned = b""
        self.forget(set(self.held))
        self.held.clear()

    def take_up(self) -> None:
        """Take jobs again."""
        self._delivery.muted = False

    def wait(self, seconds: float) -> None:
        """Wait until a job may have ended."""
        self._room.wait(seconds)
        self._room.clear()

    def park(self) -> None:
        """Stay here for ever, if the process is about to begin anew."""
        if self.halted:
            threading.Event().wait()  # the process is replaced under this thread

    def stop_threads(self) -> None:
        """End all other threads, and have what has not begun run nowhere; runs under way may still end."""
        helpers = (self.watchdog, self._keeper, self._replicator, self.strays, self._forwarder)
        for helper in helpers:  # the watchdog would go on extending leases
            helper.stop()
        for helper in helpers:
            helper.join(5.0)
        for lane in self._lanes.values():
            lane.drop(set(self.held))
            lane.stop()

    def close(self) -> None:
        """Give everything back."""
        for lane in self._lanes.values():
            lane.join(1.0)
        self.cache.close()
        self.wire.close()
