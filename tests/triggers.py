"""Triggers by hand: FCALL sets them, SUBSCRIBE hears what comes of them. For tests of what executors do."""

import json
import time
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
from tests.servers import Server, wait_until

from keyside.tensorstore import npy

__all__ = ["Channel", "listened_to", "results_of", "set_trigger", "stats", "tensor", "wait_for_listener"]


def set_trigger(db: Any, name: str, on: Sequence[Any], run: Sequence[Any], options: Sequence[Any] = ()) -> None:
    """AI_TRIGGERSET."""
    assert db.fcall("AI_TRIGGERSET", 1, name, "ON", *on, *options, "RUN", *run) == b"OK"


def tensor(number: int) -> bytes:
    """A tensor INT64 [1, 1] as a file."""
    return npy.to_bytes(np.array([[number]], np.int64))


def stats(db: Any, name: str) -> dict[str, Any]:
    """AI_TRIGGERINFO."""
    flat = db.fcall("AI_TRIGGERINFO", 1, name)
    return {field.decode(): value for field, value in zip(flat[::2], flat[1::2], strict=True)}


def wait_for_listener(db: Any, channel: str, *, sharded: bool = False) -> None:
    """Wait until somebody listens to a channel."""
    command = "SHARDNUMSUB" if sharded else "NUMSUB"
    wait_until(lambda: db.execute_command("PUBSUB", command, channel)[1], f"somebody listens to {channel}")


def listened_to(db: Any) -> list[Any]:
    """What somebody listens to on behalf of users: channels, patterns, and streams that an executor reads."""
    channels = [*db.pubsub_channels(), *db.pubsub_shardchannels()]
    readers = [one["id"] for one in db.client_list() if one["name"] == "keyside-trigger-stream"]
    return [name for name in channels if not name.startswith(b"ks:")] + [None] * db.pubsub_numpat() + readers


def results_of(db: Any, stream: str) -> list[dict[str, Any]]:
    """What a stream of results has."""
    return [json.loads(fields[b"result"]) for _, fields in db.xrange(stream)]


class Channel:
    """Hears the results on the channel of a trigger; a context manager."""

    def __init__(self, server: Server, trigger: str, channel: str = "") -> None:
        self.name = channel or f"ks:results:{trigger}"
        self._client: Any = server.client()
        self._sub = self._client.pubsub()  # type: ignore[no-untyped-call]
        self.heard: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        self._sub.subscribe(self.name)
        assert self._sub.get_message(timeout=10)["type"] == "subscribe"
        return self

    def __exit__(self, *_: object) -> None:
        self._sub.close()
        self._client.close()

    def next(self, seconds: float = 10) -> dict[str, Any]:
        """The next result."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            message = self._sub.get_message(timeout=max(end - time.monotonic(), 0.001))
            if message is not None:
                found: dict[str, Any] = json.loads(message["data"])
                self.heard.append(found)
                return found
        raise AssertionError(f"nothing on {self.name} within {seconds} s; heard: {self.heard}")

    def several(self, count: int, seconds: float = 20) -> list[dict[str, Any]]:
        """So many results."""
        return [self.next(seconds) for _ in range(count)]

    def silent(self, seconds: float) -> None:
        """Nothing comes for so long."""
        message = self._sub.get_message(timeout=seconds)
        assert message is None, message
