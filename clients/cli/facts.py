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
from keyside.tensorstore.errors import KeysideError, Unreachable

if TYPE_CHECKING:
    import redis

__all__ = ["Facts", "gather"]

SETTINGS = ("save", "maxclients")


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
    problems: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def server(self) -> str:
        """Kind and version."""
        return f"{self.kind} {'.'.join(map(str, self.version))}"

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
    before = time.monotonic()
    command(client, "PING")
    facts.latency_ms = (time.monotonic() - before) * 1000
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
    names = keys.NodeKeys()
    with _noting(facts, "node"):
        names = node.node_keys(client)
    with _noting(facts, "executors"):
        facts.executors = node.executors(client, names)
    with _noting(facts, "queues"):
        facts.queues = node.queues(client, names, facts.executors)
    with _noting(facts, "models"):
        facts.models = _catalog(client, names)
    with _noting(facts, "dead"):
        facts.dead, facts.last_dead = _dead(client, names)
    with _noting(facts, "connections"):
        facts.remote_executors = _remote(client)
    return facts


@contextlib.contextmanager
def _noting(facts: Facts, what: str) -> Iterator[None]:
    try:
        yield
    except Unreachable:
        raise
    except KeysideError as error:
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


def _remote(client: "redis.Redis") -> int:
    """How many executors are connected from another host than the server's."""
    client.response_callbacks.pop("CLIENT LIST", None)
    lines = node.text(command(client, "CLIENT LIST", "TYPE", "normal")).splitlines()
    remote = 0
    for line in lines:
        fields = dict(part.partition("=")[::2] for part in line.split(" "))
        if fields.get("name") != "keyside-claim":
            continue
        there, here = (fields.get(side, "").rpartition(":")[0] for side in ("addr", "laddr"))
        # Of a unix socket both are its path, or empty.
        remote += there != here and not there.startswith(("127.", "[::1]", "/"))
    return remote
