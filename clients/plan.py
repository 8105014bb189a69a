"""What both transports of a cluster know and decide alike: whom to ask where things are, and what the answers mean."""

import time
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from keyside.clients.endpoint import Endpoint
from keyside.clients.inputs import KEYED
from keyside.clients.packed import Packed, Packer
from keyside.clients.request import Request
from keyside.clients.topology import Node, Topology
from keyside.clients.way import bare_device, slot_of
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.command import Command, Name
from keyside.tensorstore.commands import NodeReport
from keyside.tensorstore.errors import KeysideError, LibraryMissing, Unreachable

__all__ = ["Plan", "SpreadPacker"]

_RENEW_S = 0.1


class Plan:
    """Where the nodes of one client are.

    Args:
        endpoint: a node of a cluster, or a server that sentinels watch.
    """

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.topology = Topology(single=bool(endpoint.sentinels))
        self.look: Command[Any] = commands.ai_node()
        self.question: tuple[Command[Any], ...] = (
            (plain.sentinel_primary(endpoint.service),) if endpoint.sentinels else (plain.cluster_slots(),)
        )
        self._asked = 0.0
        self._first = 0

    @property
    def node(self) -> bytes:
        """Tag of the one node; empty where there are several."""
        return keys.STANDALONE_TAG if self.topology.single else b""

    def slot_of(self, command: Command[Any]) -> int | None:
        """Return the slot of the keys of a command; None if it has none, and any node may take it.

        Raises:
            CrossSlot: they are in different slots.
        """
        return 0 if self.topology.single else slot_of(command)

    # --- where the nodes are

    def tellers(self) -> Iterator[Endpoint]:
        """Give those who may know where the nodes are: the one first that knew it last."""
        if self.endpoint.sentinels:
            count = len(self.endpoint.sentinels)
            start = self._first
            for offset in range(count):
                self._first = (start + offset) % count
                yield self.endpoint.sentinels[self._first]
            return
        nodes = sorted(self.topology.nodes.values(), key=lambda node: node.out)
        for node in nodes:
            yield self.endpoint.at(node.host, node.port)
        yield self.endpoint
        for host, port in self.endpoint.seeds:
            yield self.endpoint.at(host, port)

    def told(self, teller: Endpoint, replies: Sequence[Any]) -> None:
        """Take the answer to `question`.

        Raises:
            KeysideError: it is none.
        """
        said = self.question[0].result(replies[0])
        if self.endpoint.sentinels:
            if said is None:
                raise Unreachable(f"the sentinel {teller} does not know {self.endpoint.service!r}")
            host, port = said
            self.topology.update([(0, keys.SLOTS - 1, host, port)])
            return
        if not said:
            raise Unreachable(f"{teller} knows no node that owns slots")
        self.topology.update(
            [(first, last, host if host not in ("", "?") else teller.host, port) for first, last, host, port in said]
        )

    def may_renew(self) -> bool:
        """Whether it has been long enough ago that somebody was asked."""
        now = time.monotonic()
        if now - self._asked < _RENEW_S:
            return False
        self._asked = now
        return True

    # --- what they have to do

    def look_if_due(self, look: Callable[[], object]) -> None:
        """Look what the nodes have to do, at most once a second."""
        if self.topology.due():
            look()

    def to_look_at(self) -> list[Node]:
        """Return the nodes to look at now."""
        self.topology.due()
        return list(self.topology.nodes.values())

    def looked(self, node: Node, said: NodeReport | KeysideError) -> None:
        """Take note of what a node says of itself, or that it does not."""
        if isinstance(said, LibraryMissing):
            self.topology.heard()
            return  # an older library, which has no such function: the calls themselves will tell
        self.topology.looked(node, said)

    # --- requests

    def learn(self, request: Request, job: bytes) -> None:
        """Take note of where a job went: the next one for the target needs the same device."""
        topology = self.topology
        if not topology.single:
            known = topology.device(request.target)
            if known is None or not job.startswith(known.encode()):
                topology.learn(request.target, bare_device(job))

    def home_tag(self, target: Name) -> bytes:
        """Return the tag of the node that is the home of a target.

        Raises:
            Unreachable: nobody is known to own its slot.
        """
        home = self.topology.home(target)
        if home is None or not home.tag:
            self.topology.stale = True
            raise Unreachable(f"no node of the cluster is known to own the slot of {target!r}")
        return home.tag

    def grouped(self, batch: Sequence[Command[Any]]) -> list[tuple[Node | None, list[int]]]:
        """Sort commands by the nodes that they are for; those that any node takes go to one of them."""
        found: dict[Node | None, list[int]] = {}
        anywhere: Node | None = None
        for place, command in enumerate(batch):
            slot = self.slot_of(command)
            if slot is None:
                anywhere = anywhere or self.topology.pick(None)
            node = anywhere if slot is None else self.topology.owner(slot)
            found.setdefault(node, []).append(place)
        return list(found.items())


class SpreadPacker:
    """Encodes calls on values in hand, each for the node that shall take it.

    Args:
        plan: of the cluster.
        packers: those of the nodes, by tag.
        new: makes one.
        look: sees what the nodes have to do, without waiting for it.
    """

    def __init__(
        self,
        plan: Plan,
        packers: MutableMapping[bytes, Packer],
        new: Callable[[bytes], Packer],
        look: Callable[[], object],
    ) -> None:
        self._plan = plan
        self._packers = packers
        self._new = new
        self._look = look

    def pack(self, target: Name, inputs: object, timeout: float) -> Packed | None:
        """Encode a call; None if it is left to the builders: with keys it has no choice of nodes."""
        topology = self._plan.topology
        if topology.single:
            tag = keys.STANDALONE_TAG
        else:
            if type(inputs) in KEYED or (isinstance(inputs, list | tuple) and not KEYED.isdisjoint(map(type, inputs))):
                return None
            if isinstance(inputs, Mapping) and not KEYED.isdisjoint(map(type, inputs.values())):
                return None
            device = topology.device(target) if isinstance(target, str | bytes) else None
            node = topology.pick(device) if device is not None else None
            if node is None or topology.outdated():
                return None
            tag = node.tag
            self._plan.look_if_due(self._look)
        packer = self._packers.get(tag)
        if packer is None:
            packer = self._packers[tag] = self._new(tag)
        return packer.pack(target, inputs, timeout)
