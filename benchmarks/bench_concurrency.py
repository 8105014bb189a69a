"""How do throughput and latency grow with the number of clients?

The fraud scenario with 1 to 64 clients, each with one request in flight: floor (a), a bare relay through Redis lists;
Keyside by raw sockets; and those of the HTTP peers FastAPI and mosec, with and without batching, that are installed.
All take turns at each number.
"""

import contextlib
import sys

from bench_fraud import USUAL, add_peers, chosen
from contenders import Driven, HttpPeer, RawSocket, Relay
from measure import Book, arguments, percentile, turns
from peers import PEERS, Absent
from rig import served

CLIENTS = (1, 2, 4, 8, 16, 32, 64)


def invited(contenders: list[HttpPeer], book: Book) -> list[HttpPeer]:
    """Start peers and return those that are there."""
    found = []
    for contender in contenders:
        try:
            if not contender.peer.installed:
                raise Absent("not installed")
            contender.arrive()
            found.append(contender)
        except Absent as error:
            contender.end()
            book.remark(f"{contender.name}: absent: {error}")
    return found


def measure(book: Book, contender: Driven, clients: int, seconds: float) -> None:
    """Let one contender answer so many clients."""
    meter = contender.meter()
    load = contender.together(seconds, meter, clients)
    contender.check(load.answers)
    prefix = f"{clients} client{'s' if clients > 1 else ''}: "
    book.note(contender.name, f"{prefix}/s", load.rate)
    book.note(contender.name, f"{prefix}p50 ms", percentile(load.seconds, 50) * 1e3)
    book.note(contender.name, f"{prefix}p99 ms", percentile(load.seconds, 99) * 1e3)
    meter.note(book, contender.name, prefix, len(load.answers))


def main() -> None:
    parser = arguments(__doc__)
    add_peers(parser)
    options = parser.parse_args()
    book = Book("Throughput against concurrency", options)
    seconds = max(0.15, 0.8 * options.scale)
    with contextlib.ExitStack() as stack:
        rig = stack.enter_context(served(options.server))
        fraud = rig.load_fraud()
        peers = [HttpPeer(rig, fraud, PEERS[key]()) for key in USUAL if key in chosen(options.peers)]
        contenders: list[Driven] = [Relay(rig, fraud), RawSocket(rig, fraud)]
        for contender in (*contenders, *peers):
            stack.callback(contender.end)
        contenders += invited(peers, book)
        for number in range(options.rounds):
            for clients in CLIENTS:
                for contender in turns(contenders, number):
                    measure(book, contender, clients, seconds)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    book.remark(f"{seconds:g} s for each number of clients")
    book.end()


if __name__ == "__main__":
    main()
