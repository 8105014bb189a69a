"""Entries of a user's stream: each has one result, whatever happens to who reads it."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests import models, raw
from tests.executors import Executor
from tests.servers import Server, wait_until
from tests.triggers import Channel, results_of, set_trigger, stats, tensor

RUN = ("echo", "INPUTS", 1, "VALUE", "{x}")
ON = ("STREAM", "in")
OUT = ("RESULTS", "out")


@pytest.fixture
def run(executor: Executor, db: Any) -> Iterator[Any]:
    """A client of a server whose executor has a model `echo`."""
    raw.store(db, "echo", models.echo_int64())
    yield db
    db.fcall("AI_MODELDEL", 1, "echo")


def add(db: Any, numbers: Any, stream: str = "in") -> list[bytes]:
    with db.pipeline(transaction=False) as pipe:
        for number in numbers:
            pipe.xadd(stream, {"x": tensor(number)})
        found: list[bytes] = pipe.execute()
    return found


def values(db: Any) -> list[int]:
    return sorted(one["outputs"]["y"]["values"][0] for one in results_of(db, "out"))


def all_acknowledged(db: Any, group: str = "kst") -> bool:
    return not db.xpending("in", group)["pending"] and not db.exists("ks:{in}:fired:t")


def test_each_entry_has_one_result(run: Any, server: Server) -> None:
    set_trigger(run, "t", ON, RUN, OUT)
    with Channel(server, "t") as channel:
        ids = add(run, range(300))
        heard = channel.several(300)
    assert sorted(one["source"] for one in heard) == sorted(entry_id.decode() for entry_id in ids)
    wait_until(lambda: all_acknowledged(run), "all are acknowledged")
    assert values(run) == list(range(300))
    assert [fields[b"source"] for _, fields in run.xrange("out")] == [one["source"].encode() for one in heard]
    assert stats(run, "t")["done"] == 300


def test_a_new_entry_is_seen_at_once(run: Any, server: Server) -> None:
    set_trigger(run, "t", ON, RUN)
    with Channel(server, "t") as channel:
        add(run, [0])
        channel.next()
        took = []
        for number in range(20):
            time.sleep(0.02)
            began = time.monotonic()
            add(run, [number])
            channel.next()
            took.append(time.monotonic() - began)
    assert sorted(took)[10] < 0.05, took


def test_what_is_added_right_after_the_trigger_counts(run: Any) -> None:
    add(run, [1])
    time.sleep(0.005)
    set_trigger(run, "t", ON, RUN, OUT)
    add(run, [2])
    wait_until(lambda: run.xlen("out") == 1, "its result is there")
    wait_until(lambda: all_acknowledged(run), "all are acknowledged")
    assert values(run) == [2], "what was there before the trigger is not for it"


def test_from_the_first_entry_on(run: Any) -> None:
    add(run, range(10))
    set_trigger(run, "t", (*ON, "GROUP", "g", "FROM", "0"), RUN, OUT)
    wait_until(lambda: run.xlen("out") == 10, "all have results")
    assert values(run) == list(range(10))
    wait_until(lambda: all_acknowledged(run, "g"), "all are acknowledged")


def test_entries_that_are_none_have_an_error_and_go(run: Any, server: Server) -> None:
    set_trigger(run, "t", ON, RUN, OUT)
    with Channel(server, "t") as channel:
        entry_id = run.xadd("in", {"y": "1"})
        found = channel.next()
        assert found["error"].startswith("BADARG ")
        assert found["source"] == entry_id.decode()
        run.xadd("in", {"x": "no tensor"})
        assert channel.next()["error"].startswith("BADNPY ")
        add(run, [3])
        assert channel.next()["outputs"]["y"]["values"] == [3]
    wait_until(lambda: all_acknowledged(run), "all are acknowledged")
    assert stats(run, "t")["errors"] == 2
    assert run.xlen("out") == 3


def test_pause_leaves_entries_where_they_are(run: Any) -> None:
    set_trigger(run, "t", ON, RUN, OUT)
    add(run, [1])
    wait_until(lambda: run.xlen("out") == 1, "it has a result")
    run.fcall("AI_TRIGGERPAUSE", 1, "t", "ON")
    time.sleep(0.6)
    add(run, [2])
    time.sleep(0.5)
    assert run.xlen("out") == 1
    run.fcall("AI_TRIGGERPAUSE", 1, "t", "OFF")
    wait_until(lambda: run.xlen("out") == 2, "it has a result", 2)


def test_few_at_a_time(run: Any) -> None:
    set_trigger(run, "t", ON, RUN, (*OUT, "INFLIGHT", 2))
    add(run, range(100))
    wait_until(lambda: run.xlen("out") == 100, "all have results")
    assert values(run) == list(range(100))
    assert stats(run, "t")["dropped"] == 0


def test_a_full_queue_loses_nothing(run: Any) -> None:
    set_trigger(run, "t", ON, RUN, OUT)
    run.fcall("AI_LIMITSET", 1, "echo", "JOBS", 3)
    add(run, range(100))
    wait_until(lambda: run.xlen("out") == 100, "all have results")
    assert values(run) == list(range(100))


def test_it_goes_on_where_it_stopped(redis: Server, db_redis: Any) -> None:
    db = db_redis
    with Executor(redis, lease_ms=500, beat_ms=50):
        raw.store(db, "echo", models.echo_int64())
        set_trigger(db, "t", ON, RUN, OUT)
        add(db, [1])
        wait_until(lambda: db.xlen("out") == 1, "it has a result")
        wait_until(lambda: all_acknowledged(db), "all are acknowledged")
    assert db.xinfo_consumers("in", "kst") == [], "who leaves takes its name along"
    add(db, [2, 3])
    with Executor(redis, lease_ms=500, beat_ms=50):
        wait_until(lambda: db.xlen("out") == 3, "all have results")
        assert values(db) == [1, 2, 3]
        db.fcall("AI_TRIGGERDEL", 1, "t")
        db.fcall("AI_MODELDEL", 1, "echo")


def test_what_a_dead_executor_has_read_is_run_once(redis: Server, db_redis: Any) -> None:
    """Entries that were read, and for some of which a run had begun, when their executor died."""
    db = db_redis
    with Executor(redis, lease_ms=500, beat_ms=50) as executor:
        raw.store(db, "echo", models.echo_int64())
        set_trigger(db, "t", ON, RUN, OUT)
        wait_until(lambda: db.exists("in"), "the group is there")
        executor.kill()
        ids = add(db, range(20))
        db.xreadgroup("kst", "gone-0123abcd", {"in": ">"}, count=20)
        db.set("ks:{0}:executor:gone-0123abcd", "{}")
        fired = [
            db.fcall("KS_FIRE", 0, "t", "gone-0123abcd", entry_id, 1, "x", tensor(number))
            for number, entry_id in enumerate(ids[:5])
        ]
        assert [status for status, _ in fired] == [b"FIRED"] * 5
        db.delete("ks:{0}:executor:gone-0123abcd")
        with Executor(redis, lease_ms=500, beat_ms=50):
            wait_until(lambda: db.xlen("out") == 20, "all have results")
            wait_until(lambda: all_acknowledged(db), "all are acknowledged")
            time.sleep(0.5)
            assert values(db) == list(range(20))
            db.fcall("AI_TRIGGERDEL", 1, "t")
            db.fcall("AI_MODELDEL", 1, "echo")


def test_consumers_of_somebody_else_are_left_alone(run: Any) -> None:
    run.xgroup_create("in", "g", "0", mkstream=True)
    add(run, [1])
    run.xreadgroup("g", "theirs", {"in": ">"})
    set_trigger(run, "t", (*ON, "GROUP", "g", "FROM", "0"), RUN, OUT)
    add(run, [2])
    wait_until(lambda: run.xlen("out"), "the other entry has a result")
    time.sleep(1.5)
    assert values(run) == [2]
    assert run.xpending("in", "g")["pending"] == 1


def test_a_deleted_group_or_stream_is_made_again(run: Any) -> None:
    set_trigger(run, "t", ON, RUN, OUT)
    add(run, [1])
    wait_until(lambda: run.xlen("out") == 1, "it has a result")
    run.delete("in")
    add(run, [2])
    wait_until(lambda: run.xlen("out") == 2, "it has a result")


def test_a_key_that_is_no_stream(run: Any, executor: Executor) -> None:
    run.set("in", "text")
    said = executor.output.count("stream of a trigger cannot be read")
    set_trigger(run, "t", ON, RUN, OUT)
    wait_until(lambda: executor.output.count("stream of a trigger cannot be read") > said, "the log says so")
    run.delete("in")
    time.sleep(0.1)
    add(run, [1])
    wait_until(lambda: run.xlen("out") == 1, "it has a result")
