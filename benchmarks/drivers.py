"""Drivers of load: one request after the other, as many as are answered, or at random moments."""

import random
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

from keyside.executor.wire import Wire
from keyside.tensorstore.resp import NOT_READY, ReplyReader, encode_many

__all__ = ["Caller", "Load", "RedisCaller", "latencies", "offer", "saturate"]

PATIENCE_S = 20.0


class Caller(Protocol):
    """One client with one request in flight at most."""

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """Where answers, or parts of them, may come."""
        ...

    def begin(self, number: int) -> None:
        """Send request `number`."""
        ...

    def ready(self, sock: socket.socket) -> Any:
        """Take what has come on a socket; return the answer, or NOT_READY."""
        ...

    def close(self) -> None:
        """Close the connections."""
        ...


class RedisCaller:
    """A raw connection to Redis.

    Args:
        url: the server.
        request: the commands of request i; the reply to the last of them is the answer.
    """

    def __init__(self, url: str, request: Callable[[int], Sequence[Sequence[Any]]]) -> None:
        self._wire = Wire(url, name="bench")
        self._wire.connect()
        sock = self._wire._socket  # noqa: SLF001  # a driver of many needs what epoll needs
        assert sock is not None
        self._socket = sock
        self._socket.setblocking(False)
        self._reader = ReplyReader()
        self._request = request
        self._left = 0

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The one to Redis."""
        return (self._socket,)

    def begin(self, number: int) -> None:
        """Send all commands in one write."""
        commands = self._request(number)
        self._left = len(commands)
        data = b"".join(map(bytes, encode_many(commands)))
        assert self._socket.send(data) == len(data)

    def ready(self, sock: socket.socket) -> Any:
        """Return the reply to the last command, once it is there."""
        received = sock.recv_into(self._reader.get_buffer())
        assert received, "the server closed a connection"
        self._reader.buffer_updated(received)
        while (reply := self._reader.gets()) is not NOT_READY:
            self._left -= 1
            if not self._left:
                return reply
        return NOT_READY

    def close(self) -> None:
        """Close the connection."""
        self._wire.close()


class Load(NamedTuple):
    """What came of requests under load.

    Attributes:
        rate: answers per second.
        seconds: the latency of each.
        answers: (number of the request, answer).
    """

    rate: float
    seconds: list[float]
    answers: list[tuple[int, Any]]


def latencies(one: Callable[[int], Any], count: int, start: int = 0) -> tuple[list[float], list[tuple[int, Any]]]:
    """Call `one` `count` times, one after the other; return seconds of each, and (i, answer) of each."""
    seconds, answers = [], []
    for i in range(start, start + count):
        before = time.perf_counter()
        answer = one(i)
        seconds.append(time.perf_counter() - before)
        answers.append((i, answer))
    return seconds, answers


def saturate(callers: Sequence[Caller], seconds: float, start: int = 0) -> Load:
    """Keep all callers busy, each with one request in flight, for so long; then let them end.

    Args:
        callers: all in this process.
        seconds: how long new requests are begun.
        start: number of the first request.
    """
    selector = _select(callers)
    issued = start
    sent: dict[int, tuple[int, float]] = {}
    took: list[float] = []
    answers: list[tuple[int, Any]] = []
    began = now = time.perf_counter()
    end = began + seconds
    for caller in callers:
        sent[id(caller)] = (issued, time.perf_counter())
        caller.begin(issued)
        issued += 1
    while sent:
        events = selector.select(PATIENCE_S)
        assert events, f"no answer within {PATIENCE_S:g} s"
        for key, _ in events:
            caller = key.data
            answer = caller.ready(key.fileobj)
            if answer is NOT_READY:
                continue
            now = time.perf_counter()
            number, at = sent.pop(id(caller))
            took.append(now - at)
            answers.append((number, answer))
            if now < end:
                sent[id(caller)] = (issued, now)
                caller.begin(issued)
                issued += 1
    selector.close()
    return Load(len(answers) / (now - began), took, answers)


def offer(
    callers: Sequence[Caller],
    rate: float,
    seconds: float,
    going: Callable[[], bool] = lambda: False,
    start: int = 0,
) -> Load:
    """Offer requests at random moments, whether or not those before are answered.

    A latency counts from the moment when the request was due, and so also while it waits for a free caller.

    Args:
        callers: as many as there can be requests in flight.
        rate: requests per second on average.
        seconds: how long.
        going: asked now and then after that; goes on while it is true.
        start: number of the first request.
    """
    selector = _select(callers)
    chance = random.Random(7)  # the same moments in every run
    free = deque(callers)
    waiting: deque[float] = deque()
    sent: dict[int, tuple[int, float]] = {}
    took: list[float] = []
    answers: list[tuple[int, Any]] = []
    issued = start
    began = now = time.perf_counter()
    due = now + chance.expovariate(rate)
    end = began + seconds
    asking = True
    while asking or sent or waiting:
        now = time.perf_counter()
        while asking and due <= now:
            # Not the moment planned: that epoll wakes us up to a millisecond late is not the server's fault.
            waiting.append(now)
            due += chance.expovariate(rate)
            asking = due < end or going()
        while waiting and free:
            caller = free.popleft()
            sent[id(caller)] = (issued, waiting.popleft())
            caller.begin(issued)
            issued += 1
        pause = max(0.0, due - time.perf_counter()) if asking else PATIENCE_S
        for key, _ in selector.select(pause):
            caller = key.data
            answer = caller.ready(key.fileobj)
            if answer is not NOT_READY:
                number, at = sent.pop(id(caller))
                took.append(time.perf_counter() - at)
                answers.append((number, answer))
                free.append(caller)
        assert asking or time.perf_counter() - now < PATIENCE_S, f"no answer within {PATIENCE_S:g} s"
    selector.close()
    return Load(len(answers) / (time.perf_counter() - began), took, answers)


def _select(callers: Sequence[Caller]) -> selectors.BaseSelector:
    selector = selectors.DefaultSelector()
    for caller in callers:
        for sock in caller.sockets:
            selector.register(sock, selectors.EVENT_READ, caller)
    return selector
