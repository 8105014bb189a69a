"""Builders for what is said on channels, and for the server's notifications of what happens to a key."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from keyside.tensorstore.command import Command, Name, nothing, text, to_bytes

__all__ = [
    "EVENTS", "Message", "is_subscribed", "missing_events", "notified", "ping", "publish", "read_message",
    "subscribe", "turn_events_on", "watch_channel",
]  # fmt: skip

EVENTS = "Kg$xen"
"""The flags of `notify-keyspace-events` by which one hears what becomes of a key: of each key by name (K), generic (g)
and string ($) commands, expired (x) and evicted (e) keys, and new ones of any type (n)."""

_ALL = "g$lshztxed"
"""What the flag A stands for."""


class Message(NamedTuple):
    """What came on a channel.

    Attributes:
        channel: its name.
        data: the message; None: the server does not serve this channel any more, since its slot has moved.
    """

    channel: bytes
    data: bytes | None


def subscribe(channels: Sequence[bytes], *, sharded: bool = False) -> Command[None]:
    """Listen to channels: the server says so for each of them."""
    return Command((b"SSUBSCRIBE" if sharded else b"SUBSCRIBE", *channels), nothing)


def ping() -> Command[None]:
    """Ask for a sign of life."""
    return Command((b"PING",), nothing)


def publish(channel: Name, payload: bytes | memoryview, *, sharded: bool = False) -> Command[int]:
    """Say something on a channel; the result is how many have heard it, on a cluster on one node."""
    return Command((b"SPUBLISH" if sharded else b"PUBLISH", to_bytes(channel), payload), int)


def read_message(said: Any) -> Message | None:
    """Read what a server says on a connection that listens; None: that is no message.

    Args:
        said: a reply, as it came.
    """
    if not isinstance(said, list) or not said:
        return None
    if said[0] in (b"message", b"smessage") and len(said) == 3:
        return Message(bytes(said[1]), bytes(said[2]))
    if said[0] == b"sunsubscribe" and len(said) == 3 and said[1] is not None:
        return Message(bytes(said[1]), None)
    return None


def is_subscribed(said: Any, channel: bytes) -> bool:
    """Whether a server says that it has begun to serve a channel."""
    return isinstance(said, list) and len(said) == 3 and said[:2] in ([b"subscribe", channel], [b"ssubscribe", channel])


def watch_channel(database: int, key: bytes) -> bytes:
    """Return the channel on which a server says what happens to a key; the messages are names of events."""
    return b"__keyspace@%d__:%b" % (database, key)


def notified() -> Command[str]:
    """Ask of what events the server tells."""
    return Command((b"CONFIG", b"GET", b"notify-keyspace-events"), lambda reply: text(reply[1]) if reply else "")


def missing_events(flags: str) -> str:
    """Return what of `EVENTS` is not among these flags.

    Those that A stands for tell of every command by its name, which makes n needless; some servers do not even show n
    beside A.
    """
    on = flags + _ALL + "n" if "A" in flags else flags
    return "".join(flag for flag in EVENTS if flag not in on)


def turn_events_on(flags: str) -> Command[None]:
    """Have the server tell of `EVENTS` too, beside what it tells of already."""
    return Command((b"CONFIG", b"SET", b"notify-keyspace-events", flags + EVENTS), nothing)
