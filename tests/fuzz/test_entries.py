"""What executors read from the server: another client may write anything there, and a real executor must bear it.

It must not crash, run what it should not, or spin; and it goes on serving good jobs in their time.
"""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import redis as redis_py
from hypothesis import given
from hypothesis import strategies as st
from tests import models, raw
from tests.executors import Executor
from tests.faults import QUICK
from tests.fuzz.budget import COUNTS, few, for_a_while
from tests.fuzz.records import SIGNATURE, entries, hostile_json, hostile_text, infos, model_fields
from tests.servers import Kind, Server, wait_until

from keyside.tensorstore.keys import NodeKeys

NODE = NodeKeys()
STREAM = NODE.jobs("CPU")
X = np.arange(4, dtype=np.float32).reshape(1, 4)
PATIENCE = 10.0


class Served(NamedTuple):
    """A server with an executor, and two models: one that serves, and one that only its records are spoilt of."""

    db: Any
    executor: Executor
    pid: int


@pytest.fixture(scope="module", params=get_args(Kind))
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    with (
        Server(request.param) as server,
        Executor(server, **QUICK, log_format="json") as executor,
        server.client(socket_timeout=PATIENCE + 5) as db,
    ):
        raw.store(db, "m", models.affine())
        raw.store(db, "spare", models.affine(scale=3.0))
        yield Served(db, executor, executor.pid)


texts = hostile_text.map(lambda text: text.encode("utf-8", "surrogateescape"))
Action = tuple[Any, ...]


@st.composite
def actions(draw: st.DrawFn, uid: str, spare: str) -> list[Action]:
    """Commands of somebody who writes into keys that are not his."""
    entry_id = st.sampled_from(["*"] * 9 + ["1-1", "99999999999999-0"])
    record = {
        "key": "spare",
        "uid": spare,
        "version": 1,
        "state": "ready",
        "device": "CPU",
        "signature": SIGNATURE,
        "reason": "",
    }
    consumer = st.sampled_from(["other", "", "e" * 300, "\0"])

    def one() -> Action:
        match draw(st.integers(0, 14)):
            case 0:
                return ("HSET", "spare", *(part for pair in draw(model_fields()).items() for part in pair))
            case 1:
                return (
                    "HSET",
                    NODE.catalog,
                    draw(st.sampled_from(["spare", "spare@1", "none", "@"])),
                    draw(hostile_json(record)),
                )
            case 2:
                return ("SET", NODE.executor(f"f{draw(st.integers(0, 3))}"), draw(infos()))
            case 3:
                return ("ZADD", NODE.executors, draw(st.sampled_from(["0", "1", "9e15", "-inf"])), draw(texts)[:1000])
            case 4:
                return (
                    "HSET",
                    NODE.stats(f"{uid}-1"),
                    draw(st.sampled_from(["calls", "duration", "samples", "x"])),
                    draw(texts),
                )
            case 5:
                return ("SET", b"ks:{0}:bytes:CPU", draw(texts))
            case 6:
                return ("XREADGROUP", "GROUP", "ks", draw(consumer), "COUNT", 2, "STREAMS", STREAM, ">")
            case 7:
                return draw(
                    st.sampled_from(
                        [
                            ("DEL", STREAM),
                            ("XGROUP", "DESTROY", STREAM, "ks"),
                            ("XTRIM", STREAM, "MAXLEN", 0),
                            ("DEL", NODE.executors),
                            ("SET", NODE.executors, "x"),
                            ("SET", NODE.dead, "x"),
                            ("DEL", NODE.stats(f"{uid}-1")),
                            ("DEL", b"ks:{0}:bytes:CPU"),
                            ("XGROUP", "CREATE", STREAM, "x", "0"),
                            ("XGROUP", "SETID", STREAM, "ks", "0"),
                            ("XGROUP", "SETID", STREAM, "ks", "$"),
                            ("PUBLISH", "ks:catalog", "junk"),
                            ("PUBLISH", "ks:catalog", "0 nan m"),
                            ("PUBLISH", "ks:catalog", b"\xff 1 "),
                            ("HSET", NODE.models, "none", "x"),
                            ("ZADD", b"ks:{0}:revs", 5, "none"),
                            ("SET", b"ks:{0}:revs", "x"),
                        ]
                    )
                )
            case _:
                return ("XADD", STREAM, draw(entry_id), *draw(entries(f"{uid}-1", "m", f"{spare}-1")))

    return [one() for _ in range(draw(st.integers(1, 12)))]


def mend(db: Any) -> None:
    """What was written over our keys goes, so that a good job has a chance: its key may hold another type."""
    for key in (NODE.executors, NODE.dead, b"ks:{0}:revs"):
        if db.type(key) == b"string":
            db.delete(key)
    if db.type(b"ks:{0}:bytes:CPU") == b"string" and not (db.get(b"ks:{0}:bytes:CPU") or b"0").isdigit():
        db.delete(b"ks:{0}:bytes:CPU")


def next_millisecond(db: Any) -> None:
    """A stream that was deleted gives the ids of this millisecond again: what is said of an old one hits the new."""
    then = db.time()
    wait_until(lambda: db.time()[1] // 1000 != then[1] // 1000, "a millisecond is over")


def good(db: Any, x: Any) -> None:
    """A good job is answered rightly, and in time."""
    began = time.monotonic()
    outputs = raw.run(db, raw.predict("m", x, options=("TIMEOUT", int(PATIENCE * 1000))), PATIENCE + 1).outputs
    np.testing.assert_allclose(outputs["y"], 2 * x + 1)
    assert time.monotonic() - began < PATIENCE


def ticks(pid: int) -> float:
    """Seconds of CPU that a process has had."""
    fields = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


@for_a_while
@given(data=st.data())
@few(25)
def test_an_executor_bears_what_others_write(served: Served, data: st.DataObject) -> None:
    db, executor, pid = served
    uid, spare = (db.hget(name, "uid") for name in ("m", "spare"))
    kept = db.hgetall("spare"), db.hgetall(NODE.catalog)
    db.set("list", "x")
    todo = data.draw(actions(uid.decode(), spare.decode()), label="what somebody writes")
    refused = 0
    for command in todo:
        try:
            db.execute_command(*command)
        except redis_py.ResponseError:  # the server takes not all of it
            refused += 1
        if command == ("DEL", STREAM):
            next_millisecond(db)
    COUNTS["hostile commands"] += len(todo) - refused
    mend(db)
    good(db, X)
    good(db, X + 1)
    assert executor.process is not None
    assert executor.process.poll() is None, executor.output[-3000:]
    assert executor.pid == pid
    assert "Traceback" not in executor.output, executor.output[-4000:]
    # The key of the spare is as it was, for the next round.
    for name, fields in (("spare", kept[0]), (NODE.catalog, kept[1])):
        db.delete(name)
        db.hset(name, mapping=fields)
    db.delete("ks:{0}:t:fuzz", "ks:{0}:fuzz:out")
    COUNTS["good jobs"] += 2


@pytest.mark.slow
def test_it_comes_to_rest_afterwards(served: Served) -> None:
    """What nobody can read is cleared away, and no thread of the executor is busy with it for ever."""
    db, executor, pid = served
    db.delete(STREAM, "ks:{0}:bytes:CPU")
    next_millisecond(db)
    good(db, X)
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    before, began = ticks(pid), time.monotonic()
    wait_until(lambda: time.monotonic() - began > 2, "two seconds are over")
    assert ticks(pid) - before < 0.8, "it spins"
    assert executor.process is not None
    assert executor.process.poll() is None
