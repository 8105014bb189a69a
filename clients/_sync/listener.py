# Do not change this file: it is made from clients/_async/listener.py by tools/unasync.py.
"""Listens to channels over one connection."""

import time
from collections import deque
from collections.abc import Sequence
from typing import Any

from keyside.clients.lines_sync import SyncLine
from keyside.clients.transport_sync import SyncTransport
from keyside.tensorstore import channels
from keyside.tensorstore.channels import Message
from keyside.tensorstore.command import Command, text
from keyside.tensorstore.errors import KeysideError, NoPerm, TimedOut, Unreachable
from keyside.tensorstore.resp import NOT_READY

__all__ = ["Listener"]

_SLICE_S = 0.5
_PING_S = 5.0
_ANSWER_S = 5.0


class Listener:
    """A connection that listens; `close` it.

    Args:
        transport: of the client, whose end is the end of this.
        line: the connection, which nobody else uses.
    """

    def __init__(self, transport: SyncTransport, line: SyncLine) -> None:
        self._transport = transport
        self._line = line
        self._held: deque[Message] = deque()
        self._heard = time.monotonic()
        self._asked = False

    @property
    def address(self) -> str:
        """The server."""
        return self._line.address

    def close(self) -> None:
        """Close the connection."""
        self._line.close()

    def ask(self, command: Command[Any]) -> Any:
        """Send a command and return its result; only before `subscribe`.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        self._line.tell((command,))
        said = self._line.poll(_ANSWER_S)
        if said is NOT_READY:
            raise Unreachable(f"{self.address} does not answer")
        return command.result(said)

    def subscribe(self, names: Sequence[bytes], *, sharded: bool = False) -> None:
        """Listen to channels from now on; when this returns, nothing is missed.

        Raises:
            NoPerm: the user may not.
            KeysideError: the server refuses otherwise, or is gone.
        """
        self._line.tell([channels.subscribe((name,), sharded=sharded) for name in names])
        for name in names:
            while True:
                said = self._line.poll(_ANSWER_S)
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

    def next(self, seconds: float | None) -> Message:
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
            said = self._line.poll(min(ends - now, _SLICE_S))
            if said is not NOT_READY:
                self._heard, self._asked = time.monotonic(), False
                if isinstance(said, KeysideError):
                    raise said
                self._hold(said)
                continue
            if time.monotonic() >= ends:
                raise TimedOut("nothing was said on the channel")
            self._see_alive()
        return self._held.popleft()

    def _see_alive(self) -> None:
        """Ask for a sign of life now and then: a connection that was cut silently would be waited on for ever."""
        silent = time.monotonic() - self._heard
        if silent > max(self._transport.idle, _PING_S + _SLICE_S):
            raise Unreachable(f"the connection to the server was lost: nothing came for {silent:.0f} s")
        if silent > min(_PING_S, self._transport.idle / 2) and not self._asked:
            self._asked = True
            self._line.tell((channels.ping(),))

    def _hold(self, said: Any) -> None:
        message = channels.read_message(said)
        if message is not None:
            self._held.append(message)
