"""What a message on a channel, an entry of a stream, and a pattern of keys come to."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["glob_of", "matcher", "of_entry", "of_message"]

FIELDS_MAX = 1000
"""Fields of one message that may be variables."""


def of_message(channel: bytes, payload: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the source of a message and its variables.

    `payload` and `channel` always; the fields of a JSON object that are strings or numbers (as they were written); of a
    JSON array `0`, `1` and so on. The source is the field `id` where there is one, else the channel.

    Args:
        channel: where it was published.
        payload: what was.
    """
    variables: dict[bytes, bytes] = {}
    source = channel
    if payload[:1] in (b"{", b"[", b" ", b"\n", b"\t", b"\r"):
        try:
            found = json.loads(payload, parse_int=_Number, parse_float=_Number, parse_constant=_Number)
        except (ValueError, RecursionError):
            found = None  # text that only looks like it: then a template that asks for a field says so
        if isinstance(found, dict):
            items = [(name, value) for name, value in found.items() if isinstance(value, str)][:FIELDS_MAX]
            variables = {_encode(name): _encode(value) for name, value in items}
            source = variables.get(b"id", channel)
        elif isinstance(found, list):
            texts = enumerate(found[:FIELDS_MAX])
            variables = {str(n).encode(): _encode(value) for n, value in texts if isinstance(value, str)}
    return source, variables | {b"payload": payload, b"channel": channel}


class _Number(str):
    """A number of JSON, in the digits that it was written in."""

    __slots__ = ()


def _encode(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def of_entry(entry_id: bytes, fields: Sequence[bytes]) -> dict[bytes, bytes]:
    """Return the variables of an entry of a stream: its fields, and `id`."""
    variables = dict(zip(fields[::2], fields[1::2], strict=True))
    return variables | {b"id": entry_id}


_CAPTURE = re.compile(rb"\{[^{}]+\}")
_SPECIAL = re.compile(rb"[*?\[\]\\^]")


def glob_of(pattern: bytes) -> bytes:
    """Return the glob, as PSUBSCRIBE takes it, that matches at least the keys that a pattern matches.

    Args:
        pattern: literal text with captures `{name}`.
    """
    return b"*".join(_SPECIAL.sub(rb"\\\g<0>", literal) for literal in _CAPTURE.split(pattern))


@lru_cache(maxsize=1024)
def matcher(pattern: bytes) -> re.Pattern[bytes]:
    """Return what matches exactly the keys that a pattern matches, in linear time.

    A capture matches one byte or more without the literal byte behind it; the last one at the end, all that is left.
    """
    parts = _CAPTURE.split(pattern)
    made = re.escape(parts[0])
    for literal in parts[1:]:
        made += b"[^" + re.escape(literal[:1]) + b"]+" if literal else b".+"
        made += re.escape(literal)
    return re.compile(made, re.DOTALL)
