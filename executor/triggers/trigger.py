"""A trigger as an executor knows it: what KS_TRIGGERS says of it, read with distrust."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

__all__ = ["KINDS", "Trigger"]

KINDS = ("publish", "set", "stream", "schedule")


@dataclasses.dataclass(frozen=True, slots=True)
class Trigger:
    """One trigger.

    Attributes:
        name: of its key.
        kind: publish, set, stream or schedule.
        uid: identity of the key since it was created: another uid, another trigger of the same name.
        source: the channel, the pattern of keys, or the stream key.
        paused: whether it rests.
        sharded: whether the channel is one of sharded pub/sub.
        group: of the stream.
        start: id after which a group that has to be made begins; `$`: with what comes from now on.
        created: server time in ms when the trigger was set; 0: not known.
        members: the key that holds the members of a schedule; empty: `keys` are they.
        keys: the members of a schedule.
        inflight: runs that may be under way at a time; 0: no bound of the trigger's own.
        texts: what its templates look like, all together: variables that do not occur in it need not be sent.
    """

    name: bytes
    kind: str
    uid: str = ""
    source: bytes = b""
    paused: bool = False
    sharded: bool = False
    group: bytes = b""
    start: bytes = b"$"
    created: int = 0
    members: bytes = b""
    keys: tuple[bytes, ...] = ()
    inflight: int = 0
    texts: bytes = b""

    @classmethod
    def read(cls, name: bytes, raw: bytes) -> Self | None:
        """Read a record; None if somebody has put something else there."""
        try:
            record = json.loads(raw.decode("utf-8", "surrogateescape"))
            kind = record["on"]
            if kind not in KINDS:
                return None
            group = _bytes(record.get("group") or "") or b"ks" + name
            return cls(
                name, kind, str(record.get("uid", "")), _bytes(record.get("source") or ""),
                record.get("state") == "paused", bool(record.get("sharded")), group,
                _bytes(record.get("from") or "$"), int(record.get("created") or 0), _bytes(record.get("members") or ""),
                tuple(map(_bytes, record.get("keys") or ())), int(record.get("inflight") or 0),
                b"\0".join(map(_bytes, record.get("run") or ())),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def wants(self, variables: Mapping[bytes, bytes]) -> list[bytes]:
        """Return the names and values of the variables that its templates use, one after the other."""
        flat: list[bytes] = []
        for name, value in variables.items():
            if b"{%b}" % name in self.texts:
                flat += (name, value)
        return flat


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError("not a text")
    return text.encode("utf-8", "surrogateescape")
