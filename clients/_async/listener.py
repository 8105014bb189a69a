"""Listens to channels over one connection."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from keyside.clients.lines_async import AsyncLine
from keyside.clients.transport_async import AsyncTransport
from keyside.tensorstore import channels
from keyside.tensorstore.channels import Message
from keyside.tensorstore.command import Command, text
from keyside.tensorstore.errors import KeysideError, NoPerm, TimedOut, Unreachable
from keyside.tensorstore.resp import NOT_READY

__all__ = ["AsyncListener"]

_SLICE_S = 0.5
_PING_S = 5.0
_ANSWER_S = 5.0


class AsyncListener:
    """A connection that listens; `close` it.

    Args:
        transport: of the client, whose end is the end of this.
        line: the connection, which nobody else uses.
    """

    def __init__(self, transport: AsyncTransport, line: AsyncLine) -> None:
        self._transport = transport
        self._line = line
        self._held: deque[Message] = deque()
        self._heard = time.monotonic()
        self._asked = False

    @property
    def address(self) -> str:
        """The server."""
        return self._line.address

    async def close(self) -> None:
        """Close the connection."""
        self._line.close()

    async def ask(self, command: Command[Any]) -> Any:
        """Send a command and return its result; only before `subscribe`.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        await self._line.tell((command,))
        said = await self._line.poll(_ANSWER_S)
        if said is NOT_READY:
            raise Unreachable(f"{self.address} does not answer")
        return command.result(said)

    async def subscribe(self, names: Sequence[bytes], *, sharded: bool = False) -> None:
        """Listen to channels from now on; when this returns, nothing is missed.

        Raises:
            NoPerm: the user may not.
            KeysideError: the server refuses otherwise, or is gone.
        """
        await self._line.tell([channels.subscribe((name,), sharded=sharded) for name in names])
        for name in names:
            while True:
                said = await self._line.poll(_ANSWER_S)
                if said is NOT_READY:
                    raise Unreachable(f"{self.address} does not answer")
                if isinstance(said, NoPerm):
                    raise NoPerm(f"channel {text(name)!r}: {said.text}")
                if isinstance(said, KeysideError):
                    raise said
                if channels.is_subscribed(said, name):
                    break
                self._hold(said)
        self._heard = time.monotonic()

    async def next(self, seconds: float | None) -> Message:
        """Return what is said next on the channels.

        Args:
            seconds: to wait for that; None: for ever.

        Raises:
            TimedOut: nothing was said.
            Unreachable: the connection is gone, or the client is closed.
        """
        ends = float("inf") if seconds is None else time.monotonic() + seconds
        while not self._held:
            if self._transport.closed:
                raise Unreachable("this client is closed")
            now = time.monotonic()
            said = await self._line.poll(min(ends - now, _SLICE_S))
            if said is not NOT_READY:
                self._heard, self._asked = time.monotonic(), False
                if isinstance(said, KeysideError):
                    raise said
                self._hold(said)
                continue
            if time.monotonic() >= ends:
                raise TimedOut("nothing was said on the channel")
            await self._see_alive()
        return self._held.popleft()

    async def _see_alive(self) -> None:
        """Ask for a sign of life now and then: a connection that was cut silently would be waited on for ever."""
        silent = time.monotonic() - self._heard
        if silent > max(self._transport.idle, _PING_S + _SLICE_S):
            raise Unreachable(f"the connection to the server was lost: nothing came for {silent:.0f} s")
        if silent > min(_PING_S, self._transport.idle / 2) and not self._asked:
            self._asked = True
            await self._line.tell((channels.ping(),))

    def _hold(self, said: Any) -> None:
        message = channels.read_message(said)
        if message is not None:
            self._held.append(message)
