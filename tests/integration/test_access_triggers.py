"""What a predictor may do who sets tensors that triggers wait for: their runs start with his rights, and no others."""

from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py
from tests.access import World, send, world
from tests.executors import Executor
from tests.servers import wait_until

SET = ("FLOAT", 2, 4)


@pytest.fixture(scope="module")
def place(server_kind: Any) -> Iterator[World]:
    with world(server_kind) as made:
        yield made


@pytest.fixture
def here(place: World) -> Iterator[World]:
    """With models that are ready; the executor has gone again, so that jobs stay where they are."""
    place.admin.flushall()
    with place.executor():
        place.fill()
    yield place
    place.admin.flushall()


def onset(here: World, name: str, pattern: str, output: str, *words: Any) -> None:
    run = ("RUN", "fraud", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, output)
    send(here.admin, "FCALL", "AI_TRIGGERSET", 1, name, "ON", "SET", pattern, *words, *run)


def waiting(here: World) -> list[bytes]:
    """Entries in the queue that are of triggers."""
    entries: Any = here.admin.xrange("ks:{0}:jobs:CPU")
    return [entry for entry, fields in entries if b"x" in fields]


def stats(here: World, name: str) -> dict[str, Any]:
    flat = send(here.admin, "FCALL", "AI_TRIGGERINFO", 1, name)
    return {field.decode(): value for field, value in zip(flat[::2], flat[1::2], strict=True)}


def test_his_writes_start_runs(here: World) -> None:
    words = ("NOTIFY", "COALESCE", "RATE", 5, "PER", 60_000, "INFLIGHT", 5)
    onset(here, "t", "alice:f:{n}", "alice:b:{n}", *words)
    with here.connect("alice") as alice:
        for _ in range(4):
            assert send(alice, "FCALL", "AI_TENSORSET", 1, "alice:f:1", *SET) == b"OK"
        pipe = alice.pipeline()
        pipe.set("alice:f:2", here.admin.get("alice:x"))
        pipe.execute_command("FCALL", "AI_TENSORCHANGED", 1, "alice:f:2")
        assert pipe.execute() == [True, 1]
    assert len(waiting(here)) == 3
    found = stats(here, "t")
    assert (found["fired"], found["coalesced"], found["inflight"]) == (5, 2, 3)
    with here.executor():
        wait_until(lambda: here.admin.exists("alice:b:1", "alice:b:2") == 2, "they have run")


def test_what_he_may_not_is_said_to_him_and_nothing_is_started(here: World) -> None:
    onset(here, "mine", "alice:f:{n}", "alice:b:{n}")
    onset(here, "theirs", "alice:f:{n}", "bob:b:{n}")
    with here.connect("alice") as alice, pytest.raises(redis_py.exceptions.ResponseError) as caught:
        send(alice, "FCALL", "AI_TENSORSET", 1, "alice:f:1", *SET)
    assert "is written, but trigger 'theirs' could not start its run" in str(caught.value)
    assert here.admin.exists("alice:f:1") == 1
    assert waiting(here) == []
    assert (stats(here, "mine")["fired"], stats(here, "theirs")["errors"]) == (0, 0)


def test_errors_of_triggers_are_no_matter_of_his(here: World) -> None:
    onset(here, "t", "alice:f:{n}", "alice:b:{n}", "ONERROR", "PAUSE", "RESULTS", "log")
    with here.connect("alice") as alice:
        assert send(alice, "FCALL", "AI_TENSORSET", 1, "alice:f:1", "FLOAT", 1) == b"OK"
    found = stats(here, "t")
    assert found["errors"] == 1
    assert found["last_error"]
    assert here.admin.hget("t", "state") == b"active", "he may not let it rest"
    assert here.admin.exists("log") == 0


def test_he_sets_none_and_writes_no_records(here: World) -> None:
    with here.connect("alice") as alice:
        for command in (
            (
                "FCALL",
                "AI_TRIGGERSET",
                1,
                "fraud:t",
                "ON",
                "SET",
                "alice:{x}",
                "RUN",
                "fraud",
                "INPUTS",
                1,
                "KEY",
                "{key}",
            ),
            ("HSET", "ks:{0}:triggers", "t", "{}"),
            ("HSET", "ks:{0}:onset", "t", "{}"),
            ("SET", "ks:{0}:lead:t", "e1"),
            ("FCALL", "KS_FIRE", 0, "t", "e1", "s", 0),
        ):
            with pytest.raises(redis_py.exceptions.NoPermissionError):
                send(alice, *command)


def test_rights_of_who_sets_a_trigger(here: World) -> None:
    """Somebody who may do all with triggers, but not with all keys: any value of a variable must be his."""
    limits = ("~carl:*", "~ks:*", "%R~fraud*", "&ks:*", "&carl*")
    send(here.admin, "ACL", "SETUSER", "carl", "reset", "on", ">pw", "+@all", *limits)
    run = ("RUN", "fraud", "INPUTS", 1)
    publish = ("ON", "PUBLISH", "carl")
    cases: list[tuple[tuple[Any, ...], str]] = [
        ((*publish, *run, "KEY", "carl:{x}", "OUTPUTS", 1, "carl:{y}"), ""),
        ((*publish, *run, "KEY", "{x}"), "read key"),
        ((*publish, *run, "HASH", "FLOAT", 1, "bob:1", 1, "f"), "read key 'bob:1'"),
        ((*publish, *run, "KEY", "carl:x", "OUTPUTS", 1, "bob:y"), "SET key 'bob:y'"),
        ((*publish, "RUN", "other", "INPUTS", 1, "KEY", "carl:x"), "use model 'other'"),
        ((*publish, "CHANNEL", "bob", *run, "KEY", "carl:x"), "channel 'bob'"),
        ((*publish, "RESULTS", "bob", *run, "KEY", "carl:x"), "stream 'bob'"),
        (("ON", "STREAM", "bob", *run, "KEY", "carl:x"), "stream 'bob'"),
    ]
    with here.server.client(username="carl", password="pw") as carl:
        for on, refusal in cases:
            call = ("FCALL", "AI_TRIGGERSET", 1, "carl:t", *on)
            if not refusal:
                assert send(carl, *call) == b"OK"
                continue
            with pytest.raises(redis_py.exceptions.NoPermissionError) as caught:
                send(carl, *call)
            assert refusal in str(caught.value)
    send(here.admin, "ACL", "DELUSER", "carl")


def test_an_executor_ends_them_with_its_role(here: World) -> None:
    onset(here, "t", "alice:f:{n}", "alice:b:{n}", "TTL", 60_000, "RESULTS", "log:{n}", "ONERROR", "PAUSE")
    with here.executor() as executor:
        assert isinstance(executor, Executor)
        with here.connect("alice") as alice:
            send(alice, "FCALL", "AI_TENSORSET", 1, "alice:f:1", *SET)
        wait_until(lambda: here.admin.xlen("log:1"), "the result is there")
        assert here.admin.ttl("alice:b:1") > 0
