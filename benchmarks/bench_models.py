"""Do models in memory answer as quickly while others load?

200 models of 5 MB, an executor with room for 50. One raw socket goes through 20 of them, again and again: alone, and
while another process asks for the other 180 in turn, none of which is in memory when its turn comes.
"""

import contextlib
import subprocess
import sys
import time
from collections.abc import Iterator

import numpy as np
from drivers import RedisCaller, closing, latencies, prepare
from graphs import heavy
from measure import Book, arguments, turns
from raw import check, of_reply, predict
from rig import ROOT, Rig, served, store

import keyside
from keyside.tensorstore import npy

MODELS, ROOM, HOT = 200, 50, 20
MODEL_BYTES = 5 << 20
WITHOUT, WITH = "hits alone", "hits while others load"


class Hits:
    """Hits and misses."""

    def __init__(self, book: Book, rig: Rig, scale: float) -> None:
        self.book = book
        self.rig = rig
        share = max(0.1, min(1.0, scale))
        self.models, self.room, self.hot = (max(2, int(number * share)) for number in (MODELS, ROOM, HOT))
        self.requests = max(200, int(4000 * scale))
        value = npy.to_bytes(np.ones((1, 1), np.float32))
        self.prepared = prepare(lambda n: predict(value, target=f"model:{n}"), self.hot)
        self.expected = np.empty(0)

    @staticmethod
    def budget(scale: float) -> int:
        """Return the memory that the executor may use."""
        room = max(2, int(ROOM * max(0.1, min(1.0, scale))))
        return int(room * MODEL_BYTES * 1.04)  # as the executor counts a model: its file and some for the session

    def fill(self) -> None:
        """Store all models."""
        for n in range(self.models):
            store(self.rig.db, f"model:{n}", heavy(MODEL_BYTES, n))
        caller = RedisCaller(self.rig.url, self.prepared, blocking=True)
        with closing([caller]):
            self.expected = np.array([of_reply(caller.call(n))[0, 0] for n in range(self.hot)])

    def ask(self, name: str) -> None:
        """Go through the hot models."""
        caller = RedisCaller(self.rig.url, self.prepared, blocking=True)
        with closing([caller]):
            latencies(caller.call, 2 * self.hot, 9_000_000)
            with self.book.probed(name, self.rig.url):
                seconds, answers = latencies(caller.call, self.requests)
        check(answers, self.expected, of_reply, name)
        self.book.note_latencies(name, seconds)

    def round(self, number: int) -> None:
        """Alone, and beside misses."""
        for name in turns([WITHOUT, WITH], number):
            if name == WITHOUT:
                self.ask(name)
                continue
            with self.misses():
                self.ask(name)

    @contextlib.contextmanager
    def misses(self) -> Iterator[None]:
        """Let another process ask for all the other models in turn."""
        command = [sys.executable, str(ROOT / "benchmarks/bench_models.py"), "--child", self.rig.url]
        command += [str(self.hot), str(self.models)]
        began = time.perf_counter()
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            child.stdout.readline()  # the first miss is over
            yield
            loaded, _ = child.communicate(b"\n", 60)
        assert child.returncode == 0, "the misses failed"
        self.book.note(WITH, "misses /s", int(loaded) / (time.perf_counter() - began))


def child(url: str, first: str, last: str) -> None:
    """Ask for models that are not in memory until there is a line to read; print how many times."""
    import select

    count = 0
    numbers = range(int(first), int(last))
    with keyside.Client(url) as client:
        while not select.select([sys.stdin], [], [], 0)[0]:
            client.predict(f"model:{numbers[count % len(numbers)]}", np.ones((1, 1), np.float32))
            count += 1
            if count == 1:
                print("begun", flush=True)
    print(count)


def main() -> None:
    if sys.argv[1:2] == ["--child"]:
        child(*sys.argv[2:])
        return
    options = arguments(__doc__).parse_args()
    book = Book("Hits and misses", options)
    with served(options.server, memory_budget=Hits.budget(options.scale)) as rig:
        hits = Hits(book, rig, options.scale)
        hits.fill()
        for number in range(options.rounds):
            hits.round(number)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        book.remark(
            f"Hits: {hits.models} models of 5 MB, room for {hits.room}, {hits.hot} of them asked for again and again"
        )
    book.over("models.hits", WITH, WITHOUT, "p50 us")
    book.end()


if __name__ == "__main__":
    main()
