"""Moves slots of a cluster from one primary to another, keys and all, as redis-cli --cluster reshard does."""

import contextlib
from typing import Any

import redis as redis_py
from tests.servers import Cluster, Server

__all__ = ["Mover"]

BATCH = 100
TIMEOUT_MS = 5000


class Mover:
    """Moves slots one after the other.

    Args:
        cluster: whose.
    """

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.moved = 0

    def owned(self) -> dict[int, list[int]]:
        """Slots by the port of the node that owns them, as most nodes that answer say."""
        for node in self._cluster.nodes:
            with contextlib.suppress(redis_py.RedisError, AssertionError), node.client(socket_timeout=2) as client:
                found: dict[int, list[int]] = {}
                for first, last, primary, *_ in client.execute_command("CLUSTER SLOTS"):
                    found.setdefault(int(primary[1]), []).extend(range(first, last + 1))
                if found:
                    return found
        raise AssertionError("no node says who owns which slot")

    def node(self, port: int) -> Server:
        """The node that listens there."""
        return next(node for node in self._cluster.nodes if node.port == port)

    def move(self, slot: int, source: Server, target: Server) -> None:
        """Move one slot; what stands in the way is tried again, as an operator would.

        Raises:
            redis.RedisError: a node is gone or refuses; `CLUSTER SETSLOT STABLE` has been tried on both.
        """
        with source.client(socket_timeout=10) as old, target.client(socket_timeout=10) as new:
            old_id, new_id = (one.execute_command("CLUSTER", "MYID") for one in (old, new))
            try:
                new.execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", old_id)
                old.execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", new_id)
                self._keys(slot, old, target)
                # First where it is from now on: or for a moment nobody would own it.
                for one in (new, old):
                    one.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
            except redis_py.RedisError:
                for one in (new, old):
                    with contextlib.suppress(redis_py.RedisError):
                        one.execute_command("CLUSTER", "SETSLOT", slot, "STABLE")
                raise
        for node in self._cluster.nodes:
            if node not in (source, target):
                # Gossip would do it too, a moment later.
                with contextlib.suppress(redis_py.RedisError, AssertionError), node.client(socket_timeout=2) as client:
                    client.execute_command("CLUSTER", "SETSLOT", slot, "NODE", new_id)
        self.moved += 1

    def _keys(self, slot: int, old: Any, target: Server) -> None:
        while True:
            names = old.execute_command("CLUSTER", "GETKEYSINSLOT", slot, BATCH)
            if not names:
                return
            old.execute_command("MIGRATE", "127.0.0.1", target.port, "", 0, TIMEOUT_MS, "REPLACE", "KEYS", *names)
