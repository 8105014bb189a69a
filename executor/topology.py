"""Who owns which slots, as one's own node sees it."""

import bisect
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import hiredis

from keyside.executor.wire import Wire, as_error
from keyside.tensorstore import keys

__all__ = ["Chart", "Node", "Topology"]


@dataclasses.dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster.

    Attributes:
        id: as CLUSTER MYID says.
        host: where it listens; empty: where it is reached already.
        port: of that.
    """

    id: bytes
    host: str
    port: int

    @property
    def address(self) -> str:
        """`host:port`."""
        return f"{self.host}:{self.port}"


@dataclasses.dataclass(frozen=True, slots=True)
class Topology:
    """A moment's view of the cluster.

    Attributes:
        clustered: whether there is one.
        my_id: the node's own id.
        ranges: first slot, last slot, primary and replicas, ascending.
        me: the node itself, if the cluster lists it: a primary without slots is not listed.
        role: `primary`, `replica`, or `none` for one without slots; that of a standalone server is not known here.
    """

    clustered: bool = False
    my_id: bytes = b""
    ranges: tuple[tuple[int, int, Node, tuple[Node, ...]], ...] = ()
    me: Node | None = None
    role: str = "primary"

    @classmethod
    def of_slots(cls, my_id: bytes, slots: Sequence[Any]) -> "Topology":
        """Read what CLUSTER SLOTS says."""
        ranges = []
        me: Node | None = None
        role = "none"
        for first, last, primary, *replicas in sorted(slots, key=lambda one: int(one[0])):
            owner, copies = _node(primary), tuple(map(_node, replicas))
            ranges.append((int(first), int(last), owner, copies))
            if owner.id == my_id:
                me, role = owner, "primary"
            elif role != "primary":
                for copy in copies:
                    if copy.id == my_id:
                        me, role = copy, "replica"
        return cls(True, my_id, tuple(ranges), me, role)

    def owner(self, slot: int) -> Node | None:
        """Return the primary that owns a slot."""
        at = bisect.bisect_right(self.ranges, slot, key=lambda one: one[0]) - 1
        if at < 0 or slot > self.ranges[at][1]:
            return None
        return self.ranges[at][2]

    def is_mine(self, slot: int) -> bool:
        """Whether the node owns a slot; a standalone server owns all."""
        if not self.clustered:
            return True
        owner = self.owner(slot)
        return owner is not None and owner.id == self.my_id

    @property
    def primaries(self) -> Mapping[bytes, Node]:
        """All that own slots, by id."""
        return {owner.id: owner for _, _, owner, _ in self.ranges}

    @property
    def primary(self) -> Node | None:
        """The node's primary, if it is a replica."""
        for _, _, owner, copies in self.ranges:
            if any(copy.id == self.my_id for copy in copies):
                return owner
        return None

    def slots_of(self, node_id: bytes) -> list[tuple[int, int]]:
        """Return the ranges of slots of a primary, ascending."""
        return [(first, last) for first, last, owner, _ in self.ranges if owner.id == node_id]

    def tag_of(self, node_id: bytes) -> bytes:
        """Return the tag that a primary works out when it is asked now for the first time; empty if it owns no slot."""
        slots = self.slots_of(node_id)
        return keys.slot_tag(slots[0][0]) if slots else b""


def _node(entry: Sequence[Any]) -> Node:
    host, port, node_id, *_ = entry
    text = bytes(host or b"").decode()
    return Node(bytes(node_id), "" if text == "?" else text, int(port))


class Chart:
    """The latest view, for all threads of an executor.

    Attributes:
        now: replaced as a whole when the cluster has changed.
    """

    def __init__(self) -> None:
        self.now = Topology()

    def look(self, wire: Wire) -> bool:
        """Ask the node; return whether anything has changed.

        Raises:
            KeysideError: the server refuses or is gone.
        """
        my_id, slots = wire.call_many(((b"CLUSTER", b"MYID"), (b"CLUSTER", b"SLOTS")))
        found = self.now
        if not isinstance(my_id, hiredis.ReplyError) and not isinstance(slots, hiredis.ReplyError):
            found = Topology.of_slots(bytes(my_id), slots)
        elif "cluster support disabled" in str(my_id):
            found = Topology()
        else:
            raise as_error(my_id if isinstance(my_id, hiredis.ReplyError) else slots)
        changed = found != self.now
        self.now = found
        return changed
