"""Which executor of a node serves which trigger: a lease for each, so that one message starts one run."""

from collections.abc import Iterable

from keyside.executor.wire import Wire
from keyside.tensorstore import keys

__all__ = ["LEASE_MS", "Leases"]

LEASE_MS = 3000


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
        holders = wire.call_many([(b"GET", self._node.lead(name)) for name in names])
        asked = [name for name, holder in zip(names, holders, strict=True) if holder in (None, self._consumer)]
        commands = [
            (b"PEXPIRE", self._node.lead(name), LEASE_MS)
            if holder == self._consumer
            else (b"SET", self._node.lead(name), self._consumer, b"NX", b"PX", LEASE_MS)
            for name, holder in zip(names, holders, strict=True)
            if holder in (None, self._consumer)
        ]
        answers = wire.call_many(commands) if commands else []
        mine, fresh = set(), set()
        held = {name for name, holder in zip(names, holders, strict=True) if holder == self._consumer}
        for name, answer in zip(asked, answers, strict=True):
            # As good as its answer: what PEXPIRE finds gone is asked for anew at the next look.
            if answer in (1, b"OK"):
                mine.add(name)
                if name not in held or name not in self.mine:
                    fresh.add(name)
        self.release(wire, self.mine - set(names))
        self.mine = mine
        return fresh

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
