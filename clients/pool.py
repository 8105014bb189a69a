"""The connections of a blocking client, for any number of threads, and commands that are sent on them."""

import contextlib
import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from keyside.clients.endpoint import Endpoint
from keyside.clients.lines_sync import SyncLine
from keyside.clients.places import LINE_S, OneNode
from keyside.clients.wire import Wire
from keyside.tensorstore import keys, npy, plain, storing
from keyside.tensorstore.command import Command, Name, to_bytes
from keyside.tensorstore.errors import KeysideError, Unreachable
from keyside.tensorstore.plain import CatalogRecord
from keyside.tensorstore.storing import Write

__all__ = ["Pool"]

T = TypeVar("T")
_IDLE_MAX = 32


class Pool(OneNode):
    """Connections to one server, and commands.

    Args:
        endpoint: the server.
        idle: seconds without a byte after which the server counts as gone.

    Attributes:
        idle: see above.
        reached: there has been a connection.
        closed: there will be none any more.
    """

    def __init__(self, endpoint: Endpoint, idle: float) -> None:
        self.endpoint = endpoint
        self.idle = idle
        self.node = keys.STANDALONE_TAG
        self.begin_anew()
        _ALL.add(self)

    def begin_anew(self) -> None:
        """Begin without connections."""
        self._free: list[Wire] = []
        self._mute = 0.0
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

    def take(self, patience: float | None = None) -> Wire:
        """Return a connection for the caller alone; `give` takes it back.

        Args:
            patience: seconds that each step of making one may take; None: as long as the server may be silent.
        """
        if self.closed:
            raise Unreachable("this client is closed")
        while True:
            try:
                wire = self._free.pop()
            except IndexError:
                wire = Wire(self.endpoint, "keyside-client", self.idle, patience)
                self.reached = True
                return wire
            if wire.usable:
                return wire
            wire.close()

    def give(self, wire: Wire) -> None:
        """Take back a connection on which no reply is outstanding, or that is closed."""
        free = self._free
        if self.closed or len(free) >= _IDLE_MAX or not wire.connected:
            wire.close()
            return
        wire.used = time.monotonic()
        free.append(wire)  # `take` sees whether it can be used

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

    def line(self, endpoint: Endpoint) -> SyncLine:
        """Make a connection to a server for what is said on channels; whoever gets it closes it.

        Raises:
            KeysideError: it cannot be made.
        """
        if self.closed:
            raise Unreachable("this client is closed")
        return SyncLine(endpoint, self.idle, min(self.idle, LINE_S))

    def look_around(self) -> None:
        """Find out anew where the servers are."""

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
        reached = self.reached
        wire = self.take()
        try:
            wire.write(command.encode())
            reply = wire.read()
        except Unreachable as error:
            reply = self._again(command, error, reached=reached)
        except BaseException:
            wire.close()  # the reply is still to come
            raise
        else:
            self.give(wire)
        return command.result(reply)

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
            return self._exchange(batch)
        except Unreachable:
            if not reached or self.closed or not all(command.repeatable for command in batch):
                raise
            self.close_free()
        return self._exchange(batch)

    def _exchange(self, batch: Sequence[Command[Any]]) -> list[Any]:
        wire = self.take()
        try:
            wire.send(batch)
            replies = [wire.read() for _ in batch]
        except BaseException:
            wire.close()  # which replies are still to come is not known
            raise
        self.give(wire)
        return replies

    # --- tensors

    def put(self, write: Write) -> None:
        """Write a tensor, and start what waits for it.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        if time.monotonic() < self._mute:
            self.call(write.alone())
            return
        reached = self.reached
        head, tail = write.around()
        wire = self.take()
        try:
            replies = wire.put(head, write.data, tail, storing.QUIET_REPLY, 4)
        except Unreachable:
            if not reached or self.closed:
                raise
            self.close_free()
            replies = self._exchange(write.transaction())
        else:
            self.give(wire)
        if replies is None:
            return
        if storing.is_mute(replies):
            self._mute = time.monotonic() + storing.MUTE_S
            self.call(write.alone())
            return
        storing.read(replies)

    def fetch(self, key: Name) -> NDArray[Any]:
        """Read a tensor.

        Raises:
            KeysideError: there is none, the server refuses or is gone.
        """
        reached = self.reached
        name = to_bytes(key)
        wire = self.take()
        try:
            reply = wire.fetch(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name))
        except Unreachable as error:
            reply = self._again(plain.get_value(key), error, reached=reached)
        else:
            self.give(wire)
        if type(reply) is np.ndarray:
            found = npy.decode_received(reply)
            if found is not None:
                return found
            reply = reply.data[:-2]
        return plain.get_value(key).result(reply)

    def _again(self, command: Command[Any], error: Unreachable, *, reached: bool) -> Any:
        """Send a command that was lost with its connection once more."""
        if not reached or self.closed or not command.repeatable:
            raise error
        self.close_free()
        return self._exchange((command,))[0]

    def unlink(self, names: Sequence[Name]) -> int:
        """Delete keys; return how many there were."""
        return self.call(plain.unlink(names))

    def collect(self, names: Sequence[Name]) -> list[NDArray[Any]]:
        """Read outputs that a reply names, and delete them."""
        found: list[NDArray[Any]] = self.call_many([*map(plain.get_output, names), plain.unlink(names)])[:-1]
        return found

    def record(self, target: Name) -> CatalogRecord:
        """Read what the functions know about a target.

        Raises:
            NoModel: there is none.
        """
        return self.call(plain.catalog_record(self.node, target))

    def call_at(self, tag: bytes, command: Command[T]) -> T:  # noqa: ARG002  # there is but one node
        """Send a command that has no keys to the node of a tag."""
        return self.call(command)

    def not_ready(self, model: str, device: str) -> tuple[list[str], tuple[str, ...]]:  # noqa: ARG002
        """Say which executors of a cluster have not loaded a version, and which of its nodes have none for it."""
        return [], ()

    def run_blocking(self, function: Callable[[], T]) -> T:
        """Run what may wait for a disk."""
        return function()

    def forget(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for; if they cannot be sent, then not."""
        with contextlib.suppress(KeysideError):
            self.replies(batch)


class _Forked(Protocol):
    def forked(self) -> None: ...


_ALL: "weakref.WeakSet[_Forked]" = weakref.WeakSet()


def _after_fork() -> None:
    for transport in list(_ALL):
        transport.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
