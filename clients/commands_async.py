"""Commands of an asyncio client, to one server."""

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from numpy.typing import NDArray

from keyside.clients.channel import Channel
from keyside.clients.lines_async import Lines
from keyside.clients.request import who_serves
from keyside.tensorstore import plain, storing
from keyside.tensorstore.command import Command, Name, encode
from keyside.tensorstore.errors import Unreachable
from keyside.tensorstore.plain import CatalogRecord
from keyside.tensorstore.resp import Piece
from keyside.tensorstore.storing import Write

__all__ = ["AsyncCommands"]

T = TypeVar("T")


class AsyncCommands(Lines):
    """Sends commands on the connections that the transport has."""

    reached: bool

    def __init__(self) -> None:
        super().__init__()
        self._mute = 0.0

    async def channel(self, *, bulk: bool = False) -> Channel:
        """Return a connection to send on."""
        raise NotImplementedError

    async def call(self, command: Command[T]) -> T:
        """Send a command and return its result.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        return command.result((await self.replies((command,)))[0])

    async def call_many(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Send commands in one write and return their results.

        Raises:
            KeysideError: one of them was refused, or the server is gone.
        """
        replies = await self.replies(batch)
        return [command.result(reply) for command, reply in zip(batch, replies, strict=True)]

    async def replies(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Send commands in one write and return their replies; error replies as errors that are not raised.

        Raises:
            Unreachable: the server is gone.
        """
        bulk = any(command.bulk for command in batch)
        again = all(command.repeatable for command in batch)
        return await self._exchange(encode(batch), len(batch), bulk=bulk, again=again)

    async def _exchange(self, pieces: list[Piece], count: int, *, bulk: bool, again: bool) -> list[Any]:
        again = again and self.reached
        while True:
            channel = await self.channel(bulk=bulk)
            replies = await channel.trade(pieces, count)
            lost = next((reply for reply in replies if isinstance(reply, Unreachable)), None)
            if lost is None or channel.open:
                return replies
            if not again or self.closed:
                raise lost
            again = False

    async def put(self, write: Write) -> None:
        """Write a tensor, and start what waits for it; like `call`."""
        if time.monotonic() >= self._mute:
            pieces = write.pieces()
            replies = await self._exchange(pieces, 4, bulk=len(pieces) > 1, again=True)
            if not storing.is_mute(replies):
                storing.read(replies)
                return
            self._mute = time.monotonic() + storing.MUTE_S
        await self.call(write.alone())

    async def fetch(self, key: Name) -> NDArray[Any]:
        """Read a tensor; like `call`."""
        return await self.call(plain.get_value(key))

    async def unlink(self, names: Sequence[Name]) -> int:
        """Delete keys; return how many there were."""
        return await self.call(plain.unlink(names))

    async def collect(self, names: Sequence[Name]) -> list[NDArray[Any]]:
        """Read outputs that a reply names, and delete them."""
        found: list[NDArray[Any]] = (await self.call_many([*map(plain.get_output, names), plain.unlink(names)]))[:-1]
        return found

    async def record(self, target: Name) -> CatalogRecord:
        """Read what the functions know about a target.

        Raises:
            NoModel: there is none.
        """
        return await self.call(plain.catalog_record(self.node, target))

    async def call_at(self, tag: bytes, command: Command[T]) -> T:  # noqa: ARG002  # there is but one node
        """Send a command that has no keys to the node of a tag."""
        return await self.call(command)

    async def not_ready(self, model: str, device: str) -> tuple[list[str], tuple[str, ...]]:  # noqa: ARG002
        """Say which executors of a cluster have not loaded a version, and which of its nodes have none for it."""
        return [], ()

    async def run_blocking(self, function: Callable[[], T]) -> T:
        """Run what may wait for a disk, on a thread."""
        return await asyncio.to_thread(function)

    async def who_serves(self, device: str) -> str:
        """Say which executors could answer on a queue."""
        names = await self.call(plain.executor_names(self.node))
        infos = await self.call(plain.executor_infos(self.node, names)) if names else []
        return who_serves(device, names, infos)
