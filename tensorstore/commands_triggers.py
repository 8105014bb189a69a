"""Builders for the functions that are about triggers (docs/protocol.md, section 4): one each, as in `commands`."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from keyside.tensorstore.command import Command, Name, nothing, text, to_bytes
from keyside.tensorstore.commands import _fcall

__all__ = [
    "ListedTrigger",
    "TriggerStats",
    "ai_tensorchanged",
    "ai_triggerdel",
    "ai_triggerget",
    "ai_triggerinfo",
    "ai_triggerinfo_reset",
    "ai_triggerpause",
    "ai_triggerscan",
    "ai_triggerset",
    "ks_fire",
    "ks_tick",
    "ks_triggers",
    "trigger_counters",
]


class ListedTrigger(NamedTuple):
    """A trigger in a list.

    Attributes:
        name: of its key.
        on: publish, set, stream or schedule.
        source: the channel, the pattern, the key of the stream, or the milliseconds between two times.
        target: what it runs.
        state: active or paused.
    """

    name: str
    on: str
    source: str
    target: str
    state: str


class TriggerStats(NamedTuple):
    """What a trigger has done on a node.

    Attributes:
        fired: runs that it started.
        done: runs that gave results.
        errors: runs that failed, and events that could not start one.
        dropped: events that were left out, for want of room or because of its bounds.
        coalesced: runs that were taken back, since a later event made them needless.
        inflight: runs under way.
        last_error: text of the last error, empty if there was none.
        last_error_ms: when that was, server time.
        last_ms: when the last run ended, server time.
    """

    fired: int = 0
    done: int = 0
    errors: int = 0
    dropped: int = 0
    coalesced: int = 0
    inflight: int = 0
    last_error: str = ""
    last_error_ms: int = 0
    last_ms: int = 0


def ai_triggerset(name: Name, on: Sequence[Any], options: Sequence[Any], run: Sequence[Any]) -> Command[None]:
    """Set a trigger.

    Args:
        name: of it.
        on: what stands behind ON, such as `("SET", "frame:{cam}")`.
        options: what stands between that and RUN.
        run: what stands behind RUN: a target, INPUTS, and so on.
    """
    return _fcall("AI_TRIGGERSET", (name,), (b"ON", *on, *options, b"RUN", *run), nothing, repeatable=True)


def ai_triggerget(name: Name) -> Command[dict[str, Any]]:
    """Ask what a trigger is: the fields of its record, texts as bytes."""
    return _fcall("AI_TRIGGERGET", (name,), (), _pairs, readonly=True)


def _pairs(reply: Any) -> dict[str, Any]:
    return dict(zip(map(text, reply[::2]), reply[1::2], strict=True))


def ai_triggerdel(name: Name) -> Command[None]:
    """Delete a trigger."""
    return _fcall("AI_TRIGGERDEL", (name,), (), nothing)


def ai_triggerscan(cursor: Name | int, count: int = 100) -> Command[tuple[bytes, list[ListedTrigger]]]:
    """List triggers; the result is the next cursor, `b"0"` at the end, and a part of the list."""

    def parse(reply: Any) -> tuple[bytes, list[ListedTrigger]]:
        return bytes(reply[0]), [ListedTrigger(*map(text, entry)) for entry in reply[1]]

    return _fcall("AI_TRIGGERSCAN", (), (cursor, b"COUNT", count), parse, readonly=True)


def ai_triggerpause(name: Name, paused: bool) -> Command[None]:
    """Let a trigger rest, or go on."""
    return _fcall("AI_TRIGGERPAUSE", (name,), (b"ON" if paused else b"OFF",), nothing, repeatable=True)


def ai_triggerinfo(name: Name) -> Command[TriggerStats]:
    """Ask what a trigger has done on the node of its key."""
    return _fcall("AI_TRIGGERINFO", (name,), (), lambda reply: trigger_counters(_pairs(reply)), repeatable=True)


def ai_triggerinfo_reset(name: Name) -> Command[None]:
    """Clear the counters of a trigger on the node of its key."""
    return _fcall("AI_TRIGGERINFO", (name,), (b"RESETSTAT",), nothing, repeatable=True)


def trigger_counters(found: Mapping[str, Any]) -> TriggerStats:
    """Make the counters of fields by name: of AI_TRIGGERINFO, or as the hash `ks:{N}:tstats:<name>` has them."""

    def number(name: str) -> int:
        try:
            return int(found.get(name) or 0)
        except ValueError:
            return 0  # somebody has spoilt it

    values = {name: number(name) for name in TriggerStats._fields if name != "last_error"}
    return TriggerStats(**values, last_error=text(found.get("last_error") or b""))


def ai_tensorchanged(key: Name, number: tuple[bytes, int] | None = None) -> Command[int]:
    """Start the runs of the triggers that a tensor fires which was set by other means; the result is how many.

    Args:
        key: the tensor.
        number: of this call, with the id of the client: sent again it starts nothing that it has started.
    """
    args = () if number is None else (b"ID", *number)
    return _fcall("AI_TENSORCHANGED", (key,), args, int, repeatable=number is not None)


def ks_triggers() -> Command[list[tuple[bytes, bytes]]]:
    """Ask for the triggers that executors of a node serve: name and record of each."""

    def parse(reply: Any) -> list[tuple[bytes, bytes]]:
        return [(bytes(name), bytes(record)) for name, record in reply]

    return _fcall("KS_TRIGGERS", (), (), parse, readonly=True)


def ks_fire(
    trigger: Name, consumer: Name, source: Name, variables: Mapping[bytes, bytes] | Iterable[tuple[bytes, bytes]]
) -> Command[tuple[str, str]]:
    """Start the run that an event asks for; the result is what became of it, and a text about that."""
    pairs = list(variables.items()) if isinstance(variables, Mapping) else list(variables)
    flat = [part for pair in pairs for part in pair]
    args = (to_bytes(trigger), to_bytes(consumer), to_bytes(source), len(pairs), *flat)
    return _fcall("KS_FIRE", (), args, lambda reply: (text(reply[0]), text(reply[1])))


def ks_tick(trigger: Name, consumer: Name) -> Command[int]:
    """Ask whether a trigger on a schedule is due: milliseconds until then, 0 now, -1 for who does not lead it."""
    return _fcall("KS_TICK", (), (to_bytes(trigger), to_bytes(consumer)), int)
