"""Calls of the tensor functions, for tests."""

from typing import Any

import pytest
from redis.exceptions import ResponseError

from keyside.tensorstore import npy
from keyside.tensorstore.errors import KeysideError, from_reply


def tensorset(db: Any, key: str | bytes, *args: object) -> Any:
    return db.fcall("AI_TENSORSET", 1, key, *args)


def tensorget(db: Any, key: str | bytes, *args: object) -> Any:
    return db.fcall_ro("AI_TENSORGET", 1, key, *args)


def stored(db: Any, key: str | bytes = "x") -> Any:
    """The tensor in a key, as the Python side of the contract reads it."""
    return npy.decode(db.get(key))


def refused(function: str, db: Any, *args: object) -> KeysideError:
    with pytest.raises(ResponseError) as caught:
        db.fcall(function, 1, *args)
    return from_reply(str(caught.value))
