"""The way of one call through a cluster: where it goes next, and whether it may go on after an error. No I/O here."""

import re
import time
from collections.abc import Sequence
from typing import Any

from keyside.clients.endpoint import NotConnected
from keyside.clients.request import Request, pauses
from keyside.clients.topology import Node, Topology, check_slots
from keyside.tensorstore import keys, plain
from keyside.tensorstore.command import Command, text
from keyside.tensorstore.errors import (
    KeysideError,
    LibraryMissing,
    NoModel,
    ServerError,
    TimedOut,
    TryAgain,
    Unreachable,
)

__all__ = [
    "ASK_S",
    "FREE_SLICE_S",
    "LATE_S",
    "SLICE_S",
    "Way",
    "asked",
    "bare_device",
    "passing",
    "redirected",
    "refusal",
    "slot_of",
]

ASK_S = 0.5
"""How long to wait at the node to which a slot is moving, before looking again where it is."""

SLICE_S = 5.0
"""How long one wait for a reply is, at most: a node that is silent for longer than that is gone."""

FREE_SLICE_S = 1.0
"""The same of a request that may run anywhere: then it is seen whether there is still an executor where it waits."""

ROOM_S = 0.2
"""What has less time left than this is not sent elsewhere any more."""

LATE_S = 0.3
"""How much later than its time an answer of a server may be."""

_REDIRECTION = re.compile(r"(MOVED|ASK) (\d+) (\S*:\d+)")
# The server has not carried out what it answers like this.
_NOT_NOW = ("LOADING", "MASTERDOWN", "CLUSTERDOWN")
_ROLE = ("READONLY", "UNBLOCKED")
# Functions are told so by the server in these words.
_IN_SCRIPT = ("while the cluster is down", "readonly replica", "read only replica")
_QUICK = 5
_ASKING = plain.asking()


def slot_of(command: Command[Any]) -> int | None:
    """Return the slot of the keys of a command; None if it has none.

    Raises:
        CrossSlot: they are in different slots.
    """
    args = command.args
    word = args[0]
    if word in (b"FCALL", b"FCALL_RO"):
        if args[2]:
            return keys.slot(args[3])
        if args[1] == "AI_CANCEL":
            return _slot_of_job(*args[3:])
        return None
    if word in (b"SCAN", b"CLUSTER"):
        return None
    if word == b"BLMPOP":
        return keys.slot(args[3])
    if word in (b"COPY", b"RENAME"):
        check_slots(args[1:3])
    return keys.slot(args[1])


def asked(batch: Sequence[Command[Any]]) -> list[Command[Any]]:
    """Put ASKING before each command: they are for a slot that is moving to the node."""
    return [command for each in batch for command in (_ASKING, each)]


def _slot_of_job(ticket: bytes, job: bytes = b"") -> int:
    """The slot of the queue that has a job: its id names the tag."""
    _, at, tag = job.partition(b"/")[0].partition(b"@")
    return keys.slot(b"{%b}" % tag) if at else keys.slot(ticket)


def bare_device(job: bytes) -> str:
    """Return the device in a job id, without priority and node."""
    return re.split(r"[!@/]", job.decode("ascii", "replace"), maxsplit=1)[0]


def refusal(error: KeysideError) -> bool:
    """Whether the server has surely not carried out what it was asked, and may another time or in another place."""
    if isinstance(error, ServerError):
        return error.text.startswith(_ROLE) or any(phrase in error.text for phrase in _IN_SCRIPT)
    return isinstance(error, TryAgain | NotConnected) or (
        isinstance(error, Unreachable) and error.text.startswith(_NOT_NOW)
    )


def redirected(error: KeysideError) -> bool:
    """Whether the server has said where to go instead, or that this is about to change."""
    return isinstance(error, TryAgain)


def passing(error: object) -> bool:
    """Whether a call that got this may succeed if it is sent again."""
    return isinstance(error, KeysideError) and (isinstance(error, Unreachable) or refusal(error))


class Way:
    """The way of one call.

    Args:
        topology: of the cluster.
        ends: when to give up, by `time.monotonic`.
        slot: of its keys; None: it may run anywhere.
        request: what is submitted, if something is.
        repeatable: it may be sent again though it may have been carried out.

    Attributes:
        doubt: it may have been accepted.
        tries: how often it was sent.
        refusals: how often TRYAGAIN was said of it.
        node: where it was sent last.
        job: the id of the job, once it has been accepted.
    """

    __slots__ = (
        "_ask", "_avoid", "_hops", "_pause", "_placed", "_rescued", "doubt", "ends", "job", "node", "refusals",
        "repeatable", "request", "slot", "topology", "tries",
    )  # fmt: skip

    def __init__(
        self,
        topology: Topology,
        ends: float,
        *,
        slot: int | None = None,
        request: Request | None = None,
        repeatable: bool = True,
    ) -> None:
        self.topology = topology
        self.ends = ends
        self.slot = slot
        self.request = request
        self.repeatable = repeatable
        self.doubt = False
        self.tries = 0
        self.refusals = 0
        self.job = b""
        self.node: Node | None = None
        self._placed = self._rescued = False
        self._ask: Node | None = None
        self._avoid: list[Node] = []
        self._hops = 0
        self._pause = pauses()
        if request is not None and (request.keyed or topology.single):
            if topology.single:
                request.tag = keys.STANDALONE_TAG
            self.slot = keys.slot(b"{%b}" % request.tag)

    @property
    def free(self) -> bool:
        """Whether it may run anywhere."""
        if self.topology.single or self.doubt:
            return False
        return not self.request.keyed if self.request is not None else self.slot is None

    @property
    def submitted(self) -> Request:
        """The request whose way it is."""
        if self.request is None:
            raise TypeError("it is the way of a command")
        return self.request

    def stranded(self, job: bytes) -> bool:
        """Whether it waits where no executor is left, though it could run elsewhere.

        Args:
            job: its id.
        """
        if not self.free or not job or time.monotonic() + ROOM_S >= self.ends:
            return False
        node = self._where
        return node is not None and self.topology.served_elsewhere(node, bare_device(job))

    @property
    def _where(self) -> Node | None:
        """The node that has its job now: another one than took it, if that was replaced."""
        return self.node if self.slot is None else self.topology.owner(self.slot)

    def taken_back(self) -> TimedOut:
        """Take note that its job was taken back, to be sent elsewhere; return the error where time is over."""
        request, node = self.submitted, self._where
        request.seq = request.identity.number()  # where it was the number before is taken
        self.job, self.tries, self.refusals = b"", 0, 0
        self._avoid = [] if node is None else [node]
        self._placed, self._rescued = False, True
        where = "" if node is None else f" on the node {node.address}, where it was"
        return TimedOut(f"no answer within {request.timeout:g} s: no executor is left{where}")

    def placed(self, node: Node) -> None:
        """Take note that a request that may run anywhere has been sent to a node already."""
        self.node, self._placed, self.tries = node, True, 1
        self.slot = keys.slot(b"{%b}" % self.submitted.tag)

    def next(self) -> tuple[Node, bool]:
        """Say where to send it, and whether with ASKING before it.

        Raises:
            TryAgain: nobody is known who could take it.
        """
        self.tries += 1
        if self._ask is not None:
            self.node, self._ask = self._ask, None
            return self.node, True
        if self.free and not self._placed:
            self._place()
        elif self.slot is not None:
            self.node = self.topology.owner(self.slot)
        if self.node is None:
            self.topology.stale = True
            raise TryAgain(
                f"no node of the cluster is known to own slot {self.slot}" if self.slot is not None else "no node is up"
            )
        return self.node, False

    def _place(self) -> None:
        request = self.request
        device = self.topology.device(request.target) if request is not None else None
        self.node = self.topology.pick(device, self._avoid)
        if request is not None and self.node is not None:
            request.place(self.node.tag)
            self.slot = keys.slot(b"{%b}" % request.tag)
            self._placed = True

    def to(self, node: Node) -> None:
        """Send a request that may run anywhere to this node next."""
        self.submitted.place(node.tag)
        self.slot, self._placed = keys.slot(b"{%b}" % self.submitted.tag), True

    def unknown(self, error: KeysideError) -> bool:
        """Whether a node does not know the model, though its home, which nobody has asked yet, may."""
        if not isinstance(error, NoModel) or self.request is None or not error.text.startswith("no model "):
            return False
        return not self.free or self.node is self.topology.home(self.request.target)

    def failed(self, error: KeysideError) -> float:
        """Take note of an error.

        Returns:
            How many seconds to wait before `next`.

        Raises:
            KeysideError: that error, or one that says more, if that was the end of the way.
        """
        wait = self._after(error)
        if wait is None:
            raise error
        if time.monotonic() + wait >= self.ends:
            raise self._explained(error)
        return wait

    def _after(self, error: KeysideError) -> float | None:
        if self._rescued:
            self._rescued = False  # nothing is wrong with the node, which may serve other devices
            return 0.0
        topology, node = self.topology, self.node
        if node is None:
            return self._pause()
        found = _REDIRECTION.match(error.text) if isinstance(error, TryAgain) else None
        if found is not None:
            self._hops += 1
            there = topology.moved(int(found[2]), found[3], node) if found[1] == "MOVED" else None
            if there is None:
                host, _, port = found[3].rpartition(":")
                self._ask = topology.at(host if host not in ("", "?") else node.host, int(port))
            return 0.0 if self._hops <= _QUICK else self._pause()
        if self.free:
            return self._elsewhere(error, node)
        if refusal(error):
            topology.stale = True
            return self._pause()
        if isinstance(error, Unreachable) and self.repeatable:
            topology.stale = True
            self.doubt = True
            node.leave_out()
            return self._pause()
        return None

    def _elsewhere(self, error: KeysideError, node: Node) -> float | None:
        """Send what may run anywhere to another node, if this one cannot or does not know the model."""
        topology = self.topology
        if isinstance(error, NoModel) and self.request is not None:
            # A copy of the catalog may lag behind; the home of the name knows.
            home = topology.home(self.request.target)
            if home is None or home is node or not home.tag or home in self._avoid:
                return None
            self._avoid.append(node)
            self.to(home)
            return 0.0
        if not (refusal(error) or isinstance(error, Unreachable | LibraryMissing)):
            return None
        node.leave_out()
        if refusal(error) or isinstance(error, LibraryMissing):
            if isinstance(error, LibraryMissing) and node in self._avoid:
                return None
        elif not self.repeatable:
            return None
        elif self.request is not None:
            self.doubt = True  # from now on it belongs to the slot of its tag
            topology.stale = True
            return self._pause()
        topology.stale = topology.stale or isinstance(error, Unreachable | TryAgain)
        fresh = node not in self._avoid
        self._avoid.append(node)
        self._placed = False
        return 0.0 if fresh and not topology.all_out() else self._pause()

    def _explained(self, error: KeysideError) -> KeysideError:
        node = self.node
        if node is None or not refusal(error):
            return error
        if node.broken and isinstance(error, TryAgain):
            return TryAgain(
                f"node {node.address} owns slot {self.slot}, but every function that it is asked to run fails with "
                f"'non local key': a script that named keys of two slots in one command has broken its Lua, and only a "
                f"restart of that node heals it"
            )
        said = text(str(error))
        return Unreachable(f"node {node.address} did not take the call until its deadline: {said}")
