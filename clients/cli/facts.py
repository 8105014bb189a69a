"""What `keyside info` and `keyside doctor` read from a server; what cannot be read is left out, with the reason."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from keyside.clients.admin import command, installed_version
from keyside.clients.cli import node
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable

if TYPE_CHECKING:
    import redis

__all__ = ["Facts", "bare", "gather", "revisions"]

SETTINGS = ("save", "maxclients", "min-replicas-to-write", "cluster-require-full-coverage")
COMPLETE = "@"  # the field of a catalog that says that it has all models of the cluster
CLAIMS = "keyside-claim"  # what an executor calls its connection that takes jobs
_PINGS = 5


@dataclasses.dataclass
class Facts:
    """What a server says of itself.

    Attributes:
        kind: `redis`, `valkey`, or what else it calls itself.
        version: Its version.
        info: The fields of INFO.
        config: Those of its settings that matter; empty where CONFIG is refused, as managed services do.
        latency_ms: What a PING takes.
        clock_ms: How far its clock is ahead of ours.
        library: Number and digest of the function library; None: there is none.
        executors: What those that are alive say of themselves.
        queues: The device queues.
        models: The records of the catalog, by target.
        dead: How many jobs were given up.
        last_dead: Why the last of them was.
        remote_executors: How many executors are connected over a network; None: not known.
        tag: The node's tag.
        slots: On a cluster: the ranges of slots that it owns.
        complete: Whether its catalog has all models of the cluster.
        revisions: Of each model in its catalog, the revision.
        standby: On a replica: how many executors are connected.
        moved: The queues of other tags that lie on this node and hold jobs: tag, device, depth, oldest_ms.
        lua: What its functions say although nothing is wrong with the call; empty: they work.
        problems: What could not be read, and why.
    """

    kind: str = ""
    version: tuple[int, ...] = ()
    info: dict[str, Any] = dataclasses.field(default_factory=dict)
    config: dict[str, str] = dataclasses.field(default_factory=dict)
    latency_ms: float = 0.0
    clock_ms: float = 0.0
    library: tuple[int, str] | None = None
    executors: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    queues: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    models: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    dead: int = 0
    last_dead: str = ""
    remote_executors: int | None = None
    tag: str = ""
    slots: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    complete: bool = True
    revisions: dict[str, int] = dataclasses.field(default_factory=dict)
    standby: int = 0
    moved: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    lua: str = ""
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def server(self) -> str:
        """Kind and version."""
        return f"{self.kind} {'.'.join(map(str, self.version))}"

    @property
    def clustered(self) -> bool:
        """Whether it is a node of a cluster."""
        return bool(self.number("cluster_enabled"))

    @property
    def replica(self) -> bool:
        """Whether it is a replica."""
        return self.info.get("role") == "slave"

    @property
    def serves(self) -> bool:
        """Whether jobs can be run there: it is no node of a cluster that owns no slots, as replicas are."""
        return not self.clustered or bool(self.slots)

    @property
    def role(self) -> str:
        """What it is, in words."""
        if self.replica:
            return f"replica of {self.primary}" + ("; the primary shows executors, queues and models" * self.clustered)
        if not self.clustered:
            return "primary"
        if not self.slots:
            return "node of a cluster without slots"
        return f"primary in a cluster, of {sum(last - first + 1 for first, last in self.slots):,} slots, tag {self.tag}"

    @property
    def primary(self) -> str:
        """Of a replica: the address of its primary."""
        return f"{self.info.get('master_host')}:{self.info.get('master_port')}" if self.replica else ""

    def number(self, field: str) -> int:
        """Return a field of INFO that is a number; 0 if it is missing."""
        try:
            return int(self.info.get(field, 0))
        except (TypeError, ValueError):
            return 0


def gather(client: "redis.Redis") -> Facts:
    """Read the facts.

    Raises:
        KeysideError: The server cannot be reached, or lets us in for nothing.
    """
    facts = Facts()
    command(client, "PING")  # connects
    facts.latency_ms = min(_ping_ms(client) for _ in range(_PINGS))
    facts.info = command(client, "INFO")
    facts.kind, facts.version = _identify(facts.info)
    with _noting(facts, "config"):
        for name in SETTINGS:
            flat = command(client, "CONFIG GET", name)
            facts.config.update({node.text(key): node.text(value) for key, value in _items(flat)})
    with _noting(facts, "clock"):
        before = time.time()
        theirs = node.server_ms(client)
        facts.clock_ms = theirs - (before + time.time()) * 500
    with _noting(facts, "library"):
        facts.library = installed_version(client)
    with _noting(facts, "connections"):
        claims, facts.remote_executors = _connections(client)
        facts.standby = claims if facts.replica else 0
    if facts.clustered:
        with _noting(facts, "slots"):
            facts.slots = node.own_slots(client)
        if not facts.serves:
            return facts  # a replica, or a node that has no part of the data yet: nothing of it is its own
        facts.lua = _probe(client)
    names = keys.NodeKeys(keys.slot_tag(facts.slots[0][0])) if facts.slots else keys.NodeKeys()
    facts.tag = names.tag.decode()
    with _noting(facts, "executors"):
        facts.executors = node.executors(client, names)
    with _noting(facts, "queues"):
        facts.queues = node.queues(client, names, facts.executors)
    with _noting(facts, "models"):
        facts.models = _catalog(client, names)
        facts.revisions = revisions(client, facts.tag, {record["key"] for record in bare(facts.models)})
        facts.complete = not facts.clustered or bool(command(client, "HEXISTS", names.catalog, COMPLETE))
    with _noting(facts, "dead"):
        facts.dead, facts.last_dead = _dead(client, names)
    return facts


def _ping_ms(client: "redis.Redis") -> float:
    before = time.monotonic()
    command(client, "PING")
    return (time.monotonic() - before) * 1000


def _probe(client: "redis.Redis") -> str:
    """Whether functions work on a node that owns slots; return what is wrong with them.

    One script that names keys of two slots in one command breaks all Lua of a Valkey node until that is restarted: from
    then on every function hears that its keys are elsewhere. Where a slot moves, it may hear so once.
    """
    for wait in (0.0, 0.1, 0.3):
        time.sleep(wait)
        try:
            command(client, "FCALL_RO", "AI_NODE", 0)
        except TryAgain as error:
            said = str(error)
        except KeysideError:
            return ""  # not loaded, or not allowed: that is said elsewhere
        else:
            return ""
    return said if "not on this node" in said or "non local key" in said else ""


def bare(models: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the records of the models themselves, which say what the bare name means."""
    return [record for target, record in models.items() if record.get("key") == target]


@contextlib.contextmanager
def _noting(facts: Facts, what: str) -> Iterator[None]:
    try:
        yield
    except KeysideError as error:
        if isinstance(error, Unreachable) and not getattr(error.__cause__, "status_code", None):
            raise  # it is gone; a node of a cluster that is down still answers, if only that
        facts.problems[what] = str(error)


def _identify(info: dict[str, Any]) -> tuple[str, tuple[int, ...]]:
    for kind in ("valkey", "dragonfly", "redis"):
        text = str(info.get(f"{kind}_version", "")).lstrip("vdf-")
        if text:
            numbers = [part for part in text.split(".") if part.isdigit()]
            return kind, tuple(map(int, numbers))
    return "an unknown server", ()


def _items(reply: Any) -> list[tuple[Any, Any]]:
    if isinstance(reply, dict):
        return list(reply.items())
    return list(zip(reply[::2], reply[1::2], strict=True))


def _catalog(client: "redis.Redis", names: keys.NodeKeys) -> dict[str, dict[str, Any]]:
    client.response_callbacks.pop("HGETALL", None)
    found: dict[str, dict[str, Any]] = {}
    for target, raw in _items(command(client, "HGETALL", names.catalog)):
        with contextlib.suppress(ValueError):
            record = json.loads(raw)
            if isinstance(record, dict):
                found[node.text(target)] = record
    return found


def _dead(client: "redis.Redis", names: keys.NodeKeys) -> tuple[int, str]:
    client.response_callbacks.pop("XREVRANGE", None)
    count = int(command(client, "XLEN", names.dead))
    if not count:
        return 0, ""
    last = command(client, "XREVRANGE", names.dead, "+", "-", "COUNT", 1)
    fields = dict(_items(last[0][1])) if last else {}
    return count, node.text(fields.get(b"reason", b""))


def revisions(client: "redis.Redis", tag: str, present: set[str] | None = None) -> dict[str, int]:
    """Return the revision of each model in a node's catalog; those that have gone are not in it.

    Args:
        client: A client of the node.
        tag: Its tag.
        present: The models in the catalog; None: they are read.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    names = keys.NodeKeys(tag.encode())
    if present is None:
        present = {node.text(name) for name in command(client, "HKEYS", names.models)}
    scores = node.pairs(command(client, "ZRANGE", names.revs, 0, -1, "WITHSCORES"))
    return {name: int(float(score)) for raw, score in scores if (name := node.text(raw)) in present}


def _connections(client: "redis.Redis") -> tuple[int, int]:
    """How many executors are connected, and how many of them from another host than the server's."""
    client.response_callbacks.pop("CLIENT LIST", None)
    lines = node.text(command(client, "CLIENT LIST", "TYPE", "normal")).splitlines()
    count = remote = 0
    for line in lines:
        fields = dict(part.partition("=")[::2] for part in line.split(" "))
        if fields.get("name") != CLAIMS:
            continue
        count += 1
        there, here = (fields.get(side, "").rpartition(":")[0] for side in ("addr", "laddr"))
        # Of a unix socket both are its path, or empty.
        remote += there != here and not there.startswith(("127.", "[::1]", "/"))
    return count, remote
