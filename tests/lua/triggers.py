"""Triggers by hand: set them, play the executor that serves them, hear what they say."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.lua.jobs import Hand
from tests.servers import Server

from keyside.executor.protocol import Finished, Job

RUN = ("RUN", "m", "INPUTS", 1, "KEY", "{key}")
"""What most triggers here run, on the key that was set."""


def onset(hand: Hand, name: Any, pattern: Any, *words: Any, run: tuple[Any, ...] = RUN) -> None:
    """Set a trigger ON SET; words stand before RUN."""
    assert hand.fcall("AI_TRIGGERSET", [name], "ON", "SET", pattern, *words, *run) == b"OK"


def write(hand: Hand, key: Any) -> None:
    """Set a small tensor that the model m takes."""
    assert hand.fcall("AI_TENSORSET", [key], "FLOAT", 1, 4, "VALUES", 1, 2, 3, 4) == b"OK"


def lead(hand: Hand, name: str, consumer: str = "e1") -> None:
    """Let an executor lead a trigger."""
    hand.do("SET", hand.node.lead(name), consumer, "PX", 60_000)


def fire(hand: Hand, name: Any, source: Any, consumer: str = "e1", **variables: Any) -> tuple[str, str]:
    """Say that an event was seen."""
    flat = [part for pair in variables.items() for part in pair]
    status, text = hand.fcall("KS_FIRE", [], name, consumer, source, len(variables), *flat)
    return status.decode(), text.decode()


def info(hand: Hand, name: Any) -> dict[str, Any]:
    """The counters of a trigger."""
    flat = hand.fcall("AI_TRIGGERINFO", [name])
    return {field.decode(): value for field, value in zip(flat[::2], flat[1::2], strict=True)}


def done(job: Job, *outputs: tuple[Any, bytes, bytes], text: bytes = b'{"outputs":{}}') -> Finished:
    """A run that an executor has ended, with what it says."""
    return Finished(job, text, list(outputs), [])


class Ear:
    """Hears all results."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    def raw(self) -> list[bytes]:
        """What has been published since the last look."""
        found = []
        while (message := self._pubsub.get_message(timeout=0.05)) is not None:
            if message["type"] == "pmessage":
                found.append(message["data"])
        return found

    def heard(self) -> list[dict[str, Any]]:
        """The same, read."""
        return [json.loads(text) for text in self.raw()]

    def errors(self) -> list[str]:
        """The errors among it, all of which it must be."""
        return [result["error"] for result in self.heard()]


@contextmanager
def listening(server: Server, pattern: str = "ks:results:*") -> Iterator[Ear]:
    """Listen to results."""
    with server.client() as client, client.pubsub() as pubsub:
        pubsub.psubscribe(pattern)
        assert pubsub.get_message(timeout=5)["type"] == "psubscribe"
        yield Ear(pubsub)
