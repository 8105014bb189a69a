"""The asyncio transport: a handful of connections for thousands of requests.

Requests name one list, the mailbox, for all their replies; one connection does nothing but wait on it.
"""

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar

from keyside.clients.channel import Channel, ignore
from keyside.clients.commands_async import AsyncCommands
from keyside.clients.endpoint import Endpoint
from keyside.clients.mailbox import Mailbox
from keyside.clients.packed import Packed, Packer, Packs
from keyside.clients.pending import AsyncPending
from keyside.clients.request import Identity, Request, process
from keyside.clients.rounds import as_reply
from keyside.tensorstore import keys
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import BadArg, Busy, TimedOut, Unreachable
from keyside.tensorstore.storing import Write

__all__ = ["AsyncPending", "AsyncTransport"]

T = TypeVar("T")
_BULK_CHANNELS = 3


class AsyncTransport(AsyncCommands):
    """Sends commands and requests.

    Args:
        endpoint: the server.
        idle: seconds without a byte after which the server counts as gone.
    """

    def __init__(self, endpoint: Endpoint, idle: float) -> None:
        super().__init__()
        self.endpoint = endpoint
        self.node = keys.STANDALONE_TAG
        self.idle = idle
        self.closed = False
        self.identity = Identity()
        self.reached = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._channels: list[Channel | None] = []
        self._connecting: dict[int, asyncio.Task[Channel]] = {}
        self._making: set[asyncio.Task[Channel]] = set()
        self._mailbox: Mailbox | None = None
        self._packer = self._new_packer()

    def _new_packer(self) -> Packer:
        return Packer(self.identity, self.node, keys.mailbox(self.node, self.identity.id))

    @property
    def packer(self) -> Packs:
        """Encodes calls of this client, in this process."""
        self._here()
        return self._packer

    def _here(self) -> None:
        """Begin anew in another process or another event loop: connections cannot move there."""
        loop = asyncio.get_running_loop()
        if self._loop is loop and self.identity.pid == process.pid:
            return
        if self._loop is not None and self._loop.is_running() and self.identity.pid == process.pid:
            raise BadArg("an AsyncClient is for one event loop at a time: make one for each")
        for channel in self._channels:
            if channel is not None:
                channel.abandon()
        if self._mailbox is not None:
            self._mailbox.abandon()
        self._loop = loop
        self.identity = Identity()
        self._channels = [None] * (1 + _BULK_CHANNELS)
        self._connecting = {}
        self._making = set()
        self._mailbox = None
        self._packer = self._new_packer()

    # --- connections

    async def channel(self, *, bulk: bool = False) -> Channel:
        """Return a connection to send on.

        Small commands share one, so that those of one turn of the loop go out together; large ones go elsewhere, so
        that the small do not wait behind them.

        Raises:
            KeysideError: the server cannot be reached, or refuses this user.
        """
        if self.closed:
            raise Unreachable("this client is closed")
        self._here()
        index = 0
        if bulk:
            index = min(range(1, len(self._channels)), key=self._load)
        found = self._channels[index]
        if found is None or not found.open:
            found = await self._made(index)
        await found.room()
        return found

    async def _made(self, index: int) -> Channel:
        """Return a connection that is made once for all who want it.

        In a task of its own, since a handshake that is cancelled halfway is of no use to the others.
        """
        task = self._connecting.get(index)
        if task is None:
            task = asyncio.get_running_loop().create_task(self.connect("keyside-client", self.idle))
            self._connecting[index] = task
            task.add_done_callback(lambda done: self._connected(index, done))
        return await asyncio.shield(task)

    def _connected(self, index: int, task: "asyncio.Task[Channel]") -> None:
        if self._connecting.get(index) is task:
            del self._connecting[index]
        if task.cancelled() or task.exception() is not None:
            return
        channel = task.result()
        if self.closed or index >= len(self._channels):
            channel.close()
        else:
            self._channels[index] = channel

    @property
    def small(self) -> Channel | None:
        """The connection for small commands, if there is one."""
        return self._channels[0] if self._channels else None

    def _load(self, index: int) -> int:
        channel = self._channels[index]
        # A connection that there is and that has nothing to do comes before one that has yet to be made.
        return 1 if channel is None or not channel.open else 2 * channel.load

    async def connect(self, name: str, idle: float) -> Channel:
        """Make a connection for the caller alone.

        Raises:
            KeysideError: the server cannot be reached, or refuses this user.
        """
        made = Channel.connect(self.endpoint, name, idle, self.idle)
        # In a task of its own: redis-py can lose a cancellation on its way.
        task = asyncio.get_running_loop().create_task(made)
        self._making.add(task)
        task.add_done_callback(self._making.discard)
        try:
            channel = await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_close_unused)
            raise
        if self.closed:
            channel.close()
            raise Unreachable("this client is closed")
        self.reached = True
        return channel

    async def close(self) -> None:
        """Close the connections; requests in flight fail."""
        if self.closed:
            return
        mailbox, self._mailbox = self._mailbox, None
        small = self._channels[0] if self._channels else None
        if mailbox is not None and self._loop is asyncio.get_running_loop():
            await mailbox.close(small)
        self.closed = True
        if self._loop is asyncio.get_running_loop():
            for channel in self._channels:
                if channel is not None:
                    channel.close()
            self.close_lines()
            self._channels = []
            tasks = [*self._connecting.values(), *self._making]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        self._channels = []
        # asyncio closes sockets in the next turns of the loop.
        await asyncio.sleep(0)

    async def store(self, key: bytes, header: bytes, data: memoryview, px: int | None) -> None:
        """Write a tensor, and start what waits for it; like `call`."""
        self._here()
        await self.put(Write(key, header, data, px, self.identity.id, self.identity.number()))

    # --- requests

    async def forget(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for; if they cannot be sent, then not."""
        self.post(batch)

    def post(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for, if there is a connection."""
        channel = self._channels[0] if self._channels else None
        if channel is not None and channel.open:
            for command in batch:
                channel.send(command, ignore)

    def _mail(self) -> Mailbox:
        self._here()
        if self._mailbox is None:
            self._mailbox = Mailbox(self)
        return self._mailbox

    async def run(self, request: Request) -> bytes:
        """Submit a request and wait for its reply.

        Raises:
            KeysideError: it was refused, it failed, or there was no answer.
        """
        mailbox = self._mail()
        pending = await mailbox.submit(request)
        try:
            return await pending.future
        finally:
            mailbox.leave(pending)

    async def run_packed(self, request: Packed) -> bytes:
        """Submit a request that is encoded already, by `packer` in this turn of the loop; like `run`."""
        mailbox, channel = self._mailbox, self._channels[0] if self._channels else None
        if mailbox is None or channel is None or not channel.ready:
            return await self.run(request)
        pending = mailbox.post(request, channel)
        try:
            return await pending.future
        except BaseException:
            mailbox.leave(pending)
            raise

    async def begin(self, request: Request) -> AsyncPending:
        """Submit a request and return once the server has accepted it.

        Raises:
            KeysideError: it was refused, or the server is gone.
        """
        mailbox = self._mail()
        pending = await mailbox.submit(request)
        try:
            await pending.accepted()
        except BaseException:
            mailbox.leave(pending)
            raise
        return pending

    async def wait(self, pending: AsyncPending, timeout: float | None) -> bytes:  # noqa: ASYNC109  # as the blocking one
        """Wait for the reply, at most some seconds and at most until its deadline.

        Raises:
            TimedOut: it has not come; if the deadline has not passed, the job goes on.
            KeysideError: the job ended with that error.
        """
        done, _ = await asyncio.wait((pending.future,), timeout=timeout)
        if not done:
            raise TimedOut(f"no reply within {timeout:g} s; the job goes on")
        return pending.future.result()

    async def result(
        self,
        pending: AsyncPending,
        read: Callable[[bytes], Awaitable[Any]],
        timeout: float | None,  # noqa: ASYNC109  # as the blocking one
    ) -> Any:
        """Wait for the reply and return what is read from it; that is done once, however many ask.

        Raises:
            KeysideError: as of `wait`, or of `read`; after that the next caller reads it anew.
        """
        reply = await self.wait(pending, timeout)
        if pending.reading is None:
            # In a task of its own: a caller that is cancelled must not take it from the others.
            pending.reading = asyncio.ensure_future(read(reply))
            pending.reading.add_done_callback(lambda task: _forget_failure(pending, task))
        return await asyncio.shield(pending.reading)

    async def arrived(self, pending: AsyncPending) -> bool:
        """Whether the reply has come, or will not come any more."""
        return pending.future.done()

    async def cancel(self, pending: AsyncPending) -> bool:
        """Take a job back; return whether it will write nothing any more."""
        return await self._mail().cancel(pending)

    async def run_many(self, requests: Iterable[Request], window: int) -> AsyncGenerator[tuple[int, bytes], None]:
        """Submit requests, some of them ahead, and give their replies as they come, with their numbers.

        Args:
            requests: made one after the other, as there is room for them.
            window: how many may be in flight.

        Raises:
            KeysideError: one of them was refused or failed; those in flight have been cancelled.
        """
        mailbox = self._mail()
        numbered = enumerate(requests)
        flights: dict[int, AsyncPending] = {}
        ended: asyncio.Queue[int] = asyncio.Queue()
        try:
            while True:
                while len(flights) < window and (item := next(numbered, None)) is not None:
                    index, request = item
                    pending = flights[index] = await mailbox.submit(request)
                    pending.future.add_done_callback(lambda _, index=index: ended.put_nowait(index))  # type: ignore[misc]
                if not flights:
                    return
                index = await ended.get()
                try:
                    reply = flights.pop(index).future.result()
                except Busy as error:
                    reply = as_reply(error)
                yield index, reply
        finally:
            for pending in flights.values():
                mailbox.leave(pending)


def _forget_failure(pending: AsyncPending, reading: "asyncio.Future[Any]") -> None:
    """Let the next caller read a reply that could not be read; nobody need ask for the error."""
    if reading.cancelled() or reading.exception() is not None:
        pending.reading = None


def _close_unused(task: "asyncio.Task[Channel]") -> None:
    """Close a connection that nobody has waited for."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()
