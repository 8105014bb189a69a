"""What may go wrong around a job: executors that die or stall, servers that restart or are full, lost callers."""

import contextlib
import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, get_args

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.executors import Executor
from tests.servers import Kind, Server, wait_until

from keyside.executor.protocol import GROUP
from keyside.tensorstore.errors import CODES, DeadLetter, InputLost, KeysideError, OutOfMemory, TimedOut
from keyside.tensorstore.keys import NodeKeys

QUICK = {"lease_ms": 500, "beat_ms": 100}
NODE = NodeKeys()
STREAM = NODE.jobs("CPU")
X = np.arange(4, dtype=np.float32).reshape(1, 4)
ZERO = np.zeros((1, 1), np.int64)


VALKEY = pytest.mark.parametrize("server", ["valkey"], indirect=True)
"""For what takes long and does not depend on the server."""


@pytest.fixture(scope="module", params=get_args(Kind))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A server where no executor runs but those of the test."""
    with Server(request.param) as server:
        yield server


@pytest.fixture
def db(server: Server) -> Iterator[redis_py.Redis]:
    with server.client() as client:
        client.flushall()
        server.load_library()
        yield client


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


@contextlib.contextmanager
def executors(server: Server, count: int) -> Iterator[list[Executor]]:
    """Some executors with short leases, started at the same time."""
    started = [Executor(server, **QUICK) for _ in range(count)]
    try:
        with ThreadPoolExecutor() as pool:
            list(pool.map(Executor.start, started))
        yield started
    finally:
        for executor in started:
            executor.stop()


def halt_in_claim(db: Any, executor: Executor) -> None:
    """Halt an executor that is blocked in its claim: the next job is delivered to it, and waits there."""

    def claims() -> bool:
        return any(one["cmd"] == "xreadgroup" and "b" in one["flags"] for one in db.client_list())

    wait_until(claims, "the executor waits for jobs")
    executor.pause()


def holders(db: Any) -> dict[bytes, tuple[bytes, int]]:
    """Consumer and deliveries of each job that is held."""
    try:
        found = db.xpending_range(STREAM, GROUP, "-", "+", 1000)
    except redis_py.ResponseError:
        return {}
    return {one["message_id"]: (one["consumer"], one["times_delivered"]) for one in found}


def held_by(db: Any, running: list[Executor]) -> Executor:
    """Wait until a job is held; by which of these executors?"""
    wait_until(lambda: holders(db), "a job is claimed")
    ((consumer, _), *_) = holders(db).values()
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


# --- executors


def test_an_executor_killed_while_it_runs(server: Server, db: Any) -> None:
    with executors(server, 2) as running:
        raw.store(db, "slow", more_models.slow())
        ticket = busy(db, 0.6)
        held_by(db, running).kill()
        answered_once(db, ticket)
        assert calls(db, "slow") == 1


def test_an_executor_stopped_past_its_lease_and_woken(server: Server, db: Any) -> None:
    with executors(server, 2) as running:
        raw.store(db, "slow", more_models.slow())
        ticket = busy(db, 0.4)
        zombie = held_by(db, running)
        with raw.paused(zombie):
            answered_once(db, ticket)
            db.delete("y")
        # It goes on where it was, in the middle of its run, and finds that the job is not its own any more.
        wait_until(lambda: "taken over or cancelled" in zombie.output, "it sees that")
        assert db.exists("y", ticket) == 0
        assert calls(db, "slow") == 1
        assert raw.run(db, raw.predict("slow", ZERO)).outputs["y"] == 0


def test_an_executor_stopped_with_a_large_result_in_hand(server: Server, db: Any) -> None:
    with executors(server, 1) as (zombie,):
        raw.store(db, "wide", more_models.wide(100_000))
        raw.put(db, "x", X[:, :1])
        halt_in_claim(db, zombie)
        ticket = raw.call(db, *raw.execute("wide", ["x"], ["y"]))
        held_by(db, [zombie])
        with executors(server, 1):
            assert raw.answer(db, ticket).outputs == {}
            db.delete("y")
            zombie.resume()
            wait_until(lambda: "taken over or cancelled" in zombie.output, "it sees that")
            assert db.exists("y", ticket) == 0
            assert raw.private_keys(db) == set(), "what it had staged is gone"


@VALKEY
def test_an_executor_killed_while_it_loads(server: Server, db: Any) -> None:
    with executors(server, 1) as (first,):
        halt_in_claim(db, first)
        version = raw.call(db, *raw.modelstore("m", models.affine()))
        held_by(db, [first])
        waiting = raw.call(db, *raw.predict("m", X))
        first.kill()
        with executors(server, 1):
            assert raw.answer(db, waiting).target == f"m@{version}"
            wait_until(lambda: raw.state(db, "m", version) == "ready", "the load is taken over too")


@pytest.mark.slow
@VALKEY
def test_a_job_that_kills_executors(server: Server, db: Any) -> None:
    with executors(server, 1) as (first,):
        raw.store(db, "slow", more_models.slow())
        raw.warm(db, "slow", ZERO)
        halt_in_claim(db, first)
        raw.put(db, "x", more_models.turns_for(1.5))
        jobs = [raw.execute("slow", ["x"], ["killer"])] + [raw.predict("slow", ZERO + i) for i in range(3)]
        killer, *mates = raw.at_once(db, *jobs)
        wait_until(lambda: len(holders(db)) == 4, "all of them are claimed together")
        first.kill()
        entry = killer.rpartition(b"/")[2]
        for life in (2, 3):
            with executors(server, 1) as (next_one,):
                wait_until(lambda times=life: holders(db)[entry][1] == times, "it is taken over")  # type: ignore[misc]
                next_one.kill()
        others = [times for job, (_, times) in holders(db).items() if job != entry]
        assert max(others, default=0) <= 2, "the others do not pay for it"
        with executors(server, 1):
            with pytest.raises(DeadLetter):
                raw.answer(db, killer)
            assert [int(raw.answer(db, mate).outputs["y"].item()) for mate in mates] == [0, 1, 2]
        ((_, dead),) = db.xrange(NODE.dead)
        assert dead[b"id"] == b"CPU/" + entry
        assert dead[b"reason"].startswith(b"DEADLETTER ")
        assert not db.exists("killer")
        assert db.xlen(STREAM) == 0


@VALKEY
def test_no_executor_is_alive(server: Server, db: Any) -> None:
    with executors(server, 1):
        raw.store(db, "m", models.affine())
    raw.put(db, "x", X)
    ticket = raw.call(db, *raw.execute("m", ["x"], ["y"]))
    chosen = raw.call(db, *raw.predict("m", X), "TICKET", "ks:{0}:t")
    assert db.blpop([ticket], timeout=0.2) is None
    assert db.fcall("AI_CANCEL", 0, ticket) == 1
    assert db.fcall("AI_CANCEL", 0, "ks:{0}:t", chosen) == 1
    with executors(server, 1):
        raw.run(db, raw.predict("m", X))
        assert calls(db, "m") == 1
        assert db.exists("y", ticket, "ks:{0}:t") == 0
        assert raw.private_keys(db) == set()


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


def test_jobs_are_answered_at_their_time(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    first = busy(db, 2, "TIMEOUT", 300)
    held_by(db, [executor])
    tickets = {first: 300}
    for i in range(50):  # more than are claimed ahead: most of them wait in the stream
        raw.put(db, "x", ZERO)
        tickets[raw.call(db, *raw.execute("slow", ["x"], [f"y{i}"], "TIMEOUT", 400 + 5 * i))] = 400 + 5 * i
    submitted = time.monotonic()
    late = []
    waiting = dict(tickets)
    while waiting:
        name, reply = db.blpop(list(waiting), timeout=5)
        late.append((time.monotonic() - submitted) * 1000 - waiting.pop(name))
        assert reply.startswith(b"TIMEDOUT ")
    assert max(late) < 300
    raw.run(db, raw.predict("slow", ZERO))  # what was running has ended by now
    assert db.exists("y", *(f"y{i}" for i in range(50))) == 0
    assert db.xlen(STREAM) == 0


def test_an_executor_stopped_past_the_deadline(served: Served) -> None:
    _, db, executor = served
    raw.store(db, "slow", more_models.slow())
    ticket = busy(db, 0.2, "TIMEOUT", 400)
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


@contextlib.contextmanager
def full(db: Any) -> Iterator[None]:
    """The server is at maxmemory for the length of a `with`."""
    db.config_set("maxmemory", 1)
    try:
        yield
    finally:
        db.config_set("maxmemory", 0)


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
    with full(db):
        db.function_flush()
        wait_until(lambda: "library cannot be loaded" in executor.output, "it tries")
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


def test_every_code_of_the_protocol_has_an_error() -> None:
    assert all(issubclass(error, KeysideError) for error in CODES.values())
