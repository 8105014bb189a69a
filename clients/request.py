"""What both transports have in common: a request, and what is said when it has no answer."""

import itertools
import os
import secrets
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from keyside.tensorstore import keys
from keyside.tensorstore.command import Command, Name
from keyside.tensorstore.commands import Submit
from keyside.tensorstore.errors import KeysideError, TimedOut, TryAgain, Unreachable

__all__ = [
    "KEPT_S",
    "MARGIN_S",
    "Identity",
    "Parts",
    "Request",
    "accepted",
    "answered",
    "may_retry",
    "not_answered",
    "not_fetched",
    "pauses",
    "process",
    "reply_lost",
    "who_serves",
]

MARGIN_S = 0.5
"""At its deadline a job is answered TIMEDOUT: this long that answer may take to arrive."""

KEPT_S = 10.0
"""The server keeps a reply for this long after the job's deadline."""

_PAUSE_S, _PAUSE_MAX_S = 0.02, 1.0
_SEEN_S = 60.0


class _Process:
    """The process that this is: asking the system for its id each time would cost a system call."""

    __slots__ = ("pid",)

    def __init__(self) -> None:
        self.look()

    def look(self) -> None:
        """Ask the system."""
        self.pid = os.getpid()


process = _Process()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=process.look)


class Identity:
    """Who a client is: an id that no other has, and the numbers of its requests. A forked child is another."""

    __slots__ = ("_numbers", "id", "pid")

    def __init__(self) -> None:
        self.pid = process.pid
        self.id = secrets.token_hex(8).encode()
        self._numbers = itertools.count(1)

    def number(self) -> int:
        """Return a number for one request."""
        return next(self._numbers)


class Parts(NamedTuple):
    """What of a request depends on where its keys are.

    Attributes:
        build: see `Request`. Likewise the others.
    """

    build: Callable[[Submit], Command[bytes]]
    before: Sequence[Command[None]]
    temporaries: Sequence[bytes]


class Request:
    """A job to submit.

    Attributes:
        build: makes the call that submits it; its result is the job id.
        before: commands that go out before it in the same write: values too large to ride in the call.
        temporaries: the keys that those write, for the call to take over.
        timeout: seconds until its deadline.
        identity: the client's.
        seq: the number of this request.
        target: what is to be run.
        tag: on a cluster, the hash tag of the slot to which it belongs.
        keyed: that is the slot of its keys; otherwise it may run on any node until one may have accepted it.
        remake: makes `build`, `before` and `temporaries` anew for another tag, if they depend on it.
        terms: further words of the call (`commands.terms`).
    """

    __slots__ = (
        "before", "build", "identity", "keyed", "remake", "seq", "tag", "target", "temporaries", "terms", "timeout",
    )  # fmt: skip

    def __init__(
        self, target: Name, build: Callable[[Submit], Command[bytes]], timeout: float, identity: Identity, seq: int
    ) -> None:
        self.target = target
        self.build = build
        self.before: Sequence[Command[None]] = ()
        self.temporaries: Sequence[bytes] = ()
        self.timeout = timeout
        self.identity = identity
        self.seq = seq
        self.tag = b""
        self.keyed = False
        self.remake: Callable[[bytes], Parts] | None = None
        self.terms: tuple[Any, ...] = ()

    def place(self, tag: bytes) -> None:
        """Let a request that may run on any node belong to the slot of a tag."""
        self.tag = tag
        if self.remake is not None:
            self.build, self.before, self.temporaries = self.remake(tag)

    def submit(self, seconds: float, ticket: bytes, corr: bytes = b"") -> Command[bytes]:
        """Return the call that submits it, to end within some seconds."""
        # The server knows a request that comes again if its TIMEOUT is in the same class, up to 60 s x 2^k
        # (docs/protocol.md section 2): what is left of it must not fall into a lower one.
        span = _SEEN_S
        while span < self.timeout:
            seconds = max(seconds, span + 0.001)
            span *= 2
        ms = max(1, round(seconds * 1000))
        return self.build(Submit(ms, ticket, corr, self.identity.id, self.seq, self.terms))

    def ticket(self, node: bytes) -> bytes:
        """Return the name of a list for this request alone."""
        return keys.client_ticket(node, self.identity.id, self.seq)


def pauses() -> Callable[[], float]:
    """Return a function that says how long to wait before each next attempt, in seconds."""
    pause = _PAUSE_S

    def following() -> float:
        nonlocal pause
        now, pause = pause, min(pause * 2, _PAUSE_MAX_S)
        return now

    return following


def may_retry(error: BaseException) -> bool:
    """Whether the same submit may succeed if it is sent again."""
    if isinstance(error, TryAgain):
        # A slot that is elsewhere for good is not found by asking here again.
        return not error.text.startswith(("MOVED", "ASK"))
    return isinstance(error, Unreachable)


def answered(error: BaseException) -> bool:
    """Whether the server was there, if only to say that it is still loading its data."""
    return isinstance(error, Unreachable) and "LOADING" in error.text


def who_serves(device: str, names: Sequence[str], infos: Sequence[dict[str, Any]], where: str = "this server") -> str:
    """Say who could answer.

    Args:
        device: the queue; empty if that is not known.
        names: executors that the node knows.
        infos: what those that live say of themselves.
        where: the server, the cluster, or the node of it that has the queue.
    """
    device = device.partition("@")[0].partition("!")[0]
    if not infos:
        why = "no executor is alive" if names else "no executor has ever run"
        return f"{why} on {where}; start one with `keyside executor`"
    serving = [info for info in infos if not device or device in info.get("devices", ())]
    if not serving:
        have = sorted({str(name) for info in infos for name in info.get("devices", ())})
        return f"no executor on {where} serves the queue {device}; those alive serve {', '.join(have) or 'none'}"
    return f"{len(serving)} {'executor is' if len(serving) == 1 else 'executors are'} alive on {where}"


def not_answered(request_timeout: float, job: bytes, who: str) -> TimedOut:
    """Say that nobody has answered.

    Args:
        request_timeout: seconds that were waited.
        job: its id; empty if the request was sent again over a new connection.
        who: as of `who_serves`.
    """
    doubt = "" if job else "; a connection broke meanwhile, and may have taken the reply along"
    return TimedOut(f"no answer within {request_timeout:g} s: {who}{doubt}")


def reply_lost(request_timeout: float) -> TimedOut:
    """Say that a job has ended but its reply was taken by a connection that broke."""
    return TimedOut(
        f"no answer within {request_timeout:g} s: the job has ended, but its reply was lost with a broken connection"
    )


def not_fetched(request_timeout: float) -> TimedOut:
    """Say that a job has ended but its reply was asked for too late."""
    return TimedOut(
        f"the result was not fetched in time: the job has ended, and a reply is kept until {KEPT_S:g} s after the "
        f"deadline of a job, which was {request_timeout:g} s after the submit"
    )


def accepted(replies: Sequence[Any]) -> bytes:
    """Return the job id out of the replies to a submit and to what went before it.

    Raises:
        KeysideError: the first error among them.
    """
    for reply in replies:
        if isinstance(reply, KeysideError):
            raise reply
    return bytes(replies[-1])
