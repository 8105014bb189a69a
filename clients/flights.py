"""Requests in flight of an asyncio client of a cluster, and the lists of its nodes on which their replies come."""

import asyncio
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from keyside.clients.channel import Channel, ignore
from keyside.clients.mailbox import BLOCK_S, REPLIES, Mailbox
from keyside.clients.pending import AsyncPending
from keyside.clients.request import pauses
from keyside.clients.topology import Node
from keyside.clients.way import ASK_S, Way, passing, redirected
from keyside.tensorstore import keys, plain
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import Cancelled, KeysideError, NoModel, TryAgain, Unreachable

if TYPE_CHECKING:
    from keyside.clients.cluster_async import AsyncCluster

__all__ = ["Flight", "NodeMailbox"]

T = TypeVar("T")
_ASKING = plain.asking()
_GRACE_S = 0.1
_LAST_S = 0.5


class Flight(AsyncPending):
    """A request in flight.

    Attributes:
        way: where it goes.
        moving: its job is being taken back, or was, to be sent elsewhere.
    """

    mailbox: "NodeMailbox"
    moving = False

    def __init__(self, request: Any, way: Way, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.ends = way.ends
        self.future = loop.create_future()
        self.way = way
        self._node: Node | None = None
        self.future.add_done_callback(self._landed)

    def _landed(self, _: Any) -> None:
        self._counted(None)
        self.request.before = ()

    def _counted(self, node: Node | None) -> None:
        if self._node is not None:
            self._node.flying -= 1
        if node is not None:
            node.flying += 1
        self._node = node

    def leave(self) -> KeysideError:
        """Take note that its job was taken back; return the error with which it goes on elsewhere."""
        self.job, self.sent, self.refused = b"", False, 0
        return self.way.taken_back()

    def board(self, mailbox: "NodeMailbox") -> None:
        """Await the reply on the list of a node; where it was sent before and may have been accepted, there too."""
        self._counted(self.way.node)
        before = self.__dict__.get("mailbox")
        if before is not mailbox and before is not None:
            if self.way.doubt:
                self.future.add_done_callback(lambda _: before.forget(self))
            else:
                before.forget(self)
        self.mailbox = mailbox
        if before is not mailbox:
            mailbox.enlist(self)

    def accept(self, job: bytes) -> None:
        """Take note that the server has accepted it; what it took along is kept, in case that node vanishes."""
        before = self.request.before
        super().accept(job)
        self.request.before = before
        self.moving = False

    def give_up(self, error: KeysideError) -> None:
        """End it without a reply."""
        mailbox = self.mailbox
        mailbox.drop_temporaries(self)
        mailbox.finish(self, error)


class _Lines:
    """The node that has the slot of a tag, whichever that is, as a transport."""

    def __init__(self, cluster: "AsyncCluster", tag: bytes) -> None:
        self._cluster = cluster
        self.node = tag
        self.identity = cluster.identity
        self.idle = cluster.idle
        self.reached = True

    @property
    def closed(self) -> bool:
        return self._cluster.closed

    def _node(self) -> Node:
        found = self._cluster.plan.topology.owner(keys.slot(b"{%b}" % self.node))
        if found is None:
            raise Unreachable("no node is known to own the slot of this client's replies")
        return found

    async def channel(self, *, bulk: bool = False) -> Channel:
        return await self._cluster.channel_to(self._node(), bulk=bulk)

    async def connect(self, name: str, idle: float) -> Channel:  # noqa: ARG002  # all have one name
        return await self._cluster.connect_to(self._node(), idle)

    async def call(self, command: Command[T]) -> T:
        found: T = (await self._cluster.last_words((command,)))[0]
        return found

    def post(self, batch: Sequence[Command[Any]]) -> None:
        self._cluster.post(batch)

    async def who_serves(self, device: str) -> str:
        return await self._cluster.who_serves(device)


class NodeMailbox(Mailbox):
    """The list of one node tag, which is read wherever its slot is.

    Args:
        cluster: gives the connections.
        tag: of the node.
    """

    # A node whose copy of the catalog lags behind does not know a model that its home knows.
    _refusals = (b"TRYAGAIN ", b"NOMODEL ")

    def __init__(self, cluster: "AsyncCluster", tag: bytes) -> None:
        super().__init__(_Lines(cluster, tag))
        self._cluster = cluster
        self._at: Node | None = None

    @property
    def key(self) -> bytes:
        """The name of the list."""
        return self._key

    @property
    def busy(self) -> bool:
        """Whether replies are awaited."""
        return bool(self._waiting)

    # --- flights

    def enlist(self, flight: Flight) -> None:
        """Await the reply to a request, until its deadline."""
        self._enlist(flight)
        self._cluster.watch()

    def stranded(self) -> list[Flight]:
        """Return the requests that wait where no executor is left, though they could run elsewhere."""
        return [
            one
            for one in self._waiting.values()
            if isinstance(one, Flight)
            and one.mailbox is self
            and not one.expired
            and not one.moving
            and one.way.stranded(one.job)
        ]

    async def cancel(self, pending: AsyncPending) -> bool:
        """Take a job back; return whether it will write nothing any more."""
        if await super().cancel(pending):
            return True
        if not isinstance(pending, Flight) or not pending.moving or pending.future.done():
            return False
        pending.left = True  # it is on its way to another node, which takes it no more, or back at once
        self._finish(pending, Cancelled("the caller cancelled the job"))
        return True

    def forget(self, flight: Flight) -> None:
        """Await it no longer."""
        self._waiting.pop(flight.request.seq, None)

    def finish(self, flight: Flight, error: KeysideError) -> None:
        """End a request with an error."""
        self._finish(flight, error)

    def drop_temporaries(self, flight: Flight) -> None:
        """Delete what a call has not taken over."""
        self._drop(flight)

    def launch(self, flight: Flight, channel: Channel, *, asking: bool) -> None:
        """Send a request to the node, on a connection of it."""
        flight.board(self)
        flight.noted = not flight.request.before and flight.noted
        if not asking:
            self._send(flight, channel)
            return
        request = flight.request
        flight.error = None
        for command in request.before:
            channel.send(_ASKING, ignore)
            channel.send(command, lambda reply: self._stored(flight, reply))
        channel.send(_ASKING, ignore)
        submit = request.submit(flight.ends - time.monotonic(), self._key, b"%d" % request.seq)
        channel.send(submit, flight)

    def retry(self, flight: Flight, error: KeysideError) -> None:
        """Send a request once more, in the background."""
        if "mailbox" not in flight.__dict__:
            flight.board(self)
        self._cluster.spawn(self._cluster.relaunch(flight, error))

    def submitted(self, pending: AsyncPending, reply: Any) -> None:
        """Take the reply to a submit: the job id, or why there is none."""
        if not isinstance(reply, KeysideError) or not isinstance(pending, Flight):
            if isinstance(pending, Flight) and pending.job and not reply:
                self._drop(pending)  # it was accepted before, and is known by its first name
                return
            if reply:
                self._cluster.plan.learn(pending.request, reply)
            super().submitted(pending, reply)
            return
        error = pending.error or reply
        if pending.future.done():
            self._drop(pending)
            return
        pending.refused += isinstance(error, TryAgain | NoModel)
        if pending.way.free and pending.request.temporaries:
            self._drop(pending)  # they are made anew where it goes next
        self.retry(pending, error)

    async def close(self, channel: Channel | None) -> None:
        """Fail what is in flight and delete the list, if its node answers."""
        try:
            async with asyncio.timeout(_LAST_S):
                await super().close(channel)
        except TimeoutError:
            await super().close(None)

    # --- replies

    @property
    def channel(self) -> Channel | None:
        """The connection on which it is read."""
        return self._channel

    def follow(self, channel: Channel | None) -> None:
        """Give a connection up that waits on a node which the list has left: that one hangs, or it would say so."""
        owner = self._cluster.plan.topology.owner(keys.slot(self._key))
        if channel is not None and channel is self._channel and owner is not None and owner is not self._at:
            channel.close()

    async def _read(self) -> None:
        """Take replies off the list as long as any are awaited, wherever it is."""
        topology = self._cluster.plan.topology
        slot = keys.slot(self._key)
        way, pause = Way(topology, float("inf"), slot=slot), pauses()
        while self._waiting:
            try:
                node, asking = way.next()
                if asking:
                    await self._read_asking(node)
                    continue
                await self._read_at(node)
                way, pause = Way(topology, float("inf"), slot=slot), pauses()
            except KeysideError as error:
                if self._turns:
                    way, pause = Way(topology, float("inf"), slot=slot), pauses()
                    way.node = self._at
                if not passing(error):  # such as NOPERM: no reply will ever come
                    for pending in list(self._waiting.values()):
                        self._finish(pending, error)
                    continue
                topology.stale = topology.stale or not redirected(error)
                wait = way.failed(error)
                if wait:
                    await asyncio.sleep(max(wait, pause()))
                await self._cluster.refresh(float("inf"))
                self._cluster.spawn(self._launch_again(error))
        self._reader = None

    async def _launch_again(self, error: KeysideError) -> None:
        """Send once more what is in flight and not queued any more: its job, or its reply, may have been lost.

        Under its number it runs once if it is known after all.
        """
        flights = [
            (one, one.job)
            for one in self._waiting.values()
            if isinstance(one, Flight) and one.sent and one.mailbox is self and not one.moving
        ]
        jobs = [job for _, job in flights if job]
        try:
            queued = await self._cluster.last_words([plain.is_queued(job) for job in jobs])
        except KeysideError:
            queued = []
        await asyncio.sleep(_GRACE_S)  # what has ended just now is answered
        still = {job for job, there in zip(jobs, queued, strict=False) if there}
        lost = Unreachable(f"a node that had accepted the call is gone, or has lost it: {error}")
        for flight, job in flights:
            here = flight.job == job and flight.mailbox is self and not flight.moving
            if here and job not in still and not flight.expired and not flight.future.done():
                flight.way.doubt = True
                self.retry(flight, lost)

    async def _read_at(self, node: Node) -> None:
        self._turns = 0
        channel = self._channel
        if channel is None or not channel.open or self._at is not node:
            if channel is not None:
                channel.close()
            self._at = node
            channel = self._channel = await self._cluster.connect_to(node, self._cluster.idle + BLOCK_S)
        turn: asyncio.Future[KeysideError | None] = self._loop.create_future()
        self._ask(channel, turn)
        failed = await turn
        if failed is not None:
            raise failed

    async def _read_asking(self, node: Node) -> None:
        """Look once at the node to which the slot is moving."""
        channel = await self._cluster.connect_to(node, self._cluster.idle + BLOCK_S)
        try:
            take = plain.blmpop(self._key, ASK_S, REPLIES)
            self._deliver(take.result((await channel.call((_ASKING, take)))[1]))
        finally:
            channel.close()
