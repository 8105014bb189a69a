"""Runs that the time starts, and those that foreign writes start by keyspace notifications."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests import models, raw
from tests.executors import Executor
from tests.servers import Server, wait_until
from tests.triggers import Channel, results_of, set_trigger, stats, tensor

from keyside.tensorstore.errors import KeysideError

MEMBER = ("echo", "INPUTS", 1, "KEY", "{member}")


@pytest.fixture
def run(executor: Executor, db: Any) -> Iterator[Any]:
    """A client of a server whose executor has a model `echo`; notifications are as they were afterwards."""
    raw.store(db, "echo", models.echo_int64())
    before = db.config_get("notify-keyspace-events")
    yield db
    for name, *_ in db.fcall_ro("AI_TRIGGERSCAN", 0, 0)[1]:
        db.fcall("AI_TRIGGERDEL", 1, name)
    wait_until(lambda: db.xlen("ks:{0}:jobs:CPU") == 0, "no run is under way")
    db.config_set("notify-keyspace-events", before["notify-keyspace-events"])
    db.fcall("AI_MODELDEL", 1, "echo")


def set_for(db: Any, name: str, pattern: str, *words: Any, options: Any = ()) -> None:
    set_trigger(
        db, name, ("SET", pattern, *words), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "o:{a}"), options
    )


def listening(db: Any) -> bool:
    return bool(db.pubsub_numpat())


# --- schedules


def test_each_member_runs_again_and_again(run: Any, server: Server) -> None:
    for number in range(3):
        run.set(f"k{number}", tensor(number))
    run.sadd("all", "k0", "k1", "k2")
    with Channel(server, "t") as channel:
        began = time.monotonic()
        set_trigger(run, "t", ("SCHEDULE", 300, "MEMBERS", "all"), MEMBER)
        found = channel.several(9)
        took = time.monotonic() - began
    for turn in range(3):
        part = found[3 * turn : 3 * turn + 3]
        assert {one["source"] for one in part} == {"k0", "k1", "k2"}
        assert sorted(one["outputs"]["y"]["values"][0] for one in part) == [0, 1, 2]
    assert 0.6 < took < 3


def test_keys_are_named_in_the_trigger(run: Any, server: Server) -> None:
    run.set("k", tensor(1))
    with Channel(server, "t") as channel:
        set_trigger(run, "t", ("SCHEDULE", 100, "KEYS", 2, "k", "nothing"), MEMBER)
        found = channel.several(4)
    by_source = {one["source"]: one for one in found[:2]}
    assert by_source["k"]["outputs"]
    assert by_source["nothing"]["error"].startswith("NOTENSOR ")


@pytest.mark.parametrize("kind", ["list", "zset", "none", "string"])
def test_members_of_other_types(run: Any, server: Server, executor: Executor, kind: str) -> None:
    run.set("k", tensor(1))
    if kind == "list":
        run.rpush("all", "k", "k")
    elif kind == "zset":
        run.zadd("all", {"k": 1})
    elif kind == "string":
        run.set("all", "k")
    with Channel(server, "t") as channel:
        set_trigger(run, "t", ("SCHEDULE", 100, "MEMBERS", "all"), MEMBER)
        if kind in ("list", "zset"):
            assert channel.next()["outputs"]
        else:
            channel.silent(0.8)
        if kind == "string":
            wait_until(lambda: "members of a schedule must be" in executor.output, "the log says so")


def test_a_round_of_many_does_not_fill_the_queue(run: Any, server: Server) -> None:
    run.set("k", tensor(1))
    run.sadd("all", *(f"k{number}" for number in range(1000)))
    with run.pipeline(transaction=False) as pipe:
        for number in range(1000):
            pipe.set(f"k{number}", tensor(number))
        pipe.execute()
    with Channel(server, "t") as channel:
        set_trigger(run, "t", ("SCHEDULE", 1000, "MEMBERS", "all"), MEMBER)
        longest = 0
        found: list[Any] = []
        while len(found) < 1000:
            found.append(channel.next())
            longest = max(longest, run.xlen("ks:{0}:jobs:CPU"))
        run.fcall("AI_TRIGGERDEL", 1, "t")
    assert sorted(one["outputs"]["y"]["values"][0] for one in found) == list(range(1000))
    assert longest <= 256


def test_pause_and_new_times(run: Any, server: Server) -> None:
    run.set("k", tensor(1))
    with Channel(server, "t") as channel:
        set_trigger(run, "t", ("SCHEDULE", 3_600_000, "KEYS", 1, "k"), MEMBER)
        channel.silent(0.6)
        set_trigger(run, "t", ("SCHEDULE", 100, "KEYS", 1, "k"), MEMBER)
        channel.several(3)
        run.fcall("AI_TRIGGERPAUSE", 1, "t", "ON")
        time.sleep(0.6)
        while channel._sub.get_message(timeout=0.05):
            pass
        channel.silent(0.5)
        run.fcall("AI_TRIGGERPAUSE", 1, "t", "OFF")
        channel.several(2)


# --- notifications


def test_a_plain_set_starts_a_run(run: Any, server: Server) -> None:
    run.config_set("notify-keyspace-events", "Ex")
    set_for(run, "t", "n1:{a}", "NOTIFY")
    wait_until(lambda: listening(run), "somebody listens")
    assert set(run.config_get("notify-keyspace-events")["notify-keyspace-events"]) >= set("ExK$g")
    with Channel(server, "t") as channel:
        run.set("n1:7", tensor(7))
        found = channel.next()
        assert found["source"] == "n1:7"
        assert raw.get(run, "o:7").tolist() == [[7]]
        run.set("elsewhere", tensor(8))
        run.set("n1:", tensor(8))
        run.delete("n1:7")
        run.expire("o:7", 100)
        channel.silent(0.3)
        run.set("source", tensor(9))
        run.rename("source", "n1:9")
        assert channel.next()["source"] == "n1:9"
        run.copy("n1:9", "n1:10")
        assert channel.next()["source"] == "n1:10"


def test_what_started_at_once_does_not_start_again(run: Any, server: Server) -> None:
    set_for(run, "t", "n2:{a}", "NOTIFY")
    wait_until(lambda: listening(run), "somebody listens")
    time.sleep(0.1)
    with Channel(server, "t") as channel:
        for number in range(20):
            run.fcall("AI_TENSORSET", 1, f"n2:{number % 3}", "INT64", 1, 1, "VALUES", number)
        channel.several(20)
        channel.silent(0.5)
        run.set("n2:0", tensor(5))
        assert channel.next()["source"] == "n2:0"
        channel.silent(0.3)
    assert stats(run, "t")["fired"] == 21


def test_writes_within_a_moment_are_one(run: Any, server: Server) -> None:
    set_for(run, "t", "n3:{a}", "NOTIFY")
    wait_until(lambda: listening(run), "somebody listens")
    time.sleep(0.1)
    with Channel(server, "t") as channel:
        with run.pipeline(transaction=True) as pipe:
            for number in range(10):
                pipe.set("n3:x", tensor(number))
            pipe.execute()
        channel.next()
        assert raw.get(run, "o:x").tolist() == [[9]]
        channel.silent(0.3)


def test_a_foreign_value_that_is_no_tensor_is_an_error(run: Any, server: Server) -> None:
    set_for(run, "t", "n4:{a}", "NOTIFY")
    wait_until(lambda: listening(run), "somebody listens")
    time.sleep(0.1)
    with Channel(server, "t") as channel:
        run.set("n4:x", "text")
        assert channel.next()["error"].startswith("NOTENSOR ")


def test_without_notify_nobody_listens(run: Any) -> None:
    set_for(run, "t", "n5:{a}", options=("RESULTS", "log"))
    time.sleep(0.6)
    assert not listening(run)
    run.set("n5:1", tensor(1))
    run.fcall("AI_TENSORSET", 1, "n5:2", "INT64", 1, 1, "VALUES", 2)
    wait_until(lambda: run.xlen("log"), "there is a result")
    time.sleep(0.1)
    assert [one["source"] for one in results_of(run, "log")] == ["n5:2"]


# --- chains and loops


def test_outputs_start_the_next_trigger(run: Any, server: Server) -> None:
    set_trigger(run, "first", ("SET", "a:{x}"), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "b:{x}"))
    set_trigger(run, "second", ("SET", "b:{x}"), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "c:{x}"))
    with Channel(server, "second") as channel:
        run.fcall("AI_TENSORSET", 1, "a:1", "INT64", 1, 1, "VALUES", 4)
        assert channel.next()["source"] == "b:1"
    assert raw.get(run, "c:1").tolist() == [[4]]


def test_a_loop_of_two_is_stopped(run: Any, server: Server) -> None:
    set_trigger(run, "first", ("SET", "a:{x}"), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "b:{x}"))
    set_trigger(run, "second", ("SET", "b:{x}"), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "a:{x}"))
    with Channel(server, "first") as channel:
        run.fcall("AI_TENSORSET", 1, "a:1", "INT64", 1, 1, "VALUES", 4)
        assert channel.next()["outputs"]
        found = channel.next()
        assert found["error"].startswith("LOOP "), found
        channel.silent(0.3)
    with pytest.raises(KeysideError):
        raw.call(
            run, "FCALL", "AI_TRIGGERSET", 1, "own", "ON", "SET", "a:{x}",
            "RUN", "echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "a:{x}",
        )  # fmt: skip
