"""What every benchmark shares: drivers for raw sockets, noise probes, and the figures of rounds with their targets."""

import argparse
import contextlib
import json
import os
import platform
import random
import selectors
import socket
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

from targets import TARGETS

from keyside.executor.wire import Wire
from keyside.tensorstore.resp import NOT_READY, ReplyReader, encode_many

__all__ = [
    "Book", "Caller", "Figures", "Load", "RedisCaller", "arguments", "latencies", "offer", "percentile", "ping_us",
    "saturate", "steal_ticks", "summary", "turns",
]  # fmt: skip

T = TypeVar("T")
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


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ping_us(url: str, count: int = 200) -> float:
    """Return the median of PING: a probe of how noisy the machine is."""
    wire = Wire(url, name="probe")
    wire.connect()
    seconds, _ = latencies(lambda _: wire.call(b"PING"), count)
    wire.close()
    return statistics.median(seconds) * 1e6


def steal_ticks() -> tuple[int, int]:
    """Return (stolen, all) CPU ticks of the machine since it started."""
    values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return values[7], sum(values)


def turns(items: Sequence[T], number: int) -> list[T]:
    """Return the order of a round: each begins with another one, and every second one goes backwards."""
    at = number // 2 % len(items)
    order = [*items[at:], *items[:at]]
    return order[::-1] if number % 2 else order


class Figures:
    """Values of one quantity, one per round."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self.values = list(values)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def ratio(self, other: "Figures") -> "Figures":
        """Return this over another, round by round: noise that both had falls out."""
        return Figures([a / b for a, b in zip(self.values, other.values, strict=True)])

    def plus(self, other: "Figures") -> "Figures":
        """Return the sum, round by round."""
        return Figures([a + b for a, b in zip(self.values, other.values, strict=True)])

    def text(self, form: str = "") -> str:
        """Return median [least-most], with three digits unless `form` says otherwise."""
        shown = [f"{value:{form}}" if form else short(value) for value in self._three()]
        return f"{shown[0]} [{shown[1]}-{shown[2]}]"

    def _three(self) -> tuple[float, float, float]:
        return self.median, min(self.values), max(self.values)


def short(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Book:
    """The figures of one benchmark: of contenders, of the machine beside them, and of ratios that have a target.

    Args:
        title: what was measured.
        options: the command line.
    """

    def __init__(self, title: str, options: argparse.Namespace) -> None:
        self.title = title
        self.figures: dict[str, dict[str, Figures]] = {}
        self.ratios: dict[str, Figures] = {}
        self.remarks: list[str] = []
        self._options = options

    def note(self, contender: str, quantity: str, value: float) -> None:
        """Add the value of a round."""
        self.figures.setdefault(contender, {}).setdefault(quantity, Figures()).values.append(value)

    def note_latencies(self, contender: str, seconds: Sequence[float], prefix: str = "") -> None:
        """Add p50 and p99 of a round."""
        self.note(contender, f"{prefix}p50 us", percentile(seconds, 50) * 1e6)
        self.note(contender, f"{prefix}p99 us", percentile(seconds, 99) * 1e6)

    def of(self, contender: str, quantity: str) -> Figures:
        """Return the values of a quantity."""
        return self.figures[contender][quantity]

    def has(self, contender: str, quantity: str) -> bool:
        """Whether there are values of a quantity."""
        return quantity in self.figures.get(contender, {})

    def judge(self, target: str, ratio: Figures) -> None:
        """Set a ratio beside its target."""
        assert target in TARGETS, target
        self.ratios[target] = ratio

    def over(self, target: str, above: str, below: str, quantity: str) -> None:
        """Set the ratio of a quantity of two contenders beside its target."""
        self.judge(target, self.of(above, quantity).ratio(self.of(below, quantity)))

    @contextlib.contextmanager
    def probed(self, contender: str, url: str) -> Iterator[None]:
        """Probe the machine before a phase, and the steal during it."""
        self.note(contender, "PING us", ping_us(url))
        stolen, ticks = steal_ticks()
        yield
        stolen_now, ticks_now = steal_ticks()
        self.note(contender, "steal %", 100 * (stolen_now - stolen) / max(1, ticks_now - ticks))

    def remark(self, text: str) -> None:
        """Add what a reader has to know."""
        self.remarks.append(text)

    def text(self) -> str:
        """Return all of it as Markdown."""
        columns = list(dict.fromkeys(quantity for found in self.figures.values() for quantity in found))
        probes = [name for name in ("PING us", "steal %") if name in columns]
        columns = [name for name in columns if name not in probes] + probes
        rows = [["", *columns]]
        for contender, found in self.figures.items():
            rows.append([contender, *(found[name].text() if name in found else "" for name in columns)])
        options = self._options
        lines = [f"## {self.title}", ""]
        lines.append(f"{options.server}, {options.rounds} rounds, scale {options.scale:g}; median [least-most] of rounds.")
        lines += ["", summary(rows)]
        if self.ratios:
            head = ["what", "target", "measured"]
            lines += ["", summary([head, *(TARGETS[name].row(ratio.values) for name, ratio in self.ratios.items())])]
        lines += ["", *(f"- {text}" for text in self.remarks)] if self.remarks else []
        return "\n".join(lines) + "\n"

    def end(self) -> None:
        """Print all of it, and write the JSON if that was asked for."""
        print(self.text())
        path: Path | None = self._options.json
        if path is not None:
            path.write_text(json.dumps(self._document(), indent=1) + "\n")

    def _document(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self._options).items() if name != "json"}
        return {
            "title": self.title,
            "options": told,
            "machine": machine(),
            "figures": {c: {q: rounded(f) for q, f in found.items()} for c, found in self.figures.items()},
            "ratios": {name: rounded(ratio) for name, ratio in self.ratios.items()},
            "remarks": self.remarks,
        }


def rounded(figures: Figures) -> list[float]:
    """Return values with the digits that mean something."""
    return [float(f"{value:.5g}") for value in figures.values]


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": found[0].partition(":")[2].strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("keyside", "redis", "hiredis", "numpy", "onnxruntime")},
    }


def summary(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def arguments(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser of what all benchmarks take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--scale", type=float, default=1.0, help="share of a full run: of its seconds, bytes or models")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser
