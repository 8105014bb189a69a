"""What goes wrong, and when: a schedule that a seed determines."""

import contextlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from typing import NamedTuple

import redis as redis_py
from tests.chaos.caller import now
from tests.chaos.callers import Callers
from tests.chaos.slots import Mover
from tests.chaos.world import EXECUTOR, World
from tests.servers import Server, wait_until

__all__ = ["CLUSTERED", "STANDALONE", "Event", "Trouble", "schedule"]

LEASE_S = float(EXECUTOR["lease_ms"]) / 1000

STANDALONE = {
    "kill an executor": 4,
    "stop an executor": 3,
    "kill the server": 2,
    "stop the server": 2,
    "kill connections": 3,
    "pause all": 2,
    "pause writes": 2,
    "cut callers": 3,
    "blackhole callers": 2,
    "slow replies": 2,
    "truncate replies": 2,
    "partition an executor": 2,
    "kill a caller": 2,
    "out of memory": 1,
}
CLUSTERED = {
    "kill an executor": 4,
    "stop an executor": 3,
    "kill a primary": 2,
    "fail over": 3,
    "stop the server": 1,
    "kill connections": 3,
    "pause all": 1,
    "pause writes": 2,
    "move slots": 5,
    "move a tag": 3,
    "kill a caller": 2,
}


class Event(NamedTuple):
    """One thing that goes wrong."""

    at: float
    name: str
    seed: int


def schedule(seed: int, seconds: float, kinds: dict[str, int], every: float = 2.5) -> list[Event]:
    """Lay out what goes wrong: all kinds once in some order, then by their weights; some quiet at both ends."""
    rng = random.Random(seed)
    first = list(kinds)
    rng.shuffle(first)
    events = []
    at = 2.0
    while at < seconds - 4.0:
        name = first.pop() if first else rng.choices(list(kinds), list(kinds.values()))[0]
        events.append(Event(at, name, rng.randrange(2**31)))
        at += every * rng.uniform(0.6, 1.4)
    return events


class Trouble:
    """Makes things go wrong.

    Attributes:
        log: what was done, with the second at which.
        unsure: spans of time, by `time.time`, in which a failover may have lost what was written and said yes to.
        failed: what could not be done as it should.
    """

    def __init__(self, world: World, callers: Callers) -> None:
        self.world = world
        self.callers = callers
        self.log: list[str] = []
        self.unsure: list[tuple[float, float]] = []
        self.failed: list[str] = []
        self.mover = Mover(world.cluster) if world.cluster else None
        self._began = time.monotonic()
        self._lock = threading.Lock()
        self.kinds: dict[str, Callable[[random.Random], str]] = {
            "kill an executor": self._kill_executor,
            "stop an executor": self._stop_executor,
            "kill the server": self._kill_server,
            "stop the server": self._stop_server,
            "kill connections": self._kill_connections,
            "pause all": lambda rng: self._pause(rng, "ALL"),
            "pause writes": lambda rng: self._pause(rng, "WRITE"),
            "cut callers": self._cut,
            "blackhole callers": self._blackhole,
            "slow replies": self._slow,
            "truncate replies": self._truncate,
            "partition an executor": self._partition,
            "kill a caller": self._kill_caller,
            "out of memory": self._full,
            "kill a primary": self._kill_primary,
            "fail over": self._fail_over,
            "move slots": self._move_slots,
            "move a tag": self._move_tag,
        }

    def run(self, events: list[Event]) -> None:
        """Do what the schedule says, at its times; what takes long does not hold up what comes next."""
        self._began = time.monotonic()
        threads = []
        for event in events:
            time.sleep(max(self._began + event.at - time.monotonic(), 0))
            thread = threading.Thread(target=self._do, args=(event,))
            thread.start()
            threads.append(thread)
        for thread in threads:
            thread.join()

    def _do(self, event: Event) -> None:
        at = time.monotonic() - self._began
        try:
            what = self.kinds[event.name](random.Random(event.seed))
            self._say(at, f"{event.name}: {what}")
        except Exception as error:
            self._say(at, f"{event.name} FAILED: {type(error).__name__}: {error}")
            self.failed.append(f"{event.name}: {error}")

    def _say(self, at: float, text: str) -> None:
        line = f"{now()} {at:6.1f}-{time.monotonic() - self._began:5.1f} s  {text}"
        with self._lock:
            self.log.append(line)
        print(line, flush=True)

    # --- executors

    def _kill_executor(self, rng: random.Random) -> str:
        index = rng.randrange(len(self.world.executors))
        executor = self.world.executors[index]
        with _alone(executor):
            executor.kill()
            time.sleep(rng.uniform(0.2, 1.5))
            self.world.start(executor)
        return f"executor {index}"

    def _stop_executor(self, rng: random.Random) -> str:
        index = rng.randrange(len(self.world.executors))
        executor = self.world.executors[index]
        seconds = rng.choice([0.3, 2.2]) * LEASE_S
        with _alone(executor):
            executor.pause()
            time.sleep(seconds)
            executor.resume()
        return f"executor {index} for {seconds:.1f} s"

    def _partition(self, rng: random.Random) -> str:
        seconds = rng.uniform(1.2, 2.5) * LEASE_S
        with self.world.proxies[1].partitioned():
            time.sleep(seconds)
        return f"for {seconds:.1f} s"

    # --- servers

    def _primary(self, rng: random.Random) -> Server:
        return rng.choice(sorted(self.world.primaries, key=lambda node: node.port))

    def _kill_server(self, rng: random.Random) -> str:
        server = self.world.servers[0]
        with _alone(server):
            server.kill()
            time.sleep(rng.uniform(0.0, 0.7))
            server.start()
        return "and started again"

    def _stop_server(self, rng: random.Random) -> str:
        server = self._primary(rng)
        seconds = rng.uniform(0.2, 1.2)
        with _alone(server):
            server.pause()
            time.sleep(seconds)
            server.resume()
        return f"port {server.port} for {seconds:.1f} s"

    def _kill_connections(self, rng: random.Random) -> str:
        server = self._primary(rng)
        kinds = [("TYPE", "normal"), ("TYPE", "pubsub"), ("TYPE", "normal"), ("NAME", "")]
        kind, what = rng.choice(kinds)
        killed = 0
        with server.client() as client:
            if kind == "TYPE":
                killed = client.execute_command("CLIENT", "KILL", "TYPE", what, "SKIPME", "yes")
            else:
                for one in client.client_list():
                    if one["name"].startswith("keyside-") and rng.random() < 0.5:
                        killed += client.client_kill_filter(_id=one["id"])
        return f"{killed} of {what or 'any kind'}"

    def _pause(self, rng: random.Random, what: str) -> str:
        server = self._primary(rng)
        ms = rng.randrange(200, 1000)
        with server.client() as client:
            client.execute_command("CLIENT", "PAUSE", ms, what)
        time.sleep(ms / 1000)
        return f"port {server.port} for {ms} ms"

    def _full(self, rng: random.Random) -> str:
        server = self._primary(rng)
        seconds = rng.uniform(0.2, 0.8)
        with _alone(server):
            with server.client() as client:
                client.config_set("maxmemory", 1)
            time.sleep(seconds)
            with server.client() as client:
                client.config_set("maxmemory", 0)
        return f"for {seconds:.1f} s"

    # --- connections and callers

    def _cut(self, rng: random.Random) -> str:
        proxy = self.world.proxies[0]
        for _ in range(rng.randint(1, 3)):
            proxy.cut()
            time.sleep(rng.uniform(0, 0.2))
        return "all of the proxy"

    def _blackhole(self, rng: random.Random) -> str:
        seconds = rng.uniform(0.3, 2.5)
        with self.world.proxies[0].blackholed():
            time.sleep(seconds)
        return f"for {seconds:.1f} s"

    def _slow(self, rng: random.Random) -> str:
        proxy = self.world.proxies[0]
        if rng.random() < 0.5:
            proxy.delay(rng.uniform(0.01, 0.1))
        else:
            proxy.drip(rng.choice([7, 100, 1400]), 0.001)
        seconds = rng.uniform(0.5, 1.5)
        time.sleep(seconds)
        proxy.heal()
        return f"for {seconds:.1f} s"

    def _truncate(self, rng: random.Random) -> str:
        proxy = self.world.proxies[0]
        faults = [
            proxy.truncate(
                rng.choice([1, 3, 60, 200, 20_000]), rng.choice(["replies", "requests"]), lambda data: len(data) > 100
            )
            for _ in range(4)
        ]
        for fault in faults:
            fault.happened.wait(1.0)
        proxy.heal()
        return f"{sum(fault.happened.is_set() for fault in faults)} of them"

    def _kill_caller(self, rng: random.Random) -> str:
        index = rng.randrange(len(self.callers.running))
        self.callers.replace(index)
        return f"caller {index}"

    # --- clusters

    def _kill_primary(self, rng: random.Random) -> str:
        cluster, mover = self.world.cluster, self.mover
        assert cluster is not None
        assert mover is not None
        # Nobody moves slots meanwhile: what is half moved when a node dies is lost, whoever asks for it.
        with _alone("topology"):
            server = self._primary(rng)
            with _alone(server):
                lost = time.time()
                server.kill()
                wait_until(lambda: server.port not in mover.owned(), "a replica is promoted", 30)
                self.unsure.append((lost - 1.0, time.time() + 1.0))
                server.start()
                wait_until(lambda: _role(server) == "slave", f"{server} is a replica", 30)
                wait_until(lambda: _linked(server), f"{server} has what its primary has", 30)
        return f"port {server.port}"

    def _fail_over(self, rng: random.Random) -> str:
        cluster = self.world.cluster
        assert cluster is not None
        with _alone("topology"):
            node = rng.choice([node for node in cluster.nodes if _role(node) == "slave"])
            began = time.time()
            with node.client() as client:
                client.execute_command("CLUSTER", "FAILOVER")
            wait_until(lambda: _role(node) == "master", f"{node} is promoted", 15)
        # Nothing is lost here: the primary waits until its replica has all.
        return f"port {node.port} promoted after {time.time() - began:.1f} s"

    def _move_slots(self, rng: random.Random, count: int = 20) -> str:
        assert self.mover is not None
        owned = self.mover.owned()
        source, target = rng.sample(sorted(owned), 2)
        slots = rng.sample(sorted(owned[source]), min(count, len(owned[source])))
        return self.moved(slots, source, target)

    def _move_tag(self, rng: random.Random) -> str:
        """The lowest slot of a node: that by which its own keys are called."""
        assert self.mover is not None
        owned = self.mover.owned()
        source, target = rng.sample(sorted(owned), 2)
        return self.moved([min(owned[source])], source, target)

    def moved(self, slots: list[int], source: int, target: int) -> str:
        assert self.mover is not None
        done = 0
        for slot in slots:
            with _alone("topology"), contextlib.suppress(redis_py.RedisError, AssertionError):
                self.mover.move(slot, self.mover.node(source), self.mover.node(target))
                done += 1
        return f"{done} of {len(slots)} from {source} to {target}"


def _role(node: Server) -> str:
    try:
        with node.client(socket_timeout=1) as client:
            return str(client.info("replication")["role"])
    except (redis_py.RedisError, AssertionError):
        return ""


def _linked(node: Server) -> bool:
    try:
        with node.client(socket_timeout=1) as client:
            return str(client.info("replication").get("master_link_status")) == "up"
    except (redis_py.RedisError, AssertionError):
        return False


_locks: dict[object, threading.Lock] = {}
_guard = threading.Lock()


@contextlib.contextmanager
def _alone(process: object) -> Iterator[None]:
    """One thing at a time goes wrong with one process: whoever wakes it must be who has stopped it."""
    with _guard:
        lock = _locks.setdefault(process, threading.Lock())
    with lock:
        yield
