"""The nodes of a cluster for a blocking client: a pool of connections for each, and commands that find their way."""

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from keyside.clients.endpoint import Endpoint
from keyside.clients.packed import Packer
from keyside.clients.places import ManyNodes, laggards, said_of
from keyside.clients.plan import Plan, SpreadPacker
from keyside.clients.pool import Pool
from keyside.clients.topology import Node
from keyside.clients.transport_sync import SyncTransport
from keyside.clients.way import FREE_SLICE_S, LATE_S, SLICE_S, Way, asked, passing
from keyside.clients.wire import Wire
from keyside.tensorstore import keys, plain, storing
from keyside.tensorstore.command import Command, Name
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable
from keyside.tensorstore.plain import CatalogRecord
from keyside.tensorstore.storing import Write

__all__ = ["SyncNodes"]

T = TypeVar("T")
_LOOK_S = 1.0
_CONNECT_S = 2.0
_LAST_S = 0.5
_PAUSE_S = 0.1
_AGAIN_S = 0.3
_REFUSED = (b"TRYAGAIN ", b"NOMODEL ")


class SyncNodes(ManyNodes, SyncTransport):
    """Sends commands to the nodes that they concern.

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
        return Packer(self.identity, tag, most=SLICE_S if self.plan.topology.single else FREE_SLICE_S)

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

    def look_around(self) -> None:
        """Find out anew where the servers are."""
        self.plan.topology.stale = True
        self._refresh(time.monotonic() + _LOOK_S)

    def _look(self) -> threading.Thread:
        """See in the background what the nodes have to do."""
        thread = threading.Thread(target=self._look_now, name="keyside-look", daemon=True)
        thread.start()
        return thread

    def _look_if_due(self) -> None:
        """See what the nodes have to do, before one is chosen if nothing is known but what is long over."""
        topology = self.plan.topology
        outdated = topology.outdated()
        if topology.due():
            thread = self._look()
            if outdated:
                thread.join(_AGAIN_S)

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
                wait = way.failed(self._judged(way, error))
            if wait:
                time.sleep(wait)
            self._refresh(way.ends)

    def _judged(self, way: Way, error: KeysideError) -> KeysideError:
        """Tell a model that there is not from one that a node has yet to hear of."""
        if way.unknown(error):
            with contextlib.suppress(KeysideError):
                if self.last_words((plain.is_target(way.submitted.target),))[0]:
                    return TryAgain(f"the catalog of this node is behind that of the model's home: {error.text}")
        return error

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

    def put(self, write: Write) -> None:
        """Write a tensor, and start what waits for it; like `call`."""
        ends = time.monotonic() + self._timeout
        way = Way(self.plan.topology, ends, slot=keys.slot(write.key))

        def attempt(node: Node, asking: bool) -> None:
            if asking:  # once, before MULTI: that holds until EXEC
                storing.read(self._trade(node, [plain.asking(), *write.transaction()], ends)[1:])
            else:
                self._pool(node).put(write)

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

    # --- executors and models

    def who_serves(self, device: str) -> str:
        """Say which executors could answer on a queue."""
        where, nodes = self.place_of(device)
        found: list[tuple[list[str], list[dict[str, Any]]]] = []
        for node in nodes:
            with contextlib.suppress(KeysideError):
                found.append(self._executors(node))
        return said_of(device, where, found)

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
