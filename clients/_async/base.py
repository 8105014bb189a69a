"""What all parts of the client share."""

from keyside.clients.transport_async import AsyncTransport
from keyside.tensorstore import commands
from keyside.tensorstore.errors import LibraryTooOld

__all__ = ["AsyncBase"]


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
        """
        if not self._library:
            found = await self._transport.call(commands.ks_version())
            if found < commands.MIN_LIBRARY:
                raise LibraryTooOld(
                    f"the function library on this server is version {found}, this client needs at least "
                    f"{commands.MIN_LIBRARY}: run `keyside install`, or restart the executors with this release"
                )
            self._library = found
