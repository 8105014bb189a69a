"""A blocking connection on which the server speaks without being asked: for channels."""

import select
from collections.abc import Sequence
from typing import Any

from keyside.clients.endpoint import Endpoint
from keyside.clients.request import process
from keyside.clients.wire import Wire
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import Unreachable
from keyside.tensorstore.resp import NOT_READY

__all__ = ["SyncLine"]

_NAME = "keyside-listener"


class SyncLine:
    """A connection, for one thread at a time.

    Args:
        endpoint: the server.
        idle: seconds that it may take for the rest of what it has begun to say.
        patience: seconds that each step of the handshake may take.

    Raises:
        KeysideError: it cannot be made.

    Attributes:
        address: of the server.
    """

    def __init__(self, endpoint: Endpoint, idle: float, patience: float) -> None:
        self.address = str(endpoint)
        self._wire = Wire(endpoint, _NAME, idle, patience)
        self._pid = process.pid

    def tell(self, commands: Sequence[Command[Any]]) -> None:
        """Send commands.

        Raises:
            Unreachable: the connection is gone.
        """
        self._wire.send(commands)

    def poll(self, seconds: float) -> Any:
        """Return what the server says next; an error as the error that it stands for, not raised.

        Args:
            seconds: to wait for that.

        Returns:
            What it says, or `NOT_READY`.

        Raises:
            Unreachable: the connection is gone.
        """
        if self._pid != process.pid:
            raise Unreachable("the connection belongs to another process")
        wire = self._wire
        if wire.holds:
            return wire.read()
        poll = select.poll()
        poll.register(wire.fileno(), select.POLLIN)
        return wire.read() if poll.poll(max(seconds, 0.0) * 1000) else NOT_READY

    def close(self) -> None:
        """Close it."""
        self._wire.close()
