"""One asyncio connection that many tasks share: commands of one turn of the loop go out in one write."""

import asyncio
import contextlib
import os
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

import hiredis

from keyside.clients.endpoint import Endpoint
from keyside.tensorstore.command import Command, encode
from keyside.tensorstore.errors import Unreachable, from_reply
from keyside.tensorstore.resp import NOT_READY, ReplyReader

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
        self._awaited: deque[OnReply] = deque()
        self._out: list[Command[Any]] = []
        self._writer: Any = None
        self._pid = os.getpid()
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

    def send(self, command: Command[Any], on_reply: OnReply) -> None:
        """Send a command at the end of this turn of the loop.

        Args:
            command: what to send; memory that it refers to must not change until the reply is there.
            on_reply: called with the reply, or with the error that it is, or with `Unreachable`.
        """
        if self._lost is not None:
            self._loop.call_soon(on_reply, self._lost)
            return
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(command)
        self._awaited.append(on_reply)

    def call(self, batch: Sequence[Command[Any]]) -> "asyncio.Future[list[Any]]":
        """Send commands; the future gets their replies, error replies as errors."""
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        replies: list[Any] = []
        count = len(batch)

        def on_reply(reply: Any) -> None:
            replies.append(reply)
            if len(replies) == count and not future.done():
                future.set_result(replies)

        for command in batch:
            self.send(command, on_reply)
        return future

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self._lost is not None:
            return
        pieces = encode(out)
        self._active += 1
        if len(pieces) == 1:
            self._transport.write(pieces[0])
        else:
            for piece in pieces:
                self._transport.write(piece)
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
        if self._pid != os.getpid():
            # Were it let go, it would be taken out of the event queue, which this process shares with its parent.
            _INHERITED.append(self)

    # --- what asyncio calls

    def get_buffer(self, sizehint: int) -> memoryview:
        """Say where to put the next bytes."""
        return self._reader.get_buffer(sizehint)

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that have come."""
        reader = self._reader
        self._active += 1
        reader.buffer_updated(nbytes)
        try:
            while (reply := reader.gets()) is not NOT_READY:
                if isinstance(reply, hiredis.ReplyError):
                    reply = from_reply(str(reply))
                if not self._awaited:
                    raise hiredis.ProtocolError("a reply that nobody has asked for")
                self._awaited.popleft()(reply)
        except hiredis.ProtocolError as error:
            self._end(Unreachable(f"the connection to the server was lost: {error}"))
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
        for on_reply in awaited:
            with contextlib.suppress(asyncio.InvalidStateError):
                on_reply(error)
