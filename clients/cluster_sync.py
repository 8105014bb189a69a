"""The blocking transport of a cluster: a pool of connections for each node, and calls that find their way."""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from keyside.clients.endpoint import Endpoint
from keyside.clients.packed import Packed, Packer
from keyside.clients.places import ManyNodes, laggards
from keyside.clients.plan import Plan, SpreadPacker
from keyside.clients.pool import Pool
from keyside.clients.request import MARGIN_S, Request, accepted, pauses, who_serves
from keyside.clients.spread_sync import Spread
from keyside.clients.topology import Node
from keyside.clients.transport_sync import SyncPending, SyncTransport, refused
from keyside.clients.way import ASK_S, LATE_S, SLICE_S, Way, asked, bare_device, passing, redirected
from keyside.clients.wire import Wire
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.command import Command, Name
from keyside.tensorstore.errors import KeysideError, NoModel, TimedOut, TryAgain, Unreachable
from keyside.tensorstore.plain import CatalogRecord

__all__ = ["SyncCluster"]

T = TypeVar("T")
_LOOK_S = 1.0
_CONNECT_S = 2.0
_LAST_S = 0.5
_PAUSE_S = 0.1
_REFUSED = (b"TRYAGAIN ", b"NOMODEL ")


class SyncCluster(ManyNodes, SyncTransport):
    """Sends commands and requests to the nodes that they concern.

    Args:
        endpoint: a node, or the sentinels that know where it is.
        idle: seconds without a byte after which a node counts as gone.
        timeout: seconds for which a command that names no deadline is tried.
    """

    def __init__(self, endpoint: Endpoint, idle: float, timeout: float) -> None:
        self.plan = Plan(endpoint)
        self._timeout = timeout
        self._pools: dict[str, Pool] = {}
        super().__init__(endpoint, idle)
        self.node = self.plan.node

    def begin_anew(self) -> None:
        """Begin without connections, and as somebody else."""
        super().begin_anew()
        self._pools = {}
        self._renewing: threading.Thread | None = None
        self._lock = threading.Lock()
        self._flying = threading.Lock()
        self._packers: dict[bytes, Packer] = {}
        self.packer = SpreadPacker(self.plan, self._packers, self._new_packer, self._look)

    def forked(self) -> None:
        """Begin anew in a child process; the pools do so themselves."""
        closed = self.closed
        self.begin_anew()
        self.closed = closed

    def _new_packer(self, tag: bytes) -> Packer:
        return Packer(self.identity, tag, most=SLICE_S)

    # --- nodes

    def _pool(self, node: Node) -> Pool:
        pool = self._pools.get(node.address)
        if pool is None:
            made = Pool(self.endpoint.at(node.host, node.port), self.idle)
            pool = self._pools.setdefault(node.address, made)
            if self.closed:
                pool.close()
        return pool

    def close(self) -> None:
        """Close the connections."""
        super().close()
        for pool in list(self._pools.values()):
            pool.close()

    def begin_map(self) -> None:
        """Find out where the nodes are.

        Raises:
            KeysideError: no node says so.
        """
        self._renew()
        self._look_now()

    def _renew(self) -> None:
        """Ask the cluster, or the sentinels, which node owns which slots; the first one that knows."""
        failed: KeysideError = Unreachable("no node of the cluster is known")
        for endpoint in self.plan.tellers():
            pool = Pool(endpoint, _LOOK_S)
            try:
                self.plan.told(endpoint, pool.replies(self.plan.question))
            except KeysideError as error:
                failed = error
            else:
                self.reached = True
                return
            finally:
                pool.close()
        raise failed

    def _refresh(self, ends: float) -> None:
        """Ask anew if what is known is stale; several that want to know it ask once, and none waits past its time."""
        if not self.plan.topology.stale or self.closed:
            return
        with self._lock:
            thread = self._renewing
            if thread is None or not thread.is_alive():
                if not self.plan.may_renew():
                    return
                thread = threading.Thread(target=self._renew_now, name="keyside-renew", daemon=True)
                self._renewing = thread
                thread.start()
        thread.join(max(min(ends - time.monotonic(), _LOOK_S), 0.0))

    def _renew_now(self) -> None:
        with contextlib.suppress(KeysideError):
            self._renew()
        self._look_now()

    def _look(self) -> None:
        """See in the background what the nodes have to do."""
        threading.Thread(target=self._look_now, name="keyside-look", daemon=True).start()

    def _look_now(self) -> None:
        for node in self.plan.to_look_at():
            if self.closed:
                return
            try:
                (reply,) = self._trade(node, (self.plan.look,), time.monotonic() + _LOOK_S)
                said: Any = self.plan.look.result(reply)
            except KeysideError as error:
                said = error
            self.plan.looked(node, said)
        addresses = self.plan.topology.nodes
        for address in [address for address in self._pools if address not in addresses]:
            self._pools.pop(address).close_free()

    # --- one command, several commands

    def _pursue(self, way: Way, attempt: Callable[[Node, bool], T], failed: KeysideError | None = None) -> T:
        """Send a call where it belongs until that succeeds or its time is over."""
        while True:
            try:
                if failed is not None:
                    raise failed
                node, asking = way.next()
                return attempt(node, asking)
            except KeysideError as error:
                failed = None
                if self.closed:
                    raise
                wait = way.failed(error)
            if wait:
                time.sleep(wait)
            self._refresh(way.ends)

    def _trade(self, node: Node, batch: Sequence[Command[Any]], ends: float, *, asking: bool = False) -> list[Any]:
        """Send commands to a node in one write and return their replies."""
        if self.closed:
            raise Unreachable("this client is closed")
        limit = max(ends - time.monotonic(), 0.001)
        pool = self._pool(node)
        wire = pool.take(min(limit, _CONNECT_S))
        try:
            wire.send(asked(batch) if asking else batch)
            replies = self._read(wire, batch, asking=asking, limit=min(limit + LATE_S, self.idle))
        except BaseException:
            wire.close()  # which replies are still to come is not known
            pool.close_free()
            raise
        pool.give(wire)
        return replies

    @staticmethod
    def _read(wire: Wire, batch: Sequence[Command[Any]], *, asking: bool, limit: float) -> list[Any]:
        replies = []
        for _ in batch:
            if asking:
                wire.read(limit=limit)
            replies.append(wire.read(limit=limit))
        return replies

    def call(self, command: Command[T]) -> T:
        """Send a command and return its result.

        Raises:
            KeysideError: a node refuses or is gone.
        """
        return self._one(command, command.result, time.monotonic() + self._timeout, self.plan.slot_of(command))

    def _one(self, command: Command[Any], result: Callable[[Any], T], ends: float, slot: int | None) -> T:
        way = Way(self.plan.topology, ends, slot=slot, repeatable=command.repeatable)

        def attempt(node: Node, asking: bool) -> T:
            (reply,) = self._trade(node, (command,), ends, asking=asking)
            return result(reply)

        return self._pursue(way, attempt)

    def replies(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Send commands, those for one node in one write, and return their replies; error replies as errors.

        Raises:
            Unreachable: a node is gone.
        """
        return self._replies(batch, time.monotonic() + self._timeout)

    def _replies(self, batch: Sequence[Command[Any]], ends: float) -> list[Any]:
        found: list[Any] = [None] * len(batch)
        for node, places in self.plan.grouped(batch):
            part = [batch[place] for place in places]
            try:
                replies = self._trade(node, part, ends) if node is not None else [TryAgain("no node")] * len(part)
            except Unreachable as error:
                if not all(command.repeatable for command in part):
                    raise
                replies = [error] * len(part)
            for place, reply in zip(places, replies, strict=True):
                found[place] = reply
        for place, reply in enumerate(found):
            if passing(reply):
                found[place] = self._again_alone(batch[place], ends)
        return found

    def _again_alone(self, command: Command[Any], ends: float) -> Any:
        def same(reply: Any) -> Any:
            if passing(reply):
                raise reply
            return reply

        try:
            return self._one(command, same, ends, self.plan.slot_of(command))
        except Unreachable:
            raise
        except KeysideError as error:
            return error

    def forget(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for; if they cannot be sent, then not."""
        for node, places in self.plan.grouped(batch):
            if node is not None:
                with contextlib.suppress(KeysideError):
                    self._trade(node, [batch[place] for place in places], time.monotonic() + _LOOK_S)

    def unlink(self, names: Sequence[Name]) -> int:
        """Delete keys; return how many there were."""
        return sum(self.call_many([plain.unlink((name,)) for name in names]))

    def collect(self, names: Sequence[Name]) -> list[NDArray[Any]]:
        """Read outputs that a reply names, and delete them: after that, or nobody could ask for them again."""
        found = self.call_many([plain.get_output(name) for name in names])
        self.forget([plain.unlink((name,)) for name in names])
        return found

    # --- tensors

    def store(self, key: bytes, header: bytes, data: memoryview, px: int | None) -> None:
        """Write a tensor; like `call`."""
        ends = time.monotonic() + self._timeout
        way = Way(self.plan.topology, ends, slot=keys.slot(key))

        def attempt(node: Node, asking: bool) -> None:
            if asking:
                command = plain.set_value(key, header, data, px)
                command.result(self._trade(node, (command,), ends, asking=True)[0])
            else:
                self._pool(node).store(key, header, data, px)

        self._pursue(way, attempt)

    def fetch(self, key: Name) -> NDArray[Any]:
        """Read a tensor; like `call`."""
        ends = time.monotonic() + self._timeout
        command = plain.get_value(key)
        way = Way(self.plan.topology, ends, slot=self.plan.slot_of(command))

        def attempt(node: Node, asking: bool) -> NDArray[Any]:
            if asking:
                return command.result(self._trade(node, (command,), ends, asking=True)[0])
            return self._pool(node).fetch(key)

        return self._pursue(way, attempt)

    # --- requests

    def run(self, request: Request) -> bytes:
        """Submit a request and wait for its reply.

        Raises:
            KeysideError: it was refused, it failed, or there was no answer.
        """
        return self.go(self.way(request))

    def go(self, way: Way) -> bytes:
        """Send a request on its way and return its reply; like `run`."""
        return self._pursue(way, lambda node, asking: self._attempt(way, node, asking=asking))

    def way(self, request: Request) -> Way:
        """Return the way of a request; that begins when `go` sends it."""
        self._know_device(request)
        return Way(self.plan.topology, time.monotonic() + request.timeout, request=request)

    def _know_device(self, request: Request) -> None:
        """Find out which device a request needs that may run on any node."""
        topology = self.plan.topology
        if not request.keyed and not topology.single and topology.device(request.target) is None:
            with contextlib.suppress(NoModel):  # the call itself says it better
                record = self._record(request.target, time.monotonic() + request.timeout)
                topology.learn(request.target, bare_device(record.device.encode()))
            self.plan.look_if_due(self._look)

    def run_packed(self, request: Packed) -> bytes:
        """Submit a request that is encoded already, and wait for its reply; like `run`."""
        topology = self.plan.topology
        ends = time.monotonic() + request.timeout
        request.keyed, request.remake = topology.single, None
        node = topology.owner(keys.slot(b"{%b}" % request.tag))
        way = Way(topology, ends, request=request)
        if node is None:
            return self._pursue(way, lambda node, asking: self._attempt(way, node, asking=asking))
        way.placed(node)
        try:
            return self._ask_node(request, way, node)
        except KeysideError as error:
            failed = error
        return self._pursue(way, lambda node, asking: self._attempt(way, node, asking=asking), failed)

    def _ask_node(self, request: Packed, way: Way, node: Node) -> bytes:
        limit = min(request.timeout + MARGIN_S, SLICE_S)
        pool = self._pool(node)
        wire = pool.take(min(limit, _CONNECT_S))
        with self._counted(node):
            try:
                reply = wire.ask(request.data, LATE_S, limit)
            except KeysideError:
                pool.close_free()
                raise
            except BaseException:
                if job := wire.said:
                    self.forget((commands.ai_cancel(request.ticket(request.tag), job),))
                raise
        said = wire.said
        try:
            if isinstance(said, KeysideError):
                refused(wire, said)
                raise said
        finally:
            pool.give(wire)
        return self._answer(way, said, reply[1] if type(reply) is list else reply)

    @contextlib.contextmanager
    def _counted(self, node: Node) -> Generator[None, None, None]:
        with self._flying:
            node.flying += 1
        try:
            yield
        finally:
            with self._flying:
                node.flying -= 1

    def _answer(self, way: Way, job: bytes, reply: Any) -> bytes:
        """Return what came on the ticket of an accepted request, or look further for it."""
        request = way.submitted
        ticket = request.ticket(request.tag)
        if job:
            self.plan.learn(request, job)
        try:
            if isinstance(reply, KeysideError) and not redirected(reply):
                raise reply
            while isinstance(reply, KeysideError) or reply is None or (reply.startswith(_REFUSED) and way.tries > 1):
                # Its slot moved while we waited, or it takes long, or that was said to an attempt before.
                if time.monotonic() >= way.ends + MARGIN_S:
                    return self.give_up(request, ticket, job or way.job)
                moved = isinstance(reply, KeysideError)
                reply = self._collect(ticket, way.ends + MARGIN_S, job or way.job, moved=moved)
        except KeysideError as error:
            if passing(error):
                # Whoever has its slot now may never have heard of it: sent again under its number it runs once.
                way.doubt = True
            raise
        found: bytes = reply
        return found

    def _attempt(self, way: Way, node: Node, *, asking: bool) -> bytes:
        request = way.submitted
        seconds = way.ends - time.monotonic()
        patience = min(max(seconds, 0.001) + MARGIN_S, SLICE_S)
        ticket = request.ticket(request.tag)
        waiting = plain.blpop(ticket, patience)
        batch: list[Command[Any]] = [*request.before, request.submit(seconds, ticket), waiting]
        job = b""
        pool = self._pool(node)
        wire = pool.take(min(patience, _CONNECT_S))
        limit = patience + LATE_S
        try:
            with self._counted(node):
                wire.send(asked(batch) if asking else batch)
                try:
                    job = accepted(self._read(wire, batch[:-1], asking=asking, limit=limit))
                    way.job = job or way.job
                except KeysideError as error:
                    if wire.connected and asking:
                        wire.close()  # two replies for each
                    refused(wire, error)
                    raise
                (reply,) = self._read(wire, (waiting,), asking=asking, limit=limit)
        except Unreachable:
            pool.close_free()
            raise
        except KeysideError as error:
            if way.free or not passing(error):
                self.drop(request.temporaries)
            raise
        except BaseException:
            wire.close()
            if job:
                self.forget((commands.ai_cancel(ticket, job),))
            raise
        finally:
            pool.give(wire)
        if not job:
            self.drop(request.temporaries)
        return self._answer(way, job, reply if isinstance(reply, KeysideError) else waiting.result(reply))

    def _collect(self, ticket: bytes, until: float, job: bytes, *, moved: bool = False) -> bytes | None:
        """Wait for a reply wherever the ticket is now.

        Args:
            ticket: where the reply comes.
            until: when to give up, by `time.monotonic`.
            job: the id of the job, if that is known.
            moved: the ticket was found to be elsewhere already.

        Returns:
            The reply; None: it has not come in time.

        Raises:
            KeysideError: a node that was waited on is gone, or is no primary any more; or the slot is now where
                nobody knows of the job, as after a failover that has lost it.
        """
        way = Way(self.plan.topology, until, slot=keys.slot(ticket))
        pause = pauses()
        while (left := until - time.monotonic()) > 0:
            try:
                node, asking = way.next()
                gone = moved and bool(job) and not self._is_queued(job)
                seconds = min(left, _PAUSE_S if gone else ASK_S if asking else SLICE_S)
                waiting = plain.blpop(ticket, seconds)
                pool = self._pool(node)
                wire = pool.take(min(left + LATE_S, _CONNECT_S))
                try:
                    wire.send(asked((waiting,)) if asking else (waiting,))
                    (reply,) = self._read(wire, (waiting,), asking=asking, limit=seconds + LATE_S)
                except BaseException:
                    wire.close()
                    raise
                pool.give(wire)
                found = waiting.result(reply)
            except KeysideError as error:
                moved = True
                if not redirected(error):
                    self.plan.topology.stale = True
                    raise
                wait = way.failed(error)
                time.sleep(wait and max(wait, pause()))
                self._refresh(until)
                continue
            if found is not None:
                return found
            if gone:
                raise Unreachable(f"node {node.address} has neither the job {job.decode()} nor its reply")
            moved = True  # it takes long: is it still there?
        return None

    def _is_queued(self, job: bytes) -> bool:
        try:
            return bool(self.last_words((plain.is_queued(job),))[0])
        except KeysideError:
            return False

    def who_serves(self, device: str) -> str:
        """Say which executors could answer on a queue."""
        names: list[str] = []
        infos: list[dict[str, Any]] = []
        for node in self.nodes():
            with contextlib.suppress(KeysideError):
                mine, told = self._executors(node)
                names += mine
                infos += told
        return who_serves(bare_device(device.encode()), names, infos)

    def _executors(self, node: Node) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the names of the executors of a node, and what those that live say of themselves."""
        ends = time.monotonic() + _LOOK_S
        listed = plain.executor_names(node.tag)
        names = listed.result(self._trade(node, (listed,), ends)[0])
        if not names:
            return [], []
        told = plain.executor_infos(node.tag, names)
        return names, told.result(self._trade(node, (told,), ends)[0])

    def not_ready(self, model: str, device: str) -> tuple[list[str], tuple[str, ...]]:
        """Say which executors have not loaded a version, and which nodes have none for it."""
        late: list[str] = []
        missing: list[str] = []
        for node in self.nodes():
            try:
                slow, any_at_all = laggards(node, self._executors(node)[1], model, device)
            except KeysideError as error:
                slow, any_at_all = [f"node {node.address}: {error}"], True
            late += slow
            if not any_at_all:
                missing.append(node.address)
        return late, tuple(missing)

    def last_words(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Like `call_many`, when the time of a request is over: no node gets long to answer."""
        replies = self._replies(batch, time.monotonic() + _LAST_S)
        return [command.result(reply) for command, reply in zip(batch, replies, strict=True)]

    def call_at(self, tag: bytes, command: Command[T]) -> T:
        """Send a command that has no keys to the node of a tag."""
        return self._one(command, command.result, time.monotonic() + self._timeout, keys.slot(b"{%b}" % tag))

    def record(self, target: Name) -> CatalogRecord:
        """Read what the home of a target knows about it."""
        return self._record(target, time.monotonic() + self._timeout)

    def _record(self, target: Name, ends: float) -> CatalogRecord:
        asks = plain.catalog_record(self.plan.home_tag(target), target)
        return self._one(asks, asks.result, ends, self.plan.slot_of(asks))

    # --- requests whose reply is asked for later

    def begin(self, request: Request) -> SyncPending:
        """Submit a request and return once a node has accepted it.

        Raises:
            KeysideError: it was refused, or the nodes are gone.
        """
        way = self.way(request)
        try:
            job = self._submit(way)
        except KeysideError:
            self.drop([*request.temporaries, request.ticket(request.tag)])
            raise
        if not job:
            self.drop(request.temporaries)
        else:
            self.plan.learn(request, job)
        pending = SyncPending(request, request.ticket(request.tag), job, way.ends, way.refusals)
        pending.where = "" if way.node is None else way.node.address
        return pending

    def _submit(self, way: Way) -> bytes:
        request = way.submitted

        def submit(node: Node, asking: bool) -> bytes:
            ticket = request.ticket(request.tag)
            batch: list[Command[Any]] = [*request.before, request.submit(way.ends - time.monotonic(), ticket)]
            try:
                return accepted(self._trade(node, batch, way.ends, asking=asking))
            except TryAgain:
                way.refusals += 1
                raise

        return self._pursue(way, submit)

    def _submit_again(self, pending: SyncPending) -> None:
        """Send a request once more: whoever has its slot now may never have heard of it."""
        request = pending.request
        if request.temporaries:
            time.sleep(_PAUSE_S)  # they were taken over
            self._refresh(pending.ends)
            return
        way = Way(self.plan.topology, pending.ends, request=request)
        way.doubt, way.slot = True, keys.slot(pending.ticket)
        try:
            pending.job = self._submit(way) or pending.job
            pending.where = pending.where if way.node is None else way.node.address
        except KeysideError:
            if time.monotonic() < pending.ends:
                time.sleep(_PAUSE_S)
        pending.refusals += way.refusals

    def wait(self, pending: SyncPending, timeout: float | None) -> bytes:
        """Wait for the reply, at most some seconds and at most until its deadline.

        Raises:
            TimedOut: it has not come; if the deadline has not passed, the job goes on.
            KeysideError: the job ended with that error.
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        with pending.lock:
            last = pending.ends + MARGIN_S
            while pending.reply is None:
                try:
                    owner = self.plan.topology.owner(keys.slot(pending.ticket))
                    moved = owner is not None and owner.address != pending.where
                    found = self._collect(pending.ticket, min(last, until), pending.job, moved=moved)
                except KeysideError as error:
                    if self.closed or not passing(error) or time.monotonic() >= min(last, until):
                        raise
                    self._submit_again(pending)
                    continue
                if found is not None and found.startswith(b"TRYAGAIN ") and pending.refusals:
                    pending.refusals -= 1  # that was said to an attempt before the one that was accepted
                    continue
                if found is not None:
                    pending.reply = found
                elif time.monotonic() >= last:
                    try:
                        pending.reply = self.give_up(pending.request, pending.ticket, pending.job, pending.ends)
                    except KeysideError as error:
                        pending.reply = error
                else:
                    raise TimedOut(f"no reply within {timeout:g} s; the job goes on")
        if isinstance(pending.reply, KeysideError):
            raise pending.reply
        return pending.reply

    # --- many requests

    def node_count(self) -> int:
        """How many nodes may take requests."""
        return len(self.plan.topology.nodes)

    def call_off(self, ways: Iterable[Way]) -> None:
        """Take requests back for whose replies other threads wait."""
        said = b"CANCELLED the caller cancelled the job"
        for way in ways:
            if way.request is not None and way.job:
                ticket = way.request.ticket(way.request.tag)
                with contextlib.suppress(KeysideError):
                    if self.call(commands.ai_cancel(ticket, way.job)):
                        self.forget((plain.rpush(ticket, said), plain.pexpire(ticket, 10_000)))

    def run_many(self, requests: Iterable[Request], window: int) -> Generator[tuple[int, bytes], None, None]:
        """Submit requests to all nodes that serve them; like `SyncTransport.run_many`."""
        spread = Spread(self, window)
        try:
            yield from spread.run(requests)
        finally:
            spread.end()
