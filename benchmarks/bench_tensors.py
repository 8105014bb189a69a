"""What do `set` and `get` of a tensor take over floor (b): plain SET and GET of the same bytes by raw sockets?

The floor writes header and elements as they lie, in one `sendmsg`, and reads with `recv_into` into memory as fresh as
that of the array which `get` returns. Peak memory is measured in processes of their own: by tracemalloc, which sees
what NumPy and Python ask for, and by the resident set, which sees everything.
"""

import json
import resource
import socket
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
from measure import Book, Figures, Meter, arguments, interleaved
from rig import ROOT, Rig, served

import keyside
from keyside.tensorstore import npy

SIZES = {"600KB": (1, 3, 224, 224), "16MiB": (4, 1024, 1024)}
COUNTS = {"600KB": 400, "16MiB": 40}


class Floor:
    """Plain SET and GET on a blocking socket."""

    def __init__(self, path: str) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(path)

    def set(self, key: bytes, header: bytes, data: memoryview) -> None:
        """SET a value that lies in two places."""
        total = len(header) + data.nbytes
        start = b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n" % (len(key), key, total)
        self._send([memoryview(start), memoryview(header), data.cast("B"), memoryview(b"\r\n")])
        assert self._socket.recv(5, socket.MSG_WAITALL) == b"+OK\r\n"

    def _send(self, pieces: list[memoryview]) -> None:
        while pieces:
            sent = self._socket.sendmsg(pieces)
            while pieces and sent >= len(pieces[0]):
                sent -= len(pieces.pop(0))
            if pieces:
                pieces[0] = pieces[0][sent:]

    def get(self, key: bytes, total: int) -> Any:
        """GET a value whose size is known, into fresh memory."""
        self._socket.sendall(b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(key), key))
        start = b"$%d\r\n" % total
        assert self._socket.recv(len(start), socket.MSG_WAITALL) == start
        value = np.empty(total, np.uint8)
        view = value.data
        at = 0
        while at < total:
            at += self._socket.recv_into(view[at:], 0, socket.MSG_WAITALL)
        assert self._socket.recv(2, socket.MSG_WAITALL) == b"\r\n"
        return value


def speeds(book: Book, rig: Rig, client: keyside.Client, number: int, scale: float) -> None:
    """Run a round of all sizes."""
    floor = Floor(str(rig.server.socket))
    for size, shape in SIZES.items():
        array = np.random.default_rng(number).random(shape, dtype=np.float32)
        header, data = npy.encode(array)
        total = len(header) + data.nbytes
        # What they return is let go of at once, as a caller would do that goes through many.
        contenders: dict[str, Callable[[int], Any]] = {
            "set floor (b)": lambda _: floor.set(b"floor", header, data),  # noqa: B023  # called in this turn
            "set Client": lambda _: client.set("tensor", array),  # noqa: B023
            "get floor (b)": lambda _: floor.get(b"floor", total) is None,  # noqa: B023
            "get Client": lambda _: client.get("tensor") is None,
        }
        floor.set(b"floor", header, data)
        client.set("tensor", array)
        with Meter(rig.url) as meter:
            found = interleaved(contenders, max(10, int(COUNTS[size] * scale)), number)
        for name, (seconds, _) in found.items():
            operation, _, who = name.partition(" ")
            book.note_latencies(f"{who}, {size}", seconds, f"{operation} ")
        for who in ("floor (b)", "Client"):
            meter.note(book, f"{who}, {size}")
        assert np.array_equal(client.get("tensor"), array)
        assert np.array_equal(npy.decode(floor.get(b"floor", total)), array)


def child(url: str, operation: str) -> None:
    """Print the peak memory of one operation, in copies of the tensor besides the array that the caller has."""
    array = np.ones(SIZES["16MiB"], np.float32)
    with keyside.Client(url) as client:
        client.set("small", array[:1, :1, :1])
        client.get("small")
        client.set("memory", array)
        if operation == "get":
            del array
        nbytes = int(np.prod(SIZES["16MiB"])) * 4

        def run() -> Any:
            return client.get("memory") if operation == "get" else client.set("memory", array)

        own = nbytes if operation == "get" else 0
        found: dict[str, float] = {}
        tracemalloc.start()
        kept = run()
        found["traced"] = (tracemalloc.get_traced_memory()[1] - own) / nbytes
        tracemalloc.stop()
        del kept
        # The peak cannot be reset, so something that is gone again must not hide what comes: fill up to it first.
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        filler = []
        while resource.getrusage(resource.RUSAGE_SELF).ru_maxrss == before:
            filler.append(np.ones(1 << 16, np.uint8))
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        kept = run()
        found["resident"] = ((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 - own) / nbytes
        del filler, kept
        print(json.dumps(found))


def memory(book: Book, rig: Rig, operation: str) -> None:
    """Measure in a process of its own."""
    command = [sys.executable, str(ROOT / "benchmarks/bench_tensors.py"), "--child", rig.url, operation]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    for how, copies in found.items():
        book.note(f"Client.{operation} of 16 MiB", f"extra copies, {how}", max(0.0, copies))


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    options = arguments(__doc__).parse_args()
    book = Book("Tensors", options)
    with served(options.server) as rig, keyside.Client(rig.url) as client:
        for number in range(options.rounds):
            speeds(book, rig, client, number, options.scale)
            for operation in ("set", "get"):
                memory(book, rig, operation)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    for size in SIZES:
        for operation in ("set", "get"):
            book.over(f"tensors.{operation}_{size}", f"Client, {size}", f"floor (b), {size}", f"{operation} p50 us")
        both: list[Figures] = [
            book.of(f"{who}, {size}", "set p50 us").plus(book.of(f"{who}, {size}", "get p50 us"))
            for who in ("Client", "floor (b)")
        ]
        book.remark(f"{size}: set + get over SET + GET: {both[0].ratio(both[1]).text()}")
    for operation in ("set", "get"):
        name = f"Client.{operation} of 16 MiB"
        worse = max(
            book.of(name, "extra copies, traced"), book.of(name, "extra copies, resident"), key=lambda f: f.median
        )
        book.judge(f"tensors.{operation}_memory", worse)
    book.end()


if __name__ == "__main__":
    main()
