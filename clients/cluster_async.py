"""The asyncio transport of a cluster: requests that find their way, and a list for replies on each node."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Iterable
from typing import TypeVar

from keyside.clients.endpoint import Endpoint
from keyside.clients.flights import Flight, NodeMailbox
from keyside.clients.mailbox import LATE_REPLY_S
from keyside.clients.nodes_async import AsyncNodes
from keyside.clients.packed import Packed
from keyside.clients.request import Request
from keyside.clients.rounds import as_reply
from keyside.clients.transport_async import AsyncPending
from keyside.clients.way import Way, bare_device
from keyside.tensorstore import commands, keys
from keyside.tensorstore.errors import Busy, KeysideError, NoModel, TryAgain

__all__ = ["AsyncCluster"]

T = TypeVar("T")
_LAST_S = 0.5
_WATCH_S = 1.0


class AsyncCluster(AsyncNodes):
    """Sends requests to the nodes that they concern; see `AsyncNodes`."""

    def __init__(self, endpoint: Endpoint, idle: float, timeout: float) -> None:
        self._mailboxes: dict[bytes, NodeMailbox] = {}
        self._watching: asyncio.Task[None] | None = None
        super().__init__(endpoint, idle, timeout)

    def _here(self) -> None:
        before = self.identity
        super()._here()
        if self.identity is not before:
            for mailbox in self._mailboxes.values():
                mailbox.abandon()
            self._mailboxes.clear()
            self._watching = None

    def _tidy(self) -> None:
        """Leave nodes that are no primaries any more: what waits for an answer from there looks elsewhere."""
        super()._tidy()
        for mailbox in list(self._mailboxes.values()):
            asyncio.get_running_loop().call_later(_LAST_S, mailbox.follow, mailbox.channel)

    def watch(self) -> None:
        """Look each second, while replies are awaited, whether the nodes are there: one that hangs says nothing."""
        if self._watching is None or self._watching.done():
            self._watching = self.spawn(self._watch())

    async def _watch(self) -> None:
        while any(mailbox.busy for mailbox in self._mailboxes.values()):
            await asyncio.sleep(_WATCH_S)
            self.plan.look_if_due(self._look)
            await self.refresh(time.monotonic() + _WATCH_S)
            for mailbox in list(self._mailboxes.values()):
                for flight in mailbox.stranded():
                    self.spawn(self._rescue(flight))

    def mailbox(self, tag: bytes) -> NodeMailbox:
        """Return the list of a node for replies."""
        self._here()
        found = self._mailboxes.get(tag)
        if found is None:
            found = self._mailboxes[tag] = NodeMailbox(self, tag)
        return found

    # --- requests

    async def _fly(self, request: Request) -> Flight:
        """Send a request on its way; what is in its way is dealt with in the background."""
        self._here()
        topology = self.plan.topology
        ends = time.monotonic() + request.timeout
        if not request.keyed and not topology.single:
            if topology.device(request.target) is None:
                with contextlib.suppress(NoModel):  # the call itself says it better
                    record = await self._record(request.target, ends)
                    topology.learn(request.target, bare_device(record.device.encode()))
            await self._look_if_due()
        flight = Flight(request, Way(topology, ends, request=request), asyncio.get_running_loop())
        try:
            await self._launch(flight)
        except KeysideError as error:
            self.mailbox(request.tag or self.complete_tag()).retry(flight, error)
        return flight

    async def _launch(self, flight: Flight) -> None:
        node, asking = flight.way.next()
        request = flight.request
        tag = node.tag if request.keyed and not flight.way.topology.single else request.tag
        if not tag:
            self.plan.topology.stale = True
            raise TryAgain(f"node {node.address} has yet to say its tag")
        mailbox = self.mailbox(tag)
        channel = await self.channel_to(node, bulk=bool(request.before))
        if flight.future.done():
            return
        mailbox.launch(flight, channel, asking=asking)

    async def relaunch(self, flight: Flight, error: KeysideError) -> None:
        """Send a request once more after an error, where it now belongs; or end it with that error."""
        while True:
            try:
                if self.closed:
                    raise error
                wait = flight.way.failed(await self.judged(flight.way, error))
            except KeysideError as final:
                flight.give_up(final)
                return
            if wait:
                await asyncio.sleep(wait)
            await self.refresh(flight.ends)
            if flight.future.done():
                return
            try:
                await self._launch(flight)
            except KeysideError as another:
                error = another
            else:
                return

    async def _rescue(self, flight: Flight) -> None:
        """Take a job back that may run anywhere, and waits where no executor is left, and send it elsewhere."""
        mailbox, job = flight.mailbox, flight.job
        flight.moving = True
        try:
            (taken,) = await self.last_words((commands.ai_cancel(mailbox.key, job),))
        except KeysideError:
            flight.moving = False  # nobody knows; it is asked again
            return
        if not taken:  # it has ended, and its reply is on its way; or nobody has it any more
            await asyncio.wait((flight.future,), timeout=LATE_REPLY_S)
        if flight.future.done() or flight.expired or flight.job != job or not flight.way.free:
            flight.moving = False
            return
        mailbox.forget(flight)
        error = flight.leave()
        mailbox.enlist(flight)
        await self.relaunch(flight, error)

    async def run(self, request: Request) -> bytes:
        """Submit a request and wait for its reply.

        Raises:
            KeysideError: it was refused, it failed, or there was no answer.
        """
        flight = await self._fly(request)
        try:
            return await flight.future
        finally:
            flight.mailbox.leave(flight)

    async def run_packed(self, request: Packed) -> bytes:
        """Submit a request that is encoded already, by `packer` in this turn of the loop; like `run`."""
        topology = self.plan.topology
        request.keyed, request.remake = topology.single, None
        node = topology.owner(keys.slot(b"{%b}" % request.tag))
        mailbox = self._mailboxes.get(request.tag)
        channel = None if node is None or mailbox is None else self._link(node).small
        if node is None or mailbox is None or channel is None or not channel.ready:
            return await self.run(request)
        way = Way(topology, time.monotonic() + request.timeout, request=request)
        way.placed(node)
        flight = Flight(request, way, asyncio.get_running_loop())
        flight.board(mailbox)
        channel.write(request.data, flight)
        try:
            return await flight.future
        finally:
            flight.mailbox.leave(flight)

    async def begin(self, request: Request) -> AsyncPending:
        """Submit a request and return once a node has accepted it.

        Raises:
            KeysideError: it was refused, or the nodes are gone.
        """
        flight = await self._fly(request)
        try:
            await flight.accepted()
        except BaseException:
            flight.mailbox.leave(flight)
            raise
        return flight

    async def cancel(self, pending: AsyncPending) -> bool:
        """Take a job back; return whether it will write nothing any more."""
        return await pending.mailbox.cancel(pending)

    async def run_many(self, requests: Iterable[Request], window: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Submit requests to all nodes that serve them; like `AsyncTransport.run_many`."""
        numbered = enumerate(requests)
        flights: dict[int, Flight] = {}
        ended: asyncio.Queue[int] = asyncio.Queue()
        try:
            while True:
                while len(flights) < window and (item := next(numbered, None)) is not None:
                    index, request = item
                    flight = flights[index] = await self._fly(request)
                    flight.future.add_done_callback(lambda _, index=index: ended.put_nowait(index))  # type: ignore[misc]
                if not flights:
                    return
                index = await ended.get()
                try:
                    reply = flights.pop(index).future.result()
                except Busy as error:
                    reply = as_reply(error)
                yield index, reply
        finally:
            for flight in flights.values():
                flight.mailbox.leave(flight)

    async def close(self) -> None:
        """Close the connections; requests in flight fail."""
        if self.closed:
            return
        if self._loop is asyncio.get_running_loop():
            mailboxes, self._mailboxes = list(self._mailboxes.values()), {}
            for mailbox in mailboxes:
                node = self.plan.topology.owner(keys.slot(mailbox.key))
                await mailbox.close(self._link(node).small if node is not None else None)
            self.closed = True
            tasks = list(self._tasks)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for link in (*self._links.values(), *self._leaving):
            await link.close()
        await super().close()
        self.closed = True
