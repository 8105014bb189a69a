"""Executors that die and stall, servers that are full: what the tests of faults do to them."""

import contextlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import redis as redis_py
from tests import more_models, raw
from tests.executors import Executor
from tests.servers import Server, wait_until

from keyside.executor.protocol import GROUP
from keyside.tensorstore.keys import NodeKeys

__all__ = [
    "NODE",
    "QUICK",
    "STREAM",
    "ZERO",
    "X",
    "answered_once",
    "busy",
    "calls",
    "executors",
    "full",
    "halt_in_claim",
    "held_by",
    "holders",
]  # fmt: skip

QUICK = {"lease_ms": 500, "beat_ms": 100}
NODE = NodeKeys()
STREAM = NODE.jobs("CPU")
X = np.arange(4, dtype=np.float32).reshape(1, 4)
ZERO = np.zeros((1, 1), np.int64)


@contextlib.contextmanager
def executors(server: Server, count: int) -> Iterator[list[Executor]]:
    """Some executors with short leases, started at the same time."""
    started = [Executor(server, **QUICK) for _ in range(count)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Executor.start, started))
        yield started
    except BaseException:
        for executor in started:
            print(executor.output)  # shown with the failure
        raise
    finally:
        for executor in started:
            executor.stop()


def halt_in_claim(db: Any, executor: Executor) -> None:
    """Halt an executor that is blocked in its claim: the next job is delivered to it, and waits there."""

    def claims() -> bool:
        # A claim ends after 5 s, and makes room for the next: of this one there must be enough left.
        clients = db.client_list()
        return any(one["cmd"] == "xreadgroup" and "b" in one["flags"] and int(one["idle"]) < 3 for one in clients)

    def halted() -> bool:
        if not claims():
            return False
        executor.pause()
        if claims():
            return True
        executor.resume()
        return False

    wait_until(halted, "the executor waits for jobs")


def holders(db: Any) -> dict[bytes, tuple[bytes, int]]:
    """Consumer and deliveries of each job that is held."""
    try:
        found = db.xpending_range(STREAM, GROUP, "-", "+", 1000)
    except redis_py.ResponseError:
        return {}
    return {one["message_id"]: (one["consumer"], one["times_delivered"]) for one in found}


def held_by(db: Any, running: list[Executor]) -> Executor:
    """Wait until a job is held; by which of these executors?"""
    held: dict[bytes, tuple[bytes, int]] = {}

    def claimed() -> bool:
        held.update(holders(db))
        return bool(held)

    wait_until(claimed, "a job is claimed")
    ((consumer, _), *_) = held.values()
    pid = json.loads(db.get(NODE.executor(consumer)))["pid"]
    return next(one for one in running if one.pid == pid)


def calls(db: Any, model: str) -> int:
    flat = db.fcall("AI_INFO", 1, model)
    return int(dict(zip(flat[::2], flat[1::2], strict=True))[b"calls"])


def busy(db: Any, seconds: float, *options: Any) -> bytes:
    """Submit a job that takes a while, and writes key y."""
    raw.put(db, "x", more_models.turns_for(seconds))
    ticket: bytes = raw.call(db, *raw.execute("slow", ["x"], ["y"], *options))
    return ticket


def answered_once(db: Any, ticket: bytes) -> None:
    """The reply is there, and no other follows it: nobody holds the job any more."""
    assert raw.answer(db, ticket).outputs == {}
    np.testing.assert_array_equal(raw.get(db, "y"), raw.get(db, "x"))
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    assert holders(db) == {}
    assert not db.exists(ticket)


@contextlib.contextmanager
def full(db: Any) -> Iterator[None]:
    """The server is at maxmemory for the length of a `with`."""
    db.config_set("maxmemory", 1)
    try:
        yield
    finally:
        db.config_set("maxmemory", 0)
