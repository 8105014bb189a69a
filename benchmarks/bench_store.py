"""What do callers notice while a model of 500 MB is stored?

Small requests (the fraud scenario) come at random moments, before and while another process stores the model by
`Client.store`, which returns when an executor has loaded it. A latency counts from the moment when the request was due.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path

from drivers import Load, RedisCaller, closing, offer, prepare
from graphs import heavy
from measure import Book, arguments, percentile
from raw import check, of_reply, predict
from rig import ROOT, Rig, served
from scenario import REFERENCES, Fraud

import keyside

MODEL_MB = 500
RATE = 300.0
CALLERS = 64
BEFORE, DURING = "before", "while the model is stored"


class Bench:
    """The rounds."""

    def __init__(self, book: Book, rig: Rig, scratch: Path, scale: float) -> None:
        self.book = book
        self.rig = rig
        self.scratch = scratch
        self.megabytes = max(10, int(MODEL_MB * scale))
        self.seconds = max(1.0, 5.0 * scale)
        self.fraud = rig.load_fraud()
        self.prepared = prepare(lambda n: predict(self.fraud.transactions[n], Fraud.key(n)), REFERENCES)

    def note(self, name: str, load: Load) -> None:
        """Check and note what came of a phase."""
        check(load.answers, self.fraud.expected, of_reply, name)
        self.book.note_latencies(name, load.seconds)
        self.book.note(name, "longest ms", max(load.seconds) * 1e3)
        self.book.note(name, "over 10 ms, %", 100 * sum(s > 0.01 for s in load.seconds) / len(load.seconds))
        self.book.note(name, "p90 us", percentile(load.seconds, 90) * 1e6)

    def round(self, number: int) -> None:
        """Measure before and during."""
        path = self.scratch / "heavy.onnx"
        path.write_bytes(heavy(self.megabytes << 20, number))
        callers = [RedisCaller(self.rig.url, self.prepared) for _ in range(CALLERS)]
        with closing(callers):
            self.before_and_during(callers, path)
        with keyside.Client(self.rig.url) as client:
            client.delete_model("heavy")

    def before_and_during(self, callers: list[RedisCaller], path: Path) -> None:
        """Measure with these callers."""
        offer(callers, RATE, 0.5)
        with self.book.probed(BEFORE, self.rig.url):
            load = offer(callers, RATE, self.seconds)
        self.note(BEFORE, load)
        command = [sys.executable, str(ROOT / "benchmarks/bench_store.py"), "--child", self.rig.url, str(path)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdin is not None
            assert child.stdout is not None
            child.stdout.readline()  # it has imported everything
            with self.book.probed(DURING, self.rig.url):
                began = time.perf_counter()
                child.stdin.write(b"\n")
                child.stdin.flush()
                load = offer(callers, RATE, 0.0, lambda: child.poll() is None)
                took = time.perf_counter() - began
        assert child.returncode == 0, "the model was not stored"
        self.note(DURING, load)
        self.book.note(DURING, "stored and loaded in s", took)


def child(url: str, path: str) -> None:
    """Store the model when told to."""
    with keyside.Client(url) as client:
        client.ping()
        print("ready", flush=True)
        sys.stdin.readline()
        client.store("heavy", path)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    options = arguments(__doc__, rounds=3).parse_args()
    book = Book("A large model is stored", options)
    with tempfile.TemporaryDirectory() as scratch, served(options.server) as rig:
        bench = Bench(book, rig, Path(scratch), options.scale)
        for number in range(options.rounds):
            bench.round(number)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        book.remark(f"Model of {bench.megabytes} MB; {RATE:g} small requests a second")
    book.over("store.p99", DURING, BEFORE, "p99 us")
    book.end()


if __name__ == "__main__":
    main()
