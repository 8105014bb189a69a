"""Requests in flight of an asyncio client, and the list on which their replies come."""

import asyncio
import contextlib
import time
from collections.abc import Sequence
from typing import Any, Protocol, TypeVar

from keyside.clients.channel import Channel
from keyside.clients.packed import Packed
from keyside.clients.pending import AsyncPending
from keyside.clients.request import MARGIN_S, Identity, Request, answered, may_retry, not_answered, pauses, reply_lost
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import Cancelled, KeysideError, TryAgain, Unreachable

T = TypeVar("T")

__all__ = ["BLOCK_S", "LATE_REPLY_S", "REPLIES", "Lines", "Mailbox"]

BLOCK_S = 5.0
LATE_REPLY_S = 0.25
"""How long the reply of a job that has ended may be on its way."""
_GRAIN_S = 0.02
_DIGITS = 16
REPLIES = 1000


class Lines(Protocol):
    """What a mailbox needs of a transport; see `AsyncTransport`."""

    node: bytes
    identity: Identity
    idle: float
    reached: bool

    @property
    def closed(self) -> bool:
        """Whether there will be no connection any more."""

    async def channel(self, *, bulk: bool = False) -> Channel:
        """Return a connection to send on."""

    async def connect(self, name: str, idle: float) -> Channel:
        """Make a connection for the caller alone."""

    async def call(self, command: Command[T]) -> T:
        """Send a command and return its result."""

    def post(self, batch: Sequence[Command[Any]]) -> None:
        """Send commands whose results nobody waits for."""

    async def who_serves(self, device: str) -> str:
        """Say which executors could answer on a queue."""


class Mailbox:
    """The requests in flight of one client.

    Args:
        transport: gives the connections.
    """

    # Refusals that are no reason to give up begin like this.
    _refusals: tuple[bytes, ...] = (b"TRYAGAIN ",)

    def __init__(self, transport: "Lines") -> None:
        self._transport = transport
        self._loop = asyncio.get_running_loop()
        self._key = keys.mailbox(transport.node, transport.identity.id)
        self._waiting: dict[int, AsyncPending] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._due = float("inf")  # when the timer goes off
        self._reader: asyncio.Task[None] | None = None
        self._take = plain.blmpop(self._key, BLOCK_S, REPLIES)
        self._turns = 0
        self._channel: Channel | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # --- submitting

    async def submit(self, request: Request) -> AsyncPending:
        """Send a request; its future gets the reply.

        Raises:
            KeysideError: the server cannot be reached and never could.
        """
        pending = AsyncPending(request, self, self._loop)
        try:
            channel = await self._transport.channel(bulk=bool(request.before))
        except Unreachable as error:
            if not (self._transport.reached or answered(error)) or self._transport.closed:
                raise
            channel = None
        pending.noted = not request.before
        self._enlist(pending)
        if channel is None:
            self._spawn(self._submit_again(pending))
        else:
            self._send(pending, channel)
        return pending

    def post(self, request: Packed, channel: Channel) -> AsyncPending:
        """Send a request that is encoded already, on a connection that is open; like `submit`."""
        pending = AsyncPending(request, self, self._loop)
        self._enlist(pending)
        channel.write(request.data, pending)
        return pending

    def _enlist(self, pending: AsyncPending) -> None:
        """Await the reply to a request, until its deadline."""
        self._waiting[pending.request.seq] = pending
        if pending.ends < self._due:
            self._wake(pending.ends)
        if self._reader is None:
            self._reader = self._loop.create_task(self._read())

    def _wake(self, ends: float) -> None:
        """Look at a deadline whether there is a request whose time is over: one timer for all of them."""
        if self._timer is not None:
            self._timer.cancel()
        self._due = ends
        self._timer = self._loop.call_later(max(ends + MARGIN_S - time.monotonic(), _GRAIN_S), self._look)

    def _look(self) -> None:
        self._timer, self._due = None, float("inf")
        over = time.monotonic() - MARGIN_S
        for pending in [pending for pending in self._waiting.values() if pending.ends <= over and not pending.expired]:
            pending.expired = True
            self._expire(pending)
        ends = min((pending.ends for pending in self._waiting.values() if not pending.expired), default=None)
        if ends is not None:
            self._wake(ends)

    def _send(self, pending: AsyncPending, channel: Channel) -> None:
        request = pending.request
        pending.error = None
        for command in request.before:
            channel.send(command, lambda reply: self._stored(pending, reply))
        seconds = pending.ends - time.monotonic()
        submit = request.submit(seconds, self._key, b"%d" % request.seq)
        channel.send(submit, pending)

    @staticmethod
    def _stored(pending: AsyncPending, reply: Any) -> None:
        if isinstance(reply, KeysideError) and pending.error is None:
            pending.error = reply

    def submitted(self, pending: AsyncPending, reply: Any) -> None:
        """Take the reply to a submit: the job id, or why there is none."""
        if isinstance(reply, KeysideError):
            error = pending.error or reply
            over = pending.future.done() or self._transport.closed or time.monotonic() >= pending.ends
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
        while self._waiting:
            try:
                if self._channel is None or not self._channel.open:
                    self._channel = await self._transport.connect("keyside-client", self._transport.idle + BLOCK_S)
                self._turns = 0
                turn: asyncio.Future[KeysideError | None] = self._loop.create_future()
                self._ask(self._channel, turn)
                failed = await turn
                if self._turns:
                    pause = pauses()
                if failed is not None:
                    raise failed
            except Unreachable:
                await asyncio.sleep(pause())
            except KeysideError as error:  # such as NOPERM: no reply will ever come
                for pending in list(self._waiting.values()):
                    self._finish(pending, error)
        self._reader = None

    def _ask(self, channel: Channel, turn: "asyncio.Future[KeysideError | None]") -> None:
        """Wait on the list, and again after each answer, until there is an error or nothing is awaited any more.

        From the callback of the connection and not by the task, which would get to it two turns of the loop later.
        """

        def arrived(reply: Any) -> None:
            if isinstance(reply, KeysideError):
                if not turn.done():
                    turn.set_result(reply)
                return
            self._turns += 1
            if reply is not None:
                self._deliver(reply[1])
            self._loop.call_soon(further)  # once those who have been answered have had their turn

        def further() -> None:
            if turn.done():
                return
            if self._waiting:
                channel.send(self._take, arrived)
            else:
                turn.set_result(None)

        channel.send(self._take, arrived)

    def _deliver(self, items: Sequence[bytes]) -> None:
        waiting = self._waiting
        for item in items:
            corr, _, reply = item.partition(b" ")
            pending = waiting.get(int(corr)) if corr.isdigit() and len(corr) <= _DIGITS else None
            if pending is None:
                continue
            # A refusal comes here too. One that is no reason to give up is dealt with where the call's own reply comes.
            if reply.startswith(self._refusals) and (pending.refused or not pending.sent):
                pending.refused -= 1
                continue
            del waiting[pending.request.seq]
            if not pending.future.done():
                pending.future.set_result(reply)

    def _finish(self, pending: AsyncPending, reply: bytes | KeysideError) -> None:
        self._waiting.pop(pending.request.seq, None)
        pending.end(reply)

    def _expire(self, pending: AsyncPending) -> None:
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
                await asyncio.wait((pending.future,), timeout=LATE_REPLY_S)
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
        pending.noted = False
        self._waiting.pop(pending.request.seq, None)
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
        self._rest()
        if self._channel is not None:
            self._channel.close()

    def _rest(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    def abandon(self) -> None:
        """Forget all of it: it belongs to another process or a closed loop."""
        self._rest()
        if self._channel is not None:
            self._channel.abandon()
