"""The connection of the thread that claims: what ends jobs goes out with the next claim, one write for both."""

from collections.abc import Sequence
from typing import Any

from keyside.executor.delivery import Delivery, Parcel
from keyside.executor.wire import Command, Wire

__all__ = ["Line"]


class Line:
    """Parcels and claims on one connection, whose replies come in the order in which they went out.

    A claim may be made ahead, before a batch runs: then the next batch is there when that one has ended, however long
    the server was busy. Such a claim does not block on the server, so it is only worth while when more jobs are known
    to wait.

    Args:
        wire: the connection, of this thread alone.
        delivery: reads what the server says to parcels.

    Attributes:
        outbox: parcels that go out with the next write.
    """

    def __init__(self, wire: Wire, delivery: Delivery) -> None:
        self.wire = wire
        self.outbox: list[Parcel] = []
        self._delivery = delivery
        self._sent: list[Parcel | None] = []  # not answered yet; None: a claim made ahead
        self._came: list[Any] = []  # the reply to that claim, if it had to be read before it was asked for

    @property
    def ahead(self) -> bool:
        """Whether a claim was made ahead whose reply nobody has taken yet."""
        return bool(self._came) or None in self._sent

    def send(self, claim: bytes = b"") -> None:
        """Send the outbox, and behind it a claim whose reply the caller reads after `settle`."""
        parcels, self.outbox = self.outbox, []
        self._sent += parcels
        self.wire.send([command for parcel in parcels for command in parcel.commands], claim)

    def claim_ahead(self, claim: bytes) -> None:
        """Send the outbox, and behind it a claim that does not block; `take_ahead` gives its reply."""
        self.send(claim)
        self._sent.append(None)

    def take_ahead(self) -> Any:
        """Send the outbox and return the reply to the claim that was made ahead."""
        self.send()
        while not self._came:
            self._settle_one()
        return self._came.pop()

    def settle(self) -> None:
        """Read what the server says to all that was sent; what it cannot take for now is in the outbox again."""
        while self._sent:
            self._settle_one()

    def _settle_one(self) -> None:
        parcel = self._sent[0]
        if parcel is None:
            self._came.append(self.wire.read_small())
            del self._sent[0]
            return
        # It stays among the sent until the server has taken it: what is refused for now is sent again.
        done = self._delivery.settle(parcel, [self.wire.read_small() for _ in parcel.commands])
        del self._sent[0]
        if not done:
            self.outbox.append(parcel)

    def call_many(self, commands: Sequence[Command]) -> list[Any]:
        """Send other commands and return their replies; see `Wire.call_many`."""
        self.settle()
        return self.wire.call_many(commands)

    def flush(self) -> None:
        """Deliver the outbox, through lost connections; see `Delivery.send`."""
        self.settle()
        while self.outbox:
            self._delivery.send(self.wire, self.outbox[0])
            self.outbox.pop(0)

    def lost(self) -> None:
        """The connection broke: put back what was not answered. Some of it may have arrived; again does no harm.

        What a claim had brought is still pending for this consumer, and read again by whoever connects anew.
        """
        self.outbox = [parcel for parcel in self._sent if parcel is not None] + self.outbox
        self._sent = []
        self._came = []
