"""Do callers that know nothing of each other get what batching gives?

A model of fully connected layers takes about 1 ms for a row and little more for some. 32 raw sockets, one row each in
flight, against the model stored twice: as it is, and with BATCHSIZE 1.

- share: both gains are over onnxruntime's own rows per second in batches of 1, here in this process, so that a slow way
  through BATCHSIZE 1 does not flatter the batches: what is left is the rate of the 32 callers over the rows per second
  of onnxruntime in batches of 32. The callers' rate over that with BATCHSIZE 1 is told beside it.
- p99: both get 70 % of what the 32 callers had with BATCHSIZE 1, at random moments.
"""

import sys
import time
from typing import Any

import numpy as np
from contenders import of_reply
from drivers import Load, RedisCaller, offer, saturate
from graphs import dense
from measure import Book, arguments, percentile, turns
from rig import Rig, served, upload
from scenario import session_for

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
        self.values = [npy.to_bytes(row[None]) for row in self.rows]
        blob = dense()
        self.session = session_for(blob)
        self.expected = self.session.run(None, {"x": self.rows})[0]
        upload(rig.url, NATURAL, blob)
        upload(rig.url, ALONE, blob, batch_size=1)

    def callers(self, target: str, count: int) -> list[RedisCaller]:
        """Return raw connections that ask for a row each."""

        def request(i: int) -> list[list[Any]]:
            ticket = f"ks:{{0}}:t:bench:{i}"
            value = self.values[i % ROWS]
            return [
                ["FCALL", "AI_PREDICT", 0, target, "INPUTS", 1, "VALUE", value, "TICKET", ticket],
                ["BLPOP", ticket, 10],
            ]

        return [RedisCaller(self.rig.url, request) for _ in range(count)]

    def check(self, load: Load) -> None:
        """See that all answers are right."""
        for i, answer in load.answers:
            assert np.allclose(of_reply(answer)[0], self.expected[i % ROWS], rtol=1e-3, atol=1e-4), f"request {i}"

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
        saturate(callers, self.seconds / 8)
        with self.book.probed(target, self.rig.url):
            load = saturate(callers, self.seconds)
        for caller in callers:
            caller.close()
        self.check(load)
        self.book.note(target, "rows /s", load.rate)
        self.book.note(target, "p99 ms", percentile(load.seconds, 99) * 1e3)

    def offered(self, target: str, rate: float) -> None:
        """Latencies at a load that does not depend on them."""
        callers = self.callers(target, 4 * CALLERS)
        offer(callers, rate, self.seconds / 8)
        load = offer(callers, rate, self.seconds * 2)
        for caller in callers:
            caller.close()
        self.check(load)
        self.book.note(target, f"{OFFERED:.0%} load /s", load.rate)
        self.book.note(target, f"{OFFERED:.0%} load p50 ms", percentile(load.seconds, 50) * 1e3)
        self.book.note(target, f"{OFFERED:.0%} load p99 ms", percentile(load.seconds, 99) * 1e3)

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
        book.judge("batching.share", rates[NATURAL].ratio(rates[MANY]))
        book.over("batching.p99", NATURAL, ALONE, f"{OFFERED:.0%} load p99 ms")
        book.remark(f"Batch 32 over batch 1 of onnxruntime: {rates[MANY].ratio(rates[ONE]).text()}")
        book.remark(f"32 callers over 32 callers with BATCHSIZE 1: {rates[NATURAL].ratio(rates[ALONE]).text()}")
        book.remark(f"32 callers with BATCHSIZE 1 over onnxruntime's batch 1: {rates[ALONE].ratio(rates[ONE]).text()}")


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
