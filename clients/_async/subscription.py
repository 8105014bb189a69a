"""Hears what a trigger says."""

# Timeouts are arguments here, as in the blocking client, which is made of this file.
# ruff: noqa: ASYNC109

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Self

from keyside.clients._async.listener import AsyncListener
from keyside.clients.events import Event, read_event
from keyside.clients.request import pauses
from keyside.clients.transport_async import AsyncTransport
from keyside.tensorstore import plain
from keyside.tensorstore.errors import BadArg, KeysideError, TimedOut, TryAgain, Unreachable

__all__ = ["AsyncSubscription", "Source"]

Source = tuple[AsyncTransport, bytes]
"""The transport of a client, and the channel to listen to."""


class AsyncSubscription:
    """The results of a trigger, from the moment on at which this is entered, or first asked.

    Iterate over it: that ends when it is closed, and raises Unreachable when the server has not been there for the
    client's timeout. A connection that breaks is made anew. What is said meanwhile is not heard: `breaks` counts that,
    and the stream that a trigger may be given for its results (`results`) has all of it.

    Attributes:
        trigger: its name.
        breaks: how often the connection was lost.
    """

    def __init__(
        self, trigger: str, find: Callable[[], Awaitable[Source]], timeout: float, *, fetch: bool = True
    ) -> None:
        self.trigger = trigger
        self.breaks = 0
        self._find = find
        self._timeout = timeout
        self._fetch = fetch
        self._source: Source | None = None
        self._listener: AsyncListener | None = None
        self._closed = False

    async def __aenter__(self) -> Self:
        await self._begin()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def __aiter__(self) -> AsyncIterator[Event]:
        await self._begin()
        while not self._closed:
            try:
                yield await self.next()
            except Unreachable:
                if not self._closed:
                    raise

    async def close(self) -> None:
        """Listen no more."""
        self._closed = True
        listener, self._listener = self._listener, None
        if listener is not None:
            await listener.close()

    async def next(self, timeout: float | None = None) -> Event:
        """Return the next event.

        Args:
            timeout: seconds to wait for it; None: for ever.

        Raises:
            TimedOut: there was none.
            Unreachable: the server has not been there for that long, or for the client's timeout; or this is closed.
        """
        ends = float("inf") if timeout is None else time.monotonic() + timeout
        source, listener = await self._begin()
        while True:
            try:
                message = await listener.next(None if timeout is None else ends - time.monotonic())
            except TimedOut:
                raise TimedOut(f"no event of trigger {self.trigger!r} within {timeout:g} s") from None
            except (Unreachable, TryAgain):
                if self._closed or source[0].closed:
                    raise Unreachable("this subscription, or its client, is closed") from None
                self.breaks += 1
                listener = await self._again(source, listener, min(ends, time.monotonic() + self._timeout))
                continue
            if message.data is not None and message.channel == source[1]:
                return await self._complete(source[0], read_event(self.trigger, message.data))

    async def _begin(self) -> tuple[Source, AsyncListener]:
        """Listen, unless that has begun already.

        Raises:
            KeysideError: that cannot be.
        """
        if self._closed:
            raise BadArg("this subscription is closed")
        if self._source is None:
            self._source = await self._find()
        if self._listener is None:
            self._listener = await self._listen(self._source)
        return self._source, self._listener

    async def _again(self, source: Source, old: AsyncListener, ends: float) -> AsyncListener:
        """Listen once more after the connection broke."""
        self._listener = None
        await old.close()
        pause = pauses()
        while True:
            try:
                listener = await self._listen(source)
            except (Unreachable, TryAgain):
                wait = pause()
                if self._closed or source[0].closed or time.monotonic() + wait >= ends:
                    raise
            else:
                self._listener = listener
                return listener
            await asyncio.sleep(wait)
            await source[0].look_around()

    @staticmethod
    async def _listen(source: Source) -> AsyncListener:
        """Listen at the first server that is there: what is said on one node of a cluster is heard on all."""
        transport, channel = source
        failed: KeysideError = Unreachable("no server is known")
        for endpoint in transport.endpoints(channel):
            try:
                listener = AsyncListener(transport, await transport.line(endpoint))
            except Unreachable as error:
                failed = error
                continue
            try:
                await listener.subscribe((channel,))
            except Unreachable as error:
                failed = error
                await listener.close()
            except BaseException:
                await listener.close()
                raise
            else:
                return listener
        raise failed

    async def _complete(self, transport: AsyncTransport, event: Event) -> Event:
        """Read the outputs of an event that lie in keys."""
        if not event.keys or not self._fetch:
            return event
        try:
            replies = await transport.replies([plain.get_bytes(key) for key in event.keys.values()])
        except KeysideError:
            return event
        outputs: dict[str, Any] = dict(event.outputs)
        for name, reply in zip(event.keys, replies, strict=True):
            if isinstance(reply, bytes | memoryview):
                try:
                    outputs[name] = plain.array(reply)
                except KeysideError:
                    continue  # something else has been written there since
        return dataclasses.replace(event, outputs=outputs)
