"""What the harness runs its load on: a server or a cluster, executors, proxies, models."""

import contextlib
import os
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import redis as redis_py
from tests import models, more_models
from tests.executors import Executor
from tests.proxy import Proxy
from tests.servers import Cluster, Kind, Server, wait_until

import keyside
from keyside.tensorstore.keys import NodeKeys

__all__ = ["EXECUTOR", "MODELS", "Sample", "World"]

EXECUTOR = {"lease_ms": 1500, "beat_ms": 200, "http_port": 0}
MODELS = {"echo": models.echo_int64(), "slow": more_models.slow()}
# Names that no test of a key without TTL may take for left behind.
LASTING = (b"jobs", b"dead", b"catalog", b"models", b"stats", b"executors", b"blob", b"revs", b"dropped", b"bytes")


@dataclass
class Sample:
    """Memory at one moment, bytes by the name of the process."""

    at: float
    servers: dict[str, int] = field(default_factory=dict)
    executors: dict[str, int] = field(default_factory=dict)


class Beside(Executor):
    """An executor beside a node of a cluster: beside a replica it stands by, and then it is not registered."""

    def start(self) -> Self:
        """Start it and wait until it has looked where it is."""
        self._said = len(self.output)
        return super().start()

    def registered(self) -> bool:
        """Whether it serves its node, or stands by where that is a replica."""
        assert self.process is not None
        assert self.process.poll() is None, f"the executor ended with {self.process.returncode}:\n{self.output}"
        with self.server.client(socket_timeout=1) as client:
            if client.info("replication")["role"] != "master":
                return any(word in self.output[self._said :] for word in ("standby", "executor ready"))
            tag = bytes(client.execute_command("FCALL_RO", "AI_NODE", 0)[1])
            names = client.zrange(f"ks:{{{tag.decode()}}}:executors", 0, -1)
            infos = [client.get(NodeKeys(tag).executor(name)) for name in names]
        return any(f'"pid": {self.process.pid},'.encode() in (info or b"") for info in infos)


class World:
    """Everything but the callers.

    Args:
        kind: of the servers.
        cluster: three primaries and three replicas instead of one server.
        executors: on each primary.
    """

    def __init__(self, kind: Kind, *, cluster: bool, executors: int = 2) -> None:
        self.kind = kind
        # A server that is killed keeps what it has said yes to, since it writes before it answers. (With `everysec` it
        # may put that off for the length of an fsync.)
        log: dict[str, Any] = {"appendonly": "yes", "appendfsync": "no"}
        self.cluster = Cluster(kind, **log) if cluster else None
        self.servers = self.cluster.nodes if self.cluster else [Server(kind, **log)]
        self.executors: list[Executor] = []
        self.proxies: list[Proxy] = []  # of a single server: for callers, and for the second executor
        self.samples: list[Sample] = []
        self._per_node = executors
        self._over = threading.Event()
        self._stack = contextlib.ExitStack()

    @property
    def url(self) -> str:
        """Where callers connect to: on a single server, half of them."""
        return self.cluster.url if self.cluster else self.servers[0].url_unix

    @property
    def primaries(self) -> list[Server]:
        """The nodes that own slots now, of those that run."""
        if self.cluster is None:
            return self.servers
        found = []
        for node in self.servers:
            with contextlib.suppress(Exception), node.client(socket_timeout=1) as client:
                if client.info("replication")["role"] == "master" and client.cluster("INFO"):
                    found.append(node)
        return found

    def __enter__(self) -> Self:
        with self._stack:
            self._start()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._stack.close()

    def _start(self) -> None:
        if self.cluster is not None:
            self._stack.enter_context(self.cluster)
            self.cluster.load_library()
        else:
            server = self._stack.enter_context(self.servers[0])
            server.load_library()
            self.proxies = [self._stack.enter_context(Proxy(server)) for _ in range(2)]
        for node in self.cluster.nodes if self.cluster else self.servers:
            for _ in range(self._per_node if self.cluster is None else 1):
                self.executors.append((Executor if self.cluster is None else Beside)(node, **EXECUTOR))
        if self.proxies:
            self.executors[-1].url = self.proxies[1].url
        for executor in self.executors:
            self._stack.callback(self._end, executor)
        with ThreadPoolExecutor(2) as pool:
            list(pool.map(self.start, self.executors))
        with keyside.Client(self.url, timeout=30) as client:
            for name, blob in MODELS.items():
                client.store(name, blob, timeout=60)
        threading.Thread(target=self._watch, daemon=True).start()

    def start(self, executor: Executor) -> None:
        """Start one, though its server may be down or about to go down."""
        ends = time.monotonic() + 30
        while not self._over.is_set():
            try:
                executor.start()
            except (redis_py.RedisError, OSError, AssertionError):
                if time.monotonic() > ends:
                    raise
                time.sleep(0.2)
            else:
                return

    def _end(self, executor: Executor) -> None:
        if executor.process is None:
            return
        if executor.process.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                executor.resume()
            executor.process.terminate()
            with contextlib.suppress(Exception):
                executor.process.wait(15)
            executor.kill()
        if folder := os.environ.get("CHAOS_LOGS"):  # to find out what happened
            Path(folder).mkdir(parents=True, exist_ok=True)
            (Path(folder) / f"executor-{self.executors.index(executor)}-{executor.server.port}.log").write_text(
                executor.output
            )
        executor.log.unlink(missing_ok=True)

    # --- what is to be seen

    def _watch(self) -> None:
        began = time.monotonic()
        while not self._over.wait(1.0):
            self.samples.append(self.sample(time.monotonic() - began))

    def sample(self, at: float = 0.0) -> Sample:
        """Look at the memory of all processes."""
        sample = Sample(at)
        for n, node in enumerate(self.servers):
            with contextlib.suppress(Exception), node.client(socket_timeout=0.5) as client:
                sample.servers[f"server {n}"] = int(client.info("memory")["used_memory"])
        for n, executor in enumerate(self.executors):
            with contextlib.suppress(Exception):
                sample.executors[f"executor {n} pid {executor.pid}"] = resident(executor.pid)
        return sample

    def queued(self) -> int:
        """Entries in all streams of all nodes."""
        total = 0
        for node in self.primaries:
            with node.client() as client:
                total += sum(client.xlen(key) for key in client.scan_iter("ks:{*}:jobs:*", count=1000, _type="stream"))
        return total

    def settle(self, seconds: float) -> None:
        """Wait until nothing waits or runs any more, and all executors are well."""
        wait_until(lambda: self.queued() == 0, "the queues are empty", seconds)
        for executor in self.executors:
            wait_until(lambda one=executor: _well(one), f"{executor.url} has its executor", seconds)  # type: ignore[misc]

    def counted(self) -> dict[str, int]:
        """Jobs that executors have ended, by the counters of the nodes."""
        found: dict[str, int] = {}
        for node in self.primaries:
            with node.client() as client:
                for key in client.scan_iter("ks:{*}:stats:*", count=1000):
                    name = key.decode()
                    found[name] = found.get(name, 0) + int(client.hget(key, "calls") or 0)
        return found

    def left(self) -> dict[str, Any]:
        """Our keys that are left: those that should have a TTL, and those that have one, by kind, with the longest."""
        forever: list[str] = []
        kinds: dict[str, tuple[int, int]] = {}
        unread = 0
        for node in self.primaries:
            with node.client() as client:
                for key in list(client.scan_iter("ks:{*", count=1000)):
                    what = key.partition(b"}:")[2].split(b":")[0]
                    ttl = client.pttl(key)
                    if ttl == -2:
                        continue
                    if ttl == -1:
                        if what not in LASTING or (what == b"bytes" and int(client.get(key)) != 0):
                            forever.append(key.decode(errors="replace"))
                        continue
                    if what in (b"t", b"mb", b"ticket"):
                        unread += client.llen(key)
                    count, most = kinds.get(what.decode(), (0, 0))
                    kinds[what.decode()] = (count + 1, max(most, ttl))
        return {"forever": forever, "kinds": kinds, "unread": unread}

    def trouble(self) -> list[str]:
        """What executors have said that they should not."""
        found = []
        for executor in self.executors:
            lines = executor.output.splitlines()
            found += [f"{executor.url}: {line[:300]}" for line in lines if "Traceback" in line or "has ended" in line]
        return found

    def about(self) -> str:
        """One line that says what this is."""
        what = "cluster" if self.cluster else "server"
        return f"{self.kind} {what}, {len(self.servers)} servers, {len(self.executors)} executors"


def _well(executor: Executor) -> bool:
    """Whether it is registered; a server that just fails over may not be able to tell."""
    try:
        return executor.registered()
    except redis_py.RedisError:
        return False


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_bytes().split()[1]) * 4096
