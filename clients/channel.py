"""One asyncio connection that many tasks share: commands of one turn of the loop go out in one write."""

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from keyside.clients.endpoint import Endpoint
from keyside.clients.pending import AsyncPending
from keyside.clients.request import process
from keyside.tensorstore.command import Command, encode
from keyside.tensorstore.errors import Unreachable, from_reply
from keyside.tensorstore.resp import BIG_ARGUMENT, NOT_READY, Piece, ReplyReader

__all__ = ["Channel", "ignore"]

OnReply = Callable[[Any], None]
_INHERITED: list[Any] = []


def ignore(_: Any) -> None:
    """Take a reply that nobody waits for."""


class Channel(asyncio.BufferedProtocol):
    """A connection taken over from redis-py after it has logged in.

    Args:
        idle: seconds without a byte from or to the server, while a reply is awaited, after which it counts as gone.
    """

    def __init__(self, idle: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._idle = idle
        self._reader = ReplyReader()
        self._awaited: deque[OnReply | AsyncPending] = deque()
        self._out: list[Piece] = []
        self._writer: Any = None
        self._pid = process.pid
        self._transport: Any = None
        self._flowing: asyncio.Event | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._active = 0
        self._lost: Unreachable | None = None

    @classmethod
    async def connect(cls, endpoint: Endpoint, name: str, idle: float, patience: float) -> "Channel":
        """Make a connection.

        Args:
            endpoint: the server.
            name: shown by CLIENT LIST.
            idle: see the class.
            patience: seconds that the server may take for each step of the handshake.

        Raises:
            KeysideError: it cannot be made.
        """
        channel = cls(idle)
        connection = await endpoint.connect_async(name, patience)
        # redis-py hands out no transport. Its writer is kept: it would close the transport if it were let go.
        writer = channel._writer = connection._writer  # noqa: SLF001
        connection._writer = connection._reader = None  # noqa: SLF001
        transport = writer.transport
        if transport.is_closing():
            raise Unreachable(f"{endpoint} closed the connection")
        channel._transport = transport
        transport.set_protocol(channel)
        transport.resume_reading()
        return channel

    @property
    def open(self) -> bool:
        """Whether commands can be sent."""
        return self._lost is None and self._transport is not None

    @property
    def load(self) -> int:
        """How many replies are awaited."""
        return len(self._awaited)

    async def room(self) -> None:
        """Wait until not too much waits to be sent."""
        if self._flowing is not None:
            await self._flowing.wait()

    @property
    def ready(self) -> bool:
        """Whether `write` may be called without further ado."""
        return self._lost is None and self._flowing is None

    def send(self, command: Command[Any], on_reply: "OnReply | AsyncPending") -> None:
        """Send a command at the end of this turn of the loop.

        Args:
            command: what to send; memory that it refers to must not change until the reply is there.
            on_reply: called with the reply, or with the error that it is, or with `Unreachable`; or the request that
                takes it.
        """
        if self._lost is not None:
            self._loop.call_soon(on_reply.answer if isinstance(on_reply, AsyncPending) else on_reply, self._lost)
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += encode((command,))
        self._awaited.append(on_reply)

    def write(self, data: bytes, pending: AsyncPending) -> None:
        """Send a call that is encoded already at the end of this turn of the loop, if this is `ready`."""
        out = self._out
        if not out:
            self._loop.call_soon(self._flush)
        out.append(data)
        self._awaited.append(pending)

    def call(self, batch: Sequence[Command[Any]]) -> "asyncio.Future[list[Any]]":
        """Send commands; the future gets their replies, error replies as errors."""
        return self.trade(encode(batch), len(batch))

    def trade(self, pieces: list[Piece], count: int) -> "asyncio.Future[list[Any]]":
        """Send commands that are encoded already; like `call`.

        Args:
            pieces: of them; memory that they refer to must not change until the replies are there.
            count: of the commands.
        """
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        replies: list[Any] = []

        def on_reply(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == count and not future.done():
                future.set_result(replies)

        if self._lost is not None:
            for _ in range(count):
                self._loop.call_soon(on_reply, self._lost)
            return future
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out += pieces
        self._awaited.extend([on_reply] * count)
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._lost is not None:
            return
        self._active += 1
        at = 0
        for index, piece in enumerate(out):
            if len(piece) >= BIG_ARGUMENT:  # as it lies
                if at < index:
                    self._transport.write(b"".join(out[at:index]))
                self._transport.write(piece)
                at = index + 1
        if at < len(out):
            self._transport.write(b"".join(out[at:]) if at or len(out) > 1 else out[0])
        if self._timer is None:
            self._watch()

    def close(self) -> None:
        """Close the connection; what is awaited fails."""
        self._end(Unreachable("this client is closed"))
        if self._transport is not None:
            self._transport.abort()

    def abandon(self) -> None:
        """Forget the connection without a word to the server: it belongs to another process or a closed loop."""
        self._lost = Unreachable("the connection belongs to another process or event loop")
        if self._pid != process.pid:
            # Were it let go, it would be taken out of the event queue, which this process shares with its parent.
            _INHERITED.append(self)

    # --- what asyncio calls

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to put the next bytes."""
        return self._reader.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that have come."""
        reader, awaited = self._reader, self._awaited
        self._active += 1
        reader.buffer_updated(nbytes)
        try:
            while (reply := reader.gets()) is not NOT_READY:
                if not awaited:
                    self._broken("a reply that nobody has asked for")
                    return
                taker = awaited.popleft()
                if type(reply) is bytes and reply and type(taker) is AsyncPending and taker.noted:
                    taker.job = reply  # the usual case, without a call
                    taker.sent = True
                    continue
                answer = taker.answer if isinstance(taker, AsyncPending) else taker
                answer(from_reply(str(reply)) if isinstance(reply, hiredis.ReplyError) else reply)
                if self._lost is not None:
                    return
        except hiredis.ProtocolError as error:
            self._broken(str(error))

    def _broken(self, why: str) -> None:
        self._end(Unreachable(f"the connection to the server was lost: {why}"))
        self._transport.abort()

    def eof_received(self) -> bool:
        """Close when the server closes."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail what is awaited."""
        self._end(Unreachable(f"the connection to the server was lost: {exc or 'the server closed it'}"))

    def pause_writing(self) -> None:
        """Take note that much waits to be sent."""
        self._flowing = asyncio.Event()

    def resume_writing(self) -> None:
        """Take note that it was sent."""
        flowing, self._flowing = self._flowing, None
        if flowing is not None:
            flowing.set()

    # --- the end

    def _watch(self) -> None:
        """Look again after the idle time whether anything has moved."""
        if self._lost is not None or not self._awaited:
            self._timer = None
            return
        unsent = self._transport.get_write_buffer_size()
        self._timer = self._loop.call_later(self._idle, self._look, self._active, unsent)

    def _look(self, active: int, unsent: int) -> None:
        stuck = self._active == active and self._transport.get_write_buffer_size() == unsent
        if self._awaited and stuck and self._lost is None:
            self._end(Unreachable(f"the connection to the server was lost: nothing came for {self._idle:g} s"))
            self._transport.abort()
        self._watch()

    def _end(self, error: Unreachable) -> None:
        if self._lost is not None:
            return
        self._lost = error
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.resume_writing()
        awaited, self._awaited = self._awaited, deque()
        self._out = []
        for taker in awaited:
            with contextlib.suppress(asyncio.InvalidStateError):
                (taker.answer if isinstance(taker, AsyncPending) else taker)(error)
