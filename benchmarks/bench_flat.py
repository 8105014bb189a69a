"""Does a request cost the same however much is stored?

CPU of Redis and executor per request of the fraud scenario with 1, 100 and 10,000 models stored, and with a million
other keys. Each has a server and an executor of its own, and they take turns.
"""

import contextlib
import sys
import time

from drivers import RedisCaller, closing, latencies, prepare, saturate
from graphs import tiny
from measure import Book, Meter, arguments, turns
from raw import check, of_reply, predict
from rig import Rig, served
from scenario import REFERENCES, Fraud

CLIENTS = 8


class Flat:
    """One server with so much stored.

    Args:
        models: besides others, the one that is asked.
        keys: others.
    """

    def __init__(self, name: str, rig: Rig, models: int, keys: int) -> None:
        self.name = name
        self.rig = rig
        self.fraud = rig.load_fraud()
        self.prepared = prepare(lambda n: predict(self.fraud.transactions[n], Fraud.key(n)), REFERENCES)
        if keys:
            rig.db.execute_command("DEBUG", "POPULATE", keys, "other", 100)  # type: ignore[no-untyped-call]
        self._store_others(models - 1)

    def _store_others(self, count: int) -> None:
        if not count:
            return
        for start in range(0, count, 500):
            pipe = self.rig.db.pipeline(transaction=False)
            for n in range(start, min(start + 500, count)):
                pipe.fcall("AI_MODELSTORE", 1, f"other:{n}", "ONNX", "CPU", "BLOB", tiny(n))
            pipe.execute()
        left = list(range(count))
        end = time.monotonic() + 900
        while left:
            assert time.monotonic() < end, f"{len(left)} of {count} models are not loaded in time"
            pipe = self.rig.db.pipeline(transaction=False)
            for n in left[:500]:
                pipe.hget(f"other:{n}", "1:state")
            states = pipe.execute()
            left = [n for n, state in zip(left, states, strict=False) if state != b"ready"] + left[500:]
            if left:
                time.sleep(0.05)

    def run(self, book: Book, scale: float) -> None:
        """Measure once."""
        rig, name = self.rig, self.name
        caller = RedisCaller(rig.url, self.prepared, blocking=True)
        with closing([caller]):
            latencies(caller.call, 100, 9_000_000)
            with book.probed(name, rig.url, "1 client: "):
                seconds, _ = latencies(caller.call, max(200, int(2000 * scale)))
        book.note_latencies(name, seconds, "1 client: ")
        callers = [RedisCaller(rig.url, self.prepared) for _ in range(CLIENTS)]
        duration = max(0.3, 3 * scale)
        meter = Meter(rig.url, {"Redis": rig.server.pid, "executor": rig.executor.pid})
        with closing(callers):
            saturate(callers, duration / 8, 9_000_000)
            with meter:
                load = saturate(callers, duration)
        check(load.answers, self.fraud.expected, of_reply, name)
        prefix = f"{CLIENTS} clients: "
        book.note(name, f"{prefix}/s", load.rate)
        meter.note(book, name, prefix, len(load.answers))
        both = (book.of(name, f"{prefix}{process} CPU us").values[-1] for process in ("Redis", "executor"))
        book.note(name, f"{prefix}Redis + executor CPU us", sum(both))


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("What is stored", options)
    share = min(1.0, options.scale)
    many, keys = max(200, int(10_000 * share)), max(10_000, int(1_000_000 * share))
    stored = {"1 model": (1, 0), "100 models": (100, 0), f"{many:,} models": (many, 0), f"{keys:,} keys": (1, keys)}
    with contextlib.ExitStack() as stack:
        servers = []
        for name, (models, others) in stored.items():
            rig = stack.enter_context(served(options.server))
            servers.append(Flat(name, rig, models, others))
            print(f"{name}: stored", file=sys.stderr)
        for number in range(options.rounds):
            for server in turns(servers, number):
                server.run(book, options.scale)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    names = list(stored)
    for target, name in zip(("flat.100_models", "flat.10000_models", "flat.1M_keys"), names[1:], strict=True):
        book.over(target, name, names[0], f"{CLIENTS} clients: Redis + executor CPU us")
        p50 = book.of(name, "1 client: p50 us").ratio(book.of(names[0], "1 client: p50 us"))
        book.remark(f"{name}: p50 of one client over that with 1 model: {p50.text()}")
    book.end()


if __name__ == "__main__":
    main()
