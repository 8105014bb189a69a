"""What does a request cost Redis over floor (d): two writes from one client, SET+GET and LPUSH+BLPOP of the same bytes?

One client first, as floor (d) says: Keyside's own path is two writes as well, the caller's and the executor's. Then 32
clients, where an executor takes several requests at a time.
"""

import sys
from typing import Any

from drivers import NUMBER, Prepared, RedisCaller, closing, latencies, prepare, saturate
from measure import Book, Meter, arguments, turns
from raw import check, of_reply, predict
from rig import Rig, served
from scenario import REFERENCES, Fraud

from keyside.tensorstore.resp import NOT_READY

FLOOR, KEYSIDE = "floor (d): SET+GET, LPUSH+BLPOP", "Keyside, raw socket"
CLIENTS = 32
SLICES = 8


class TwoWrites(RedisCaller):
    """Sends the second write when the first is answered."""

    __slots__ = ("_first", "_is_first", "_second")

    def __init__(self, url: str, first: Prepared, second: Prepared, *, blocking: bool = False) -> None:
        super().__init__(url, first, blocking=blocking)
        self._first, self._second, self._is_first = first, second, True

    def begin(self, number: int) -> None:
        """Send the first write."""
        self.number = number
        self._is_first = True
        self.use(self._first)
        super().begin(number)

    def ready(self, fd: int = -1) -> Any:
        """Send the second write after the first; return what it brings."""
        reply = super().ready(fd)
        if reply is NOT_READY or not self._is_first:
            return reply
        self._is_first = False
        self.use(self._second)
        super().begin(self.number)
        return NOT_READY


class Bench:
    """The rounds."""

    def __init__(self, book: Book, rig: Rig, scale: float) -> None:
        self.book = book
        self.rig = rig
        self.requests = max(200, int(4000 * scale))
        self.seconds = max(0.2, 3.0 * scale)
        self.fraud = fraud = rig.load_fraud()
        # The floor: the reference as a key, the transaction through a list.
        self.floor = (
            prepare(lambda n: [["SET", f"floor:{n}", fraud.references[n]], ["GET", f"floor:{n}"]], REFERENCES),
            prepare(
                lambda n: [["LPUSH", b"list:" + NUMBER, fraud.transactions[n]], ["BLPOP", b"list:" + NUMBER, 10]],
                REFERENCES,
            ),
        )
        self.request = prepare(lambda n: predict(fraud.transactions[n], Fraud.key(n)), REFERENCES)

    def caller(self, name: str, *, blocking: bool = False) -> RedisCaller:
        """Return a client."""
        if name == KEYSIDE:
            return RedisCaller(self.rig.url, self.request, blocking=blocking)
        return TwoWrites(self.rig.url, *self.floor, blocking=blocking)

    def check(self, name: str, answers: list[tuple[int, Any]]) -> None:
        """See that all answers are right."""
        if name == KEYSIDE:
            check(answers, self.fraud.expected, of_reply, name)
            return
        for i, answer in answers:
            assert answer[1] == self.fraud.transactions[i % REFERENCES], f"{name}: request {i}"

    def one_by_one(self, name: str, meter: Meter) -> list[float]:
        """One request after the other."""
        caller = self.caller(name, blocking=True)
        with closing([caller]):
            meter.probe()
            latencies(caller.call, 50, 9_000_000)
            with meter:
                seconds, answers = latencies(caller.call, self.requests // SLICES)
        self.check(name, answers)
        return seconds

    def one_client(self, number: int) -> None:
        """Both in several turns, so that a change of the machine's mood hits both."""
        meters = {name: self.meter() for name in (FLOOR, KEYSIDE)}
        seconds: dict[str, list[float]] = {name: [] for name in meters}
        for n in range(SLICES):
            for name in turns(list(meters), number + n):
                seconds[name] += self.one_by_one(name, meters[name])
        for name, meter in meters.items():
            self.book.note_latencies(name, seconds[name], "1 client: ")
            meter.note(self.book, name, "1 client: ", len(seconds[name]))

    def many_clients(self, name: str) -> None:
        """As many requests as they answer."""
        callers = [self.caller(name) for _ in range(CLIENTS)]
        meter = self.meter()
        with closing(callers):
            saturate(callers, self.seconds / 8, 9_000_000)
            with meter:
                load = saturate(callers, self.seconds)
        self.check(name, load.answers)
        self.book.note(name, f"{CLIENTS} clients: /s", load.rate)
        meter.note(self.book, name, f"{CLIENTS} clients: ", len(load.answers))

    def meter(self) -> Meter:
        """Return what measures what it costs Redis."""
        return Meter(self.rig.url, {"Redis": self.rig.server.pid})


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("Redis CPU", options)
    with served(options.server) as rig:
        bench = Bench(book, rig, options.scale)
        for number in range(options.rounds):
            bench.one_client(number)
            for name in turns([FLOOR, KEYSIDE], number):
                bench.many_clients(name)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.over("redis.cpu", KEYSIDE, FLOOR, "1 client: Redis CPU us")
    many = f"{CLIENTS} clients: Redis CPU us"
    book.remark(f"With {CLIENTS} clients: {book.of(KEYSIDE, many).ratio(book.of(FLOOR, many)).text()} of floor (d)")
    book.end()


if __name__ == "__main__":
    main()
