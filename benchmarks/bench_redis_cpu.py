"""What does a request cost Redis over floor (d): two writes from one client, SET+GET and LPUSH+BLPOP of the same bytes?

One client first, as floor (d) says: Keyside's own path is two writes as well, the caller's and the executor's. Then 32
clients, where an executor takes several requests at a time.
"""

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
from contenders import of_reply, predict
from drivers import RedisCaller, latencies, saturate
from measure import Book, arguments, turns
from rig import Rig, connected, served, store
from scenario import REFERENCES, Fraud

from keyside.executor.wire import Wire
from keyside.tensorstore.resp import NOT_READY

FLOOR, KEYSIDE = "floor (d): SET+GET, LPUSH+BLPOP", "Keyside, raw socket"
CLIENTS = 32

Commands = list[list[Any]]


class TwoWrites(RedisCaller):
    """Sends the second write when the first is answered."""

    def __init__(self, url: str, writes: Callable[[int], tuple[Commands, Commands]]) -> None:
        super().__init__(url, lambda _: self._due.pop(0))
        self._writes = writes
        self._due: list[Commands] = []
        self._number = 0

    def begin(self, number: int) -> None:
        """Send the first write."""
        self._number = number
        self._due = list(self._writes(number))
        super().begin(number)

    def ready(self, sock: Any) -> Any:
        """Send the second write after the first; return what it brings."""
        reply = super().ready(sock)
        if reply is NOT_READY or not self._due:
            return reply
        super().begin(self._number)
        return NOT_READY


class Bench:
    """The rounds."""

    def __init__(self, book: Book, rig: Rig, scale: float) -> None:
        self.book = book
        self.rig = rig
        self.fraud = Fraud()
        self.requests = max(200, int(4000 * scale))
        self.seconds = max(0.2, 3.0 * scale)
        for i, reference in enumerate(self.fraud.references):
            rig.db.set(Fraud.key(i), reference)
        store(rig.db, "fraud", self.fraud.model)

    def writes(self, i: int) -> tuple[Commands, Commands]:
        """Return both writes of the floor: the reference as a key, the transaction through a list."""
        n = i % REFERENCES
        return (
            [["SET", f"floor:{n}", self.fraud.references[n]], ["GET", f"floor:{n}"]],
            [["LPUSH", f"list:{i}", self.fraud.transactions[n]], ["BLPOP", f"list:{i}", 10]],
        )

    def request(self, i: int) -> Commands:
        """Return Keyside's request."""
        n = i % REFERENCES
        return predict(self.fraud.transactions[n], Fraud.key(n), i)

    def one_call(self, name: str, wire: Wire) -> Callable[[int], Any]:
        """Return what makes request i on a connection that blocks."""
        if name == KEYSIDE:
            return lambda i: wire.call_many(self.request(i))[-1]
        return lambda i: [wire.call_many(write) for write in self.writes(i)][-1][-1]

    def check(self, name: str, answers: list[tuple[int, Any]]) -> None:
        """See that all answers are right."""
        for i, answer in answers:
            n = i % REFERENCES
            if name == KEYSIDE:
                assert np.allclose(of_reply(answer)[0], self.fraud.expected[n], rtol=1e-4, atol=1e-5), f"request {i}"
            else:
                assert answer[1] == self.fraud.transactions[n], f"request {i}"

    def one_client(self, name: str) -> None:
        """One request after the other."""
        wire = connected(self.rig.url)
        one = self.one_call(name, wire)
        latencies(one, 100, 9_000_000)
        with self.book.probed(name, self.rig.url):
            before = self.rig.redis_cpu()
            seconds, answers = latencies(one, self.requests)
            cost = self.rig.redis_cpu() - before
        wire.close()
        self.check(name, answers)
        self.book.note(name, "1 client: Redis CPU us", cost / len(answers) * 1e6)
        self.book.note_latencies(name, seconds, "1 client: ")

    def many_clients(self, name: str) -> None:
        """As many requests as they answer."""
        url = self.rig.url
        callers = [
            RedisCaller(url, self.request) if name == KEYSIDE else TwoWrites(url, self.writes) for _ in range(CLIENTS)
        ]
        saturate(callers, self.seconds / 8)
        before = self.rig.redis_cpu()
        load = saturate(callers, self.seconds)
        cost = self.rig.redis_cpu() - before
        for caller in callers:
            caller.close()
        self.check(name, load.answers)
        self.book.note(name, f"{CLIENTS} clients: Redis CPU us", cost / len(load.answers) * 1e6)
        self.book.note(name, f"{CLIENTS} clients: /s", load.rate)


def main() -> None:
    options = arguments(__doc__).parse_args()
    book = Book("Redis CPU", options)
    with served(options.server) as rig:
        bench = Bench(book, rig, options.scale)
        for number in range(options.rounds):
            for name in turns([FLOOR, KEYSIDE], number):
                bench.one_client(name)
                bench.many_clients(name)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.over("redis.cpu", KEYSIDE, FLOOR, "1 client: Redis CPU us")
    many = f"{CLIENTS} clients: Redis CPU us"
    book.remark(f"With {CLIENTS} clients: {book.of(KEYSIDE, many).ratio(book.of(FLOOR, many)).text()} of floor (d)")
    book.end()


if __name__ == "__main__":
    main()
