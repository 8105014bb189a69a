"""Clusters with executors: what the tests of both do with them."""

import itertools
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import redis as redis_py
from tests import raw
from tests.executors import Executor
from tests.servers import Cluster, Server, wait_until

from keyside.tensorstore import keys

__all__ = ["Nodes", "begin_move", "bring", "end_move", "move"]

_numbers = itertools.count(1)


def move(cluster: Cluster, slot: int, source: Server, target: Server) -> None:
    """Move a slot, with what is in it, from one primary to another."""
    begin_move(cluster, slot, source, target)
    end_move(cluster, slot, source, target)


def begin_move(cluster: Cluster, slot: int, source: Server, target: Server) -> None:
    """Let a slot be on the move."""
    cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.ask(source, "CLUSTER", "MYID"))
    cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.ask(target, "CLUSTER", "MYID"))


def bring(cluster: Cluster, slot: int, source: Server, target: Server) -> None:
    """Bring all keys of a slot that is on the move."""
    while found := cluster.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
        try:
            cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *found)
        except redis_py.ResponseError as error:
            if "NOKEY" not in str(error):  # it expired meanwhile
                raise


def end_move(cluster: Cluster, slot: int, source: Server, target: Server) -> None:
    """Bring what is left, and let all know who owns the slot now."""
    bring(cluster, slot, source, target)
    node = cluster.ask(target, "CLUSTER", "MYID")
    for server in (target, source, *cluster.primaries):
        cluster.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", node)


class Nodes:
    """The primaries of a cluster, with an executor each; a context manager."""

    def __init__(self, cluster: Cluster, settings: Mapping[str, Any]) -> None:
        self.cluster = cluster
        self.servers = cluster.primaries
        self.executors = {server: Executor(server, **settings) for server in self.servers}
        self._clients = {server: server.client() for server in self.servers}

    def __enter__(self) -> Self:
        try:
            with ThreadPoolExecutor() as pool:
                list(pool.map(Executor.start, self.executors.values()))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for executor in self.executors.values():
            if executor.process is not None:
                executor.stop()
        for client in self._clients.values():
            client.close()

    def db(self, server: Server) -> Any:
        """A plain client of a node."""
        return self._clients[server]

    def reconnect(self) -> None:
        """Make the clients anew: a server was restarted."""
        for server, client in self._clients.items():
            client.close()
            self._clients[server] = server.client()

    def flush(self) -> None:
        """Empty all nodes, and wait until the executors have settled again."""
        for server in self.servers:
            self.db(server).flushall()
        for server, executor in self.executors.items():
            wait_until(executor.registered, "the executor registers again")
            wait_until(partial(self.complete, server), "its catalog is complete")

    def about(self, server: Server) -> dict[bytes, Any]:
        """What AI_NODE says."""
        flat = self.db(server).fcall_ro("AI_NODE", 0)
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def tag(self, server: Server) -> bytes:
        """The tag of a node."""
        found: bytes = self.about(server)[b"tag"]
        return found

    def complete(self, server: Server) -> bool:
        """Whether its catalog is said to have all models."""
        return bool(self.about(server)[b"complete"])

    def info(self, server: Server) -> dict[str, Any]:
        """What the executor of a node says of itself."""
        names = keys.NodeKeys(self.tag(server))
        for name in self.db(server).zrange(names.executors, 0, -1):
            raw = self.db(server).get(names.executor(name))
            if raw and json.loads(raw)["pid"] == self.executors[server].pid:
                found: dict[str, Any] = json.loads(raw)
                return found
        return {"ready": []}

    def record(self, server: Server, target: str) -> dict[str, Any]:
        """What its catalog says of a target."""
        raw = self.db(server).hget(keys.NodeKeys(self.tag(server)).catalog, target)
        return json.loads(raw) if raw else {}

    def knows(self, server: Server, target: str) -> bool:
        """Whether its catalog has a target."""
        return bool(self.record(server, target))

    def version(self, server: Server, name: str) -> int:
        """The default of a model that is ready there, else 0."""
        record = self.record(server, name)
        return int(record["version"]) if record.get("state") == "ready" else 0

    def all_know(self, target: str) -> bool:
        """Whether all catalogs have a target."""
        return all(self.knows(server, target) for server in self.servers)

    def lacks(self, server: Server, target: str) -> bool:
        """Whether its catalog does not have a target."""
        return not self.knows(server, target)

    def has(self, server: Server, name: str, version: int) -> bool:
        """Whether a version is the default of a model, and ready, there."""
        return self.version(server, name) == version

    def loaded(self, server: Server, model_id: str) -> bool:
        """Whether the executor of a node has a version in memory."""
        return model_id in self.info(server)["ready"]

    def idle(self, server: Server) -> bool:
        """Whether the queue of a node is empty, and nothing is left that belongs to jobs."""
        db = self.db(server)
        return not db.xlen(keys.NodeKeys(self.tag(server)).jobs("CPU")) and not raw.private_keys(db)

    def name_on(self, server: Server) -> str:
        """A name of a model, new, whose home is a node."""
        while True:
            name = f"m{next(_numbers)}"
            if self.cluster.owner(name) is server:
                return name

    def converged(self) -> bool:
        """Whether all catalogs say the same."""
        found = []
        for server in self.servers:
            catalog = self.db(server).hgetall(keys.NodeKeys(self.tag(server)).catalog)
            found.append({field: record for field, record in catalog.items() if field != b"@"})
        return all(one == found[0] for one in found)

    def new_tags(self) -> None:
        """Let all nodes work out their tags anew."""
        for server in self.servers:
            server.load_library()
            self.db(server).flushall()
