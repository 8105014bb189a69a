"""What all parts of the client share."""

import asyncio
import time

from keyside.clients.cluster_async import AsyncCluster
from keyside.clients.request import answered
from keyside.clients.transport_async import AsyncTransport
from keyside.tensorstore import commands, plain
from keyside.tensorstore.errors import KeysideError, LibraryTooOld, NoPerm, ServerError, Unreachable

__all__ = ["AsyncBase"]

LOADING_PAUSE_S = 0.1


class AsyncBase:
    """A transport, and what is known of the server behind it."""

    def __init__(self, transport: AsyncTransport, timeout: float) -> None:
        self._transport = transport
        self._timeout = timeout
        self._library = 0
        self._settled = False

    async def _settle(self) -> None:
        """Find out once whether there is one server, or nodes of a cluster, or sentinels.

        Raises:
            KeysideError: none of them says so.
        """
        first = self._transport
        try:
            if not (first.endpoint.sentinels or first.endpoint.seeds) and await self._alone():
                self._settled = True
                return
            cluster = AsyncCluster(first.endpoint, first.idle, self._timeout)
            try:
                await cluster.begin_map()
            except BaseException:
                await cluster.close()
                raise
        except KeysideError:
            if self._settled:  # by another caller, who has closed the first connection
                return
            raise
        if self._settled or first.closed:
            await cluster.close()
            return
        self._transport, self._settled = cluster, True
        await first.close()

    async def _alone(self) -> bool:
        """Whether the server belongs to no cluster."""
        try:
            await self._transport.call(plain.cluster_slots())
        except ServerError:
            return True
        except NoPerm as error:
            try:
                report = await self._transport.call(commands.ai_node())
            except KeysideError:
                return True
            if report.cluster:
                raise NoPerm(f"a client of a cluster must be allowed to call CLUSTER SLOTS: {error.text}") from error
            return True
        return False

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
                    if not self._settled:
                        await self._settle()
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
