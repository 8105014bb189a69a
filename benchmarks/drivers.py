"""Drivers of load: one request after the other, as many as are answered, or at random moments.

All contenders go through them, and they share the cores with what they measure, so they do as little as Python allows:
requests are bytes before the timed part begins, where only the number is set in; replies are counted by hiredis; and
sockets are waited for by epoll itself.
"""

import abc
import gc
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import hiredis

from keyside.tensorstore.resp import NOT_READY, Argument, encode_many
from keyside.tensorstore.sockets import limit_receive, limit_send

__all__ = [
    "NUMBER",
    "Caller",
    "Load",
    "Prepared",
    "RedisCaller",
    "closing",
    "latencies",
    "no_collector",
    "offer",
    "prepare",
    "saturate",
]

PATIENCE_S = 20.0
NUMBER = b"\x00NUMBER\x01"
"""Stands in commands where eight digits of the request's number are to go."""

Answers = list[tuple[int, Any]]

_SCRATCH = bytearray(1 << 18)  # for what arrives: one for all, since hiredis takes it out at once


class Prepared(NamedTuple):
    """Requests as bytes.

    Attributes:
        parts: for each distinct input, what lies before, between and after the places of the number.
        replies: how many each request gets.
    """

    parts: list[list[bytes]]
    replies: int


def prepare(commands: Callable[[int], Sequence[Sequence[Argument]]], count: int) -> Prepared:
    """Encode requests.

    Args:
        commands: those of input n, sent in one write, with `NUMBER` where the number is to go.
        count: of inputs; request i has input i % count.
    """
    parts = [b"".join(map(bytes, encode_many(commands(n)))).split(NUMBER) for n in range(count)]
    return Prepared(parts, len(commands(0)))


class Caller(abc.ABC):
    """One client with one request in flight at most.

    Attributes:
        number: of the request in flight.
        at: the moment from which its latency counts.
    """

    __slots__ = ("at", "number")

    def __init__(self) -> None:
        self.number = 0
        self.at = 0.0

    @property
    @abc.abstractmethod
    def sockets(self) -> Sequence[socket.socket]:
        """Where answers, or parts of them, may come."""

    @abc.abstractmethod
    def begin(self, number: int) -> None:
        """Send request `number`."""

    @abc.abstractmethod
    def ready(self, fd: int) -> Any:
        """Take what has come on a socket; return the answer, or NOT_READY."""

    @abc.abstractmethod
    def call(self, number: int) -> Any:
        """Send request `number` and wait for the answer; only where the sockets block."""

    @abc.abstractmethod
    def close(self) -> None:
        """Close the connections."""


class RedisCaller(Caller):
    """A raw connection to Redis; the reply to the last command is the answer.

    Args:
        url: the server.
        prepared: the requests.
        blocking: for `call`; else for the drivers that wait for many.
    """

    __slots__ = ("_feed", "_gets", "_left", "_parts", "_receive", "_replies", "_send", "_socket")

    def __init__(self, url: str, prepared: Prepared, *, blocking: bool = False) -> None:
        super().__init__()
        self._socket = _connect(url)
        if not blocking:
            self._socket.setblocking(False)
        reader = hiredis.Reader(notEnoughData=NOT_READY)
        self._feed: Callable[..., None] = reader.feed
        self._gets: Callable[[], Any] = reader.gets
        self._receive, self._send = self._socket.recv_into, self._socket.send
        self._left = 0
        self.use(prepared)

    def use(self, prepared: Prepared) -> None:
        """Make requests of another kind from now on."""
        self._parts, self._replies = prepared

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The one to Redis."""
        return (self._socket,)

    def begin(self, number: int) -> None:
        """Send all commands in one write."""
        parts = self._parts
        data = (b"%08d" % number).join(parts[number % len(parts)])
        self._left = self._replies
        if self._send(data) != len(data):
            raise BlockingIOError("the server does not take a request at once")

    def ready(self, fd: int = -1) -> Any:
        """Return the reply to the last command, once it is there."""
        received = self._receive(_SCRATCH)
        if not received:
            raise ConnectionResetError("the server closed a connection")
        self._feed(_SCRATCH, 0, received)
        gets = self._gets
        while (reply := gets()) is not NOT_READY:
            self._left -= 1
            if not self._left:
                return reply
        return NOT_READY

    def call(self, number: int) -> Any:
        """See `Caller.call`."""
        self.begin(number)
        while (reply := self.ready()) is NOT_READY:
            pass
        return reply

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def _connect(url: str) -> socket.socket:
    """Return a socket to a server without password, with the kernel's time limits: Python's cost a system call."""
    address = urlsplit(url)
    if address.scheme == "unix":
        sock = socket.socket(socket.AF_UNIX)
        sock.connect(address.path)
    else:
        sock = socket.create_connection((address.hostname or "127.0.0.1", address.port or 6379), timeout=5.0)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    limit_send(sock, PATIENCE_S)
    limit_receive(sock, PATIENCE_S)
    return sock


class Load(NamedTuple):
    """What came of requests under load.

    Attributes:
        rate: answers per second.
        seconds: the latency of each.
        answers: (number of the request, answer).
    """

    rate: float
    seconds: list[float]
    answers: Answers


@contextmanager
def no_collector() -> Iterator[None]:
    """Let the collector of cycles rest: it would walk through all answers that are kept for the check."""
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()


@contextmanager
def closing(callers: Sequence[Caller]) -> Iterator[None]:
    """Close callers in the end."""
    try:
        yield
    finally:
        for caller in callers:
            caller.close()


def latencies(one: Callable[[int], Any], count: int, start: int = 0) -> tuple[list[float], Answers]:
    """Call `one` `count` times, one after the other; return seconds of each, and (i, answer) of each."""
    seconds: list[float] = []
    answers: Answers = []
    clock = time.perf_counter
    with no_collector():
        for i in range(start, start + count):
            before = clock()
            answer = one(i)
            seconds.append(clock() - before)
            answers.append((i, answer))
    return seconds, answers


def saturate(callers: Sequence[Caller], seconds: float, start: int = 0) -> Load:
    """Keep all callers busy, each with one request in flight, for so long; then let them end.

    Args:
        callers: all in this process.
        seconds: how long new requests are begun.
        start: number of the first request.
    """
    took: list[float] = []
    answers: Answers = []
    clock = time.perf_counter
    with _epoll(callers) as (poll, by_fd), no_collector():
        issued, left = start, len(callers)
        began = now = clock()
        end = began + seconds
        for caller in callers:
            caller.number, caller.at = issued, clock()
            caller.begin(issued)
            issued += 1
        while left:
            for fd, _ in poll():
                caller = by_fd[fd]
                answer = caller.ready(fd)
                if answer is NOT_READY:
                    continue
                now = clock()
                took.append(now - caller.at)
                answers.append((caller.number, answer))
                if now < end:
                    caller.number, caller.at = issued, now
                    caller.begin(issued)
                    issued += 1
                else:
                    left -= 1
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
    took: list[float] = []
    answers: Answers = []
    clock = time.perf_counter
    chance = random.Random(7)  # the same moments in every run
    free = deque(callers)
    waiting: deque[float] = deque()
    with _epoll(callers) as (poll, by_fd), no_collector():
        issued = start
        began = clock()
        due = began + chance.expovariate(rate)
        end = began + seconds
        asking = True
        while asking or waiting or len(free) < len(callers):
            now = clock()
            while asking and due <= now:
                # Not the moment planned: that epoll wakes us up to a millisecond late is not the server's fault.
                waiting.append(now)
                due += chance.expovariate(rate)
                asking = due < end or going()
            while waiting and free:
                caller = free.popleft()
                caller.number, caller.at = issued, waiting.popleft()
                caller.begin(issued)
                issued += 1
            for fd, _ in poll(max(0.0, due - clock())) if asking else poll():
                caller = by_fd[fd]
                answer = caller.ready(fd)
                if answer is not NOT_READY:
                    took.append(clock() - caller.at)
                    answers.append((caller.number, answer))
                    free.append(caller)
    return Load(len(answers) / (clock() - began), took, answers)


Poll = Callable[..., list[tuple[int, int]]]


@contextmanager
def _epoll(callers: Sequence[Caller]) -> Iterator[tuple[Poll, dict[int, Caller]]]:
    """Give what waits for the sockets of callers, and the caller of each."""
    by_fd = {sock.fileno(): caller for caller in callers for sock in caller.sockets}
    with select.epoll() as epoll:
        for fd in by_fd:
            epoll.register(fd, select.EPOLLIN)

        def poll(seconds: float = -1.0) -> list[tuple[int, int]]:
            events = epoll.poll(PATIENCE_S if seconds < 0 else seconds, len(by_fd))
            if not events and seconds < 0:
                raise TimeoutError(f"no answer within {PATIENCE_S:g} s")
            return events

        yield poll, by_fd
