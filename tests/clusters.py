"""A cluster with an executor beside each primary, for tests of clients."""

import asyncio
import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Self

import numpy as np
import redis as redis_py
from tests.executors import Executor
from tests.servers import Cluster, Kind, Server, wait_until

import keyside
from keyside import errors
from keyside.tensorstore import keys

__all__ = ["Grid", "Load", "move", "slot_of_tag", "spread", "until"]

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)


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
                found |= {key for kind in ("tmp", "cap", "out", "t", "mb") for key in db.keys(f"ks:{{*}}:{kind}:*")}
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


class Load:
    """Callers that go on and on; each result must be right.

    Args:
        client: whom they call.
        tag: of the keys that they use.
        lossy: a primary vanishes, and takes with it what its replica does not have yet.
    """

    def __init__(self, client: Any, tag: str, *, lossy: bool = False) -> None:
        self._lossy = lossy
        self.client = client
        self.tag = tag
        self.count = 0
        self.slowest = 0.0
        self._over = False

    async def __aenter__(self) -> "Load":
        await self.client.set(f"{{{self.tag}}}x", X)
        await self.client.set(f"{{{self.tag}}}big", BIG)
        steps = [self.values, self.values, self.large, self.key, self.handle]
        if not self._lossy:
            steps += [self.in_place, self.tensors]
        self._tasks = [asyncio.ensure_future(self._go(step)) for step in steps]
        await self.more(20)
        return self

    async def __aexit__(self, *_: object) -> None:
        self._over = True
        await asyncio.gather(*self._tasks)

    async def _go(self, step: Any) -> None:
        number = 0
        while not self._over:
            began = time.monotonic()
            try:
                await step(number)
            except errors.InputLost:
                assert self._lossy
            except errors.TimedOut as error:
                # A node that vanishes may have a reply on its way; whose it was is told so.
                if not self._lossy or "reply was lost" not in error.text:
                    raise
                continue
            self.slowest = max(self.slowest, time.monotonic() - began)
            self.count += 1
            number += 1

    async def more(self, count: int) -> None:
        """Wait until so many more calls have ended well."""
        wanted = self.count + count
        while self.count < wanted:
            failed = [task for task in self._tasks if task.done()]
            for task in failed:
                task.result()
            await asyncio.sleep(0.005)

    async def values(self, number: int) -> None:
        np.testing.assert_array_equal(await self.client.predict("m", X + number), (X + number) * 2 + 1)

    async def large(self, number: int) -> None:
        np.testing.assert_array_equal(await self.client.predict("m", BIG + number), (BIG + number) * 2 + 1)

    async def in_place(self, number: int) -> None:
        source = ("x", X) if number % 2 else ("big", BIG)
        await self.client.execute("m", f"{{{self.tag}}}{source[0]}", f"{{{self.tag}}}y")
        np.testing.assert_array_equal(await self.client.get(f"{{{self.tag}}}y"), source[1] * 2 + 1)

    async def key(self, number: int) -> None:
        np.testing.assert_array_equal(await self.client.predict("m", keyside.Key(f"{{{self.tag}}}x")), Y)

    async def tensors(self, number: int) -> None:
        await self.client.set(f"{{{self.tag}}}z", X + number)
        np.testing.assert_array_equal(await self.client.get(f"{{{self.tag}}}z"), X + number)
        assert (await self.client.meta(f"{{{self.tag}}}z")).shape == (2, 4)

    async def handle(self, number: int) -> None:
        job = await self.client.submit("m", X + number)
        np.testing.assert_array_equal(await job.result(), (X + number) * 2 + 1)


async def until(condition: Any) -> None:
    """`wait_until` for asyncio."""
    await asyncio.to_thread(wait_until, condition, "it is so")
