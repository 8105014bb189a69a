"""What triggers say, what one may wait for, and what is sent to set a tensor: all that needs no server."""

import json
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside import Key, OnPublish, OnSchedule, OnSet, OnStream, Payload, TriggerInfo, TriggerStats, Value, errors
from keyside.clients import triggers
from keyside.clients.events import read_event
from keyside.clients.waiting import Wanted, passes
from keyside.executor import events as executor_events
from keyside.features import Hash
from keyside.tensorstore import channels, dtypes, npy, storing
from keyside.tensorstore.command import encode

# --- events


@pytest.mark.parametrize("name", [name for name in dtypes.TABLE if name != "STRING"])
def test_what_executors_write_is_read(name: str) -> None:
    dtype = dtypes.by_name(name).numpy
    limits = {"f": np.finfo, "i": np.iinfo, "u": np.iinfo}.get(dtype.kind)
    extremes = [0, 1] if limits is None else [limits(dtype).min, 0, 1, limits(dtype).max]
    array = np.array(extremes, dtype).reshape(-1, 1)
    if dtype.kind == "f":
        array = np.concatenate([array, np.array([[np.nan], [np.inf], [-np.inf], [0.1]], dtype)])
    check(array)


@pytest.mark.parametrize("array", [np.array([b"a", "déjà".encode(), b""]), np.array(b"x"), np.zeros((0, 3), "S1")])
def test_texts_are_read(array: Any) -> None:
    check(array)


@pytest.mark.parametrize("shape", [(), (0,), (2, 0, 3), (2, 3, 1)])
def test_shapes_are_read(shape: tuple[int, ...]) -> None:
    check(np.ones(shape, np.float32))


def check(array: Any) -> None:
    shown = executor_events.shown(npy.to_bytes(array))
    event = read_event("t", json.dumps({"trigger": "u", "outputs": {"y": shown}}).encode())
    assert event.error is None
    assert event.trigger == "u"
    found = event.outputs["y"]
    assert found.shape == array.shape
    assert found.dtype.kind == array.dtype.kind
    np.testing.assert_array_equal(found, array)


def test_an_error_is_of_its_class() -> None:
    event = read_event("t", b'{"trigger":"t","run":"","source":"k","target":"m@1","error":"NOTENSOR no k"}')
    assert isinstance(event.error, errors.NoTensor)
    assert (event.source, event.target, event.outputs, event.keys, event.ms) == ("k", "m@1", {}, {}, None)


@given(st.binary() | st.text().map(str.encode))
def test_any_message_gives_an_event(data: bytes) -> None:
    assert isinstance(read_event("t", data).error, errors.BadValue)


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["dtype", "shape", "values", "key", "y"]), inner),
    max_leaves=8,
)


@given(_json)
def test_any_outputs_give_an_event(outputs: Any) -> None:
    event = read_event("t", json.dumps({"outputs": outputs}).encode())
    assert event.error is None or isinstance(event.error, errors.BadValue)


# --- waiting


def test_conditions() -> None:
    exists, gone, changed = Wanted("k", "exists"), Wanted("k", "gone"), Wanted("k", "changed")
    assert (exists.met([1]), exists.met([0]), gone.met([1]), gone.met([0])) == (True, False, False, True)
    assert [changed.met(said) for said in ([3, b"abc", b"abc"], [3, b"abc", memoryview(b"abc")])] == [False, False]
    assert changed.met([3, b"abd", b"abd"])
    assert changed.met([errors.WrongType("a list")] * 3)
    assert changed.told(b"set")
    assert not changed.told(b"expire")
    assert not exists.told(b"set")
    with pytest.raises(errors.NoPerm):
        exists.met([errors.NoPerm("no")])
    assert passes(lambda array: array > 0, np.array([1, 2]))
    assert not passes(lambda array: array > 1, np.array([1, 2]))


@pytest.mark.parametrize(
    ("flags", "missing"),
    [("", "Kg$xen"), ("AK", ""), ("A", "K"), ("AKE", ""), ("Kg$xen", ""), ("Eg$", "Kxen"), ("AKn", "")],
)
def test_flags_of_notifications(flags: str, missing: str) -> None:
    assert channels.missing_events(flags) == missing


def test_messages() -> None:
    assert channels.read_message([b"message", b"c", b"hi"]) == (b"c", b"hi")
    assert channels.read_message([b"smessage", b"c", memoryview(b"hi")]) == (b"c", b"hi")
    assert channels.read_message([b"sunsubscribe", b"c", 0]) == (b"c", None)
    for other in ([b"subscribe", b"c", 1], [b"pong", b""], b"PONG", None, [], 3, [b"sunsubscribe", None, 0]):
        assert channels.read_message(other) is None


# --- set


@pytest.mark.parametrize("px", [None, 1500])
@pytest.mark.parametrize("size", [3, 100_000])
def test_both_ways_of_encoding_a_set_agree(px: int | None, size: int) -> None:
    header, data = npy.encode(np.arange(size))
    write = storing.Write(b"key", header, data, px, b"c1", 17)
    commands = b"".join(encode(write.transaction()))
    assert b"".join(write.pieces()) == commands
    assert commands.startswith(b"*1\r\n$5\r\nMULTI\r\n")
    assert commands.endswith(b"*1\r\n$4\r\nEXEC\r\n")


QUEUED = [b"OK", b"QUEUED", b"QUEUED"]
ABORTED = errors.from_reply("EXECABORT Transaction discarded because of previous errors.")


def test_replies_to_a_set() -> None:
    assert storing.read([*QUEUED, [b"OK", 2]]) == 2
    assert storing.read([*QUEUED, [b"OK", hiredis.ReplyError("ERR Function not found")]]) == 0
    no = errors.NoPerm("multi")
    assert storing.read([no, b"OK", 1, errors.ServerError("EXEC without MULTI")]) == 1
    for replies, error in (
        ([*QUEUED, [b"OK", hiredis.ReplyError("BUSY full; retry in 5 ms")]], errors.Busy),
        ([*QUEUED, [hiredis.ReplyError("WRONGTYPE no"), 0]], errors.WrongType),
        ([b"OK", errors.OutOfMemory("full"), b"QUEUED", ABORTED], errors.OutOfMemory),
        ([b"OK", errors.TryAgain("MOVED 1 a:1"), errors.TryAgain("MOVED 1 a:1"), ABORTED], errors.TryAgain),
        ([b"OK", b"QUEUED", errors.TryAgain("TRYAGAIN"), ABORTED], errors.TryAgain),
        ([*QUEUED, errors.OutOfMemory("full")], errors.OutOfMemory),
        ([*QUEUED, None], errors.KeysideError),
    ):
        assert not storing.is_mute(replies)
        with pytest.raises(error):
            storing.read(replies)
    assert storing.is_mute([b"OK", b"QUEUED", errors.NoPerm("fcall"), ABORTED])


# --- triggers


def test_what_is_sent_for_a_trigger() -> None:
    assert OnPublish("c", sharded=True).words() == [b"PUBLISH", b"c", b"SHARDED"]
    assert OnSet("k:{n}", notify=True).words() == [b"SET", b"k:{n}", b"NOTIFY"]
    assert OnStream("s", group="g", start="0").words() == [b"STREAM", b"s", b"GROUP", "g", b"FROM", "0"]
    assert OnSchedule(0.25, keys=["a", b"b"]).words() == [b"SCHEDULE", 250, b"KEYS", 2, b"a", b"b"]
    assert OnSchedule(60, members="m").words() == [b"SCHEDULE", 60_000, b"MEMBERS", b"m"]
    inputs = {"a": "k:{n}", "b": Payload(), "c": Value("{x}"), "d": Key("r", mode="ref"), "e": Hash("h:{n}", ["f"])}
    assert triggers.run("m@2", inputs, "o:{n}", 1.5, "high") == [
        b"m@2", b"INPUTS", 5, b"KEY", b"k:{n}", b"VALUE", "{payload}", b"VALUE", "{x}", b"REF", b"r",
        b"HASH", b"FLOAT", b"1", b"h:{n}", b"1", b"f", b"NAMES", 5, b"a", b"b", b"c", b"d", b"e",
        b"OUTPUTS", 1, b"o:{n}", b"TIMEOUT", 1500, b"PRIORITY", "HIGH",
    ]  # fmt: skip


def test_what_a_trigger_is_read_from() -> None:
    info = TriggerInfo.read(
        {"name": b"t", "state": b"active", "on": b"set", "source": b"k", "channel": b"c", "onerror": b"drop",
         "rate": [5, 1000], "run": [b"m", b"INPUTS"]}
    )  # fmt: skip
    assert (info.name, info.target, info.run, info.results, info.on_error) == ("t", "m", ("m", "INPUTS"), None, "drop")
    assert info.options == {"rate": [5, 1000]}


def test_counters_are_added_up() -> None:
    one = TriggerStats(fired=3, done=2, errors=1, last_error="old", last_error_ms=5, last_ms=9)
    other = TriggerStats(fired=1, dropped=4, last_error="new", last_error_ms=6, last_ms=8)
    assert triggers.added([one, other]) == TriggerStats(4, 2, 1, 4, 0, 0, "new", 6, 9)
