# Do not change this file: it is made from clients/_async/base.py by tools/unasync.py.
"""What all parts of the client share."""

import time

from keyside.clients.request import answered
from keyside.clients.transport_sync import SyncTransport
from keyside.tensorstore import commands
from keyside.tensorstore.errors import LibraryTooOld, Unreachable

__all__ = ["Base"]

LOADING_PAUSE_S = 0.1


class Base:
    """A transport, and what is known of the server behind it."""

    def __init__(self, transport: SyncTransport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._library = 0

    def _functions(self) -> None:
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
                    found = self._transport.call(commands.ks_version())
                    break
                except Unreachable as error:
                    if not answered(error) or time.monotonic() > ends:
                        raise
                time.sleep(LOADING_PAUSE_S)
            if found < commands.MIN_LIBRARY:
                raise LibraryTooOld(
                    f"the function library on this server is version {found}, this client needs at least "
                    f"{commands.MIN_LIBRARY}: run `keyside install`, or restart the executors with this release"
                )
            self._library = found
