# Do not change this file: it is made from clients/_async/subscription.py by tools/unasync.py.
"""Hears what a trigger says."""

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any, Self

from keyside.clients._sync.listener import Listener
from keyside.clients.events import Event, read_event
from keyside.clients.request import pauses
from keyside.clients.transport_sync import SyncTransport
from keyside.tensorstore import plain
from keyside.tensorstore.errors import BadArg, KeysideError, TimedOut, TryAgain, Unreachable

__all__ = ["Source", "Subscription"]

Source = tuple[SyncTransport, bytes]
"""The transport of a client, and the channel to listen to."""


class Subscription:
    """The results of a trigger, from the moment on at which this is entered, or first asked.

    Iterate over it: that ends when it is closed, and raises Unreachable when the server has not been there for the
    client's timeout. A connection that breaks is made anew. What is said meanwhile is not heard: `breaks` counts that,
    and the stream that a trigger may be given for its results (`results`) has all of it.

    Attributes:
        trigger: its name.
        breaks: how often the connection was lost.
    """

    def __init__(self, trigger: str, find: Callable[[], Source], timeout: float, *, fetch: bool = True) -> None:
        self.trigger = trigger
        self.breaks = 0
        self._find = find
        self._timeout = timeout
        self._fetch = fetch
        self._source: Source | None = None
        self._listener: Listener | None = None
        self._closed = False

    def __enter__(self) -> Self:
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Event]:
        self._begin()
        while not self._closed:
            try:
                yield self.next()
            except Unreachable:
                if not self._closed:
                    raise

    def close(self) -> None:
        """Listen no more."""
        self._closed = True
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def next(self, timeout: float | None = None) -> Event:
        """Return the next event.

        Args:
            timeout: seconds to wait for it; None: for ever.

        Raises:
            TimedOut: there was none.
            Unreachable: the server has not been there for that long, or for the client's timeout; or this is closed.
        """
        ends = float("inf") if timeout is None else time.monotonic() + timeout
        source, listener = self._begin()
        while True:
            try:
                message = listener.next(None if timeout is None else ends - time.monotonic())
            except TimedOut:
                raise TimedOut(f"no event of trigger {self.trigger!r} within {timeout:g} s") from None
            except (Unreachable, TryAgain):
                if self._closed or source[0].closed:
                    raise Unreachable("this subscription, or its client, is closed") from None
                self.breaks += 1
                listener = self._again(source, listener, min(ends, time.monotonic() + self._timeout))
                continue
            if message.data is not None and message.channel == source[1]:
                return self._complete(source[0], read_event(self.trigger, message.data))

    def _begin(self) -> tuple[Source, Listener]:
        """Listen, unless that has begun already.

        Raises:
            KeysideError: that cannot be.
        """
        if self._closed:
            raise BadArg("this subscription is closed")
        if self._source is None:
            self._source = self._find()
        if self._listener is None:
            self._listener = self._listen(self._source)
        return self._source, self._listener

    def _again(self, source: Source, old: Listener, ends: float) -> Listener:
        """Listen once more after the connection broke."""
        self._listener = None
        old.close()
        pause = pauses()
        while True:
            try:
                listener = self._listen(source)
            except (Unreachable, TryAgain):
                wait = pause()
                if self._closed or source[0].closed or time.monotonic() + wait >= ends:
                    raise
            else:
                self._listener = listener
                return listener
            time.sleep(wait)
            source[0].look_around()

    @staticmethod
    def _listen(source: Source) -> Listener:
        """Listen at the first server that is there: what is said on one node of a cluster is heard on all."""
        transport, channel = source
        failed: KeysideError = Unreachable("no server is known")
        for endpoint in transport.endpoints(channel):
            try:
                listener = Listener(transport, transport.line(endpoint))
            except Unreachable as error:
                failed = error
                continue
            try:
                listener.subscribe((channel,))
            except Unreachable as error:
                failed = error
                listener.close()
            except BaseException:
                listener.close()
                raise
            else:
                return listener
        raise failed

    def _complete(self, transport: SyncTransport, event: Event) -> Event:
        """Read the outputs of an event that lie in keys."""
        if not event.keys or not self._fetch:
            return event
        try:
            replies = transport.replies([plain.get_bytes(key) for key in event.keys.values()])
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
