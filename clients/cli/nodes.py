"""The nodes of a cluster as it sees them itself, and what each says of itself."""

import concurrent.futures
import dataclasses
import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from keyside.clients.admin import command
from keyside.clients.cli import node as node_facts
from keyside.clients.cli.common import count
from keyside.clients.cli.facts import Facts, gather, revisions
from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError, Unreachable

if TYPE_CHECKING:
    import redis

__all__ = [
    "Difference",
    "Node",
    "View",
    "alive",
    "answers",
    "client_of",
    "client_of_owner",
    "differences",
    "look",
    "parse_nodes",
    "read_nodes",
    "takes_writes",
]

_T = TypeVar("_T")
CONNECT_S, ANSWER_S = 2.0, 3.0
SETTLE_S = 1.0  # what is on its way to the other nodes arrives within that
_CHUNK = 2_000


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


@dataclasses.dataclass(frozen=True, slots=True)
class Difference:
    """What one node's catalog says of a model against what the model's home says.

    Attributes:
        model: Its name.
        home: The node that owns its slot, whose word counts.
        node: The other node.
        what: `missing`, `older`, `newer`, or `gone` for a model that its home has no more.
    """

    model: str
    home: str
    node: str
    what: str


@dataclasses.dataclass(slots=True)
class View:
    """A cluster, or a single server, as it is now.

    Attributes:
        clustered: Whether it is a cluster.
        state: What the node that was asked says of the cluster: `ok` or `fail`.
        nodes: Its nodes, primaries by their slots, each followed by its replicas.
        facts: What each node says of itself; of those that do not answer there is nothing.
        errors: Why a node does not answer.
        differences: Where catalogs do not agree.
    """

    clustered: bool
    state: str
    nodes: list[Node]
    facts: dict[Node, Facts] = dataclasses.field(default_factory=dict)
    errors: dict[Node, str] = dataclasses.field(default_factory=dict)
    differences: list[Difference] = dataclasses.field(default_factory=list)

    @property
    def title(self) -> str:
        """What it consists of, in words."""
        homes = sum(node.primary and bool(node.slots) for node in self.nodes)
        replicas = sum(not node.primary for node in self.nodes)
        empty = len(self.nodes) - homes - replicas
        more = f" and {count(empty, 'node')} without slots" if empty else ""
        return f"cluster of {count(homes, 'primary', 'primaries')}, {count(replicas, 'replica')}{more}"

    def named(self, node_id: str) -> str:
        """Return the address of a node by its id; the id if it is not known."""
        return next((node.address for node in self.nodes if node.id == node_id), node_id)


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
    found = _at_all(entry, serving, node_facts.executors)
    return [executor for result in found.values() if not isinstance(result, str) for executor in result]


def look(client: "redis.Redis", *, settle_s: float = SETTLE_S) -> View:
    """Look at all nodes of the cluster that a server belongs to; or at the single server.

    Args:
        client: A client of the server.
        settle_s: How long catalogs may differ until it is said that they do.

    Raises:
        KeysideError: The server refuses or is gone. That another node is, is a fact like others.
    """
    nodes = read_nodes(client)
    clustered = bool(nodes[0].id)
    view = View(clustered, _state(client) if clustered else "ok", nodes)
    for node, result in _at_all(client, nodes, gather).items():
        if isinstance(result, Facts):
            view.facts[node] = result
        else:
            view.errors[node] = result
    if not clustered:
        return view
    _look_for_moved(client, view)
    found = _differences(view)
    if found:
        time.sleep(settle_s)
        _read_again(client, view)
        found = _differences(view)
    view.differences = found
    return view


def _state(client: "redis.Redis") -> str:
    reply = command(client, "CLUSTER", "INFO")
    if not isinstance(reply, dict):
        reply = dict(line.partition(":")[::2] for line in node_facts.text(reply).splitlines())
    return str(reply.get("cluster_state", "fail"))


def _at_all(entry: "redis.Redis", nodes: Iterable[Node], read: "Callable[[redis.Redis], _T]") -> "dict[Node, _T | str]":
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


# --- queues that came with slots


def _look_for_moved(entry: "redis.Redis", view: View) -> None:
    tags = keys.slot_tags()

    def read(client: "redis.Redis") -> list[dict[str, Any]]:
        own = node_facts.own_slots(client)
        others = [tags[slot] for first, last in own for slot in range(first, last + 1)][1:]
        return moved_queues(client, others, devices)

    devices = {"CPU", "GPU"} | {queue["device"] for facts in view.facts.values() for queue in facts.queues}
    with_slots = [node for node, facts in view.facts.items() if facts.slots]
    for node, result in _at_all(entry, with_slots, read).items():
        if isinstance(result, str):
            view.facts[node].problems["moved"] = result
        else:
            view.facts[node].moved = result


def moved_queues(client: "redis.Redis", tags: list[bytes], devices: Iterable[str]) -> list[dict[str, Any]]:
    """Return the queues with jobs of tags that are not the node's own, though their slots are.

    Args:
        client: A client of the node.
        tags: Those of all its slots but the lowest.
        devices: What devices there are.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import translated

    used = []
    with translated():
        for start in range(0, len(tags), _CHUNK):
            chunk = tags[start : start + _CHUNK]
            pipe = client.pipeline(transaction=False)
            for tag in chunk:
                names = keys.NodeKeys(tag)
                pipe.execute_command("EXISTS", names.catalog, names.executors)  # type: ignore[no-untyped-call]
            # A slot that is just leaving answers with a redirection: its queues are looked for where it went.
            used += [
                tag for tag, reply in zip(chunk, pipe.execute(raise_on_error=False), strict=True) if reply in (1, 2)
            ]
    return [
        {"tag": tag.decode(), **{name: queue[name] for name in ("device", "depth", "oldest_ms")}}
        for tag in used
        for queue in node_facts.queues(client, keys.NodeKeys(tag), [], devices)
        if queue.get("depth")
    ]


# --- catalogs


def differences(
    slots: Mapping[str, Iterable[tuple[int, int]]], catalogs: Mapping[str, Mapping[str, int]]
) -> list[Difference]:
    """Compare the catalogs of nodes: for each model the node that owns its slot is right.

    Args:
        slots: The ranges of slots of each node.
        catalogs: Of each node: model -> revision. Nodes that cannot be compared are left out.
    """
    owner = {slot: name for name, ranges in slots.items() for first, last in ranges for slot in range(first, last + 1)}
    found = []
    for model in sorted({model for catalog in catalogs.values() for model in catalog}):
        home = owner.get(keys.slot(model))
        if home is None or home not in catalogs:
            continue
        right = catalogs[home].get(model)
        for name, catalog in catalogs.items():
            here = catalog.get(model)
            if here == right:
                continue
            what = "gone" if right is None else "missing" if here is None else "older" if here < right else "newer"
            found.append(Difference(model, home, name, what))
    return found


def _differences(view: View) -> list[Difference]:
    known = {
        node.address: facts for node, facts in view.facts.items() if facts.slots and "models" not in facts.problems
    }
    return differences(
        {address: facts.slots for address, facts in known.items()},
        # One that says itself that it is not complete is known to differ.
        {address: facts.revisions for address, facts in known.items() if facts.complete},
    )


def _read_again(entry: "redis.Redis", view: View) -> None:
    with_slots = {node: facts for node, facts in view.facts.items() if facts.slots and facts.complete}

    def read(client: "redis.Redis") -> dict[str, int]:
        return revisions(client, node_facts.node_keys(client).tag.decode())

    for node, result in _at_all(entry, with_slots, read).items():
        if isinstance(result, str):
            view.facts[node].problems["models"] = result
        else:
            view.facts[node].revisions = result
