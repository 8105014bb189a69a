"""A cluster, or a single server, as it is now: what each node says of itself, and whether that fits together."""

import dataclasses
import time
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from keyside.clients.admin import command, translated
from keyside.clients.cli import node as node_facts
from keyside.clients.cli.common import count
from keyside.clients.cli.facts import Facts, gather, revisions
from keyside.clients.cli.nodes import Node, at_all, read_nodes
from keyside.tensorstore import keys

if TYPE_CHECKING:
    import redis

__all__ = ["Difference", "View", "differences", "look"]

SETTLE_S = 1.0  # what is on its way to the other nodes arrives within that
_CHUNK = 2_000


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
    for node, result in at_all(client, nodes, gather).items():
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


# --- queues that came with slots


def _look_for_moved(entry: "redis.Redis", view: View) -> None:
    tags = keys.slot_tags()

    def read(client: "redis.Redis") -> list[dict[str, Any]]:
        own = node_facts.own_slots(client)
        others = [tags[slot] for first, last in own for slot in range(first, last + 1)][1:]
        return moved_queues(client, others, devices)

    devices = {"CPU", "GPU"} | {queue["device"] for facts in view.facts.values() for queue in facts.queues}
    with_slots = [node for node, facts in view.facts.items() if facts.slots]
    for node, result in at_all(entry, with_slots, read).items():
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

    for node, result in at_all(entry, with_slots, read).items():
        if isinstance(result, str):
            view.facts[node].problems["models"] = result
        else:
            view.facts[node].revisions = result
