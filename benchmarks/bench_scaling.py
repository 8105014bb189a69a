"""Do shards add up? What a request costs on three shards and on one, and what grows with their number.

CPU of servers and executors per request of the fraud scenario, at the same load for each shard, of clusters with one
primary and with three; they take turns. Besides, for clusters of 1, 3 and 5 primaries at rest and while a model is
stored: what the nodes say to each other and what they and the executors keep open.
"""

import argparse
import contextlib
import re
import sys
import time
from collections.abc import Sequence
from typing import Any

from drivers import RedisCaller, closing, offer, prepare
from graphs import dense
from measure import Book, Meter, arguments, turns
from raw import check, of_reply, predict
from rig import Executor, Server
from scenario import Fraud
from tests.servers import Cluster, wait_until

import keyside
from keyside.tensorstore import keys

CALLERS = 8
RATE = 300.0
KEPT = 100
SHARDS = (1, 3)
SIZES = (1, 3, 5)
IDLE_S = 10.0


class Shards:
    """A cluster of primaries, each with an executor, that serves the fraud scenario."""

    def __init__(self, kind: Any, count: int, stack: contextlib.ExitStack) -> None:
        self.name = f"{count} shard" + "s" * (count > 1)
        self.cluster = stack.enter_context(Cluster(kind, primaries=count, replicas=0))
        self.cluster.load_library()
        self.nodes: Sequence[Server] = self.cluster.primaries
        self.executors = [stack.enter_context(Executor(node)) for node in self.nodes]
        self.tags = [keys.slot_tag(16384 * i // count).decode() for i in range(count)]
        self.client = stack.enter_context(keyside.Client(self.cluster.url))

    @property
    def pids(self) -> dict[str, int]:
        """All processes by name."""
        return {
            **{f"server {n}": node.pid for n, node in enumerate(self.nodes)},
            **{f"executor {n}": executor.pid for n, executor in enumerate(self.executors)},
        }

    def load_fraud(self) -> None:
        """Store the model, and references on each node."""
        self.fraud = Fraud()
        self.client.store("fraud", self.fraud.model)
        for node, tag in zip(self.nodes, self.tags, strict=True):
            with node.client() as db:
                for n in range(KEPT):
                    db.set(_key(tag, n), self.fraud.references[n])

    def callers(self) -> list[RedisCaller]:
        """Return some for each node, the nodes by turns."""
        made = []
        for tag, node in zip(self.tags, self.nodes, strict=True):
            prepared = prepare(lambda n, tag=tag: predict(self.fraud.transactions[n], _key(tag, n), tag=tag), KEPT)  # type: ignore[misc]
            made.append([RedisCaller(node.url_unix, prepared) for _ in range(CALLERS)])
        return [caller for together in zip(*made, strict=True) for caller in together]

    def run(self, book: Book, seconds: float) -> None:
        """Measure once."""
        callers = self.callers()
        rate = RATE * len(self.nodes)
        meter = Meter(self.nodes[0].url_unix, self.pids)
        with closing(callers):
            offer(callers, rate, seconds / 8, start=9_000_000)
            with meter:
                load = offer(callers, rate, seconds)
        check([(n % KEPT, answer) for n, answer in load.answers], self.fraud.expected, of_reply, self.name)
        probe = Book("", argparse.Namespace())
        meter.note(probe, self.name, requests=len(load.answers))
        for who in ("server", "executor"):
            parts = [
                found.values[0]
                for name, found in probe.figures[self.name].items()
                if re.match(f"{who} .* CPU us", name)
            ]
            book.note(self.name, f"{who} CPU us", sum(parts))
        book.note(self.name, "server + executor CPU us", sum(book.of(self.name, f"{who} CPU us").values[-1] for who in
                                                             ("server", "executor")))  # fmt: skip
        book.note_latencies(self.name, load.seconds)
        for quantity in ("PING us", "steal %"):
            book.note(self.name, quantity, probe.of(self.name, quantity).values[0])


def _key(tag: str, n: int) -> str:
    return f"{{{tag}}}reference:{n}"


def traffic(book: Book, kind: Any, count: int, scale: float) -> None:
    """Note what a cluster of so many primaries says to itself."""
    name = f"{count} primar" + ("ies" if count > 1 else "y")
    with contextlib.ExitStack() as stack:
        shards = Shards(kind, count, stack)
        shards.client.store("warm", dense(1))
        seconds = IDLE_S * min(1.0, max(scale, 0.3))
        before = [_counters(node) for node in shards.nodes]
        time.sleep(seconds)
        after = [_counters(node) for node in shards.nodes]
        for quantity in ("commands", "bytes in", "bytes out", "bus messages"):
            grown = sum(a[quantity] - b[quantity] for a, b in zip(after, before, strict=True))
            book.note(name, f"at rest: {quantity} per node and s", grown / seconds / count)
        book.note(name, "at rest: connections per node", sum(_clients(node) for node in shards.nodes) / count)
        blob = dense(1)
        began = time.perf_counter()
        shards.client.store("stored", blob)
        book.note(name, "a store: ms until all are ready", (time.perf_counter() - began) * 1e3)
        fetched = sum(
            _counters(node)["bytes out"] - b["bytes out"] for node, b in zip(shards.nodes, after, strict=True)
        )
        book.note(name, "a store: bytes out over the model's, all nodes", fetched / len(blob))
        began = time.perf_counter()
        shards.client.store("stored", blob, tag="again", wait=False)
        names = [keys.NodeKeys(tag.encode()) for tag in shards.tags]
        dbs = [stack.enter_context(node.client()) for node in shards.nodes]
        wait_until(
            lambda: all(db.hexists(one.catalog, "stored@2") for db, one in zip(dbs, names, strict=True)),
            "all catalogs have it",
        )
        book.note(name, "a store: ms until all catalogs have it", (time.perf_counter() - began) * 1e3)


def _counters(node: Server) -> dict[str, float]:
    with node.client() as db:
        stats: Any = db.info("stats")
        db.response_callbacks.clear()
        said = db.execute_command("CLUSTER", "INFO").decode()
    bus = sum(int(number) for number in re.findall(r"cluster_stats_messages_(?:sent|received):(\d+)", said))
    return {
        "commands": stats["total_commands_processed"],
        "bytes in": stats["total_net_input_bytes"],
        "bytes out": stats["total_net_output_bytes"],
        "bus messages": bus,
    }


def _clients(node: Server) -> int:
    with node.client() as db:
        return len(db.client_list()) - 1


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    book = Book("Shards", options)
    with contextlib.ExitStack() as stack:
        clusters = [Shards(options.server, count, stack) for count in SHARDS]
        for one in clusters:
            one.load_fraud()
        for number in range(options.rounds):
            for one in turns(clusters, number):
                one.run(book, max(1.0, 8 * options.scale))
            print(f"round {number + 1} of {options.rounds}", file=sys.stderr)
    few, many = (cluster.name for cluster in clusters)
    book.over("scaling.cpu", many, few, "server + executor CPU us")
    for count in SIZES:
        traffic(book, options.server, count, options.scale)
        print(f"traffic of {count}: measured", file=sys.stderr)
    book.remark(f"{RATE:g} requests/s for each shard, at random moments; {CALLERS} connections to each")
    book.end()


if __name__ == "__main__":
    main()
