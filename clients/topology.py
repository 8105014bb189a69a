"""Which node owns which slot, and which node takes a call that may run anywhere. No I/O happens here."""

import random
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from keyside.tensorstore import keys
from keyside.tensorstore.command import text, to_bytes
from keyside.tensorstore.commands import NodeReport
from keyside.tensorstore.errors import CrossSlot, KeysideError, Unreachable

__all__ = ["Node", "Topology", "check_slots"]

_OUT_S, _OUT_MAX_S = 0.1, 4.0
_LOOK_S = 1.0
_OUTDATED_S = 3.0
"""What nodes said longer ago is no ground to choose one: its executors may have gone."""
_DEVICE_S = 60.0
_DEVICES = 4096


class Node:
    """A primary.

    Attributes:
        address: `host:port`, as the cluster names it.
        tag: of its own keys; empty until that is known.
        report: what it last said of itself.
        flying: calls of this client that it has not answered.
        broken: what it said when its functions did not work; empty while they do.
    """

    __slots__ = ("_pause", "address", "broken", "flying", "host", "out", "port", "report", "tag")

    def __init__(self, host: str, port: int) -> None:
        self.host = host
        self.port = port
        self.address = f"{host}:{port}"
        self.tag = b""
        self.report: NodeReport | None = None
        self.flying = 0
        self.broken = ""
        self.out = 0.0
        self._pause = _OUT_S

    def __repr__(self) -> str:
        return f"<Node {self.address} {self.tag.decode()}>"

    def leave_out(self) -> None:
        """Give calls that may run anywhere to others for a while, longer each time."""
        now = time.monotonic()
        if self.out <= now:
            self.out = now + self._pause
            self._pause = min(self._pause * 2, _OUT_MAX_S)

    def back(self) -> None:
        """Take note that it serves."""
        self.out, self._pause, self.broken = 0.0, _OUT_S, ""

    def serves(self, device: str) -> bool:
        """Whether an executor there takes jobs for a device, as far as is known."""
        report = self.report
        return report is not None and device in report.devices and report.devices[device].live > 0

    def load(self, device: str) -> float:
        """How many jobs would be before one that comes now, for each executor."""
        queue = self.report.devices.get(device) if self.report is not None else None
        if queue is None:
            return float(self.flying)
        return (self.flying + queue.queued) / max(queue.live, 1)


class Topology:
    """The nodes of a cluster, or the one primary that sentinels watch.

    Args:
        single: there is one node for all slots, and it is no cluster's.

    Attributes:
        nodes: the primaries, by address.
        stale: it should be asked for anew.
        renewed: when it was, by `time.monotonic`.
    """

    def __init__(self, *, single: bool = False) -> None:
        self.single = single
        self.nodes: dict[str, Node] = {}
        self.stale = True
        self.renewed = 0.0
        self._slots: list[Node | None] = [None] * keys.SLOTS
        self._looked = 0.0
        self._heard = 0.0
        self._devices: dict[Any, tuple[str, float]] = {}

    # --- who owns what

    def owner(self, slot: int) -> Node | None:
        """Return the node that owns a slot, as far as is known."""
        return self._slots[slot]

    def home(self, name: str | bytes) -> Node | None:
        """Return the node that owns the slot of a model, or of what stands for it in a target."""
        return self._slots[keys.slot(to_bytes(name).partition(b"@")[0])]

    def update(self, ranges: Iterable[tuple[int, int, str, int]]) -> None:
        """Take the cluster's own word for it.

        Args:
            ranges: first slot, last slot, host and port of each range.
        """
        slots: list[Node | None] = [None] * keys.SLOTS
        found: dict[str, Node] = {}
        for first, last, host, port in ranges:
            address = f"{host}:{port}"
            node = found.get(address) or self.nodes.get(address) or Node(host, port)
            found[address] = node
            slots[first : last + 1] = [node] * (last + 1 - first)
        self._slots, self.nodes = slots, found
        for node in found.values():
            if not node.tag:
                node.tag = keys.STANDALONE_TAG if self.single else keys.slot_tag(slots.index(node))
        self.renewed, self.stale = time.monotonic(), False

    def moved(self, slot: int, address: str, teller: Node) -> Node:
        """Take a node's word that a slot is elsewhere.

        Args:
            slot: that was asked for.
            address: where it is; a node that does not know its own name leaves out the host.
            teller: who said so.
        """
        host, _, port = address.rpartition(":")
        node = self.at(host if host not in ("", "?") else teller.host, int(port))
        self._slots[slot] = node
        self.stale = True
        return node

    def at(self, host: str, port: int) -> Node:
        """Return the node of an address, which may not have been known so far."""
        known = self.nodes.get(f"{host}:{port}")
        if known is None:
            self.stale = True
            known = Node(host, port)
        return known

    # --- who takes what may run anywhere

    def pick(self, device: str | None, avoid: Sequence[Node] = ()) -> Node | None:
        """Choose a node: of two that serve the device the one with less to do.

        Args:
            device: that the job needs; None: any will do.
            avoid: nodes that have refused it.
        """
        nodes = [node for node in self.nodes.values() if node.tag]
        now = time.monotonic()
        for fit in self._fits(device, avoid, now):
            found = [node for node in nodes if fit(node)]
            if len(found) > 1:
                one, other = random.sample(found, 2)
                word = device or ""
                return one if one.load(word) <= other.load(word) else other
            if found:
                return found[0]
        return None

    @staticmethod
    def _fits(device: str | None, avoid: Sequence[Node], now: float) -> tuple[Callable[[Node], bool], ...]:
        """What is asked of a node, ever less."""

        def fresh(node: Node) -> bool:
            return node.out <= now and node not in avoid

        def best(node: Node) -> bool:
            report = node.report
            return fresh(node) and report is not None and report.complete and (device is None or node.serves(device))

        def serves(node: Node) -> bool:
            return fresh(node) and device is not None and node.serves(device)

        return (best, serves, fresh, lambda node: node.out <= now, lambda node: node not in avoid, lambda _: True)

    def all_out(self) -> bool:
        """Whether no node is known to serve."""
        now = time.monotonic()
        return all(node.out > now for node in self.nodes.values())

    def due(self) -> bool:
        """Whether it is time to look what the nodes have to do; the caller then does."""
        now = time.monotonic()
        if now - self._looked < _LOOK_S:
            return False
        self._looked = now
        return True

    def outdated(self) -> bool:
        """Whether it is so long ago that a node said what it has to do that one should not be chosen by that."""
        return time.monotonic() - self._heard > _OUTDATED_S

    def heard(self) -> None:
        """Take note that a node has been asked what it has to do, and has answered: if only that it does not say."""
        self._heard = time.monotonic()

    def served_elsewhere(self, node: Node, device: str) -> bool:
        """Whether a device has no executor at a node, and has some at another one, as far as is known."""
        now = time.monotonic()
        return not node.serves(device) and any(
            other.serves(device) and other.out <= now for other in self.nodes.values() if other is not node
        )

    def looked(self, node: Node, said: NodeReport | KeysideError) -> None:
        """Take note of what a node says of itself, or that it does not."""
        if not isinstance(said, Unreachable):
            self.heard()
        if isinstance(said, KeysideError):
            node.leave_out()
            self.stale = self.stale or isinstance(said, Unreachable)
            if "non local key" in said.text or "is not on this node" in said.text:
                node.broken = str(said)
            return
        node.report = said
        if not self.single and said.tag:
            node.tag = said.tag
        if node.broken or node.out:
            node.back()

    # --- what a target needs

    def device(self, target: str | bytes) -> str | None:
        """Return the device that a target runs on, if that is known."""
        known = self._devices.get(target)
        return known[0] if known is not None and known[1] > time.monotonic() else None

    def learn(self, target: str | bytes, device: str) -> None:
        """Take note of the device that a target runs on."""
        if len(self._devices) >= _DEVICES:
            self._devices.clear()
        self._devices[target] = (device, time.monotonic() + _DEVICE_S)


def check_slots(names: Iterable[bytes]) -> None:
    """See that the keys of one call are in one slot.

    Raises:
        CrossSlot: they are not; the text shows each with its slot.
    """
    slots = {name: keys.slot(name) for name in names}
    if len(set(slots.values())) > 1:
        shown = ", ".join(f"{text(name)!r} (slot {slot})" for name, slot in slots.items())
        stem = text(next(iter(slots))).translate({ord("{"): None, ord("}"): None})
        raise CrossSlot(
            f"keys of one call are in different slots of the cluster: {shown}. Give them a hash tag in common, as in "
            f"'{{user42}}:{stem[:40]}'; or, for inputs, pass move=True, which copies those that lie elsewhere"
        )
