"""A cluster with an executor beside each primary, for tests of clients."""

import contextlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import redis as redis_py
from tests.executors import Executor
from tests.servers import Cluster, Kind, Server

from keyside.tensorstore import keys

__all__ = ["Grid", "move", "spread"]


class Grid:
    """A cluster, its library, and executors; a context manager.

    Args:
        kind: which server.
        primaries: how many; each has an executor.
        replicas: how many in all.
        settings: of the executors.
    """

    def __init__(self, kind: Kind, primaries: int = 3, replicas: int = 0, **settings: Any) -> None:
        self.cluster = Cluster(kind, primaries, replicas)
        self._settings = {"lease_ms": 1000, "beat_ms": 100, **settings}
        self.executors: list[Executor] = []

    def __enter__(self) -> Self:
        self.cluster.start()
        try:
            self.cluster.load_library()
            self.executors = [Executor(node, **self._settings) for node in self.cluster.primaries]
            with ThreadPoolExecutor() as pool:
                list(pool.map(Executor.start, self.executors))
            spread(self.cluster)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for executor in self.executors:
            with contextlib.suppress(AssertionError):
                executor.stop()
        self.cluster.stop()

    @property
    def url(self) -> str:
        """Address of one node."""
        return self.cluster.url

    def owner(self, key: str | bytes) -> Server:
        """The node that owns the slot of a key."""
        return self.cluster.owner(key)

    def key_at(self, node: Server, stem: str = "k") -> str:
        """A key whose slot a node owns."""
        return next(name for name in (f"{stem}{i}" for i in range(1000)) if self.owner(name) is node)

    def apart(self, stem: str = "k") -> list[str]:
        """One key for each primary."""
        return [self.key_at(node, stem) for node in self.cluster.primaries]

    def private(self) -> set[bytes]:
        """What is left of requests on the nodes."""
        found: set[bytes] = set()
        for node in self.cluster.primaries:
            with node.client() as db:
                found |= {key for kind in ("tmp", "cap", "out", "t", "mb") for key in db.keys("ks:{*}:%s:*" % kind)}
        return found


def spread(cluster: Cluster, nodes: Sequence[Server] | None = None) -> None:
    """Give the catalog of each node what the others say of their models."""
    nodes = cluster.primaries if nodes is None else nodes
    for source in nodes:
        _, _, _, listed = cluster.ask(source, "FCALL_RO", "KS_CATALOG", 0, 0, 1000)
        words: list[Any] = []
        for name, rev, tag, records in listed:
            words += [name, rev, tag, len(records), *records]
        for target in nodes:
            cluster.ask(target, "FCALL", "KS_MERGE", 0, "NEWER", 1, *(words if target is not source else ()))


def move(cluster: Cluster, slot: int, source: Server, target: Server, keys_at_once: int = 100) -> Iterator[None]:
    """Move a slot, with what is in it, from one primary to another; in steps, for who iterates."""
    ids = {server: cluster.ask(server, "CLUSTER", "MYID") for server in cluster.primaries}
    cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    yield
    while found := cluster.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, keys_at_once):
        try:
            cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *found)
        except redis_py.ResponseError as error:
            if "NOKEY" not in str(error):  # it expired meanwhile
                raise
        yield
    for server in (target, source, *cluster.primaries):
        cluster.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])


def slot_of_tag(cluster: Cluster, node: Server) -> int:
    """The slot of the tag of a node's own keys."""
    reply = cluster.ask(node, "FCALL_RO", "AI_NODE", 0)
    return keys.slot(b"{%b}" % reply[1])
