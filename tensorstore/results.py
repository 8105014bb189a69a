"""Replies to DAGs: what each of their operations has given (docs/protocol.md section 5)."""

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec

from keyside.tensorstore.errors import BadArg

__all__ = ["decode_results", "encode_results"]

_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder()


def encode_results(results: Sequence[str | bytes | Mapping[str, str]]) -> bytes:
    """Return the reply to a DAG, one msgpack map.

    Args:
        results: of each operation `OK`, `NA`, the text of its error, an npy file, or `{"key": name}`, a key that holds
            one.
    """
    return _ENCODER.encode({"results": results})


def decode_results(data: bytes | memoryview) -> list[str | bytes | dict[str, str]]:
    """Read the reply to a DAG.

    Raises:
        BadArg: the bytes are no such reply.
    """
    try:
        found = _DECODER.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadArg(f"not a reply to a DAG: {error}") from None
    results = found.get("results") if isinstance(found, dict) else None
    if not isinstance(results, list) or not all(map(_is_result, results)):
        raise BadArg("not a reply to a DAG: no list of results")
    return results


def _is_result(one: Any) -> bool:
    if isinstance(one, dict):
        return list(one) == ["key"] and isinstance(one["key"], str)
    return isinstance(one, str | bytes)
