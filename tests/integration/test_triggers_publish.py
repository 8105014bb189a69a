"""Messages on channels that start runs: names of keys as JSON, tensors themselves, and all that is neither."""

import itertools
import json
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from tests import models, raw
from tests.executors import Executor
from tests.servers import Server, wait_until
from tests.triggers import Channel, results_of, set_trigger, stats, tensor, wait_for_listener

_numbers = itertools.count()


@pytest.fixture
def topic() -> str:
    """A channel that nobody else uses: whoever listens to it does so for this test."""
    return f"in{next(_numbers)}"


@pytest.fixture
def run(executor: Executor, db: Any) -> Iterator[Any]:
    """A client of a server whose executor has a model `echo`."""
    raw.store(db, "echo", models.echo_int64())
    yield db
    db.fcall("AI_MODELDEL", 1, "echo")


def test_names_of_keys_as_json(topic: str, run: Any, server: Server) -> None:
    set_trigger(
        run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "KEY", "{x}", "OUTPUTS", 1, "{y}"), ("RESULTS", "log")
    )
    wait_for_listener(run, topic)
    run.set("k", tensor(7))
    with Channel(server, "t") as channel:
        run.publish(topic, json.dumps({"x": "k", "y": "out", "id": "a-1"}))
        found = channel.next()
    assert found["trigger"] == "t"
    assert found["source"] == "a-1"
    assert found["target"] == "echo@1"
    assert found["outputs"] == {"y": {"key": "out"}}
    assert found["run"].startswith("CPU/")
    assert found["ms"] >= 0
    assert raw.get(run, "out").tolist() == [[7]]
    wait_until(lambda: run.xlen("log"), "the result is in the stream")
    assert results_of(run, "log") == [found]
    assert stats(run, "t")["done"] == 1


def test_a_tensor_as_the_message(topic: str, run: Any, server: Server) -> None:
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic)
    with Channel(server, "t") as channel:
        run.publish(topic, tensor(41))
        found = channel.next()
    assert found["source"] == topic
    assert found["outputs"] == {"y": {"dtype": "INT64", "shape": [1, 1], "values": [41]}}


def test_large_outputs_are_named(topic: str, run: Any, server: Server) -> None:
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "KEY", "{0}"))
    wait_for_listener(run, topic)
    array = np.arange(1001, dtype=np.int64).reshape(-1, 1)
    raw.put(run, "k", array)
    with Channel(server, "t") as channel:
        run.publish(topic, '["k"]')
        key = channel.next()["outputs"]["y"]["key"]
    assert np.array_equal(raw.get(run, key), array)
    assert 0 < run.ttl(key) <= 60


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ("{", "BADARG"),
        ("[]", "BADARG"),
        (b"\x93NUMPY", "BADARG"),
        ('{"x": null}', "BADARG"),
        ('{"x": "nothing"}', "NOTENSOR"),
        ('{"x": "text"}', "WRONGTYPE"),
        ("", "BADARG"),
    ],
)
def test_messages_that_are_none_are_answered(topic: str, run: Any, server: Server, message: Any, code: str) -> None:
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "KEY", "{x}"))
    run.rpush("text", "no tensor")
    wait_for_listener(run, topic)
    with Channel(server, "t") as channel:
        run.publish(topic, message)
        found = channel.next()
        assert found["error"].split()[0] == code, found
        assert len(found["error"]) > 15
        run.set("k", tensor(1))
        run.publish(topic, '{"x": "k"}')
        assert channel.next()["outputs"]
    assert stats(run, "t")["errors"] == 1


def test_a_model_that_fails_says_so(topic: str, run: Any, server: Server) -> None:
    raw.store(run, "picky", models.fails_out_of_range())
    set_trigger(run, "t", ("PUBLISH", topic), ("picky", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic)
    with Channel(server, "t") as channel:
        from keyside.tensorstore import npy

        run.publish(topic, npy.to_bytes(np.array([99], np.int64)))
        found = channel.next()
    assert found["error"].startswith("RUNFAILED ")
    assert found["run"]
    run.fcall("AI_MODELDEL", 1, "picky")


def test_many_at_once_are_stacked_and_each_has_its_result(topic: str, run: Any, server: Server) -> None:
    raw.warm(run, "echo", np.array([[1]], np.int64))
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic)
    with Channel(server, "t") as channel:
        with run.pipeline(transaction=False) as pipe:
            for number in range(300):
                pipe.publish(topic, tensor(number))
            pipe.execute()
        found = [one["outputs"]["y"]["values"][0] for one in channel.several(300)]
    assert sorted(found) == list(range(300))


def test_sharded_channels(topic: str, run: Any, server: Server) -> None:
    set_trigger(run, "t", ("PUBLISH", topic, "SHARDED"), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic, sharded=True)
    with Channel(server, "t") as channel:
        run.execute_command("SPUBLISH", topic, tensor(5))
        assert channel.next()["outputs"]["y"]["values"] == [5]
        run.publish(topic, tensor(6))  # another channel
        channel.silent(0.3)


def test_pause_resume_and_delete_are_seen_within_a_second(topic: str, run: Any, server: Server) -> None:
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic)
    with Channel(server, "t") as channel:
        run.fcall("AI_TRIGGERPAUSE", 1, "t", "ON")
        run.publish(topic, tensor(1))
        channel.silent(1.0)
        assert run.execute_command("PUBSUB", "NUMSUB", topic)[1] == 0
        run.fcall("AI_TRIGGERPAUSE", 1, "t", "OFF")
        began = time.monotonic()
        wait_for_listener(run, topic)
        assert time.monotonic() - began < 1.0
        run.publish(topic, tensor(2))
        assert channel.next()["outputs"]["y"]["values"] == [2]
        run.fcall("AI_TRIGGERDEL", 1, "t")
        wait_until(lambda: run.execute_command("PUBSUB", "NUMSUB", topic)[1] == 0, "nobody listens", 1.0)
        run.publish(topic, tensor(3))
        channel.silent(0.3)


def test_another_executor_goes_on(topic: str, redis: Server, db_redis: Any) -> None:
    """Of two executors one serves; the other goes on where that dies, or leaves, and no message runs twice."""
    db = db_redis
    with Executor(redis, lease_ms=500, beat_ms=50) as first:
        raw.store(db, "echo", models.echo_int64())
        set_trigger(db, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
        wait_for_listener(db, topic)
        with Executor(redis, lease_ms=500, beat_ms=50), Channel(redis, "t") as channel:
            db.publish(topic, tensor(1))
            assert channel.next()["outputs"]["y"]["values"] == [1]
            holder = db.get("ks:{0}:lead:t")
            first.pause()
            wait_until(lambda: db.get("ks:{0}:lead:t") not in (None, holder), "the other has the lease")
            wait_until(lambda: db.execute_command("PUBSUB", "NUMSUB", topic)[1] == 2, "the other listens too")
            db.publish(topic, tensor(2))
            assert channel.next()["outputs"]["y"]["values"] == [2]
            first.resume()  # it has the second message too
            channel.silent(1.0)
            first.kill()
            time.sleep(0.1)
            db.publish(topic, tensor(3))
            assert channel.next()["outputs"]["y"]["values"] == [3]
        db.fcall("AI_TRIGGERDEL", 1, "t")
        db.fcall("AI_MODELDEL", 1, "echo")


def test_a_killed_leader_is_replaced_before_its_lease_ends(topic: str, redis: Server, db_redis: Any) -> None:
    with Executor(redis) as first:
        set_trigger(db_redis, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
        wait_for_listener(db_redis, topic)
        with Executor(redis):
            wait_until(lambda: len(db_redis.pubsub_channels("ks:ear:*")) == 2, "the other could serve it")
            holder = db_redis.get("ks:{0}:lead:t")
            first.kill()
            wait_until(lambda: db_redis.get("ks:{0}:lead:t") not in (None, holder), "the other has the lease", 1.0)
        db_redis.fcall("AI_TRIGGERDEL", 1, "t")


def test_who_leaves_lets_go_of_its_leases(topic: str, redis: Server, db_redis: Any) -> None:
    with Executor(redis):
        set_trigger(db_redis, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
        wait_for_listener(db_redis, topic)
    assert db_redis.get("ks:{0}:lead:t") is None


def test_flushall_and_a_lost_library(topic: str, run: Any, server: Server) -> None:
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic)
    run.function_flush()
    wait_until(run.function_list, "the library is there again")
    with Channel(server, "t") as channel:
        wait_for_listener(run, topic)
        run.publish(topic, tensor(4))
        assert channel.next()["outputs"]["y"]["values"] == [4]
    run.flushall()
    wait_until(lambda: run.execute_command("PUBSUB", "NUMSUB", topic)[1] == 0, "nobody listens")
    raw.store(run, "echo", models.echo_int64())
    set_trigger(run, "t", ("PUBLISH", topic), ("echo", "INPUTS", 1, "VALUE", "{payload}"))
    wait_for_listener(run, topic)
    with Channel(server, "t") as channel:
        run.publish(topic, tensor(5))
        assert channel.next()["outputs"]["y"]["values"] == [5]
