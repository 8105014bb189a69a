"""How fast is a prediction on the fraud scenario: next to what Redis and onnxruntime allow, and next to other servers?

All contenders take turns in every round: floor (a), a bare relay through Redis lists; Keyside by a raw socket, by
`Client.predict` and by `AsyncClient`; onnxruntime in this process; HTTP model servers (peers/), whose client GETs the
reference from Redis and then POSTs both tensors as raw bytes. First one client, then 32. Every answer is checked after
the timed part.
"""

import argparse
import subprocess
import sys
import time

from contenders import CLIENTS, FLYING, AsyncClient, BlockingClient, Contender, HttpPeer, InProcess, RawSocket, Relay
from measure import Book, Figures, arguments, percentile, turns
from peers import PEERS, Absent
from rig import ROOT, Rig, served, store
from scenario import Fraud

USUAL = ("fastapi", "mosec")
RATE = "load: /s"


class Bench:
    """The rounds.

    Args:
        book: for the figures.
        rig: the server and the executor.
        scale: share of a full run.
    """

    def __init__(self, book: Book, rig: Rig, scale: float) -> None:
        self.book = book
        self.rig = rig
        self.fraud = Fraud()
        self.requests = max(100, int(2000 * scale))
        self.seconds = max(0.2, 4.0 * scale)
        self.relay = subprocess.Popen([sys.executable, str(ROOT / "benchmarks/relay.py"), rig.url])
        for i, reference in enumerate(self.fraud.references):
            rig.db.set(Fraud.key(i), reference)
        store(rig.db, "fraud", self.fraud.model)
        while not rig.db.exists("relay:ready"):
            assert self.relay.poll() is None, "the relay has ended"
            time.sleep(0.01)
        url, fraud = rig.url, self.fraud
        self.contenders: list[Contender] = [
            Relay(url, fraud, self.relay.pid),
            RawSocket(url, fraud, rig.executor.pid),
            BlockingClient(url, fraud),
            AsyncClient(url, fraud, rig.executor.pid),
            InProcess(url, fraud),
        ]
        self.book.remark(
            f"Load: {CLIENTS} clients; AsyncClient: {FLYING:,} requests in flight. CPU: of each request then"
        )

    def invite(self, keys: list[str], *, install: bool) -> None:
        """Start peers, and say which are absent, and why."""
        for key in keys:
            peer = PEERS[key]()
            try:
                if not install and not peer.installed:
                    raise Absent("not installed: `make bench-full`, or --peers, does that")
                peer.make_venv()
                contender = HttpPeer(self.rig.url, self.fraud, peer)
                contender.arrive()
                self.contenders.append(contender)
                before = peer.cpu_seconds()
                time.sleep(1.0)
                idle = f"{peer.cpu_seconds() - before:.2f} cores while idle"
                self.book.remark(f"{peer.name}: {peer.version}; {peer.settings}; {idle}")
                contender.leave()
            except Absent as error:
                peer.stop()
                self.book.remark(f"{peer.name}: absent: {error}")

    def round(self, number: int) -> None:
        """Let every contender run once."""
        for contender in self.contenders:
            self.book.figures.setdefault(contender.name, {})  # the order of the table
        for contender in turns(self.contenders, number):
            try:
                contender.arrive()
                self.one_by_one(contender)
                self.together(contender)
                contender.leave()
            except (Absent, AssertionError, OSError) as error:
                if not isinstance(contender, HttpPeer):
                    raise
                contender.end()
                self.contenders.remove(contender)
                self.book.figures.pop(contender.name, None)
                self.book.remark(f"{contender.name}: absent: it failed in round {number + 1}: {error}")

    def one_by_one(self, contender: Contender) -> None:
        """One client."""
        book, name = self.book, contender.name
        with book.probed(name, self.rig.url):
            found = contender.one_by_one(self.requests)
        if found is not None:
            contender.check(found[1])
            book.note_latencies(name, found[0])

    def together(self, contender: Contender) -> None:
        """Many requests in flight."""
        book, name = self.book, contender.name
        contender.together(self.seconds / 8)
        redis, server, client = self.rig.redis_cpu(), contender.cpu_seconds(), time.process_time()
        load = contender.together(self.seconds)
        if load is None:
            return
        client = time.process_time() - client
        server = contender.cpu_seconds() - server
        redis = self.rig.redis_cpu() - redis
        contender.check(load.answers)
        count = len(load.answers)
        book.note(name, RATE, load.rate)
        book.note(name, "load: p50 ms", percentile(load.seconds, 50) * 1e3)
        book.note(name, "load: p99 ms", percentile(load.seconds, 99) * 1e3)
        book.note(name, "Redis CPU us", redis / count * 1e6)
        book.note(name, "server CPU us", server / count * 1e6)
        book.note(name, "client CPU us", client / count * 1e6)
        if isinstance(contender, HttpPeer):
            book.note(name, "memory MB", contender.peer.rss_mb())

    def end(self) -> None:
        """Stop what was started."""
        for contender in self.contenders:
            if isinstance(contender, HttpPeer):
                contender.end()
        self.relay.terminate()
        self.relay.wait(10)

    def judge(self) -> None:
        """Set the ratios beside their targets."""
        book = self.book
        raw, client, flying = RawSocket.name, BlockingClient.name, AsyncClient.name
        book.over("fraud.raw_p50", raw, Relay.name, "p50 us")
        book.over("fraud.client_p50", client, Relay.name, "p50 us")
        peers = [contender.name for contender in self.contenders if isinstance(contender, HttpPeer)]
        if not peers:
            return
        quickest = min(peers, key=lambda name: book.of(name, "p50 us").median)
        most = max(peers, key=lambda name: book.of(name, RATE).median)
        book.over("fraud.client_p50_peer", client, quickest, "p50 us")
        book.over("fraud.rate_peer", raw, most, RATE)
        book.over("fraud.async_peer", flying, most, RATE)
        book.remark(f"The best HTTP peer by p50 is {quickest}, by throughput {most}.")
        fastapi = PEERS["fastapi"].name
        if fastapi in peers:
            cost = book.of(raw, "Redis CPU us").plus(book.of(raw, "server CPU us"))
            book.judge("fraud.cpu_fastapi", cost.ratio(book.of(fastapi, "server CPU us")))


def chosen(text: str | None) -> list[str]:
    """Read --peers."""
    if text is None:
        return list(USUAL)
    keys = list(PEERS) if text == "all" else [key for key in text.split(",") if key not in ("", "none")]
    for key in keys:
        if key not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer {key!r}; there are {', '.join(PEERS)}")
    return keys


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument(
        "--peers", metavar="NAMES", help=f"of {','.join(PEERS)}; or all, or none; installed on first use. Without this "
        f"option: those of {','.join(USUAL)} that are installed",
    )  # fmt: skip
    options = parser.parse_args()
    keys = chosen(options.peers)
    book = Book("Fraud scenario", options)
    with served(options.server) as rig:
        bench = Bench(book, rig, options.scale)
        try:
            bench.invite(keys, install=options.peers is not None)
            for number in range(options.rounds):
                bench.round(number)
                print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
            bench.judge()
        finally:
            bench.end()
    for name in (RawSocket.name, AsyncClient.name):
        ratio: Figures = book.of(name, RATE).ratio(book.of(Relay.name, RATE))
        book.remark(f"{name}: throughput over floor (a): {ratio.text()}")
    book.end()


if __name__ == "__main__":
    main()
