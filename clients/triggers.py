"""What sets a trigger off, and what one is. No I/O happens here.

client.set_trigger("digits", OnPublish("images"), "digits", [Payload()])
client.set_trigger("boxes", OnSet("frame:{cam}"), "detector", ["frame:{cam}"], outputs=["boxes:{cam}"])
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from keyside.clients.inputs import Key
from keyside.tensorstore.command import Command, Name, text, to_bytes
from keyside.tensorstore.commands_triggers import TriggerStats, trigger_counters
from keyside.tensorstore.errors import BadArg
from keyside.tensorstore.keys import NodeKeys

__all__ = [
    "On", "OnPublish", "OnSchedule", "OnSet", "OnStream", "Payload", "TriggerInfo", "Value", "added", "counters_at",
    "options", "run",
]  # fmt: skip

_MODES = {"copy": b"KEY", "ref": b"REF", "own": b"OWN"}
_PRIORITIES = ("normal", "high", "low")


@dataclass(frozen=True, slots=True)
class OnPublish:
    """A message on a channel.

    Its variables: `{payload}`, the message, which may be a `.npy` file; `{channel}`; of a message that is a JSON object
    its fields, of a JSON array `{0}`, `{1}`, ...

    Attributes:
        channel: its name.
        sharded: it is one of SPUBLISH.
    """

    channel: Name
    sharded: bool = False

    def words(self) -> list[Any]:
        """Return what stands behind ON."""
        return [b"PUBLISH", to_bytes(self.channel), *((b"SHARDED",) if self.sharded else ())]


@dataclass(frozen=True, slots=True)
class OnSet:
    """A tensor key whose name fits a pattern is written.

    Its variables: what the pattern captures, and `{key}`.

    Attributes:
        pattern: text with up to four captures, as in `frame:{cam}`.
        notify: also when a client without Keyside writes it, as far as the server tells of that: at most once for each
            write, and not for certain.
    """

    pattern: Name
    notify: bool = False

    def words(self) -> list[Any]:
        """Return what stands behind ON."""
        return [b"SET", to_bytes(self.pattern), *((b"NOTIFY",) if self.notify else ())]


@dataclass(frozen=True, slots=True)
class OnStream:
    """An entry comes into a stream.

    Its variables: the fields of the entry, and `{id}`.

    Attributes:
        key: of the stream.
        group: that reads it; None: one of the trigger's own.
        start: id of the entry behind which a new group begins: `$`, with what comes from now on; `0`, with the first.
    """

    key: Name
    group: str | None = None
    start: str = "$"

    def words(self) -> list[Any]:
        """Return what stands behind ON."""
        group = () if self.group is None else (b"GROUP", self.group)
        return [b"STREAM", to_bytes(self.key), *group, b"FROM", self.start]


@dataclass(frozen=True, slots=True)
class OnSchedule:
    """Every so many seconds, for each of a number of keys.

    Its variables: `{member}`, one of them in turn, and `{due}`, when it was due in ms.

    Attributes:
        seconds: from one time to the next.
        keys: the members.
        members: key of a set, list or sorted set that holds them, instead.

    Raises:
        BadArg: there are not just one of both, or it is no time.
    """

    seconds: float
    keys: Sequence[Name] | None = None
    members: Name | None = None

    def __post_init__(self) -> None:
        if (self.keys is None) == (self.members is None):
            raise BadArg("a schedule takes either keys, a list of names, or members, the key of a set or list of them")
        if self.keys is not None and (isinstance(self.keys, str | bytes) or not self.keys):
            raise BadArg("keys of a schedule are a list of names")
        _ms("seconds of a schedule", self.seconds)

    def words(self) -> list[Any]:
        """Return what stands behind ON."""
        if self.members is not None:
            return [b"SCHEDULE", _ms("seconds", self.seconds), b"MEMBERS", to_bytes(self.members)]
        names = [to_bytes(name) for name in self.keys or ()]
        return [b"SCHEDULE", _ms("seconds", self.seconds), b"KEYS", len(names), *names]


On = OnPublish | OnSet | OnStream | OnSchedule


@dataclass(frozen=True, slots=True)
class Value:
    """An input whose tensor comes with the event: a variable that holds a `.npy` file.

    Attributes:
        template: such as `{image}`, the field `image` of a stream's entry.
    """

    template: str


def Payload() -> Value:  # noqa: N802  # reads as what it stands for
    """Make an input of the message itself, which is a `.npy` file."""
    return Value("{payload}")


@dataclass(frozen=True, slots=True)
class TriggerInfo:
    """What a trigger is.

    Attributes:
        name: of its key.
        state: active or paused.
        on: publish, set, stream or schedule.
        source: the channel, the pattern or the key of the stream; empty for a schedule.
        target: what it runs.
        run: all of what it runs, as AI_PREDICT takes it.
        channel: on which results are published.
        results: the stream to which they are added, if any.
        on_error: publish, pause or drop.
        options: the others, by the names that AI_TRIGGERGET gives them.
    """

    name: str
    state: str
    on: str
    source: str
    target: str
    run: tuple[str, ...]
    channel: str
    results: str | None
    on_error: str
    options: Mapping[str, Any]

    @classmethod
    def read(cls, fields: Mapping[str, Any]) -> "TriggerInfo":
        """Make it of the fields of AI_TRIGGERGET."""
        found = {name: _readable(value) for name, value in fields.items()}
        run = tuple(map(str, found.pop("run", ())))
        return cls(
            name=str(found.pop("name", "")),
            state=str(found.pop("state", "")),
            on=str(found.pop("on", "")),
            source=str(found.pop("source", "")),
            target=run[0] if run else "",
            run=run,
            channel=str(found.pop("channel", "")),
            results=found.pop("results", None),
            on_error=str(found.pop("onerror", "")),
            options=found,
        )


def _readable(value: Any) -> Any:
    if isinstance(value, bytes):
        return text(value)
    return [_readable(one) for one in value] if isinstance(value, list) else value


def run(
    target: Name, inputs: object, outputs: Sequence[Name] | Name | None, timeout: float | None, priority: str
) -> list[Any]:
    """Make what stands behind RUN.

    Args:
        target: what to run.
        inputs: one or a list of them, by position, or a mapping, by name: templates of keys, `Key`, `Value`, or
            features.
        outputs: templates of keys for the results, if they shall go to keys.
        timeout: seconds until the deadline of each run.
        priority: of the runs.

    Raises:
        BadArg: one of them is none.
    """
    if isinstance(inputs, Mapping):
        names, items = list(inputs), list(inputs.values())
    else:
        names, items = [], list(inputs) if isinstance(inputs, list | tuple) else [inputs]
    if not items:
        raise BadArg("a trigger takes at least one input")
    words: list[Any] = [to_bytes(target), b"INPUTS", len(items)]
    for item in items:
        words += _input(item)
    if names:
        words += [b"NAMES", len(names), *map(to_bytes, names)]
    if outputs is not None:
        keys = [outputs] if isinstance(outputs, str | bytes) else list(outputs)
        words += [b"OUTPUTS", len(keys), *map(to_bytes, keys)]
    if timeout is not None:
        words += [b"TIMEOUT", _ms("timeout", timeout)]
    if priority not in _PRIORITIES:
        raise BadArg(f"a priority is high, normal or low, not {priority!r}")
    return words if priority == "normal" else [*words, b"PRIORITY", priority.upper()]


def _input(item: object) -> list[Any]:
    if isinstance(item, str | bytes):
        return [b"KEY", to_bytes(item)]
    if isinstance(item, Value):
        return [b"VALUE", item.template]
    if isinstance(item, Key):
        return [_MODES[item.mode], to_bytes(item.name)]
    words = getattr(item, "words", None)  # of a feature
    if isinstance(words, tuple):
        return list(words)
    raise BadArg(
        f"an input of a trigger is the template of a key, a Key, a Value, Payload() or a feature, not "
        f"{type(item).__name__}: set a tensor that is always the same to a key, and name that"
    )


def options(
    *,
    channel: Name | None,
    results: Name | None,
    maxlen: int | None,
    coalesce: bool,
    rate: tuple[int, float] | None,
    inflight: int | None,
    ttl: float | None,
    on_error: Literal["publish", "pause", "drop"],
) -> list[Any]:
    """Make what stands between ON and RUN; see `set_trigger`.

    Raises:
        BadArg: one of them is out of range.
    """
    words: list[Any] = []
    if channel is not None:
        words += [b"CHANNEL", to_bytes(channel)]
    if results is not None:
        words += [b"RESULTS", to_bytes(results)]
    if maxlen is not None:
        words += [b"MAXLEN", maxlen]
    if coalesce:
        words.append(b"COALESCE")
    if rate is not None:
        count, seconds = rate
        words += [b"RATE", count, b"PER", _ms("seconds of a rate", seconds)]
    if inflight is not None:
        words += [b"INFLIGHT", inflight]
    if ttl is not None:
        words += [b"TTL", _ms("ttl", ttl)]
    if on_error not in ("publish", "pause", "drop"):
        raise BadArg(f"on_error is publish, pause or drop, not {on_error!r}")
    return words if on_error == "publish" else [*words, b"ONERROR", on_error.upper()]


def counters_at(tag: bytes, name: Name) -> Command[TriggerStats]:
    """Read what a trigger has done on the node of a tag, of whose runs under way it does not tell."""
    fields = [field for field in TriggerStats._fields if field != "inflight"]

    def parse(reply: Any) -> TriggerStats:
        return trigger_counters(dict(zip(fields, reply, strict=True)))

    return Command((b"HMGET", NodeKeys(tag).tstats(to_bytes(name)), *fields), parse, repeatable=True)


def added(found: Sequence[TriggerStats]) -> TriggerStats:
    """Add up what a trigger has done on several nodes."""
    names = ("fired", "done", "errors", "dropped", "coalesced", "inflight")
    sums = {name: sum(getattr(one, name) for one in found) for name in names}
    last = max(found, key=lambda one: one.last_error_ms)
    return last._replace(**sums, last_ms=max(one.last_ms for one in found))


def _ms(what: str, seconds: object) -> int:
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0.0005 <= seconds <= 2_678_400:
        raise BadArg(f"{what}: 0.001 to 2678400, not {seconds!r}")
    return max(1, round(seconds * 1000))
