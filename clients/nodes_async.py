"""The nodes of a cluster for an asyncio client: connections to each, and commands that find their way."""

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from keyside.clients.channel import Channel
from keyside.clients.endpoint import Endpoint, NotConnected
from keyside.clients.packed import Packer, Packs
from keyside.clients.places import ManyNodes, laggards, said_of
from keyside.clients.plan import Plan, SpreadPacker
from keyside.clients.topology import Node
from keyside.clients.transport_async import AsyncTransport
from keyside.clients.way import LATE_S, Way, asked, passing
from keyside.tensorstore import keys, plain, storing
from keyside.tensorstore.command import Command, Name
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable
from keyside.tensorstore.plain import CatalogRecord
from keyside.tensorstore.storing import Write

__all__ = ["AsyncNodes"]

T = TypeVar("T")
_LOOK_S = 1.0
_AGAIN_S = 0.3
_CONNECT_S = 2.0
_LAST_S = 0.5


class AsyncNodes(ManyNodes, AsyncTransport):
    """Sends commands to the nodes that they concern.

    Args:
        endpoint: a node, or the sentinels that know where it is.
        idle: seconds without a byte after which a node counts as gone.
        timeout: seconds for which a command that names no deadline is tried.
    """

    def __init__(self, endpoint: Endpoint, idle: float, timeout: float) -> None:
        self.plan = Plan(endpoint)
        self._timeout = timeout
        self._links: dict[str, AsyncTransport] = {}
        self._leaving: set[AsyncTransport] = set()
        self._packers: dict[bytes, Packer] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._renewing: asyncio.Task[Any] | None = None
        self._spread = SpreadPacker(self.plan, self._packers, self._packer_of, self._look)
        super().__init__(endpoint, idle)
        self.node = self.plan.node

    def _packer_of(self, tag: bytes) -> Packer:
        return Packer(self.identity, tag, keys.mailbox(tag, self.identity.id))

    @property
    def packer(self) -> Packs:
        """Encodes calls of this client, in this process."""
        self._here()
        return self._spread

    def _here(self) -> None:
        """Begin anew in another process or another event loop; the links to the nodes do so themselves."""
        before = self.identity
        super()._here()
        if self.identity is not before:
            self._packers.clear()
            self._tasks = set()
            self._renewing = None

    # --- nodes

    def _link(self, node: Node) -> AsyncTransport:
        link = self._links.get(node.address)
        if link is None:
            link = self._links[node.address] = AsyncTransport(self.endpoint.at(node.host, node.port), self.idle)
        return link

    async def channel_to(self, node: Node, *, bulk: bool = False) -> Channel:
        """Return a connection to a node to send on."""
        if self.closed:
            raise Unreachable("this client is closed")
        self._here()
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await self._link(node).channel(bulk=bulk)
        except TimeoutError:
            raise NotConnected(f"cannot connect to {node.address} within {_CONNECT_S:g} s") from None

    async def connect_to(self, node: Node, idle: float) -> Channel:
        """Make a connection to a node for the caller alone."""
        if self.closed:
            raise Unreachable("this client is closed")
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await self._link(node).connect("keyside-client", idle)
        except TimeoutError:
            raise NotConnected(f"cannot connect to {node.address} within {_CONNECT_S:g} s") from None

    async def begin_map(self) -> None:
        """Find out where the nodes are.

        Raises:
            KeysideError: no node says so.
        """
        self._here()
        await self._renew()
        await self._look_now()

    async def _renew(self) -> None:
        """Ask the cluster, or the sentinels, which node owns which slots; the first one that knows."""
        failed: KeysideError = Unreachable("no node of the cluster is known")
        for endpoint in self.plan.tellers():
            link = AsyncTransport(endpoint, _LOOK_S)
            try:
                async with asyncio.timeout(2 * _LOOK_S):
                    self.plan.told(endpoint, await link.replies(self.plan.question))
            except TimeoutError:
                failed = Unreachable(f"{endpoint} does not answer")
            except KeysideError as error:
                failed = error
            else:
                self.reached = True
                return
            finally:
                await link.close()
        raise failed

    async def refresh(self, ends: float) -> None:
        """Ask anew if what is known is stale; several that want to know it ask once, and none waits past its time."""
        if not self.plan.topology.stale or self.closed:
            return
        if self._renewing is None or self._renewing.done():
            if not self.plan.may_renew():
                return
            self._renewing = self.spawn(self._renew_now())
        await asyncio.wait((self._renewing,), timeout=max(min(ends - time.monotonic(), _LOOK_S), 0.0))

    async def look_around(self) -> None:
        """Find out anew where the servers are."""
        self._here()
        self.plan.topology.stale = True
        await self.refresh(time.monotonic() + _LOOK_S)

    async def _renew_now(self) -> None:
        with contextlib.suppress(KeysideError):
            await self._renew()
        await self._look_now()
        self._tidy()

    def _tidy(self) -> None:
        """Leave nodes that are no primaries any more."""
        loop = asyncio.get_running_loop()
        for address in [address for address in self._links if address not in self.plan.topology.nodes]:
            # What it has answered already may still be on its way.
            link = self._links.pop(address)
            self._leaving.add(link)
            loop.call_later(_LAST_S, self._leave, link)

    def _leave(self, link: AsyncTransport) -> None:
        if link in self._leaving and not self.closed:
            self._leaving.discard(link)
            self.spawn(link.close())

    def _look(self) -> "asyncio.Task[Any]":
        """See in the background what the nodes have to do."""
        return self.spawn(self._look_now())

    def spawn(self, coroutine: Any) -> "asyncio.Task[Any]":
        """Let something run on its own, until the client is closed."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _look_if_due(self) -> None:
        """See what the nodes have to do, before one is chosen if nothing is known but what is long over."""
        topology = self.plan.topology
        outdated = topology.outdated()
        if topology.due():
            looking = self._look()
            if outdated:
                await asyncio.wait((looking,), timeout=_AGAIN_S)

    async def _look_now(self) -> None:
        async def look(node: Node) -> None:
            try:
                (reply,) = await self._trade(node, (self.plan.look,), time.monotonic() + _LOOK_S)
                said: Any = self.plan.look.result(reply)
            except KeysideError as error:
                said = error
            self.plan.looked(node, said)

        await asyncio.gather(*map(look, self.plan.to_look_at()))

    # --- one command, several commands

    async def _pursue(self, way: Way, attempt: Callable[[Node, bool], Awaitable[T]]) -> T:
        """Send a call where it belongs until that succeeds or its time is over."""
        while True:
            try:
                node, asking = way.next()
                return await attempt(node, asking)
            except KeysideError as error:
                if self.closed:
                    raise
                wait = way.failed(error)
            if wait:
                await asyncio.sleep(wait)
            await self.refresh(way.ends)

    async def judged(self, way: Way, error: KeysideError) -> KeysideError:
        """Tell a model that there is not from one that a node has yet to hear of."""
        if way.unknown(error):
            with contextlib.suppress(KeysideError):
                if (await self.last_words((plain.is_target(way.submitted.target),)))[0]:
                    return TryAgain(f"the catalog of this node is behind that of the model's home: {error.text}")
        return error

    async def _trade(
        self, node: Node, batch: Sequence[Command[Any]], ends: float, *, asking: bool = False
    ) -> list[Any]:
        """Send commands to a node in one write and return their replies."""
        channel = await self.channel_to(node, bulk=any(command.bulk for command in batch))
        try:
            async with asyncio.timeout(max(ends - time.monotonic(), 0.001) + LATE_S):
                replies = await channel.call(asked(batch) if asking else batch)
        except TimeoutError:
            raise Unreachable(f"{node.address} has not answered in time") from None
        if asking:
            replies = replies[1::2]
        lost = next((reply for reply in replies if isinstance(reply, Unreachable)), None)
        if lost is not None and not channel.open:
            raise lost
        return replies

    async def call(self, command: Command[T]) -> T:
        """Send a command and return its result.

        Raises:
            KeysideError: a node refuses or is gone.
        """
        return await self._one(command, command.result, time.monotonic() + self._timeout, self.plan.slot_of(command))

    async def call_at(self, tag: bytes, command: Command[T]) -> T:
        """Send a command that has no keys to the node of a tag."""
        return await self._one(command, command.result, time.monotonic() + self._timeout, keys.slot(b"{%b}" % tag))

    async def _one(self, command: Command[Any], result: Callable[[Any], T], ends: float, slot: int | None) -> T:
        way = Way(self.plan.topology, ends, slot=slot, repeatable=command.repeatable)

        async def attempt(node: Node, asking: bool) -> T:
            (reply,) = await self._trade(node, (command,), ends, asking=asking)
            return result(reply)

        return await self._pursue(way, attempt)

    async def replies(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Send commands, those for one node in one write, and return their replies; error replies as errors.

        Raises:
            Unreachable: a node is gone.
        """
        return await self._replies(batch, time.monotonic() + self._timeout)

    async def last_words(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Like `call_many`, when the time of a request is over: no node gets long to answer."""
        replies = await self._replies(batch, time.monotonic() + _LAST_S)
        return [command.result(reply) for command, reply in zip(batch, replies, strict=True)]

    async def _replies(self, batch: Sequence[Command[Any]], ends: float) -> list[Any]:
        found: list[Any] = [None] * len(batch)
        for node, places in self.plan.grouped(batch):
            part = [batch[place] for place in places]
            try:
                replies = await self._trade(node, part, ends) if node is not None else [TryAgain("no node")] * len(part)
            except Unreachable as error:
                if not all(command.repeatable for command in part):
                    raise
                replies = [error] * len(part)
            for place, reply in zip(places, replies, strict=True):
                found[place] = reply
        for place, reply in enumerate(found):
            if passing(reply):
                found[place] = await self._again_alone(batch[place], ends)
        return found

    async def _again_alone(self, command: Command[Any], ends: float) -> Any:
        def same(reply: Any) -> Any:
            if passing(reply):
                raise reply
            return reply

        try:
            return await self._one(command, same, ends, self.plan.slot_of(command))
        except Unreachable:
            raise
        except KeysideError as error:
            return error

    async def put(self, write: Write) -> None:
        """Write a tensor, and start what waits for it; like `call`."""
        ends = time.monotonic() + self._timeout
        way = Way(self.plan.topology, ends, slot=0 if self.plan.topology.single else keys.slot(write.key))

        async def attempt(node: Node, asking: bool) -> None:
            if asking:  # once, before MULTI: that holds until EXEC
                storing.read((await self._trade(node, [plain.asking(), *write.transaction()], ends))[1:])
            else:
                await self._link(node).put(write)

        await self._pursue(way, attempt)

    def post(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for, if there are connections."""
        for node, places in self.plan.grouped(batch):
            link = self._links.get(node.address) if node is not None else None
            if link is not None:
                link.post([batch[place] for place in places])

    async def unlink(self, names: Sequence[Name]) -> int:
        """Delete keys; return how many there were."""
        return sum(await self.call_many([plain.unlink((name,)) for name in names]))

    async def collect(self, names: Sequence[Name]) -> list[NDArray[Any]]:
        """Read outputs that a reply names, and delete them: after that, or nobody could ask for them again."""
        found = await self.call_many([plain.get_output(name) for name in names])
        self.post([plain.unlink((name,)) for name in names])
        return found

    # --- executors and models

    async def who_serves(self, device: str) -> str:
        """Say which executors could answer on a queue."""
        where, nodes = self.place_of(device)
        found: list[tuple[list[str], list[dict[str, Any]]]] = []
        for node in nodes:
            with contextlib.suppress(KeysideError):
                found.append(await self._executors(node))
        return said_of(device, where, found)

    async def _executors(self, node: Node) -> tuple[list[str], list[dict[str, Any]]]:
        """Return the names of the executors of a node, and what those that live say of themselves."""
        ends = time.monotonic() + _LAST_S
        listed = plain.executor_names(node.tag)
        names = listed.result((await self._trade(node, (listed,), ends))[0])
        if not names:
            return [], []
        told = plain.executor_infos(node.tag, names)
        return names, told.result((await self._trade(node, (told,), ends))[0])

    async def not_ready(self, model: str, device: str) -> tuple[list[str], tuple[str, ...]]:
        """Say which executors have not loaded a version, and which nodes have none for it."""
        late: list[str] = []
        missing: list[str] = []
        for node in self.nodes():
            try:
                slow, any_at_all = laggards(node, (await self._executors(node))[1], model, device)
            except KeysideError as error:
                slow, any_at_all = [f"node {node.address}: {error}"], True
            late += slow
            if not any_at_all:
                missing.append(node.address)
        return late, tuple(missing)

    async def record(self, target: Name) -> CatalogRecord:
        """Read what the home of a target knows about it."""
        return await self._record(target, time.monotonic() + self._timeout)

    async def _record(self, target: Name, ends: float) -> CatalogRecord:
        asks = plain.catalog_record(self.plan.home_tag(target), target)
        return await self._one(asks, asks.result, ends, self.plan.slot_of(asks))
