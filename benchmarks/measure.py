"""What every benchmark shares: drivers for raw sockets, CPU of processes, noise probes, and the figures of rounds."""

import os
import selectors
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from keyside.executor.wire import Wire
from keyside.tensorstore.resp import NOT_READY, ReplyReader, encode_many

__all__ = ["Figures", "closed_loop", "cpu_seconds", "latencies", "ping_us", "steal_ticks", "summary"]

TICKS = os.sysconf("SC_CLK_TCK")


def latencies(one: Callable[[int], Any], count: int, start: int = 0) -> tuple[list[float], list[Any]]:
    """Call `one` `count` times, one after the other; return seconds of each, and the answers."""
    seconds, answers = [], []
    for i in range(start, start + count):
        before = time.perf_counter()
        answers.append(one(i))
        seconds.append(time.perf_counter() - before)
    return seconds, answers


class _Connection:
    def __init__(self, url: str) -> None:
        self.wire = Wire(url, name="bench")
        self.wire.connect()
        self.socket = self.wire._socket
        assert self.socket is not None
        self.socket.setblocking(False)
        self.reader = ReplyReader()
        self.left = 0
        self.sent = 0.0
        self.number = 0


def closed_loop(
    url: str, request: Callable[[int], Sequence[Sequence[Any]]], clients: int, count: int
) -> tuple[float, list[float], list[tuple[int, Any]]]:
    """Keep `clients` raw connections busy, one request in flight on each, until `count` requests are answered.

    Args:
        url: the server.
        request: the commands of request i; the reply to the last of them is the answer.
        clients: connections, all in this process.
        count: requests.

    Returns:
        Requests per second, the latency of each in seconds, and (i, answer) of each.
    """
    selector = selectors.DefaultSelector()
    connections = [_Connection(url) for _ in range(clients)]
    for connection in connections:
        selector.register(connection.socket, selectors.EVENT_READ, connection)
    issued = 0
    seconds: list[float] = []
    answers: list[tuple[int, Any]] = []

    def issue(connection: _Connection) -> None:
        nonlocal issued
        commands = request(issued)
        connection.number, connection.left = issued, len(commands)
        issued += 1
        data = b"".join(map(bytes, encode_many(commands)))
        connection.sent = time.perf_counter()
        assert connection.socket.send(data) == len(data)

    began = time.perf_counter()
    for connection in connections:
        issue(connection)
    while len(answers) < count:
        for key, _ in selector.select(10):
            connection = key.data
            received = connection.socket.recv_into(connection.reader.get_buffer())
            assert received, "the server closed a connection"
            connection.reader.buffer_updated(received)
            while (reply := connection.reader.gets()) is not NOT_READY:
                connection.left -= 1
                if connection.left == 0:
                    seconds.append(time.perf_counter() - connection.sent)
                    answers.append((connection.number, reply))
                    if issued < count:
                        issue(connection)
    elapsed = time.perf_counter() - began
    for connection in connections:
        connection.wire.close()
    return count / elapsed, seconds, answers


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process and its threads have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def ping_us(url: str, count: int = 300) -> float:
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


class Figures:
    """Values of one quantity, one per round."""

    def __init__(self) -> None:
        self.values: list[float] = []

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def ratio(self, other: "Figures") -> "Figures":
        """Return this over another, round by round: noise that both had falls out."""
        found = Figures()
        found.values = [a / b for a, b in zip(self.values, other.values, strict=True)]
        return found

    def text(self, form: str = ".0f") -> str:
        """Return median [least-most]."""
        return f"{self.median:{form}} [{min(self.values):{form}}-{max(self.values):{form}}]"


def summary(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)
