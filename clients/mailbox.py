"""Requests in flight of an asyncio client, and the list on which their replies come."""

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

from keyside.clients.channel import Channel
from keyside.clients.request import MARGIN_S, Request, answered, may_retry, not_answered, pauses, reply_lost
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.errors import Cancelled, KeysideError, TryAgain, Unreachable

if TYPE_CHECKING:
    from keyside.clients.transport_async import AsyncTransport

__all__ = ["AsyncPending", "Mailbox"]

_BLOCK_S = 5.0
_LATE_S = 0.25


class AsyncPending:
    """A request in flight.

    Attributes:
        request: as it is submitted.
        ends: time of the loop at its deadline.
        future: gets the reply, or the error that takes its place.
        job: its id; empty as long as the server has not told it.
        error: of a value that was to be stored before the call.
        left: nobody waits for it any more.
        sent: the server has accepted it.
        reading: reads what the reply stands for, once somebody has asked for that.
        refused: how often the server has said TRYAGAIN, less how often it has said so on the list too.
    """

    __slots__ = (
        "_accepted", "ends", "error", "future", "job", "left", "reading", "refused", "request", "sent", "timer",
    )  # fmt: skip

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop) -> None:
        self.request = request
        self.ends = loop.time() + request.timeout
        self.future: asyncio.Future[bytes] = loop.create_future()
        self.job = b""
        self.error: KeysideError | None = None
        self.left = False
        self.sent = False
        self.reading: asyncio.Future[Any] | None = None
        self.refused = 0
        self.timer: asyncio.TimerHandle | None = None
        self._accepted: asyncio.Future[None] | None = None

    async def accepted(self) -> None:
        """Wait until the server has accepted it.

        Raises:
            KeysideError: it was refused.
        """
        # Nobody need ever ask for the result of a job; then its error is nobody's concern.
        self.future.add_done_callback(lambda future: future.cancelled() or future.exception())
        if not self.sent and not self.future.done():
            self._accepted = asyncio.get_running_loop().create_future()
            await asyncio.wait((self._accepted, self.future), return_when=asyncio.FIRST_COMPLETED)
        if self.future.done() and not self.sent:
            self.future.result()

    def accept(self, job: bytes) -> None:
        """Take note that the server has accepted it."""
        self.job = job
        self.sent = True
        self.request.before = []  # they are on the server
        if self._accepted is not None and not self._accepted.done():
            self._accepted.set_result(None)

    def end(self, reply: bytes | KeysideError) -> None:
        """Take the reply or the error, if it still matters."""
        if self.future.done():
            return
        if isinstance(reply, KeysideError):
            self.future.set_exception(reply)
        else:
            self.future.set_result(reply)


class Mailbox:
    """The requests in flight of one client.

    Args:
        transport: gives the connections.
    """

    def __init__(self, transport: "AsyncTransport") -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._key = keys.mailbox(transport.node, transport.identity.id)
        self._waiting: dict[int, AsyncPending] = {}
        self._reader: asyncio.Task[None] | None = None
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- submitting

    async def submit(self, request: Request) -> AsyncPending:
        """Send a request; its future gets the reply.

        Raises:
            KeysideError: the server cannot be reached and never could.
        """
        pending = AsyncPending(request, self._loop)
        try:
            channel = await self._transport.channel(bulk=bool(request.before))
        except Unreachable as error:
            if not (self._transport.reached or answered(error)) or self._transport.closed:
                raise
            channel = None
        self._waiting[request.seq] = pending
        pending.timer = self._loop.call_at(pending.ends + MARGIN_S, self._expire, pending)
        if self._reader is None:
            self._reader = self._loop.create_task(self._read())
        if channel is None:
            self._spawn(self._submit_again(pending))
        else:
            self._send(pending, channel)
        return pending

    def _send(self, pending: AsyncPending, channel: Channel) -> None:
        request = pending.request
        pending.error = None
        for command in request.before:
            channel.send(command, lambda reply: self._stored(pending, reply))
        seconds = pending.ends - self._loop.time()
        submit = request.submit(seconds, self._key, b"%d" % request.seq)
        channel.send(submit, lambda reply: self._submitted(pending, reply))

    @staticmethod
    def _stored(pending: AsyncPending, reply: Any) -> None:
        if isinstance(reply, KeysideError) and pending.error is None:
            pending.error = reply

    def _submitted(self, pending: AsyncPending, reply: Any) -> None:
        """Take the reply to a submit: the job id, or why there is none."""
        if isinstance(reply, KeysideError):
            error = pending.error or reply
            over = pending.future.done() or self._transport.closed or self._loop.time() >= pending.ends
            if may_retry(error) and not over:
                pending.refused += isinstance(error, TryAgain)
                self._spawn(self._submit_again(pending))
                return
            self._drop(pending)
            self._finish(pending, error)
            return
        pending.accept(bytes(reply))
        if not pending.job:
            self._drop(pending)  # it had been accepted before
        elif pending.left:
            self._transport.post((commands.ai_cancel(self._key, pending.job),))

    async def _submit_again(self, pending: AsyncPending) -> None:
        """Send it once more when there is a connection; the server takes the same request only once."""
        pause = pauses()
        while True:
            await asyncio.sleep(pause())
            if pending.future.done():
                return
            try:
                channel = await self._transport.channel(bulk=bool(pending.request.before))
            except Unreachable as error:
                if self._transport.closed:
                    self._finish(pending, error)
                    return
                continue
            except KeysideError as error:
                self._finish(pending, error)
                return
            self._send(pending, channel)
            return

    def _drop(self, pending: AsyncPending) -> None:
        if pending.request.temporaries:
            self._transport.post((plain.unlink(pending.request.temporaries),))

    def _spawn(self, coroutine: Any) -> None:
        task = self._loop.create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # --- replies

    async def _read(self) -> None:
        """Take replies off the list as long as any are awaited."""
        pause = pauses()
        take = plain.blmpop(self._key, _BLOCK_S)
        while self._waiting:
            try:
                if self._channel is None or not self._channel.open:
                    self._channel = await self._transport.connect("keyside-client", self._transport.idle + _BLOCK_S)
                for item in take.result((await self._channel.call((take,)))[0]):
                    self._deliver(item)
                pause = pauses()
            except Unreachable:
                await asyncio.sleep(pause())
            except KeysideError as error:  # such as NOPERM: no reply will ever come
                for pending in list(self._waiting.values()):
                    self._finish(pending, error)
        self._reader = None

    def _deliver(self, item: bytes) -> None:
        corr, _, reply = item.partition(b" ")
        pending = self._waiting.get(int(corr)) if corr.isdigit() else None
        if pending is None:
            return
        # A refusal comes here too. One that is no reason to give up is dealt with where the call's own reply comes.
        if reply.startswith(b"TRYAGAIN ") and (pending.refused or not pending.sent):
            pending.refused -= 1
            return
        self._finish(pending, reply)

    def _finish(self, pending: AsyncPending, reply: bytes | KeysideError) -> None:
        self._waiting.pop(pending.request.seq, None)
        if pending.timer is not None:
            pending.timer.cancel()
            pending.timer = None
        pending.end(reply)

    def _expire(self, pending: AsyncPending) -> None:
        pending.timer = None
        if pending.sent:
            self._spawn(self._give_up(pending))
        else:
            self._finish(pending, Unreachable(f"no connection to the server within {pending.request.timeout:g} s"))

    async def _give_up(self, pending: AsyncPending) -> None:
        """Take a job back that nobody has answered."""
        transport = self._transport
        timeout = pending.request.timeout
        try:
            if pending.job and not await transport.call(commands.ai_cancel(self._key, pending.job)):
                # It has ended after all: its reply may be on its way.
                await asyncio.wait((pending.future,), timeout=_LATE_S)
                self._finish(pending, reply_lost(timeout))
                return
            device = pending.job.decode("ascii", "replace").partition("/")[0]
            self._finish(pending, not_answered(timeout, pending.job, await transport.who_serves(device)))
        except KeysideError as error:
            self._finish(pending, error)

    # --- the end of a request

    def leave(self, pending: AsyncPending) -> None:
        """Wait no longer for a request; if it has not ended, take its job back."""
        if pending.future.done() and not pending.future.cancelled():
            pending.future.exception()  # taken note of
            return
        pending.left = True
        self._waiting.pop(pending.request.seq, None)
        if pending.timer is not None:
            pending.timer.cancel()
        pending.future.cancel()
        if pending.job:
            self._transport.post((commands.ai_cancel(self._key, pending.job),))

    async def cancel(self, pending: AsyncPending) -> bool:
        """Take a job back; return whether it will write nothing any more."""
        if not pending.job or not await self._transport.call(commands.ai_cancel(self._key, pending.job)):
            return False
        self._finish(pending, Cancelled("the caller cancelled the job"))
        return True

    async def close(self, channel: Channel | None) -> None:
        """Fail what is in flight and delete the list."""
        waiting, self._waiting = list(self._waiting.values()), {}
        batch = [commands.ai_cancel(self._key, pending.job) for pending in waiting if pending.job]
        for pending in waiting:
            self._finish(pending, Unreachable("this client is closed"))
        if channel is not None and channel.open:
            with contextlib.suppress(KeysideError):
                await channel.call([*batch, plain.unlink((self._key,))])
        tasks = [*self._tasks, *([self._reader] if self._reader is not None else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._channel is not None:
            self._channel.close()

    def abandon(self) -> None:
        """Forget all of it: it belongs to another process or a closed loop."""
        if self._channel is not None:
            self._channel.abandon()
