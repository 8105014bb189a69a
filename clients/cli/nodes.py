"""The nodes of a cluster as it sees them itself, and clients of them."""

import concurrent.futures
import dataclasses
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, TypeVar

from keyside.clients.admin import command
from keyside.clients.cli import node as node_facts
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, Unreachable

if TYPE_CHECKING:
    import redis

__all__ = [
    "Node",
    "alive",
    "answers",
    "at_all",
    "client_of",
    "client_of_owner",
    "parse_nodes",
    "read_nodes",
    "takes_writes",
]

_T = TypeVar("_T")
CONNECT_S, ANSWER_S = 2.0, 3.0


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node as another one sees it.

    Attributes:
        id: In the cluster; empty for a server that is in none.
        host: Where it can be reached, as the cluster says.
        port: Likewise.
        primary: Whether it is one.
        of: Of a replica: the id of its primary.
        state: `ok`, `suspected` (it may be down), `failed` (most primaries agree), or `joining`.
        linked: Whether the node that was asked has a connection to it.
        slots: Ranges of slots that it owns.
        moving: How many slots are on the move to or from it, as far as the node that was asked takes part in that.
        me: Whether it is the node that was asked.
    """

    id: str
    host: str
    port: int
    primary: bool = True
    of: str = ""
    state: str = "ok"
    linked: bool = True
    slots: tuple[tuple[int, int], ...] = ()
    moving: int = 0
    me: bool = False

    @property
    def address(self) -> str:
        """Host and port."""
        return f"{self.host}:{self.port}"

    @property
    def slot_count(self) -> int:
        """How many slots it owns."""
        return sum(last - first + 1 for first, last in self.slots)


def parse_nodes(text: str, host: str, port: int) -> list[Node]:
    """Read what CLUSTER NODES says.

    Args:
        text: The reply.
        host: Where the node that was asked was reached: it may not know its own address.
        port: Likewise.
    """
    found = []
    for line in text.splitlines():
        node_id, where, flag_text, primary, _, _, _, link, *slots = line.split(" ")
        flags = set(flag_text.split(","))
        if flags & {"noaddr"}:
            continue  # it has been forgotten by all but this one
        named_host, _, named_port = where.partition(",")[0].partition("@")[0].rpartition(":")
        me = "myself" in flags
        states = (("fail", "failed"), ("fail?", "suspected"), ("handshake", "joining"))
        found.append(
            Node(
                id=node_id,
                host=named_host or (host if me else ""),
                port=int(named_port or 0) or (port if me else 0),
                primary="master" in flags,
                of="" if primary == "-" else primary,
                state=next((word for flag, word in states if flag in flags), "ok"),
                linked=me or link == "connected",
                slots=tuple(_range(part) for part in slots if not part.startswith("[")),
                moving=sum(part.startswith("[") for part in slots),
                me=me,
            )
        )
    return _in_order(found)


def _range(text: str) -> tuple[int, int]:
    first, _, last = text.partition("-")
    return int(first), int(last or first)


def _in_order(nodes: list[Node]) -> list[Node]:
    """Primaries by their slots, each followed by its replicas."""
    primaries = sorted(
        (one for one in nodes if one.primary), key=lambda one: (one.slots or ((keys.SLOTS, 0),), one.port)
    )
    known = {one.id for one in primaries}
    ordered = []
    for primary in primaries:
        ordered.append(primary)
        ordered += sorted((one for one in nodes if one.of == primary.id), key=lambda one: (one.host, one.port))
    return ordered + [one for one in nodes if not one.primary and one.of not in known]


def read_nodes(client: "redis.Redis") -> list[Node]:
    """Return the nodes of the cluster that a server belongs to; of a single server itself.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    settings = client.connection_pool.connection_kwargs
    host, port = str(settings.get("host", "")), int(settings.get("port", 0) or 0)
    if not node_facts.is_clustered(client):
        return [Node(id="", host=host or str(settings.get("path", "")), port=port, me=True)]
    client.response_callbacks.pop("CLUSTER NODES", None)
    return parse_nodes(node_facts.text(command(client, "CLUSTER", "NODES")), host, port)


def client_of(entry: "redis.Redis", node: Node) -> "redis.Redis":
    """Return a client of a node, with the user, the password and the certificates of a client of another.

    Args:
        entry: A client of the node that named it.
        node: The node.
    """
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry

    pool = entry.connection_pool
    settings = {name: value for name, value in pool.connection_kwargs.items() if name not in ("path", "host", "port")}
    over_socket = issubclass(pool.connection_class, redis.UnixDomainSocketConnection)
    settings |= {"socket_connect_timeout": CONNECT_S, "socket_timeout": ANSWER_S, "retry": Retry(NoBackoff(), 0)}
    if node.me:
        settings |= {
            name: pool.connection_kwargs[name] for name in ("path", "host", "port") if name in pool.connection_kwargs
        }
        made = redis.ConnectionPool(connection_class=pool.connection_class, **settings)
    else:
        kind = redis.Connection if over_socket else pool.connection_class
        made = redis.ConnectionPool(connection_class=kind, host=node.host, port=node.port, **settings)
    return redis.Redis.from_pool(made)


def client_of_owner(entry: "redis.Redis", key: str) -> "redis.Redis":
    """Return a client of the node that owns the slot of a key.

    Args:
        entry: A client of any node, or of a single server.
        key: The key.

    Raises:
        KeysideError: The server refuses or is gone, or nobody owns the slot.
    """
    slot = keys.slot(key)
    for node in read_nodes(entry):
        if not node.id or any(first <= slot <= last for first, last in node.slots):
            return client_of(entry, node)
    raise Unreachable(f"no node of the cluster serves slot {slot}, in which {key!r} lies: see keyside status")


def answers(client: "redis.Redis") -> bool:
    """Whether a server can be reached."""
    try:
        command(client, "PING")
    except Unreachable:
        return False
    except KeysideError:
        return True
    return True


def takes_writes(client: "redis.Redis") -> bool:
    """Whether a server can be reached and is a primary."""
    try:
        return bool(command(client, "INFO", "replication").get("role") == "master")
    except KeysideError:
        return False


def alive(entry: "redis.Redis") -> list[dict[str, Any]]:
    """Return what the executors say of themselves, of all nodes of a cluster that answer, or of a single server.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    serving = [node for node in read_nodes(entry) if not node.id or node.slots]
    found = at_all(entry, serving, node_facts.executors)
    return [executor for result in found.values() if not isinstance(result, str) for executor in result]


def at_all(entry: "redis.Redis", nodes: Iterable[Node], read: "Callable[[redis.Redis], _T]") -> "dict[Node, _T | str]":
    """Read from many nodes at the same time; of one that does not answer, the reason."""

    def one(node: Node) -> "_T | str":
        try:
            with client_of(entry, node) as client:
                return read(client)
        except KeysideError as error:
            return str(error)

    wanted = list(nodes)
    with concurrent.futures.ThreadPoolExecutor(max_workers=32, thread_name_prefix="keyside-look") as pool:
        return dict(zip(wanted, pool.map(one, wanted), strict=True))
