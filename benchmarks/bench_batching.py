"""Do callers that know nothing of each other get what batching gives?

A model of fully connected layers, as many as take about 1 ms for a row on this machine, and little more for some. 32
raw sockets, one row each in flight, against the model stored twice: as it is, and with BATCHSIZE 1.

- share: of the gain that onnxruntime itself has here in this process, rows per second in batches of 32 over rows per
  second in batches of 1, the callers' gain: their rate with natural batching over their rate with BATCHSIZE 1. That is
  what the target's sentence says. A slow way through BATCHSIZE 1 flatters this share, so both rates are also told as
  shares of what onnxruntime does in this process.
- p99: both get 70 % of what the 32 callers had with BATCHSIZE 1, at random moments.
"""

import sys
import time

import numpy as np
from drivers import RedisCaller, closing, offer, prepare, saturate
from measure import Book, Meter, arguments, percentile, turns
from raw import check, of_reply, predict
from rig import Rig, served, upload
from scenario import dense_of, session_for

from keyside.tensorstore import npy

CALLERS = 32
ROWS = 256
NATURAL, ALONE, ONE, MANY = "natural", "alone", "onnxruntime, 1 row", "onnxruntime, 32 rows"
OFFERED = 0.7


class Bench:
    """The rounds."""

    def __init__(self, book: Book, rig: Rig, scale: float) -> None:
        self.book = book
        self.rig = rig
        self.seconds = max(0.2, 3.0 * scale)
        self.rows = np.random.default_rng(11).standard_normal((ROWS, 256), dtype=np.float32)
        blob, told = dense_of(1.0)
        book.remark(told)
        self.session = session_for(blob)
        self.expected = self.session.run(None, {"x": self.rows})[0]
        upload(rig.url, NATURAL, blob)
        upload(rig.url, ALONE, blob, batch_size=1)
        values = [npy.to_bytes(row[None]) for row in self.rows]
        self.prepared = {
            target: prepare(lambda n: predict(values[n], target=target), ROWS)  # noqa: B023  # called at once
            for target in (NATURAL, ALONE)
        }

    def callers(self, target: str, count: int) -> list[RedisCaller]:
        """Return raw connections that ask for a row each."""
        return [RedisCaller(self.rig.url, self.prepared[target]) for _ in range(count)]

    def in_process(self, name: str, rows: int) -> None:
        """Rows per second of onnxruntime."""
        took = []
        end = time.perf_counter() + self.seconds / 2
        while (before := time.perf_counter()) < end:
            self.session.run(None, {"x": self.rows[:rows]})
            took.append(time.perf_counter() - before)
        self.book.note(name, "rows /s", rows / percentile(took, 50))

    def saturated(self, target: str) -> None:
        """Rows per second that 32 callers get."""
        callers = self.callers(target, CALLERS)
        meter = Meter(self.rig.url, {"Redis": self.rig.server.pid, "executor": self.rig.executor.pid})
        with closing(callers):
            saturate(callers, self.seconds / 8, 9_000_000)
            with meter:
                load = saturate(callers, self.seconds)
        check(load.answers, self.expected, of_reply, target)
        self.book.note(target, "rows /s", load.rate)
        self.book.note(target, "p99 ms", percentile(load.seconds, 99) * 1e3)
        meter.note(self.book, target, requests=len(load.answers))

    def offered(self, target: str, rate: float) -> None:
        """Latencies at a load that does not depend on them."""
        callers = self.callers(target, 4 * CALLERS)
        prefix = f"{OFFERED:.0%} load: "
        with closing(callers):
            offer(callers, rate, self.seconds / 8, start=9_000_000)
            with self.book.probed(target, self.rig.url, prefix):
                load = offer(callers, rate, self.seconds * 2)
        check(load.answers, self.expected, of_reply, target)
        self.book.note(target, f"{prefix}/s", load.rate)
        self.book.note(target, f"{prefix}p50 ms", percentile(load.seconds, 50) * 1e3)
        self.book.note(target, f"{prefix}p99 ms", percentile(load.seconds, 99) * 1e3)

    def round(self, number: int) -> None:
        """Let all run once."""
        for name in turns([ONE, MANY, NATURAL, ALONE], number):
            if name in (ONE, MANY):
                self.in_process(name, 1 if name == ONE else 32)
            else:
                self.saturated(name)
        rate = OFFERED * self.book.of(ALONE, "rows /s").values[-1]
        for target in turns([NATURAL, ALONE], number):
            self.offered(target, rate)

    def judge(self) -> None:
        """Set the ratios beside their targets."""
        book = self.book
        rates = {name: book.of(name, "rows /s") for name in (NATURAL, ALONE, ONE, MANY)}
        own = rates[MANY].ratio(rates[ONE])
        seen = rates[NATURAL].ratio(rates[ALONE])
        book.judge("batching.share", seen.ratio(own))
        book.over("batching.p99", NATURAL, ALONE, f"{OFFERED:.0%} load: p99 ms")
        book.remark(f"onnxruntime's own gain, batch 32 over batch 1: {own.text()}")
        book.remark(f"The callers' gain, natural batching over BATCHSIZE 1: {seen.text()}")
        book.remark(
            f"Natural batching, callers' rate over onnxruntime's in batches of 32: "
            f"{rates[NATURAL].ratio(rates[MANY]).text()}"
        )
        book.remark(
            f"BATCHSIZE 1, callers' rate over onnxruntime's in batches of 1: {rates[ALONE].ratio(rates[ONE]).text()}"
        )


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("Natural batching", options)
    with served(options.server) as rig:
        bench = Bench(book, rig, options.scale)
        for number in range(options.rounds):
            bench.round(number)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        bench.judge()
    book.end()


if __name__ == "__main__":
    main()
