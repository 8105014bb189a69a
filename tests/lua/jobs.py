"""The job functions by hand: submit without an executor, play the executor, look at what is left."""

import itertools
import re
from collections.abc import Sequence
from typing import Any, Self

import numpy as np
import pytest
from tests.servers import wait_until

from keyside.executor.protocol import GROUP, Finished, Job, complete, parse_entry
from keyside.executor.wire import Wire
from keyside.tensorstore import keys, npy
from keyside.tensorstore.errors import KeysideError, TryAgain
from keyside.tensorstore.keys import NodeKeys
from keyside.tensorstore.records import Signature, TensorSpec

ONE = Signature((TensorSpec("x", "FLOAT", (-1, 4)),), (TensorSpec("y", "FLOAT", (-1, 4)),))
"""The signature of most models here: one input, one output."""

TWO = Signature(
    (TensorSpec("a", "FLOAT", (-1, 2)), TensorSpec("b", "INT64", (-1,))),
    (TensorSpec("sum", "FLOAT", (-1, 2)), TensorSpec("count", "INT64", (-1,))),
)

ROW = npy.to_bytes(np.arange(4, dtype=np.float32).reshape(1, 4))
LARGE = npy.to_bytes(np.zeros((4096, 4), np.float32))  # too large to ride in an entry

SHAPES = (
    b"x", b"{a}x", b"x{a}", b"{}x", b"a}b{", b"}{", b"}x", b"{", b"}", b"{{a}}", b"{}{a}", b"{a", b"a}", b"x{}{a}",
    b"{a}{b}", b"a{b", b"{\xff\n}", b"\x00}", b" ", b"{ }", b"ks:{0}:x",
)  # fmt: skip
"""Every way in which braces can lie in a key."""

# What Lua, and not somebody who thought of the caller, says of an error.
LUA_ERROR = re.compile(
    r"user_function|user_script|attempt to|internal|stack overflow|bad argument|Lua redis lib|\bnil\b"
)

_numbers = itertools.count(1)


class Hand:
    """A raw connection, and the steps of callers and executors one by one.

    Args:
        url: The server.
        node: The node tag.
    """

    def __init__(self, url: str, node: bytes = b"0") -> None:
        self.node = NodeKeys(node)
        self.wire = Wire(url, name="hand", timeout=20.0)
        self.wire.connect()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.wire.close()

    def do(self, *command: Any) -> Any:
        """Send one command; an error reply is raised as what it stands for."""
        return self.wire.call(*command)

    def fcall(self, name: str, names: Sequence[Any], *args: Any) -> Any:
        """Call a function."""
        return self.wire.call("FCALL", name, len(names), *names, *args)

    def refused(self, name: str, names: Sequence[Any], *args: Any) -> KeysideError:
        """Call a function that must refuse and change nothing, with an error that was written for callers."""
        before = self.everything()
        with pytest.raises(KeysideError) as caught:
            self.fcall(name, names, *args)
        assert self.everything() == before
        assert not LUA_ERROR.search(str(caught.value)), caught.value
        return caught.value

    def everything(self) -> dict[bytes, tuple[bytes, bool]]:
        """All keys with what they hold and whether they expire, but for signs of life, which go by themselves."""
        names = sorted(key for key in self.do("KEYS", "*") if b"}:executor:" not in key)
        values = self.wire.call_many([("DUMP", key) for key in names])
        ttls = self.wire.call_many([("PTTL", key) for key in names])
        return {key: (bytes(value), ttl >= 0) for key, value, ttl in zip(names, values, ttls, strict=True)}

    def now(self) -> int:
        """The server's time in ms."""
        seconds, micros = self.do("TIME")
        return int(seconds) * 1000 + int(micros) // 1000

    # --- the caller

    def store(self, key: Any = "m", *options: Any, signature: Signature | None = ONE, blob: Any = None) -> int:
        """Store a version; with a signature it is made ready, as an executor does."""
        blob = b"blob %d" % next(_numbers) if blob is None else blob
        version: int = self.fcall("AI_MODELSTORE", [key], "ONNX", "CPU", *options, "REPLY", "VERSION", "BLOB", blob)
        if signature is not None:
            assert self.publish(key, version, signature) == 1
        return version

    def predict(self, *args: Any, target: Any = "m", value: bytes = ROW) -> Any:
        """Submit one value in hand; gives the ticket."""
        return self.fcall("AI_PREDICT", [], target, "INPUTS", 1, "VALUE", value, *args)

    def execute(self, inputs: Sequence[Any], outputs: Sequence[Any], *args: Any, target: Any = "m") -> Any:
        """Submit keys; gives the ticket."""
        return self.fcall(
            "AI_MODELEXECUTE", [*inputs, *outputs], target,
            "INPUTS", len(inputs), *inputs, "OUTPUTS", len(outputs), *outputs, *args,
        )  # fmt: skip

    def reply(self, ticket: Any) -> bytes | None:
        """Take a reply from a ticket if there is one."""
        found = self.do("LPOP", ticket)
        return None if found is None else bytes(found)

    # --- the executor

    def beat(self, consumer: str = "e1", *devices: str, ttl: int = 2000) -> Any:
        """Register."""
        return self.fcall("KS_BEAT", [], consumer, "{}", ttl, *(devices or ("CPU",)))

    def claim(self, consumer: str = "e1", count: int = 1000, device: str = "CPU", start: str = ">") -> list[Job]:
        """Read new jobs; from 0: those that the consumer has."""
        stream = self.node.jobs(device)
        got = self.do("XREADGROUP", "GROUP", GROUP, consumer, "COUNT", count, "STREAMS", stream, start)
        return [parse_entry(device, bytes(entry), fields) for _, entries in got or () for entry, fields in entries]

    def recover(self, consumer: str, lease: int = 0, limit: int = 3, device: str = "CPU") -> tuple[int, Job] | None:
        """Take a job over."""
        found = self.fcall("KS_RECOVER", [], device, consumer, lease, limit)
        return (int(found[0]), parse_entry(device, bytes(found[1][0]), found[1][1])) if found else None

    def publish(
        self, key: Any, version: int, signature: Signature | None, reason: str = "", digest: str = "0" * 64
    ) -> int:
        """End the load of a version: with a signature it is ready, without it has failed."""
        self.beat("loader")
        self.claim("loader")
        for job in self.claim("loader", start="0"):
            if job.op == b"load" and job.version == version:
                uid = job.model.rpartition(b"-")[0]
                state = "ready" if signature else "failed"
                text = signature.to_json() if signature else ""
                done: int = self.fcall(
                    "KS_PUBLISH", [key], "CPU", "loader", job.id, uid, version, state, digest, text, reason
                )
                return done
        raise AssertionError(f"no load of version {version} waits")

    def complete(
        self, consumer: str, ended: Sequence[Finished], *, held: int = 1000, model: bytes = b"", device: str = "CPU"
    ) -> bytes:
        """End jobs; gives the digits of KS_COMPLETE."""
        commands = complete(device, consumer.encode(), held, model, 1500, 3, ended)
        replies = self.wire.call_many(commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise AssertionError(str(reply))
        return bytes(replies[-1])

    def length(self, device: str = "CPU") -> int:
        """Number of entries in a queue."""
        return int(self.do("XLEN", self.node.jobs(device)))

    def pending(self, device: str = "CPU") -> dict[bytes, tuple[bytes, int]]:
        """Consumer and number of deliveries of each pending entry."""
        found = self.do("XPENDING", self.node.jobs(device), GROUP, "-", "+", 10000)
        return {bytes(entry): (bytes(consumer), int(times)) for entry, consumer, _, times in found}


def ok(job: Job, *outputs: tuple[Any, bytes, bytes]) -> Finished:
    """A job that ran well."""
    return Finished(job, b"OK", list(outputs), [])


def staged(job: Job, key: bytes, name: bytes, value: bytes, ms: int = 60_000) -> Finished:
    """A job that ran well and has one large output."""
    return Finished(job, b"OK", [(key, b"S", name)], [(name, value[:128], value[128:], ms)])


def healthy(hand: Hand) -> bool:
    """Whether Lua still works: a Valkey that one function has broken says of every key that it is not local."""
    try:
        hand.fcall("AI_MODELSCAN", [])
    except TryAgain:
        return False
    return True


def session(hand: Hand, names: Sequence[bytes], model: Any = "m") -> None:
    """Call every function as it is meant, on models and keys that are called like this, and on one model more."""
    hand.store(model)
    for name in names:
        key = name + b".x"
        hand.store(name)
        for value in (ROW, LARGE):
            hand.do("SET", key, value)
            hand.execute([key], [key], target=name)
            (job,) = hand.claim()
            assert hand.complete("e1", [staged(job, key, keys.output(key, "e1-1"), LARGE)]) == b"1"
        hand.fcall("AI_TENSORSET", [name + b".t"], "FLOAT", 1, 4, "VALUES", 1, 2, 3, 4)
        hand.fcall("AI_TENSORGET", [name + b".t"], "VALUES")
        hand.fcall("AI_MODELGET", [name])
        hand.fcall("AI_INFO", [name])
        hand.fcall("AI_MODELDEL", [name])
    hand.fcall("AI_MODELSCAN", [])
    ticket = b"ks:{%b}:t" % hand.node.tag
    submitted = hand.predict("ID", "c", 1, "TICKET", ticket, target=model)
    assert hand.fcall("AI_CANCEL", [], ticket, submitted) == 1
    hand.predict("TIMEOUT", 1, target=model)
    hand.predict(target=model)
    job, other = hand.claim()
    wait_until(lambda: hand.now() > job.deadline, "the deadline passes")
    assert hand.fcall("KS_EXPIRE", [], "CPU", job.id) == 1
    assert hand.fcall("KS_EXTEND", [], "CPU", "e1", other.id) == [other.id]
    assert hand.recover("e2") is not None
    assert hand.recover("e2", limit=1) is None
    key = names[-1] + b".x"
    hand.do("SET", key, LARGE)
    hand.execute([key], [key], target=model)
    hand.claim()
    hand.fcall("KS_LEAVE", [], "e1", "CPU", "!")
    assert hand.recover("e2") is not None
    assert hand.recover("e3", limit=1) is None
    _, letters = hand.fcall("AI_DEADSCAN", [], "0")
    hand.fcall("AI_DEADGET", [], letters[0][1])
    hand.fcall("AI_DEADRETRY", [], letters[0][1])
    hand.claim()
    assert hand.recover("e2", limit=1) is None
    _, letters = hand.fcall("AI_DEADSCAN", [], "0")
    assert hand.fcall("AI_DEADDEL", [], *(letter[1] for letter in letters)) == len(letters)
    hand.fcall("KS_LEAVE", [], "e2", "CPU")
    hand.fcall("KS_VERSION", [])
    assert hand.length() == 0
