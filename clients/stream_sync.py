"""Many requests in flight on one blocking connection, their replies on one list."""

import contextlib
import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Protocol

from keyside.clients.request import MARGIN_S, Request, may_retry, pauses
from keyside.clients.rounds import is_refusal
from keyside.clients.wire import Wire
from keyside.tensorstore import commands, plain
from keyside.tensorstore.command import Command
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable

__all__ = ["Stream"]


class _Transport(Protocol):
    node: bytes

    def take(self) -> Wire: ...
    def give(self, wire: Wire) -> None: ...
    def replies(self, batch: Sequence[Command[Any]]) -> list[Any]: ...
    def drop(self, temporaries: Sequence[bytes]) -> None: ...
    def give_up(self, request: Request, ticket: bytes, job: bytes) -> bytes: ...


class _Flight:
    """A request in flight; `job` is None until the server has accepted it."""

    __slots__ = ("ends", "job", "refused", "request")

    def __init__(self, request: Request) -> None:
        self.request = request
        self.ends = time.monotonic() + request.timeout
        self.job: bytes | None = None
        self.refused = 0  # how often the server has said TRYAGAIN: it says so on the list too


class Stream:
    """One run of many requests.

    Args:
        transport: lends the connection.
        window: how many requests may be in flight.
    """

    def __init__(self, transport: _Transport, window: int) -> None:
        self._transport = transport
        self._window = window
        self._wire: Wire | None = None
        self._flights: dict[int, _Flight] = {}
        self._ticket = b""

    def run(self, requests: Iterable[Request]) -> Iterator[tuple[int, bytes]]:
        """Submit the requests and give their replies as they come, each with the number of its request.

        Raises:
            KeysideError: one of them was refused, failed, or was not answered.
        """
        numbered = enumerate(requests)
        pause = pauses()
        while True:
            for index, request in itertools.islice(numbered, self._window - len(self._flights)):
                self._ticket = self._ticket or request.ticket(self._transport.node)
                self._flights[index] = _Flight(request)
            if not self._flights:
                return
            try:
                replies = self._step()
            except KeysideError as error:
                wait = pause()
                if not may_retry(error) or time.monotonic() + wait >= self._oldest().ends:
                    raise
                time.sleep(wait)
                continue
            pause = pauses()
            for index, reply in replies:
                flight = self._flights.get(index)
                if flight is None:
                    continue
                if flight.refused and reply.startswith(b"TRYAGAIN "):
                    flight.refused -= 1
                    continue
                del self._flights[index]
                yield index, reply

    def _oldest(self) -> _Flight:
        return min(self._flights.values(), key=lambda flight: flight.ends)

    def _step(self) -> list[tuple[int, bytes]]:
        """Submit what has not been, in one write with the wait for replies if some are to come anyway."""
        if self._wire is None or not self._wire.connected:
            self._wire = self._transport.take()
        wire = self._wire
        fresh = [(index, flight) for index, flight in self._flights.items() if flight.job is None]
        batch: list[Command[Any]] = []
        now = time.monotonic()
        for index, flight in fresh:
            batch += flight.request.before
            batch.append(flight.request.submit(flight.ends - now, self._ticket, b"%d" % index))
        oldest = self._oldest()
        patience = max(oldest.ends - now, 0.001) + MARGIN_S
        waiting = plain.blmpop(self._ticket, patience)
        at_once = len(fresh) < len(self._flights)
        try:
            wire.send([*batch, waiting] if at_once else batch)
            replies = [wire.read() for _ in batch]
            found = waiting.result(wire.read(patience)) if at_once else None
        except Unreachable:
            wire.close()
            for flight in self._flights.values():
                flight.job = None  # maybe, maybe not: the server knows the number of each
            raise
        except BaseException:
            wire.close()
            raise
        self._note(fresh, replies)
        if found is None:
            return []
        if not found:
            index = next(index for index, flight in self._flights.items() if flight is oldest)
            return [(index, self._transport.give_up(oldest.request, self._ticket, oldest.job or b""))]
        return [_split(item) for item in found]

    def _note(self, fresh: Sequence[tuple[int, _Flight]], replies: Sequence[Any]) -> None:
        """Read what became of the requests just sent; those that were accepted may have to be cancelled later."""
        failed: KeysideError | None = None
        left = iter(replies)
        for _, flight in fresh:
            mine = [next(left) for _ in range(len(flight.request.before) + 1)]
            error = next((reply for reply in mine if isinstance(reply, KeysideError)), None)
            if error is None:
                flight.job = bytes(mine[-1])
                if not flight.job:
                    self._transport.drop(flight.request.temporaries)
                continue
            if is_refusal(error):
                flight.job = b""  # that it was refused comes on the list too, as its reply
                self._transport.drop(flight.request.temporaries)
                continue
            flight.refused += isinstance(error, TryAgain)
            if failed is None or not may_retry(error):
                failed = error
        if failed is not None:
            raise failed

    def end(self) -> None:
        """Cancel what is still in flight and give the connection back."""
        flights, self._flights = self._flights, {}
        wire, self._wire = self._wire, None
        if flights:
            with contextlib.suppress(KeysideError):
                jobs = [flight.job for flight in flights.values() if flight.job]
                batch = [commands.ai_cancel(self._ticket, job) for job in jobs]
                self._transport.replies([*batch, plain.unlink((self._ticket,))])
            for flight in flights.values():
                if flight.job is None:
                    self._transport.drop(flight.request.temporaries)
        if wire is not None:
            self._transport.give(wire)


def _split(item: bytes) -> tuple[int, bytes]:
    index, _, reply = item.partition(b" ")
    return int(index), reply
