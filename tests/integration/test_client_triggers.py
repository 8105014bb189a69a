"""Triggers through both clients, with an executor that serves them."""

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
from tests import models
from tests.clients import Connect, connector
from tests.clusters import until
from tests.executors import Executor

from keyside import Key, OnPublish, OnSchedule, OnSet, OnStream, Payload, Value, errors
from keyside.features import Hash
from keyside.tensorstore import npy

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
async def client(connect: Connect, executor: Executor) -> Any:
    made = connect(executor.url, timeout=10)
    await made.store("affine", models.affine())
    await made.store("echo", models.echo_int64())
    return made


async def heard(db: Any, channel: str) -> None:
    """Wait until the executor listens to a channel."""
    await until(lambda: db.pubsub_numsub(channel)[0][1])


async def set_often(client: Any, key: str, array: Any) -> None:
    for _ in range(3):
        await client.set(key, array)


async def test_a_tensor_that_is_set(client: Any, db: Any) -> None:
    await client.set_trigger("boxes", OnSet("frame:{cam}"), "affine", ["frame:{cam}"], outputs=["boxes:{cam}"], ttl=50)
    async with client.subscribe("boxes") as events:
        await client.set("frame:7", X)
        event = await events.next(10)
        assert (event.trigger, event.source, event.target, event.error) == ("boxes", "frame:7", "affine@1", None)
        assert event.run.startswith("CPU/")
        assert list(event.keys.values()) == ["boxes:7"]
        np.testing.assert_array_equal(next(iter(event.outputs.values())), Y)
        np.testing.assert_array_equal(await client.get("boxes:7"), Y)
        assert 40_000 < db.pttl("boxes:7") <= 50_000
        await client.set("other:7", X)
        with pytest.raises(errors.TimedOut, match=r"no event of trigger 'boxes' within 0\.2 s"):
            await events.next(0.2)
        large = np.arange(400_000, dtype=np.float32).reshape(-1, 4)
        await client.set("frame:8", large)
        event = await events.next(10)
        np.testing.assert_array_equal(event.outputs[next(iter(event.keys))], large * 2 + 1)
    stats = await client.trigger_stats("boxes")
    assert (stats.fired, stats.done, stats.errors, stats.inflight) == (2, 2, 0, 0)
    assert (await client.trigger_stats("boxes", reset=True)).fired == 2
    assert (await client.trigger_stats("boxes")).fired == 0


async def test_a_tensor_on_a_channel(client: Any, db: Any) -> None:
    await client.set_trigger("t", OnPublish("in"), "affine", Payload())
    await heard(db, "in")
    async with client.subscribe("t") as events:
        assert await client.publish("in", X) == 1
        event = await events.next(10)
        assert event.source == "in"
        assert not event.keys
        (found,) = event.outputs.values()
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, Y)
        weird = np.array([[np.nan, np.inf, -np.inf, 1e38]], np.float32)
        await client.publish("in", weird)
        np.testing.assert_array_equal(next(iter((await events.next(10)).outputs.values())), weird * 2 + 1)
        rows = np.arange(1004, dtype=np.float32).reshape(-1, 4)
        await client.publish("in", rows)
        event = await events.next(10)
        (key,) = event.keys.values()
        assert 0 < db.ttl(key) <= 60
        np.testing.assert_array_equal(next(iter(event.outputs.values())), rows * 2 + 1)
        await client.publish("in", "no tensor")
        event = await events.next(10)
        assert not event.outputs
        assert isinstance(event.error, errors.KeysideError)


async def test_names_of_keys_on_a_channel(client: Any, db: Any) -> None:
    await client.set("a", X)
    await client.set_trigger("t", OnPublish("in"), "affine", {"x": Key("{x}", mode="ref")}, channel="out:{{1}}")
    await heard(db, "in")
    async with client.subscribe("t", fetch=False) as events:
        await client.publish("in", {"x": "a"})
        np.testing.assert_array_equal(next(iter((await events.next(10)).outputs.values())), Y)
        await client.publish("in", {"x": "nothing"})
        assert isinstance((await events.next(10)).error, errors.NoTensor)


async def test_entries_of_a_stream(client: Any, db: Any) -> None:
    first = db.xadd("numbers", {"image": npy.to_bytes(np.array([[0]]))})
    await client.set_trigger("t", OnStream("numbers", start="0"), "echo", [Value("{image}")], results="log", maxlen=100)
    ids = [first, *(db.xadd("numbers", {"image": npy.to_bytes(np.array([[n]]))}) for n in range(1, 20))]
    await until(lambda: db.xlen("log") == 20)
    rows = [fields for _, fields in db.xrange("log")]
    assert {row[b"source"] for row in rows} == set(ids)
    assert sorted(json.loads(row[b"result"])["outputs"]["y"]["values"][0] for row in rows) == list(range(20))


async def test_features_are_gathered_when_the_event_comes(client: Any, db: Any) -> None:
    db.hset("user:7", mapping={"a": 1, "b": 2.5, "c": -3})
    inputs = [Hash("user:{user}", ["a", "b", "c", "d"], default=0)]
    await client.set_trigger("t", OnPublish("in"), "affine", inputs)
    await heard(db, "in")
    async with client.subscribe("t") as events:
        await client.publish("in", {"user": "7"})
        event = await events.next(10)
        assert event.error is None
        assert next(iter(event.outputs.values())).tolist() == [[3, 6, -5, 1]]
        db.rpush("user:8", "no hash")
        await client.publish("in", {"user": "8"})
        assert isinstance((await events.next(10)).error, errors.WrongType)


async def test_a_schedule(client: Any) -> None:
    await client.set("a", X)
    await client.set("b", X * 2)
    await client.set_trigger("t", OnSchedule(0.1, keys=["a", "b"]), "affine", "{member}", outputs="scored:{member}")
    async with client.subscribe("t") as events:
        found = [await events.next(10) for _ in range(4)]
    assert {next(iter(event.keys.values())) for event in found} == {"scored:a", "scored:b"}
    np.testing.assert_array_equal(await client.get("scored:b"), X * 4 + 1)


async def test_iteration_ends_when_it_is_closed(client: Any) -> None:
    await client.set_trigger("t", OnSet("k:{n}"), "affine", ["{key}"])
    events = client.subscribe("t")
    found = []

    async def listen() -> None:
        async with events:
            await client.set("k:0", X)
            async for event in events:
                found.append(event.source)
                if len(found) < 3:
                    await client.set(f"k:{len(found)}", X)

    listening = asyncio.ensure_future(listen())
    await until(lambda: len(found) == 3)
    await events.close()
    await asyncio.wait_for(listening, 5)
    assert found == ["k:0", "k:1", "k:2"]


async def test_a_subscription_outlives_its_connection(client: Any, db: Any) -> None:
    await client.set_trigger("t", OnSet("k:{n}"), "affine", ["{key}"], channel="mine")
    async with client.subscribe("t") as events:
        for round_ in range(3):
            waiting = asyncio.ensure_future(events.next(10))
            for one in db.client_list(_type="pubsub"):
                if one["name"] in ("keyside-client", "keyside-listener"):
                    db.client_kill_filter(_id=one["id"])
            await until(lambda round_=round_: events.breaks == round_ + 1)
            await heard(db, "mine")
            await client.set(f"k:{round_}", X)
            assert (await waiting).source == f"k:{round_}"


async def test_a_subscription_ends_with_its_client(connect: Connect, client: Any, executor: Executor) -> None:
    await client.set_trigger("t", OnSet("k:{n}"), "affine", ["{key}"])
    other = connect(executor.url)
    async with other.subscribe("t") as events:
        waiting = asyncio.ensure_future(events.next())
        await asyncio.sleep(0.1)
        await other.close()
        with pytest.raises(errors.Unreachable):
            await asyncio.wait_for(waiting, 5)


async def test_what_is_no_result_is_an_event_too(client: Any, db: Any) -> None:
    async with client.subscribe("t", channel="any") as events:
        for said in ("hello", "{}", '{"outputs":{"y":{"dtype":"FLOAT","shape":[2],"values":[1]}}}', b"\xff", "[1]"):
            db.publish("any", said)
            event = await events.next(10)
            assert event.trigger == "t"
            assert isinstance(event.error, errors.BadValue)


async def test_list_show_pause_delete(client: Any) -> None:
    assert [one async for one in client.triggers()] == []
    await client.set_trigger("a", OnPublish("in", sharded=True), "affine", ["{x}"], rate=(5, 2), inflight=3, timeout=2)
    await client.set_trigger(
        "b", OnSet("k:{n}", notify=True), "echo@1", ["{key}"], outputs=["o:{n}"], on_error="pause", coalesce=True,
        results="log:{n}", priority="low",
    )  # fmt: skip
    await client.set_trigger("c", OnStream("s", group="g"), "affine", [Value("{x}")], maxlen=10, results="log")
    await client.set_trigger("d", OnSchedule(1.5, members="m"), "affine", ["{member}"], on_error="drop")
    listed = {one.name: one async for one in client.triggers()}
    assert {name: (one.on, one.source, one.target, one.state) for name, one in listed.items()} == {
        "a": ("publish", "in", "affine", "active"),
        "b": ("set", "k:{n}", "echo@1", "active"),
        "c": ("stream", "s", "affine", "active"),
        "d": ("schedule", "1500", "affine", "active"),
    }
    shown = await client.trigger("a")
    assert (shown.target, shown.channel, shown.on_error) == ("affine", "ks:results:a", "publish")
    assert shown.options["rate"] == [5, 2000]
    assert shown.options["inflight"] == 3
    assert shown.run == ("affine", "INPUTS", "1", "KEY", "{x}", "TIMEOUT", "2000")
    shown = await client.trigger("b")
    assert (shown.results, shown.on_error) == ("log:{n}", "pause")
    await client.pause_trigger("b")
    assert (await client.trigger("b")).state == "paused"
    await client.set("k:1", np.array([[1]]))
    assert (await client.trigger_stats("b")).fired == 0
    await client.pause_trigger("b", False)
    assert (await client.trigger("b")).state == "active"
    for name in "abcd":
        await client.delete_trigger(name)
    assert [one async for one in client.triggers()] == []
    for call in (client.trigger, client.delete_trigger, client.pause_trigger, client.trigger_stats):
        with pytest.raises(errors.NoTrigger):
            await call("a")
    with pytest.raises(errors.NoTrigger):
        await client.subscribe("a").next(1)


async def test_what_cannot_be_a_trigger(client: Any) -> None:
    for arguments, options, error in (
        ((OnSet("k:{n}"), "affine", ["{key}"]), {"outputs": ["k:{n}:out"]}, errors.Loop),
        ((OnSet("k:{n}"), "affine", ["{other}"]), {}, errors.BadArg),
        ((OnSet("k:{n"), "affine", ["{key}"]), {}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", [X]), {}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", []), {}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", ["{key}"]), {"rate": (0, 1)}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", ["{key}"]), {"ttl": 0}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", ["{key}"]), {"on_error": "ignore"}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", ["{key}"]), {"priority": "urgent"}, errors.BadArg),
        ((OnSet("k:{n}"), "affine", ["{key}"]), {"maxlen": 5}, errors.BadArg),
    ):
        with pytest.raises(error):
            await client.set_trigger("t", *arguments, **options)
    mistakes: list[dict[str, Any]] = [{}, {"keys": ["a"], "members": "b"}, {"keys": "a"}, {"keys": []}]
    for bad in mistakes:
        with pytest.raises(errors.BadArg):
            OnSchedule(1, **bad)
    assert [one async for one in client.triggers()] == []


async def test_a_queue_without_room_is_said_to_who_sets(client: Any, db: Any, executor: Executor) -> None:
    await client.set_trigger("t", OnSet("k:{n}"), "affine", ["{key}"])
    await client.set_limits("affine", jobs=1)
    async with client.subscribe("t") as events:
        executor.pause()
        try:
            for array in (X, np.zeros((40_000, 4), np.float32)):
                with pytest.raises(errors.Busy, match="is written, but trigger 't' could not start"):
                    await set_often(client, "k:1", array)
                np.testing.assert_array_equal(await client.get("k:1"), array)
        finally:
            executor.resume()
        assert (await events.next(10)).source == "k:1"
    await client.set_limits("affine")
