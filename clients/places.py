"""What the parts of a client ask its transport about nodes: there is one, or there are those of a cluster."""

from collections.abc import Mapping, Sequence
from typing import Any

from keyside.clients.endpoint import Endpoint
from keyside.clients.plan import Plan
from keyside.clients.request import who_serves
from keyside.clients.topology import Node
from keyside.tensorstore import keys
from keyside.tensorstore.command import Name
from keyside.tensorstore.errors import TryAgain

__all__ = ["LINE_S", "ManyNodes", "OneNode", "laggards", "said_of"]

LINE_S = 5.0
"""How long each step of making a connection for channels may take."""


class OneNode:
    """A server that belongs to no cluster."""

    node: bytes
    endpoint: Endpoint

    def endpoints(self, name: bytes) -> list[Endpoint]:  # noqa: ARG002  # there is but one
        """Return the servers of the cluster, the one first that has the slot of a name."""
        return [self.endpoint]

    @property
    def spread(self) -> bool:
        """Whether slots may move from one node to another."""
        return False

    def tags(self) -> list[bytes]:
        """Return the tags of all nodes."""
        return [self.node]

    def serving(self, tag: bytes) -> str:  # noqa: ARG002  # there is but one
        """Return the address of the node that has the slot of a tag."""
        return ""

    def complete_tag(self) -> bytes:
        """Return the tag of a node that knows all models."""
        return self.node

    def other_tags(self, name: Name) -> list[bytes]:  # noqa: ARG002
        """Return the tags of all nodes but the home of a model."""
        return []


class ManyNodes(OneNode):
    """The primaries of a cluster."""

    plan: Plan

    def endpoints(self, name: bytes) -> list[Endpoint]:
        """Return the servers of the cluster, the one first that has the slot of a name.

        Raises:
            TryAgain: nobody is known to have it.
        """
        topology = self.plan.topology
        owner = topology.owner(keys.slot(name))
        if owner is None:
            topology.stale = True
            raise TryAgain(f"no node of the cluster is known to own slot {keys.slot(name)}")
        others = [node for node in topology.nodes.values() if node is not owner]
        return [self.endpoint.at(node.host, node.port) for node in (owner, *others)]

    @property
    def spread(self) -> bool:
        """Whether slots may move from one node to another."""
        return not self.plan.topology.single

    def nodes(self) -> list[Node]:
        """Return the primaries that are known."""
        return [node for node in self.plan.topology.nodes.values() if node.tag]

    def tags(self) -> list[bytes]:
        """Return the tags of all nodes."""
        return [node.tag for node in self.nodes()]

    def serving(self, tag: bytes) -> str:
        """Return the address of the node that has the slot of a tag."""
        node = self.plan.topology.owner(keys.slot(b"{%b}" % tag))
        return "" if node is None else node.address

    def place_of(self, job: str) -> tuple[str, list[Node]]:
        """Say where a job is served, in words, and by which nodes: the one that has its queue, or any if none is known.

        Args:
            job: its id, or the word for its queue.
        """
        tag = job.partition("/")[0].partition("@")[2].encode()
        node = self.plan.topology.owner(keys.slot(b"{%b}" % tag)) if tag else None
        if node is None or not node.tag:
            return "this cluster", self.nodes()
        return f"the node {node.address}, which has its queue", [node]

    def complete_tag(self) -> bytes:
        """Return the tag of a node that knows all models."""
        node = self.plan.topology.pick(None)
        return self.node if node is None else node.tag

    def other_tags(self, name: Name) -> list[bytes]:
        """Return the tags of all nodes but the home of a model."""
        home = self.plan.topology.home(name)
        return [node.tag for node in self.nodes() if node is not home]


def said_of(device: str, where: str, found: Sequence[tuple[Sequence[str], Sequence[dict[str, Any]]]]) -> str:
    """Say which executors could answer on a queue.

    Args:
        device: the queue.
        where: it is served, in words.
        found: of each node that has answered, the executors that it knows, and what those that live say of themselves.
    """
    if not found:
        return f"{where} does not answer"
    names = [name for some, _ in found for name in some]
    infos = [info for _, some in found for info in some]
    return who_serves(device, names, infos, where)


def laggards(node: Node, infos: Sequence[Mapping[str, Any]], model: str, device: str) -> tuple[list[str], bool]:
    """Say which executors of a node have not loaded a version, and whether any of them is for it."""
    serving = [info for info in infos if device in info.get("devices", ())]
    # One of an older release does not say what it has loaded.
    late = [info for info in serving if model not in info.get("ready", (model,))]
    return [f"{info.get('name', 'an executor')} on {node.address}" for info in late], bool(serving)
