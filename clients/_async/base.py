"""What all parts of the client share."""

import asyncio
import time

from keyside.clients.request import answered
from keyside.clients.transport_async import AsyncTransport
from keyside.tensorstore import commands
from keyside.tensorstore.errors import LibraryTooOld, Unreachable

__all__ = ["AsyncBase"]

LOADING_PAUSE_S = 0.1


class AsyncBase:
    """A transport, and what is known of the server behind it."""

    def __init__(self, transport: AsyncTransport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._library = 0

    async def _functions(self) -> None:
        """See once that the server has a function library that fits.

        Raises:
            LibraryMissing: it has none.
            LibraryTooOld: it has an older one.
            Unreachable: it is not there, or is still loading its data after the client's timeout.
        """
        if not self._library:
            ends = time.monotonic() + self._timeout
            while True:
                try:
                    found = await self._transport.call(commands.ks_version())
                    break
                except Unreachable as error:
                    if not answered(error) or time.monotonic() > ends:
                        raise
                await asyncio.sleep(LOADING_PAUSE_S)
            if found < commands.MIN_LIBRARY:
                raise LibraryTooOld(
                    f"the function library on this server is version {found}, this client needs at least "
                    f"{commands.MIN_LIBRARY}: run `keyside install`, or restart the executors with this release"
                )
            self._library = found
