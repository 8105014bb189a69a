"""A trigger as an executor knows it: what KS_TRIGGERS says of it, read with distrust."""

import dataclasses
import json
from collections.abc import Mapping
from typing import Any, Self

from keyside.executor.triggers.messages import variables_of

__all__ = ["KINDS", "Trigger"]

SHOWN = 20
"""Variables that an error names at most."""

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
        needs: the variables of its templates.
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
    needs: tuple[bytes, ...] = ()

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
                variables_of(b"\0".join(map(_bytes, record.get("run") or ()))),
            )  # fmt: skip
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            return None

    def wants(self, variables: Mapping[bytes, bytes]) -> list[bytes]:
        """Return the names and values of the variables that its templates use, one after the other.

        Where one is missing, all of them, for the error names what there is; the values cannot matter then.
        """
        flat: list[bytes] = []
        for name in self.needs:
            value = variables.get(name)
            if value is None:
                return [part for other in list(variables)[:SHOWN] for part in (other, b"")]
            flat += (name, value)
        return flat


def _bytes(text: Any) -> bytes:
    if not isinstance(text, str):
        raise TypeError("not a text")
    return text.encode("utf-8", "surrogateescape")
