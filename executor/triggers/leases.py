"""Which executor of a node serves which trigger: a lease for each, so that one message starts one run."""

from collections.abc import Iterable

from keyside.executor.wire import Command, Wire
from keyside.tensorstore import keys

__all__ = ["LEASE_MS", "Leases", "ear_of"]

LEASE_MS = 3000


def ear_of(consumer: bytes) -> bytes:
    """Return the channel that an executor listens to while it serves triggers: there is never anything on it."""
    return b"ks:ear:" + consumer


class Leases:
    """The leases of one executor. For one thread.

    Attributes:
        mine: the triggers that it serves.
    """

    def __init__(self, consumer: bytes) -> None:
        self.mine: set[bytes] = set()
        self._consumer = consumer
        self._node = keys.NodeKeys()

    def of(self, node: keys.NodeKeys) -> None:
        """Hold leases of another node from now on; those of the last one end by themselves."""
        self._node = node
        self.mine.clear()

    def hold(self, wire: Wire, triggers: Iterable[bytes]) -> set[bytes]:
        """Keep, or get, the leases of triggers; return those that are new.

        Args:
            wire: to the node.
            triggers: all that are to be served by somebody.

        Raises:
            KeysideError: the server is gone.
        """
        names = list(triggers)
        holders = dict(zip(names, wire.call_many([(b"GET", self._node.lead(name)) for name in names]), strict=True))
        self._free_those_of_the_dead(wire, holders)
        commands: list[Command] = []
        asked = [name for name, holder in holders.items() if holder in (None, self._consumer)]
        for name in asked:
            if holders[name] is None:
                commands.append((b"SET", self._node.lead(name), self._consumer, b"NX", b"PX", LEASE_MS))
            else:
                commands.append((b"PEXPIRE", self._node.lead(name), LEASE_MS))
        answers = wire.call_many(commands) if commands else []
        # What PEXPIRE finds gone is asked for anew at the next look.
        mine = {name for name, answer in zip(asked, answers, strict=True) if answer in (1, b"OK")}
        fresh = {name for name in mine if holders[name] is None or name not in self.mine}
        self.release(wire, self.mine - set(names))
        self.mine = mine
        return fresh

    def _free_those_of_the_dead(self, wire: Wire, holders: dict[bytes, bytes | None]) -> None:
        """End leases whose executor listens to nothing any more: it is dead, or will have to begin anew.

        A lease that ends like this under one who lives costs messages, never doubles them: KS_FIRE looks at the lease.
        """
        others = {holder for holder in holders.values() if isinstance(holder, bytes) and holder != self._consumer}
        if not others:
            return
        counts = wire.call(b"PUBSUB", b"NUMSUB", *map(ear_of, others))
        dead = {other for other, count in zip(others, counts[1::2], strict=True) if count == 0}
        for name, holder in holders.items():
            if holder in dead and wire.call(b"GET", self._node.lead(name)) == holder:
                wire.call(b"UNLINK", self._node.lead(name))
                holders[name] = None

    def release(self, wire: Wire, names: Iterable[bytes]) -> None:
        """Let others serve these triggers at once.

        Raises:
            KeysideError: the server is gone.
        """
        gone = [name for name in names if name in self.mine]
        if not gone:
            return
        holders = wire.call_many([(b"GET", self._node.lead(name)) for name in gone])
        ours = [name for name, holder in zip(gone, holders, strict=True) if holder == self._consumer]
        if ours:
            wire.call_many([(b"UNLINK", self._node.lead(name)) for name in ours])
        self.mine.difference_update(gone)
