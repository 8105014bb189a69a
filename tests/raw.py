"""The wire protocol by hand (docs/protocol.md): FCALL submits, BLPOP waits on the ticket, the reply is read as it is.

For tests of what the server and the executors do, without the Python client in between.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import pytest
import redis
from tests.executors import Executor
from tests.servers import wait_until

from keyside.tensorstore import npy
from keyside.tensorstore.errors import KeysideError, from_reply
from keyside.tensorstore.records import decode_reply

__all__ = [
    "Reply",
    "add",
    "answer",
    "at_once",
    "call",
    "execute",
    "get",
    "modelstore",
    "paused",
    "predict",
    "private_keys",
    "put",
    "refused",
    "run",
    "state",
    "store",
    "warm",
]

Array = np.ndarray[Any, Any]
Command = tuple[Any, ...]


class Reply(NamedTuple):
    """What a caller got.

    Attributes:
        target: the version that ran; empty where the outputs went to keys.
        outputs: by name; empty where they went to keys.
    """

    target: str
    outputs: dict[str, Array]


# --- commands


def modelstore(name: str | bytes, blob: bytes, *options: Any, backend: str = "ONNX", device: str = "CPU") -> Command:
    """The command that stores a version; its reply is the number of that."""
    return ("FCALL", "AI_MODELSTORE", 1, name, backend, device, *options, "REPLY", "VERSION", "BLOB", blob)


def predict(
    target: str | bytes,
    *inputs: Array | tuple[str, str | bytes] | bytes,
    outputs: Sequence[str | bytes] = (),
    options: Sequence[Any] = (),
) -> Command:
    """The command that runs a model; an input is an array, an npy file, or a pair such as ("REF", "x")."""
    specs: list[Any] = []
    keys = list(outputs)
    for one in inputs:
        if isinstance(one, tuple):
            specs += one
            keys.append(one[1])
        else:
            specs += ("VALUE", one if isinstance(one, bytes) else npy.to_bytes(one))
    if outputs:
        options = ("OUTPUTS", len(outputs), *outputs, *options)
    return ("FCALL", "AI_PREDICT", len(keys), *keys, target, "INPUTS", len(inputs), *specs, *options)


def execute(target: str, inputs: Sequence[str], outputs: Sequence[str], *options: Any) -> Command:
    """The command that runs a model on keys; an input may be two words such as "REF x"."""
    words = [word for one in inputs for word in one.split(" ")]
    keys = [one.split(" ")[-1] for one in inputs] + list(outputs)
    return (
        "FCALL", "AI_MODELEXECUTE", len(keys), *keys,
        target, "INPUTS", len(inputs), *words, "OUTPUTS", len(outputs), *outputs, *options,
    )  # fmt: skip


# --- calls


def call(db: Any, *command: Any) -> Any:
    """Send one command; an error reply is raised as its class of `keyside.tensorstore.errors`."""
    try:
        return db.execute_command(*command)
    except redis.ResponseError as error:
        raise from_reply(str(error)) from None


def at_once(db: Any, *commands: Command) -> list[Any]:
    """Send commands as one transaction: nothing comes between them, and one claim gets all jobs that they submit."""
    with db.pipeline(transaction=True) as pipe:
        for command in commands:
            pipe.execute_command(*command)
        replies = pipe.execute(raise_on_error=False)
    for reply in replies:
        if isinstance(reply, redis.ResponseError):
            raise from_reply(str(reply).rpartition("caused error: ")[2])
    return list(replies)


def answer(db: Any, ticket: bytes, seconds: float = 10) -> Reply:
    """Wait for the reply to a job; one that is an error is raised as its class."""
    popped = db.blpop([ticket], timeout=seconds)
    assert popped is not None, f"no reply within {seconds} s"
    reply = popped[1]
    if reply == b"OK":
        return Reply("", {})
    if reply[0] < 0x80:
        raise from_reply(reply.decode())
    record = decode_reply(reply)
    outputs = {}
    for name, value in record.outputs.items():
        if isinstance(value, str):
            outputs[name] = get(db, value)
            db.unlink(value)
        else:
            outputs[name] = npy.decode(value)
    return Reply(record.target, outputs)


def run(db: Any, command: Command, seconds: float = 10) -> Reply:
    """Submit a job and wait for its reply."""
    return answer(db, call(db, *command), seconds)


def refused(code: str, db: Any, *command: Any) -> KeysideError:
    """Send a command that must be refused with this code, with a text that says more than the code."""
    with pytest.raises(KeysideError) as caught:
        call(db, *command)
    assert caught.value.code == code, caught.value
    assert len(caught.value.text) > 10
    return caught.value


# --- tensors and models


def put(db: Any, key: str | bytes, array: Array, **options: Any) -> None:
    """SET a tensor."""
    db.set(key, npy.to_bytes(array), **options)


def get(db: Any, key: str | bytes) -> Array:
    """GET a tensor."""
    value = db.get(key)
    assert value is not None, f"no key {key!r}"
    return npy.decode(value)


def state(db: Any, name: str | bytes, version: int = 1) -> str:
    """State of a version."""
    return (db.hget(name, f"{version}:state") or b"").decode()


def add(db: Any, name: str | bytes, blob: bytes, *options: Any, **where: str) -> int:
    """Store a version and wait until an executor has loaded it, or failed to."""
    version: int = call(db, *modelstore(name, blob, *options, **where))
    wait_until(lambda: state(db, name, version) != "loading", f"{name!r} version {version} is loaded")
    return version


def store(db: Any, name: str | bytes, blob: bytes, *options: Any, **where: str) -> int:
    """Store a version and wait until it serves."""
    version = add(db, name, blob, *options, **where)
    assert state(db, name, version) == "ready", db.hget(name, f"{version}:reason")
    return version


def warm(db: Any, target: str, *inputs: Array) -> None:
    """Run a model until its executor knows how fast it is: then it claims many jobs at a time.

    Until what it can have made of it at most, as `Lane.note_cost` smoothes, allows for a dozen of them: a model of the
    test before may have run for seconds, and a busy machine may have held up one of these runs.
    """
    cost = 10.0
    end = time.monotonic() + 20
    while time.monotonic() < end:
        began = time.monotonic()
        run(db, predict(target, *inputs))
        cost += 0.3 * (time.monotonic() - began - cost)
        if cost < 0.004:
            return
    raise AssertionError(f"{target} never gets quick")


@contextmanager
def paused(executor: Executor) -> Iterator[None]:
    """Halt an executor for the length of a `with`."""
    executor.pause()
    try:
        yield
    finally:
        executor.resume()


def private_keys(db: Any) -> set[bytes]:
    """The kinds of private keys that belong to jobs: captures, outputs on their way, uploads, tickets."""
    return {key for key in db.scan_iter("ks:{*", count=1000) if key.partition(b"}:")[2].split(b":")[0] in KINDS}


KINDS = (b"cap", b"out", b"up", b"ticket")
