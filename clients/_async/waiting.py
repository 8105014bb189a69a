"""Waits until something becomes of a key."""

# Timeouts are arguments here, as in the blocking client, which is made of this file.
# ruff: noqa: ASYNC109

import asyncio
import contextlib
import time
from typing import Any

from numpy.typing import NDArray

from keyside.clients._async.base import AsyncBase
from keyside.clients._async.listener import AsyncListener
from keyside.clients.request import may_retry, pauses
from keyside.clients.waiting import Condition, Wanted, not_told, passes
from keyside.tensorstore import channels, keys, plain
from keyside.tensorstore.command import Name
from keyside.tensorstore.errors import KeysideError, NoPerm, NoTensor, ServerError, TimedOut, TryAgain

__all__ = ["AsyncWaiting"]

_LOOK_S = 5.0
_PROBE_S = 1.0


class AsyncWaiting(AsyncBase):
    """Waits for keys."""

    async def wait_for_key(
        self, key: Name, condition: Condition = "exists", timeout: float | None = None
    ) -> NDArray[Any] | None:
        """Wait until a key exists, is gone, has changed, or holds a tensor that will do.

        The server tells what happens to the key (`notify-keyspace-events`, which is turned on if need be); nothing is
        asked again and again.

        Args:
            key: any key; for a function as the condition, one that holds a tensor or is yet to be made.
            condition: "exists", "gone", "changed" (anything that writes to the key counts, also if it writes what was
                there before), or a function that is called with the tensor whenever that may have changed, and returns
                whether it will do.
            timeout: seconds to wait; None: the client's.

        Returns:
            The tensor for which the function has returned true; None for the other conditions.

        Raises:
            TimedOut: it has not come to that.
            WrongType: a function is to see the tensor, and the key holds something else.
            NoPerm: the server does not tell what happens to keys, and this user may not turn that on.
            Unreachable: the server could not be reached until then.
        """
        wanted = Wanted(key, condition)
        seconds = self._timeout if timeout is None else timeout
        ends = time.monotonic() + seconds
        if not self._settled:
            await self._settle()
        met, found = await self._look(wanted)
        if met:
            return found
        pause = pauses()
        while True:
            listener = None
            try:
                listener = await self._listen(wanted.key)
                return await self._attend(wanted, listener, ends)
            except TimedOut:
                raise wanted.late(seconds) from None
            except KeysideError as error:
                wait = pause()
                if self._transport.closed or not may_retry(error) or time.monotonic() + wait >= ends:
                    raise
            finally:
                if listener is not None:
                    await listener.close()
            await asyncio.sleep(wait)
            await self._transport.look_around()

    async def _look(self, wanted: Wanted) -> tuple[bool, NDArray[Any] | None]:
        """See whether it has come to that, and what was there."""
        if wanted.test is None:
            return wanted.met(await self._transport.replies(wanted.question())), None
        try:
            found = await self._transport.fetch(wanted.key)
        except NoTensor:
            return False, None
        return passes(wanted.test, found), found

    async def _attend(self, wanted: Wanted, listener: AsyncListener, ends: float) -> NDArray[Any] | None:
        """Wait for what is said of a key, as long as its slot is where the listener is."""
        while True:
            met, found = await self._look(wanted)
            if met:
                return found
            endpoint = self._transport.endpoints(wanted.key)[0]
            if str(endpoint) != listener.address:
                raise TryAgain("the slot of the key has moved")
            channel = channels.watch_channel(endpoint.database, wanted.key)
            left = ends - time.monotonic()
            try:
                message = await listener.next(min(left, _LOOK_S))
                while True:  # of what was said meanwhile, one look shows all
                    if message.channel == channel and message.data is not None and wanted.told(message.data):
                        return None
                    message = await listener.next(0)
            except TimedOut:
                if time.monotonic() >= ends:
                    raise

    # --- the server's part

    async def _listen(self, key: bytes) -> AsyncListener:
        """Listen to what happens to a key, where its slot is."""
        transport = self._transport
        endpoint = transport.endpoints(key)[0]
        listener = AsyncListener(transport, await transport.line(endpoint))
        try:
            refused = await self._have_told(listener)
            channel = channels.watch_channel(endpoint.database, key)
            if transport.spread:
                # The server says when it does not serve this one any more: then the slot has moved.
                with contextlib.suppress(NoPerm):
                    await listener.subscribe((keys.slot_channel(key),), sharded=True)
            await listener.subscribe((channel,))
            if refused is not None:
                await self._probe(listener, endpoint.database, key, refused)
        except BaseException:
            await listener.close()
            raise
        return listener

    async def _have_told(self, listener: AsyncListener) -> KeysideError | None:
        """Have a server tell what happens to keys.

        Returns:
            Why one cannot know whether it does; None: it does.

        Raises:
            NoPerm: it does not, and this user may not change that.
        """
        try:
            flags = await listener.ask(channels.notified())
        except (NoPerm, ServerError) as error:
            return error
        if missing := channels.missing_events(flags):
            try:
                await listener.ask(channels.turn_events_on(flags))
            except (NoPerm, ServerError) as error:
                raise not_told(listener.address, missing, error) from error
        return None

    async def _probe(self, listener: AsyncListener, database: int, key: bytes, refused: KeysideError) -> None:
        """See by a key of one's own whether a server tells what happens to keys, where it may not be asked."""
        identity = self._transport.identity
        probe = keys.temporary(keys.tag(key), identity.id, identity.number(), 0)
        channel = channels.watch_channel(database, probe)
        try:
            await listener.subscribe((channel,))
            await self._transport.call(plain.set_value(probe, b"", memoryview(b""), int(_PROBE_S * 1000)))
            ends = time.monotonic() + _PROBE_S
            while (await listener.next(ends - time.monotonic())).channel != channel:
                pass
        except (NoPerm, TimedOut):
            raise not_told(listener.address, channels.EVENTS, refused) from refused
