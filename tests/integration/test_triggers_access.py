"""Triggers with an executor that has the rights of its role, and no more."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests import access, models, raw
from tests.executors import Executor
from tests.servers import wait_until
from tests.triggers import Channel, results_of, set_trigger, tensor, wait_for_listener


@pytest.fixture(scope="module", params=["redis", "valkey"])
def world(request: pytest.FixtureRequest) -> Iterator[access.World]:
    """A server with users, and signed jobs."""
    with access.world(request.param) as found:
        yield found


@pytest.fixture
def executor(world: access.World) -> Iterator[Executor]:
    """An executor under its role."""
    with world.executor() as found:
        yield found


def test_all_kinds_work_with_the_rights_of_the_role(world: access.World, executor: Executor) -> None:
    db: Any = world.admin
    raw.store(db, "echo", models.echo_int64())
    db.set("k", tensor(1))
    db.zadd("all", {"k": 1})
    set_trigger(db, "p", ("PUBLISH", "topic"), ("echo", "INPUTS", 1, "KEY", "{x}"))
    set_trigger(db, "s", ("STREAM", "in"), ("echo", "INPUTS", 1, "VALUE", "{x}"), ("RESULTS", "out"))
    set_trigger(db, "m", ("SCHEDULE", 200, "MEMBERS", "all"), ("echo", "INPUTS", 1, "KEY", "{member}"))
    set_trigger(
        db, "n", ("SET", "f:{n}", "NOTIFY"), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "b:{n}"),
        ("RESULTS", "seen"),
    )  # fmt: skip
    wait_for_listener(db, "topic")
    with Channel(world.server, "p") as channel:
        db.publish("topic", '{"x": "k"}')
        assert channel.next()["outputs"]["y"]["values"] == [1]
    wait_until(lambda: db.exists("in"), "the group is there")
    db.xadd("in", {"x": tensor(2)})
    wait_until(lambda: db.xlen("out"), "the entry has a result")
    assert results_of(db, "out")[0]["outputs"]["y"]["values"] == [2]
    with Channel(world.server, "m") as channel:
        assert channel.several(2)[0]["source"] == "k"
    # It may not change the server's configuration, and says what is to be set.
    wait_until(lambda: "notify-keyspace-events cannot be read here" in executor.output, "the log says what to set")
    wait_until(db.pubsub_numpat, "it listens")
    db.config_set("notify-keyspace-events", "K$g")
    db.set("f:1", tensor(3))
    wait_until(lambda: db.xlen("seen"), "the write has a result")
    db.fcall("AI_TENSORSET", 1, "f:2", "INT64", 1, 1, "VALUES", 4)
    wait_until(lambda: db.xlen("seen") == 2, "so has this")
    for name in "psmn":
        db.fcall("AI_TRIGGERDEL", 1, name)
