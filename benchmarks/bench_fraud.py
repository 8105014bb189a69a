"""How fast is a prediction on the fraud scenario: next to what Redis and onnxruntime allow, and next to other servers?

All contenders take turns in every round: floor (a), a bare relay through Redis lists; Keyside by a raw socket, by
`Client.predict` and by `AsyncClient`, on Debian's Redis and with --valkey on the bundled Valkey, each with an executor
of its own; onnxruntime in this process; HTTP model servers (peers/), whose client GETs the reference from Redis and
then POSTs both tensors as raw bytes; and RedisAI, given its module. First one client, then 32. The CPU of each process
counts the timed part alone. Every answer is checked after it.
"""

import argparse
import contextlib
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

from contenders import (
    CLIENTS,
    FLYING,
    AsyncClient,
    BlockingClient,
    Contender,
    HttpPeer,
    InProcess,
    RawSocket,
    RedisAI,
    Relay,
)
from measure import Book, Figures, Meter, arguments, percentile, turns
from peers import PEERS, Absent
from processes import cpu_seconds
from rig import Rig, served

USUAL = ("fastapi", "mosec", "mosec-batch")
ONE, LOAD = "1 client: ", "load: "
VALKEY = " (Valkey)"


class OneClient(NamedTuple):
    """What one client brings in a round.

    Attributes:
        meter: of the processes.
        seconds: of all turns.
    """

    meter: Meter
    seconds: list[float]


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
        self.requests = max(100, int(4000 * scale))
        self.slices = min(8, self.requests // 50)
        self.seconds = max(0.2, 3.0 * scale)
        self.one: dict[str, OneClient] = {}
        self.fraud = rig.load_fraud()
        self.contenders: list[Contender] = [
            Relay(rig, self.fraud),
            RawSocket(rig, self.fraud),
            BlockingClient(rig, self.fraud),
            AsyncClient(rig, self.fraud),
            InProcess(rig.url, self.fraud),
        ]
        self.book.remark(
            f"{self.requests:,} requests of one client in {self.slices} turns; load: {CLIENTS} clients, AsyncClient: "
            f"{FLYING:,} requests in flight, for {self.seconds:g} s. CPU: microseconds per request; "
            "'server' is what runs the model."
        )

    def add_valkey(self, rig: Rig) -> None:
        """Let another server with an executor take part; it has nothing to do outside its turns."""
        fraud = rig.load_fraud()
        self.contenders += [
            contender(rig, fraud, VALKEY) for contender in (Relay, RawSocket, BlockingClient, AsyncClient)
        ]
        self._tell_idle("The bundled Valkey and its executor", rig.server.pid, rig.executor.pid)

    def _tell_idle(self, what: str, *pids: int) -> None:
        before = sum(map(cpu_seconds, pids))
        time.sleep(1.0)
        self.book.remark(f"{what}: {sum(map(cpu_seconds, pids)) - before:.2f} cores while idle")

    def invite_redisai(self, module: str | None) -> None:
        """Start RedisAI, or say why it is absent."""
        contender = RedisAI(self.fraud, module)
        try:
            contender.arrive()
            self.contenders.append(contender)
            self._tell_idle(contender.told, *contender.processes().values())
        except Absent as error:
            contender.end()
            self.book.remark(f"{contender.name}: absent: {error}")

    def invite(self, keys: list[str], *, install: bool) -> None:
        """Start peers, and say which are absent, and why."""
        for key in keys:
            peer = PEERS[key]()
            contender = HttpPeer(self.rig, self.fraud, peer)
            try:
                if not install and not peer.installed:
                    raise Absent("not installed: `make bench-full`, or --peers, does that")
                peer.make_venv()
                contender.arrive()
                self.contenders.append(contender)
                self._tell_idle(f"{peer.name}: {peer.version}; {peer.settings}", peer.pid)
                contender.leave()
            except Absent as error:
                contender.end()
                self.book.remark(f"{peer.name}: absent: {error}")

    def round(self, number: int) -> None:
        """Let every contender run once."""
        for contender in self.contenders:
            self.book.figures.setdefault(contender.name, {})  # the order of the table
            if contender.stays:
                self.renew(contender)
        for n in range(self.slices):
            for contender in turns([one for one in self.contenders if one.stays], number + n):
                self.attempt(contender, number, contender.arrive, partial(self.one_by_one, contender))
        for contender in turns(self.contenders, number):
            if not contender.stays:
                steps = [partial(self.one_by_one, contender)] * self.slices
                self.attempt(contender, number, contender.arrive, partial(self.renew, contender), *steps)
            self.attempt(
                contender, number, partial(self.conclude, contender), partial(self.together, contender), contender.leave
            )

    def renew(self, contender: Contender) -> None:
        """Begin the figures of one client, of the processes that are there now."""
        self.one[contender.name] = OneClient(contender.meter(), [])

    def attempt(self, contender: Contender, number: int, *steps: Callable[[], None]) -> None:
        """Take steps with a contender; drop another server, with its figures, when one fails."""
        if contender not in self.contenders:
            return
        try:
            for step in steps:
                step()
        except (Absent, AssertionError, OSError) as error:
            if not isinstance(contender, HttpPeer | RedisAI):
                raise
            contender.end()
            self.contenders.remove(contender)
            self.book.drop(contender.name)
            self.book.remark(f"{contender.name}: absent: it failed in round {number + 1}: {error}")

    def one_by_one(self, contender: Contender) -> None:
        """One client; a turn of several.

        The machine's mood changes within seconds, by half of the latency: short turns let all have their share of it.
        """
        one = self.one[contender.name]
        found = contender.one_by_one(self.requests // self.slices, one.meter)
        if found is not None:
            contender.check(found[1])
            one.seconds.extend(found[0])

    def conclude(self, contender: Contender) -> None:
        """Note what came of one client."""
        meter, seconds = self.one[contender.name]
        if seconds:
            self.book.note_latencies(contender.name, seconds, ONE)
            self.book.note_distribution(contender.name, seconds)
            meter.note(self.book, contender.name, ONE, len(seconds))

    def together(self, contender: Contender) -> None:
        """Many requests in flight."""
        book, name = self.book, contender.name
        meter = contender.meter()
        load = contender.together(self.seconds, meter)
        if load is None:
            return
        contender.check(load.answers)
        book.note(name, f"{LOAD}/s", load.rate)
        book.note(name, f"{LOAD}p50 ms", percentile(load.seconds, 50) * 1e3)
        book.note(name, f"{LOAD}p99 ms", percentile(load.seconds, 99) * 1e3)
        meter.note(book, name, LOAD, len(load.answers))
        if isinstance(contender, HttpPeer):
            book.note(name, f"{LOAD}memory MB", contender.peer.rss_mb())

    def end(self) -> None:
        """Stop what was started."""
        for contender in self.contenders:
            contender.end()

    def judge(self) -> None:
        """Set the ratios beside their targets."""
        book = self.book
        floor, raw, client, flying = (one.title for one in (Relay, RawSocket, BlockingClient, AsyncClient))
        p50, rate = f"{ONE}p50 us", f"{LOAD}/s"
        book.over("fraud.raw_p50", raw, floor, p50)
        book.over("fraud.client_p50", client, floor, p50)
        self._tell(f"{raw}: throughput over floor (a)", raw, floor, rate)
        self._tell(f"{flying}: throughput over floor (a)", flying, floor, rate)
        if book.has(raw + VALKEY, rate):
            self._tell("On Valkey, raw socket: p50 over that of its floor (a)", raw + VALKEY, floor + VALKEY, p50)
            self._tell("On Valkey, Client.predict: p50 over that on Redis", client + VALKEY, client, p50)
            self._tell("On Valkey, raw socket: throughput over that on Redis", raw + VALKEY, raw, rate)
        if book.has(RedisAI.name, rate):
            self._tell(f"{raw}: p50 over RedisAI's", raw, RedisAI.name, p50)
            self._tell(f"{raw}: throughput over RedisAI's", raw, RedisAI.name, rate)
        peers = [contender.name for contender in self.contenders if isinstance(contender, HttpPeer)]
        if not peers:
            return
        quickest = min(peers, key=lambda name: book.of(name, p50).median)
        most = max(peers, key=lambda name: book.of(name, rate).median)
        book.over("fraud.client_p50_peer", client, quickest, p50)
        book.over("fraud.rate_peer", raw, most, rate)
        book.over("fraud.async_peer", flying, most, rate)
        book.remark(f"The best HTTP peer by p50 is {quickest}, by throughput {most}.")
        for peer in peers:
            self._tell(f"{client}: p50 over that of {peer}", client, peer, p50)
            self._tell(f"{raw}: throughput over that of {peer}", raw, peer, rate)
        fastapi = PEERS["fastapi"].name
        if fastapi in peers:
            cost = book.of(raw, f"{LOAD}Redis CPU us").plus(book.of(raw, f"{LOAD}server CPU us"))
            book.judge("fraud.cpu_fastapi", cost.ratio(book.of(fastapi, f"{LOAD}server CPU us")))

    def _tell(self, what: str, above: str, below: str, quantity: str) -> None:
        ratio: Figures = self.book.of(above, quantity).ratio(self.book.of(below, quantity))
        self.book.remark(f"{what}: {ratio.text()}")


def chosen(text: str | None) -> list[str]:
    """Read --peers."""
    if text is None:
        return list(USUAL)
    keys = list(PEERS) if text == "all" else [key for key in text.split(",") if key not in ("", "none")]
    for key in keys:
        if key not in PEERS:
            raise argparse.ArgumentTypeError(f"no peer {key!r}; there are {', '.join(PEERS)}")
    return keys


def add_peers(parser: argparse.ArgumentParser) -> None:
    """Add --peers."""
    parser.add_argument(
        "--peers", metavar="NAMES", help=f"of {','.join(PEERS)}; or all, or none; installed on first use. Without this "
        f"option: those of {','.join(USUAL)} that are installed",
    )  # fmt: skip


def main() -> None:
    parser = arguments(__doc__)
    add_peers(parser)
    parser.add_argument("--valkey", action="store_true", help="besides, the same on the bundled Valkey")
    parser.add_argument(
        "--redisai-module", type=Path, metavar="FILE", default=os.environ.get("KEYSIDE_REDISAI_MODULE"),
        help="redisai.so, with its ONNX backend beside it; else KEYSIDE_REDISAI_MODULE",
    )  # fmt: skip
    options = parser.parse_args()
    keys = chosen(options.peers)
    book = Book("Fraud scenario", options)
    with contextlib.ExitStack() as stack:
        servers = [options.server, "valkey"] if options.valkey and options.server != "valkey" else [options.server]
        rigs = [stack.enter_context(served(server)) for server in servers]
        bench = Bench(book, rigs[0], options.scale)
        stack.callback(bench.end)
        for rig in rigs[1:]:
            bench.add_valkey(rig)
        bench.invite_redisai(options.redisai_module)
        bench.invite(keys, install=options.peers is not None)
        for number in range(options.rounds):
            bench.round(number)
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
        bench.judge()
    book.end()


if __name__ == "__main__":
    main()
