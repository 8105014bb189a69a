"""Servers that restart, forget or are full under a running executor; deadlines, cancelled jobs and lost callers."""

import time
from collections.abc import Iterator
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
from tests import models, more_models, raw
from tests.executors import Executor
from tests.faults import (
    QUICK,
    STREAM,
    ZERO,
    X,
    answered_once,
    busy,
    calls,
    full,
    held_by,
)
from tests.servers import Kind, Server, wait_until

from keyside.executor.protocol import GROUP
from keyside.tensorstore.errors import InputLost, KeysideError, OutOfMemory, TimedOut


class Served(NamedTuple):
    """A server with one executor."""

    server: Server
    db: Any
    executor: Executor


@pytest.fixture(scope="module", params=get_args(Kind))
def _served(request: pytest.FixtureRequest) -> Iterator[tuple[Server, Executor]]:
    with (
        Server(request.param, appendonly="yes", appendfsync="always") as server,
        Executor(server, **QUICK) as executor,
    ):
        yield server, executor


@pytest.fixture
def served(_served: tuple[Server, Executor]) -> Iterator[Served]:
    """A server with one executor, for tests that do not end it."""
    server, executor = _served
    with server.client() as client:
        client.flushall()
        server.load_library()
        wait_until(executor.registered, "the executor registers again")
        yield Served(server, client, executor)


def test_a_running_job_is_cancelled(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.5)
    held_by(db, [executor])
    assert db.fcall("AI_CANCEL", 0, ticket) == 1
    raw.run(db, raw.predict("slow", ZERO))
    assert db.exists("y", ticket) == 0
    assert calls(db, "slow") == 1


# --- deadlines


def told(db: Any, executor: Executor, seconds: float) -> tuple[list[float], set[bytes]]:
    """Let jobs reach their deadlines behind a run that takes so long: how late each was told, in ms, and what."""
    first = busy(db, seconds, "TIMEOUT", 300)
    held_by(db, [executor])
    tickets = {first: 300}
    for i in range(50):  # more than are claimed ahead: most of them wait in the stream
        raw.put(db, "x", ZERO)
        tickets[raw.call(db, *raw.execute("slow", ["x"], [f"y{i}"], "TIMEOUT", 400 + 5 * i))] = 400 + 5 * i
    submitted = time.monotonic()
    late, said = [], set()
    while tickets:
        name, reply = db.blpop(list(tickets), timeout=30)
        late.append((time.monotonic() - submitted) * 1000 - tickets.pop(name))
        said.add(reply.partition(b" ")[0])
    raw.run(db, raw.predict("slow", ZERO), 60)  # what was running has ended by now
    return sorted(late), said


def test_jobs_are_answered_at_their_time(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    for seconds in (2, 4, 8):  # where the machine was too busy to tell them in time, once more
        late, said = told(db, executor, seconds)
        written = db.unlink(*(f"y{i}" for i in range(50)))
        if late[-5] < 300 and late[-1] < 1000 and said == {b"TIMEDOUT"}:
            break
    assert late[-5] < 300
    assert late[-1] < 1000, "a busy machine may hold up one or the other"
    assert said == {b"TIMEDOUT"}
    assert written == 0
    assert db.xlen(STREAM) == 0


def test_an_executor_stopped_past_the_deadline(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.5, "TIMEOUT", 900)  # long enough for a busy machine to halt it meanwhile
    held_by(db, [executor])
    with raw.paused(executor):
        wait_until(lambda: time.time() * 1000 > _deadline(db) + 50, "the deadline passes")
    with pytest.raises(TimedOut):
        raw.answer(db, ticket)
    raw.run(db, raw.predict("slow", ZERO))
    assert db.exists("y", ticket) == 0


def _deadline(db: Any) -> int:
    import msgpack

    ((_, fields),) = db.xrange(STREAM)
    return int(msgpack.unpackb(fields[b"h"], raw=True)[5])


# --- the server


@pytest.mark.parametrize("how", ["restart", "crash"])
def test_the_server_restarts(served: Served, how: str) -> None:
    server, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.5)
    held_by(db, [executor])
    raw.put(db, "z", ZERO)
    queued = raw.call(db, *raw.execute("slow", ["z"], ["w"]))
    if how == "crash":
        server.kill()
        server.start()
    else:
        server.restart()
    answered_once(db, ticket)
    assert raw.answer(db, queued).outputs == {}
    assert raw.run(db, raw.predict("slow", ZERO)).outputs["y"] == 0
    assert executor.registered()


def test_flushall_under_a_running_executor(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.3)
    held_by(db, [executor])
    db.flushall()
    raw.store(db, "m", models.affine())
    np.testing.assert_array_equal(raw.run(db, raw.predict("m", X)).outputs["y"], 2 * X + 1)
    assert db.exists("y", ticket) == 0, "of the job that was flushed nothing comes back"
    wait_until(executor.registered, "it is there again")


def test_a_queue_that_is_deleted(served: Served) -> None:
    _, db, _ = served
    raw.store(db, "m", models.affine())
    db.delete(STREAM)
    np.testing.assert_array_equal(raw.run(db, raw.predict("m", X)).outputs["y"], 2 * X + 1)
    db.xgroup_destroy(STREAM, GROUP)
    np.testing.assert_array_equal(raw.run(db, raw.predict("m", X)).outputs["y"], 2 * X + 1)


def test_function_flush_under_a_running_executor(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.3)
    held_by(db, [executor])
    db.function_flush()
    answered_once(db, ticket)  # it loads the library again, and then ends the job
    assert raw.run(db, raw.predict("slow", ZERO)).outputs["y"] == 0


def test_function_flush_while_nothing_happens(served: Served) -> None:
    _, db, _ = served
    raw.store(db, "m", models.affine())
    db.function_flush()

    def works() -> bool:
        try:
            return bool(raw.run(db, raw.predict("m", X)).outputs)
        except KeysideError as error:
            if "Function not found" in str(error):
                return False
            raise

    wait_until(works, "the library is there again", 5)


def test_connections_of_the_executor_are_killed(served: Served) -> None:
    _, db, _ = served
    raw.store(db, "echo", models.echo_int64())
    tickets = {}
    for i in range(300):
        if i % 50 == 25:
            db.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        tickets[raw.call(db, *raw.predict("echo", np.array([[i]], np.int64)))] = i
    for ticket, i in tickets.items():
        assert raw.answer(db, ticket).outputs["y"].item() == i
    assert db.exists(*tickets) == 0
    assert calls(db, "echo") == 300
    assert db.xlen(STREAM) == 0


def test_entries_that_nobody_can_read(served: Served) -> None:
    _, db, _ = served
    raw.store(db, "m", models.affine())
    for fields in ({"a": "b"}, {"h": ""}, {"h": b"\x9c" + b"\xc0" * 12}, {"h": b"\x9c\x01\xa3run" + b"\x01" * 10}):
        db.xadd(STREAM, fields)
    np.testing.assert_array_equal(raw.run(db, raw.predict("m", X)).outputs["y"], 2 * X + 1)
    wait_until(lambda: db.xlen(STREAM) == 0, "they are cleared away")


def test_an_input_is_evicted_before_its_job_runs(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "m", models.affine())
    raw.put(db, "x", np.ones((5000, 4), np.float32))
    with raw.paused(executor):
        captured = raw.call(db, *raw.execute("m", ["x"], ["y"]))
        referred = raw.call(db, *raw.execute("m", ["REF x"], ["y"]))
        db.delete("x", *db.keys("ks:{x}:cap:*"))
    for ticket in (captured, referred):
        with pytest.raises(InputLost):
            raw.answer(db, ticket)
    assert not db.exists("y")


# --- memory


def test_at_maxmemory_before_the_submit(served: Served) -> None:
    _, db, _ = served
    raw.store(db, "m", models.affine())
    with full(db), pytest.raises(KeysideError, match="maxmemory"):
        raw.call(db, *raw.predict("m", X))
    np.testing.assert_array_equal(raw.run(db, raw.predict("m", X)).outputs["y"], 2 * X + 1)


def test_maxmemory_is_reached_while_a_job_runs(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.3)
    held_by(db, [executor])
    with full(db):
        answered_once(db, ticket)  # its result is small


@pytest.mark.parametrize("where", ["key", "reply"])
def test_at_maxmemory_a_large_result_is_refused_and_the_caller_told(served: Served, where: str) -> None:
    _, db, executor = served
    raw.store(db, "wide", more_models.wide(100_000))
    x = X[:, :1]
    raw.put(db, "x", x)
    job = raw.execute("wide", ["x"], ["y"]) if where == "key" else raw.predict("wide", x)
    with raw.paused(executor):
        ticket = raw.call(db, *job)
        db.config_set("maxmemory", 1)
    try:
        with pytest.raises(OutOfMemory):
            raw.answer(db, ticket)
    finally:
        db.config_set("maxmemory", 0)
    assert not db.exists("y")
    assert raw.run(db, job)
    assert raw.private_keys(db) == set()


def test_a_load_at_maxmemory(served: Served) -> None:
    _, db, executor = served
    with raw.paused(executor):
        raw.call(db, *raw.modelstore("m", models.affine()))
        db.config_set("maxmemory", 1)
    try:
        wait_until(lambda: raw.state(db, "m") == "ready", "it is loaded")
    finally:
        db.config_set("maxmemory", 0)
    np.testing.assert_array_equal(raw.run(db, raw.predict("m", X)).outputs["y"], 2 * X + 1)


def test_the_library_is_lost_at_maxmemory(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "m", models.affine())
    ticket = raw.call(db, *raw.predict("m", X))
    before = executor.output.count("library cannot be loaded")
    with full(db):
        db.function_flush()
        wait_until(lambda: executor.output.count("library cannot be loaded") > before, "it tries")
    raw.answer(db, ticket)

    def works() -> bool:
        try:
            return bool(raw.run(db, raw.predict("m", X)).outputs)
        except KeysideError as error:
            if "Function not found" in str(error):
                return False
            raise

    wait_until(works, "it loads the library once there is room", 5)


# --- callers


def test_a_caller_that_vanishes_leaves_nothing_for_ever(served: Served) -> None:
    server, db, executor = served
    raw.store(db, "m", models.affine())
    raw.put(db, "x", np.ones((5000, 4), np.float32))
    with server.client() as caller, raw.paused(executor):
        caller.fcall("AI_MODELEXECUTE", 2, "x", "y", "m", "INPUTS", 1, "x", "OUTPUTS", 1, "y", "TIMEOUT", 2000)
        caller.fcall("AI_PREDICT", 1, "x", "m", "INPUTS", 1, "KEY", "x", "TIMEOUT", 2000)
    wait_until(lambda: calls(db, "m") == 2, "they are run")
    for key in raw.private_keys(db):
        assert 0 < db.pttl(key) <= 60_000
