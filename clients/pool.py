"""The connections of a blocking client, for any number of threads, and commands that are sent on them."""

import contextlib
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from keyside.clients.endpoint import Endpoint
from keyside.clients.wire import Wire
from keyside.tensorstore import keys
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import KeysideError, Unreachable

__all__ = ["Pool"]

T = TypeVar("T")
_IDLE_MAX = 32


class Pool:
    """Connections to one server, and commands.

    Args:
        endpoint: the server.
        idle: seconds without a byte after which the server counts as gone.

    Attributes:
        reached: there has been a connection.
        closed: there will be none any more.
    """

    def __init__(self, endpoint: Endpoint, idle: float) -> None:
        self.endpoint = endpoint
        self._idle_s = idle
        self.node = keys.STANDALONE_TAG
        self.begin_anew()
        _ALL.add(self)

    def begin_anew(self) -> None:
        """Begin without connections."""
        self._free: list[Wire] = []
        self.reached = False
        self.closed = False

    def forked(self) -> None:
        """Begin anew in a child process: the connections are the parent's."""
        inherited, closed = self._free, self.closed
        self.begin_anew()
        self.closed = closed
        for wire in inherited:
            wire.close()

    # --- connections

    def take(self) -> Wire:
        """Return a connection for the caller alone; `give` takes it back."""
        if self.closed:
            raise Unreachable("this client is closed")
        while True:
            try:
                wire = self._free.pop()
            except IndexError:
                wire = Wire(self.endpoint, "keyside-client", self._idle_s)
                self.reached = True
                return wire
            if wire.usable:
                return wire
            wire.close()

    def give(self, wire: Wire) -> None:
        """Take back a connection on which no reply is outstanding, or that is closed."""
        if self.closed or len(self._free) >= _IDLE_MAX or not wire.usable:
            wire.close()
            return
        wire.done()
        self._free.append(wire)

    @contextlib.contextmanager
    def wire(self) -> Iterator[Wire]:
        """Lend a connection for a while."""
        wire = self.take()
        try:
            yield wire
        except KeysideError:
            self.give(wire)
            raise
        except BaseException:
            # Which replies are still to come is not known.
            wire.close()
            raise
        self.give(wire)

    def close(self) -> None:
        """Close the connections."""
        self.closed = True
        self.close_free()

    def close_free(self) -> None:
        """Close the connections that are not in use: where one broke, the others most likely have."""
        while True:
            try:
                self._free.pop().close()
            except IndexError:
                return

    # --- commands

    def call(self, command: Command[T]) -> T:
        """Send a command and return its result.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        return command.result(self.replies((command,))[0])

    def call_many(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Send commands in one write and return their results.

        Raises:
            KeysideError: one of them was refused, or the server is gone.
        """
        replies = self.replies(batch)
        return [command.result(reply) for command, reply in zip(batch, replies, strict=True)]

    def replies(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Send commands in one write and return their replies; error replies as errors that are not raised.

        Raises:
            Unreachable: the server is gone.
        """
        reached = self.reached
        try:
            with self.wire() as wire:
                return _exchange(wire, batch)
        except Unreachable:
            if not reached or self.closed or not all(command.repeatable for command in batch):
                raise
            self.close_free()
        with self.wire() as wire:
            return _exchange(wire, batch)

    def run_blocking(self, function: Callable[[], T]) -> T:
        """Run what may wait for a disk."""
        return function()

    def forget(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for; if they cannot be sent, then not."""
        with contextlib.suppress(KeysideError):
            self.replies(batch)


def _exchange(wire: Wire, batch: Sequence[Command[Any]]) -> list[Any]:
    wire.send(batch)
    return [wire.read() for _ in batch]


_ALL: "weakref.WeakSet[Pool]" = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_ALL):
        transport.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
