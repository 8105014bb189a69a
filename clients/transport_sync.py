"""The blocking transport: a pool of connections, for any number of threads.

A request goes out as FCALL and BLPOP in one write on one connection; nothing else talks to the server for it.
"""

import contextlib
import threading
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Any, TypeVar

from keyside.clients.packed import Packed, Packer, Packs
from keyside.clients.pool import Pool
from keyside.clients.request import (
    KEPT_S,
    MARGIN_S,
    Identity,
    Request,
    accepted,
    answered,
    may_retry,
    not_answered,
    not_fetched,
    pauses,
    reply_lost,
    who_serves,
)
from keyside.clients.stream_sync import Stream
from keyside.clients.way import LATE_S
from keyside.clients.wire import Wire
from keyside.tensorstore import commands, plain
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import Cancelled, KeysideError, LibraryMissing, OutOfMemory, TimedOut, Unreachable
from keyside.tensorstore.storing import Write

__all__ = ["SyncPending", "SyncTransport", "refused"]

T = TypeVar("T")
_REFUSAL_S = 0.1


class SyncPending:
    """A request that the server has accepted.

    Attributes:
        request: as it was submitted.
        job: its id; empty if a lost connection took it along.
        reply: what has come, once it has; an error is raised where the reply is asked for.
        found: what was read from the reply, once it has been.
        refusals: how often TRYAGAIN was said before, which may be on the ticket too.
        where: on a cluster, the node that has accepted it.
    """

    __slots__ = ("_lock", "ends", "found", "job", "refusals", "reply", "request", "ticket", "where")

    def __init__(self, request: Request, ticket: bytes, job: bytes, ends: float, refusals: int = 0) -> None:
        self.request = request
        request.before = ()  # they are on the server
        self.ticket = ticket
        self.job = job
        self.ends = ends
        self.refusals = refusals
        self.where = ""
        self.reply: bytes | KeysideError | None = None
        self.found: list[Any] = []
        self._lock = threading.Lock()

    @property
    def lock(self) -> threading.Lock:
        """Held by whoever reads the ticket: only one can get the reply."""
        return self._lock


class SyncTransport(Pool):
    """Sends commands and requests."""

    packer: Packs

    def begin_anew(self) -> None:
        """Begin without connections, and as somebody else."""
        super().begin_anew()
        self.identity = Identity()
        self.packer = Packer(self.identity, self.node)

    def store(self, key: bytes, header: bytes, data: memoryview, px: int | None) -> None:
        """Write a tensor, and start what waits for it.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        self.put(Write(key, header, data, px, self.identity.id, self.identity.number()))

    # --- requests

    def run(self, request: Request) -> bytes:
        """Submit a request and wait for its reply.

        Raises:
            KeysideError: it was refused, it failed, or there was no answer.
        """
        ticket = request.ticket(self.node)
        ends = time.monotonic() + request.timeout
        return self._persist(lambda seconds: self._run_once(request, ticket, seconds), ends, reached=self.reached)

    def run_packed(self, request: Packed) -> bytes:
        """Submit a request that is encoded already, and wait for its reply; like `run`."""
        reached = self.reached
        ends = time.monotonic() + request.timeout
        try:
            return self._ask(request)
        except KeysideError as error:
            if not may_retry(error):
                raise
            failed = error
        ticket = request.ticket(self.node)
        return self._persist(lambda seconds: self._run_once(request, ticket, seconds), ends, failed, reached=reached)

    def _ask(self, request: Packed) -> bytes:
        wire = self.take()
        try:
            # Within its time, even if the connection says nothing any more.
            limit = request.patience + LATE_S
            reply = wire.ask(request.data, max(0.0, limit - self.idle), limit)
        except KeysideError:
            raise
        except BaseException:
            if job := wire.said:
                self.forget((commands.ai_cancel(request.ticket(self.node), job),))
            raise
        said = wire.said
        try:
            if isinstance(said, KeysideError):
                refused(wire, said)
                raise said
        finally:
            self.give(wire)
        if type(reply) is list:
            found: bytes = reply[1]
            return found
        if isinstance(reply, KeysideError):
            raise reply
        return self.give_up(request, request.ticket(self.node), said)

    def _persist(
        self,
        attempt: Callable[[float], T],
        ends: float,
        failed: KeysideError | None = None,
        *,
        reached: bool,
    ) -> T:
        """Try until the deadline. The server takes the same request once, however often it is sent.

        Args:
            attempt: sends it, with so many seconds left.
            ends: the deadline.
            failed: what an attempt that was made already has come to.
            reached: whether the server had ever been reached before the first one.
        """
        pause = pauses()
        while True:
            try:
                if failed is not None:
                    raise failed
                return attempt(ends - time.monotonic())
            except KeysideError as error:
                failed = None
                again = time.monotonic() + (wait := pause())
                if not (reached or answered(error)) or self.closed or again >= ends or not may_retry(error):
                    raise
            self.close_free()
            time.sleep(wait)

    def _run_once(self, request: Request, ticket: bytes, seconds: float) -> bytes:
        patience = max(seconds, 0.001) + MARGIN_S
        waiting = plain.blpop(ticket, patience)
        batch: list[Command[Any]] = [*request.before, request.submit(seconds, ticket), waiting]
        job = b""
        try:
            with self.wire() as wire:
                wire.send(batch)
                try:
                    job = accepted([wire.read(limit=min(self.idle, patience + LATE_S)) for _ in batch[:-1]])
                except KeysideError as error:
                    refused(wire, error)
                    raise
                reply = waiting.result(wire.read(limit=patience + LATE_S))
        except Unreachable:
            raise
        except KeysideError:
            self.drop(request.temporaries)
            raise
        except BaseException:
            if job:
                self.forget((commands.ai_cancel(ticket, job),))
            raise
        if not job:
            self.drop(request.temporaries)
        return self.give_up(request, ticket, job) if reply is None else reply

    def drop(self, temporaries: Sequence[bytes]) -> None:
        """Delete what a call has not taken over."""
        if temporaries:
            self.forget((plain.unlink(temporaries),))

    def give_up(self, request: Request, ticket: bytes, job: bytes, ends: float = float("inf")) -> bytes:
        """Take a job back that nobody has answered.

        Args:
            request: as it was submitted.
            ticket: where its reply comes.
            job: its id; empty if a lost connection took it along.
            ends: its deadline by `time.monotonic`, if the reply may have been asked for late.

        Returns:
            Its reply, if that has come meanwhile.

        Raises:
            TimedOut: it has not; the text says why that may be.
        """
        ended = False
        if job:
            cancelled, late = self.last_words((commands.ai_cancel(ticket, job), plain.lpop(ticket)))
            ended = not cancelled
        else:
            (late,) = self.last_words((plain.lpop(ticket),))
        if late is not None:
            return bytes(late)
        if ended:
            late_caller = time.monotonic() >= ends + KEPT_S
            raise not_fetched(request.timeout) if late_caller else reply_lost(request.timeout)
        device = job.decode("ascii", "replace").partition("/")[0]
        raise not_answered(request.timeout, job, self.who_serves(device))

    def last_words(self, batch: Sequence[Command[Any]]) -> list[Any]:
        """Like `call_many`, when the time of a request is over."""
        return self.call_many(batch)

    def who_serves(self, device: str) -> str:
        """Say which executors could answer on a queue."""
        names = self.call(plain.executor_names(self.node))
        infos = self.call(plain.executor_infos(self.node, names)) if names else []
        return who_serves(device, names, infos)

    # --- requests whose reply is asked for later

    def begin(self, request: Request) -> SyncPending:
        """Submit a request and return once the server has accepted it.

        Raises:
            KeysideError: it was refused, or the server is gone.
        """
        ticket = request.ticket(self.node)
        ends = time.monotonic() + request.timeout

        def submit(seconds: float) -> bytes:
            return accepted(self.replies([*request.before, request.submit(seconds, ticket)]))

        try:
            job = self._persist(submit, ends, reached=self.reached)
        except KeysideError:
            self.drop([*request.temporaries, ticket])
            raise
        if not job:
            self.drop(request.temporaries)
        return SyncPending(request, ticket, job, ends)

    def wait(self, pending: SyncPending, timeout: float | None) -> bytes:
        """Wait for the reply, at most some seconds and at most until its deadline.

        Raises:
            TimedOut: it has not come; if the deadline has not passed, the job goes on.
            KeysideError: the job ended with that error.
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        with pending.lock:
            pause = pauses()
            while pending.reply is None:
                last = pending.ends + MARGIN_S
                seconds = min(last, until) - time.monotonic()
                waiting = plain.blpop(pending.ticket, seconds)
                try:
                    with self.wire() as wire:
                        wire.send((waiting,))
                        pending.reply = waiting.result(wire.read(limit=max(seconds, 0) + LATE_S))
                    if pending.reply is None and time.monotonic() >= last:
                        pending.reply = self.give_up(pending.request, pending.ticket, pending.job, pending.ends)
                except Unreachable:
                    if time.monotonic() >= min(last, until):
                        raise
                    time.sleep(pause())
                    continue
                except KeysideError as error:
                    pending.reply = error
                if pending.reply is None and time.monotonic() >= until:
                    raise TimedOut(f"no reply within {timeout:g} s; the job goes on")
        if isinstance(pending.reply, KeysideError):
            raise pending.reply
        return pending.reply

    def result(self, pending: SyncPending, read: Callable[[bytes], Any], timeout: float | None) -> Any:
        """Wait for the reply and return what is read from it; that is done once, however many ask.

        Raises:
            KeysideError: as of `wait`, or of `read`; after that the next caller reads it anew.
        """
        reply = self.wait(pending, timeout)
        with pending.lock:
            if not pending.found:
                pending.found.append(read(reply))
            return pending.found[0]

    def arrived(self, pending: SyncPending) -> bool:
        """Whether the reply has come, or will not come any more."""
        if pending.reply is not None or time.monotonic() > pending.ends + MARGIN_S:
            return True
        return pending.lock.locked() is False and self.call(plain.llen(pending.ticket)) > 0

    def cancel(self, pending: SyncPending) -> bool:
        """Take a job back; return whether it will write nothing any more."""
        if not pending.job or not self.call(commands.ai_cancel(pending.ticket, pending.job)):
            return False
        if pending.lock.acquire(blocking=False):
            pending.reply = Cancelled("the caller cancelled the job")
            pending.lock.release()
        else:  # another thread waits for it
            said = b"CANCELLED the caller cancelled the job"
            self.call_many((plain.rpush(pending.ticket, said), plain.pexpire(pending.ticket, 10_000)))
        return True

    def run_many(self, requests: Iterable[Request], window: int) -> Generator[tuple[int, bytes], None, None]:
        """Submit requests, some of them ahead, and give their replies as they come, with their numbers.

        Args:
            requests: made one after the other, as there is room for them.
            window: how many may be in flight.

        Raises:
            KeysideError: one of them was refused or failed; those in flight have been cancelled.
        """
        stream = Stream(self, window)
        try:
            yield from stream.run(requests)
        finally:
            stream.end()


def refused(wire: Wire, error: KeysideError) -> None:
    """End the wait that was sent behind a call which was refused.

    The functions put their refusals on the ticket too. What the server itself refuses has to be waited for in vain.
    """
    if isinstance(error, OutOfMemory | LibraryMissing | Unreachable):
        wire.close()
    elif wire.connected:
        with contextlib.suppress(Unreachable):
            wire.read(limit=_REFUSAL_S)
