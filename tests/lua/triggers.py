"""Triggers by hand: set them, play the executor that serves them, hear what they say."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from tests.lua.jobs import LARGE, ROW, Hand
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


def lead(hand: Hand, name: Any, consumer: str = "e1") -> None:
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


def literal(text: bytes) -> bytes:
    """Text as a template writes it."""
    return text.replace(b"{", b"{{").replace(b"}", b"}}")


def session(hand: Hand, names: Sequence[bytes], model: bytes = b"m") -> None:
    """Call every function of triggers as it is meant, on keys, channels and streams that are called like this."""
    hand.store(model)
    run = ("RUN", literal(model), "INPUTS", 1)
    for name in (name for name in names if not name.startswith(b"ks:")):
        # Behind the name, so that all are in its slot, whatever braces it has.
        t = [name.replace(b"@", b"") + b".%d" % n for n in range(4)]
        key, words = name, ("COALESCE", "RATE", 9, "PER", 1000, "INFLIGHT", 9, "TTL", 1000)
        output = literal(key)
        hand.fcall("AI_TRIGGERSET", [t[0]], "ON", "SET", literal(key), "NOTIFY", *words, *run, "KEY", "{key}")
        hand.fcall("AI_TRIGGERSET", [t[1]], "ON", "PUBLISH", key, *words, "RESULTS", output, *run, "VALUE", "{payload}")
        hand.fcall("AI_TRIGGERSET", [t[2]], "ON", "STREAM", key, *run, "VALUE", "{payload}", "OUTPUTS", 1, output)
        hand.fcall("AI_TRIGGERSET", [t[3]], "ON", "SCHEDULE", 1, "KEYS", 1, key, *run, "KEY", "{member}")
        lead(hand, t[0])
        write(hand, key)
        assert fire(hand, t[0], key, key=key)[0] == "DOUBLE"
        for n in (0, 1, 3):
            lead(hand, t[n])
        hand.fcall("KS_TICK", [], t[3], "e1")
        assert fire(hand, t[3], key, member=key)[0] == "FIRED"
        jobs = hand.claim()
        hand.do("SET", key, LARGE)
        assert hand.fcall("AI_TENSORCHANGED", [key]) == 1
        assert hand.complete("e1", [done(job) for job in [*jobs, *hand.claim()]]) == b"111"
        hand.do("DEL", key)
        assert [fire(hand, t[1], "m", payload=ROW)[0] for _ in range(3)] == ["FIRED"] * 3
        assert hand.complete("e1", [done(job) for job in hand.claim()]) == b"11"
        hand.do("DEL", key)
        hand.do("XGROUP", "CREATE", key, b"ks" + t[2], "0", "MKSTREAM")
        entry = hand.do("XADD", key, "*", "a", "b")
        hand.do("XREADGROUP", "GROUP", b"ks" + t[2], "e1", "STREAMS", key, ">")
        hand.fcall("AI_TRIGGERSET", [t[2]], "ON", "STREAM", key, *run, "VALUE", "{payload}")
        assert fire(hand, t[2], entry, payload=ROW)[0] == "FIRED"
        assert hand.complete("e1", [done(job) for job in hand.claim()]) == b"1"
        hand.fcall("AI_TRIGGERSCAN", [], 0)
        hand.fcall("KS_TRIGGERS", [])
        for trigger in t:
            hand.fcall("AI_TRIGGERINFO", [trigger])
            hand.fcall("AI_TRIGGERPAUSE", [trigger], "ON")
            hand.fcall("AI_TRIGGERGET", [trigger])
            hand.fcall("AI_TRIGGERDEL", [trigger])
        hand.do("DEL", key)
    assert hand.length() == 0


class Ear:
    """Hears all results."""

    def __init__(self, pubsub: Any) -> None:
        self._pubsub = pubsub

    def raw(self) -> list[bytes]:
        """What has been published on this server since the last look: it comes before the answer to a PING."""
        found = []
        self._pubsub.ping()
        while (message := self._pubsub.get_message(timeout=20)) is None or message["type"] != "pong":
            assert message is not None, "no answer"
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
