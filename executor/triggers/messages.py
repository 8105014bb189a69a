"""What a message on a channel, an entry of a stream, and a pattern of keys come to."""

import json
import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["glob_of", "literally", "matcher", "of_entry", "of_message", "variables_of"]

SOURCE_MAX = 512
"""Bytes of an id in a message; a longer one does not name its event."""

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
            source = source if len(source) <= SOURCE_MAX else channel
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


_PART = re.compile(rb"\{\{|\}\}|\{[A-Za-z0-9_.:-]+\}|[^{}]+|.", re.DOTALL)
_SPECIAL = re.compile(rb"[*?\[\]\\^]")


def _parts(pattern: bytes) -> list[bytes | None]:
    """Return the literal texts of a pattern, and None for each capture; `{{` and `}}` are the braces themselves."""
    parts: list[bytes | None] = []
    for piece in _PART.findall(pattern):
        if len(piece) > 2 and piece[:1] == b"{":
            parts.append(None)
            continue
        literal = piece[:1] if piece in (b"{{", b"}}") else piece
        if parts and parts[-1] is not None:
            parts[-1] += literal
        else:
            parts.append(literal)
    return parts


def variables_of(text: bytes) -> tuple[bytes, ...]:
    """Return the names of the variables in a template, each once."""
    names = [piece[1:-1] for piece in _PART.findall(text) if len(piece) > 2 and piece[:1] == b"{"]
    return tuple(dict.fromkeys(names))


def literally(text: bytes) -> bytes:
    """Return the glob that matches this text alone."""
    return _SPECIAL.sub(rb"\\\g<0>", text)


def glob_of(pattern: bytes) -> bytes:
    """Return the glob, as PSUBSCRIBE takes it, that matches at least the keys that a pattern matches.

    Args:
        pattern: literal text with captures `{name}`.
    """
    return b"".join(b"*" if part is None else literally(part) for part in _parts(pattern))


@lru_cache(maxsize=1024)
def matcher(pattern: bytes) -> re.Pattern[bytes]:
    """Return what matches exactly the keys that a pattern matches, in linear time.

    A capture matches one byte or more without the literal byte behind it; the last one at the end, all that is left.
    """
    parts = _parts(pattern)
    made = b""
    for part, behind in zip(parts, [*parts[1:], None], strict=True):
        if part is not None:
            made += re.escape(part)
        else:
            made += b".+" if behind is None else b"[^" + re.escape(behind[:1]) + b"]+"
    return re.compile(made, re.DOTALL)
