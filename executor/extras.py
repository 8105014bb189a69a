"""The field x of job entries: what goes along with a script, a graph, a DAG or a trigger (docs/protocol.md section 7).

It is read with distrust, and once: calls of one graph have the same one.
"""

import re
from typing import Any, Final

import msgpack

__all__ = ["MODEL_ID", "MOST", "NOTHING", "BadEntry", "Extra", "read_extra"]

MODEL_ID: Final = re.compile(rb"[A-Za-z0-9]{1,64}-[1-9][0-9]{0,15}")
MOST: Final = 2**53 - 1

_KEPT: Final = 512
_KEPT_BYTES: Final = 2048
_REPEATED: Final = frozenset((b"f", b"k", b"a", b"m"))
"""What calls of one script or graph have in common; programs of DAGs and sources of events are each another."""
_known: "dict[bytes, Extra]" = {}


class BadEntry(ValueError):
    """A stream entry that no function of ours has made."""


class Extra(dict[bytes, Any]):
    """The field x, never to be changed: jobs may share it.

    Attributes:
        function: of a script; None: it is no call of one.
        key_names: of that call.
        args: of that call.
        members: what a graph or DAG runs: target, id of the version, and key of its model.
    """

    __slots__ = ("args", "function", "key_names", "members")

    def __init__(self, fields: dict[bytes, Any]) -> None:
        super().__init__(fields)
        function: bytes | None = fields.get(b"f")
        self.function = None if function is None else _text(function)
        self.key_names = tuple([_text(key) for key in fields.get(b"k", ())])
        self.args = tuple([_text(arg) for arg in fields.get(b"a", ())])
        self.members = tuple([(_text(target), model.decode(), key) for target, model, key, _ in fields.get(b"m", ())])


NOTHING: Final = Extra({})


def read_extra(raw: bytes) -> Extra:
    """Read the field x: a map whose lists hold what they should.

    Raises:
        BadEntry: it is not one that our functions make. Likewise ValueError, TypeError and what msgpack raises.
    """
    known = _known.get(raw)
    if known is not None:
        return known
    extra = Extra(_read(raw))
    if len(raw) <= _KEPT_BYTES and _REPEATED.issuperset(extra):
        if len(_known) >= _KEPT:
            _known.clear()
        _known[raw] = extra
    return extra


def _read(raw: bytes) -> dict[bytes, Any]:
    extra = msgpack.unpackb(raw, raw=True, strict_map_key=False)
    if type(extra) is not dict:
        raise BadEntry("x is not a map")
    if type(extra.get(b"f", b"")) is not bytes:
        raise BadEntry("x names no function")
    for name in (b"k", b"a", b"e"):
        texts = _listed(extra, name)
        if any(type(text) is not bytes for text in texts):
            raise BadEntry("x has a text that is none")
    if b"e" in extra and len(extra[b"e"]) < 2:  # trigger and source
        raise BadEntry("x names no source of an event")
    for member in _listed(extra, b"m"):
        if type(member) is not list or tuple(map(type, member)) != (bytes, bytes, bytes, int):
            raise BadEntry("x has a member that is none")
        if not MODEL_ID.fullmatch(member[1]) or not 0 < member[3] <= MOST:
            raise BadEntry("a member is no version of a model")
    return extra


def _listed(extra: dict[bytes, Any], name: bytes) -> list[Any]:
    found = extra.get(name)
    if found is None or found == {}:  # Lua has one kind of empty table
        extra.pop(name, None)
        return []
    if type(found) is not list:
        raise BadEntry("x has something else than a list")
    return found


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")
