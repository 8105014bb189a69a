"""An asyncio connection on which the server speaks without being asked: for channels."""

import asyncio
import weakref
from collections import deque
from collections.abc import Sequence
from typing import Any, cast

import hiredis

from keyside.clients.channel import Channel
from keyside.clients.endpoint import Endpoint
from keyside.clients.places import LINE_S, OneNode
from keyside.tensorstore.command import Command, encode
from keyside.tensorstore.errors import Unreachable, from_reply
from keyside.tensorstore.resp import NOT_READY

__all__ = ["AsyncLine", "Lines"]

_NAME = "keyside-listener"
_HELD = 1000


class AsyncLine(Channel):
    """A connection, for one task at a time; see `Lines`.

    Attributes:
        address: of the server.
    """

    def __init__(self, idle: float) -> None:
        super().__init__(idle)
        self.address = ""
        self._said: deque[Any] = deque()
        self._heard = asyncio.Event()
        self._paused = False

    async def tell(self, commands: Sequence[Command[Any]]) -> None:
        """Send commands.

        Raises:
            Unreachable: the connection is gone.
        """
        if self._lost is not None:
            raise self._lost
        self._transport.write(b"".join(encode(commands)))

    async def poll(self, seconds: float) -> Any:
        """Return what the server says next; an error as the error that it stands for, not raised.

        Args:
            seconds: to wait for that.

        Returns:
            What it says, or `NOT_READY`.

        Raises:
            Unreachable: the connection is gone.
        """
        if not self._said and self._lost is None:
            self._heard.clear()
            try:
                async with asyncio.timeout(max(seconds, 0.0)):
                    await self._heard.wait()
            except TimeoutError:
                return NOT_READY
        if self._said:
            said = self._said.popleft()
            if self._paused and len(self._said) <= _HELD // 2 and self._lost is None:
                self._paused = False
                self._transport.resume_reading()
            return said
        raise self._lost or Unreachable("the connection to the server is closed")

    def buffer_updated(self, nbytes: int) -> None:
        """Take bytes that have come."""
        reader = self._reader
        reader.buffer_updated(nbytes)
        try:
            while (said := reader.gets()) is not NOT_READY:
                self._said.append(from_reply(str(said)) if isinstance(said, hiredis.ReplyError) else said)
        except hiredis.ProtocolError as error:
            self._broken(str(error))
        self._heard.set()
        if len(self._said) >= _HELD and not self._paused and self._lost is None:
            # Who does not take them lets the server hold them; it drops who lets it hold too many.
            self._paused = True
            self._transport.pause_reading()

    def _end(self, error: Unreachable) -> None:
        super()._end(error)
        self._heard.set()


class Lines(OneNode):
    """The connections of a client for what is said on channels."""

    closed: bool
    idle: float

    def __init__(self) -> None:
        self._lines: weakref.WeakSet[AsyncLine] = weakref.WeakSet()

    async def line(self, endpoint: Endpoint) -> AsyncLine:
        """Make a connection to a server for what is said on channels; whoever gets it closes it.

        Raises:
            KeysideError: it cannot be made.
        """
        if self.closed:
            raise Unreachable("this client is closed")
        line = await _open(endpoint, self.idle, min(self.idle, LINE_S))
        self._lines.add(line)
        return line

    def close_lines(self) -> None:
        """Close those that are left."""
        for line in list(self._lines):
            line.close()

    async def look_around(self) -> None:
        """Find out anew where the servers are."""


async def _open(endpoint: Endpoint, idle: float, patience: float) -> AsyncLine:
    """Make a connection.

    Args:
        endpoint: the server.
        idle: see `Channel`.
        patience: seconds that each step of the handshake may take.

    Raises:
        KeysideError: it cannot be made.
    """
    # In a task of its own: redis-py can lose a cancellation on its way.
    task = asyncio.get_running_loop().create_task(AsyncLine.connect(endpoint, _NAME, idle, patience))
    try:
        line = cast("AsyncLine", await asyncio.shield(task))
    except asyncio.CancelledError:
        task.add_done_callback(_close_unused)
        raise
    line.address = str(endpoint)
    return line


def _close_unused(task: "asyncio.Task[Channel]") -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
