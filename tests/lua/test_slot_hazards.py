"""What Redis and Valkey really do with slots inside Lua, and that our functions bear it; see also test_hazards."""

import re
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.lua import triggers
from tests.lua.jobs import LARGE, ROW, SHAPES, Hand, healthy, ok, session
from tests.servers import Cluster, Kind, Server, wait_until

from keyside.tensorstore import keys, library
from keyside.tensorstore.errors import KeysideError, TryAgain

Call = Callable[[], Any]


@pytest.fixture(scope="module", params=get_args(Kind))
def alone(request: pytest.FixtureRequest) -> Iterator[Server]:
    """A cluster of one node, which has all slots."""
    with Cluster(request.param, primaries=1, replicas=0) as cluster:
        cluster.load_library()
        yield cluster.primaries[0]


@pytest.fixture
def lone(alone: Server) -> Iterator[Hand]:
    """The steps of callers and executors on a cluster of one node; it must be in good health afterwards."""
    with Hand(alone.url_unix) as hand:
        hand.do("FLUSHALL")
        hand.node = keys.NodeKeys(hand.beat("e1")[1])
        yield hand
        assert healthy(hand)
        hand.do("FLUSHALL")


def test_a_command_on_two_slots_breaks_valkey_and_the_probe_sees_it() -> None:
    with Cluster("valkey", primaries=1, replicas=0) as cluster:
        cluster.load_library()
        with Hand(cluster.primaries[0].url_unix) as hand:
            assert healthy(hand)
            code = "function() return redis.pcall('MGET', 'a', 'b') end"
            register = "redis.register_function{function_name='bad', flags={'allow-cross-slot-keys'}, callback=%s}"
            hand.do("FUNCTION", "LOAD", "#!lua name=bad\n" + register % code)
            with pytest.raises(KeysideError):
                hand.fcall("bad", [])
            assert not healthy(hand), "this server bears it: the rule may be dropped"


def test_no_command_in_lua_names_keys_of_two_slots(lone: Hand, alone: Server) -> None:
    with Hand(alone.url_unix) as watcher:
        watcher.do("MONITOR")
        session(lone, SHAPES)
        triggers.session(lone, SHAPES)
        lone.do("ECHO", "the end")
        seen = commands_in_lua(watcher)
    assert {"COPY", "RENAME", "XADD", "XACK", "XPENDING", "RPUSH"} <= {command[0].decode().upper() for command in seen}
    for command in seen:
        try:
            named = lone.do("COMMAND", "GETKEYS", *command)
        except KeysideError:
            continue  # it takes no keys
        assert len({keys.slot(key) for key in named}) == 1, command


def test_slots_are_asked_for_once_and_not_per_job(lone: Hand, alone: Server) -> None:
    session(lone, SHAPES)
    with Hand(alone.url_unix) as watcher:
        watcher.do("MONITOR")
        for _ in range(3):
            lone.predict()
        lone.do("ECHO", "the end")
        assert b"CLUSTER" not in {command[0].upper() for command in commands_in_lua(watcher)}


def commands_in_lua(watcher: Hand) -> list[list[bytes]]:
    """What functions called, as MONITOR tells, until somebody says that it is the end."""
    found = []
    while True:
        line = bytes(watcher.wire.read())
        where, _, rest = line.partition(b"] ")
        parts = [part.decode("unicode_escape").encode("latin-1") for part in re.findall(rb'"((?:[^"\\]|\\.)*)"', rest)]
        if where.endswith(b" lua"):
            found.append(parts)
        elif parts[-1] == b"the end":
            return found


def probe(hand: Hand) -> None:
    """Load the library a second time, under other names, with a function that tells what lib keys does."""
    source = library.source().replace("#!lua name=keyside", "#!lua name=probe")
    source = re.sub(r"function_name *= *'(\w+)'", r"function_name='PROBE_\1'", source)
    tell = "function(_, ARGV) return { keys.tag(ARGV[1]), keys.capture(ARGV[1], 'i'), keys.gone(ARGV[1], 'u') } end"
    source += f"redis.register_function{{function_name='PROBE', callback={tell}, flags={{'no-writes'}}}}\n"
    hand.do("FUNCTION", "LOAD", "REPLACE", source)


@given(key=st.lists(st.sampled_from([b"{", b"}", b"a", b"b", b"\0", b"\xff", b" "]), max_size=12).map(b"".join))
@example(key=b"")
def test_private_names_are_in_the_slot_of_any_key(alone: Server, key: bytes) -> None:
    with Hand(alone.url_unix) as hand:
        if not getattr(alone, "probed", False):
            probe(hand)
            alone.probed = True  # type: ignore[attr-defined]
        check_names(hand, key)


@pytest.mark.parametrize("key", SHAPES, ids=ascii)
def test_private_names_for_every_shape_of_braces(alone: Server, key: bytes) -> None:
    with Hand(alone.url_unix) as hand:
        probe(hand)
        check_names(hand, key)


def check_names(hand: Hand, key: bytes) -> None:
    tag, capture, gone = hand.fcall("PROBE", [], key)
    assert tag == keys.tag(key)
    assert capture == keys.capture(key, "i")
    assert gone == keys.gone(key, "u")
    names = [key, capture, gone, keys.output(key, 1), keys.upload_chunk(key, "u", 0), keys.blob_chunk(key, "u", "d", 0)]
    slots = hand.wire.call_many([("CLUSTER", "KEYSLOT", name) for name in names])
    assert set(slots) == {keys.slot(key)}


def test_a_slot_that_is_on_the_move(lone: Hand, alone: Server) -> None:
    lone.store()
    lone.do("SET", "{a}x", LARGE)
    lone.execute(["{a}x"], ["{a}y"])
    (queued,) = lone.claim()
    slot = keys.slot("{a}")
    with Cluster(alone.kind, primaries=1, replicas=0) as other:
        there = other.primaries[0]
        # Of two that both have all slots, one would soon yield them, and be made a replica of the other.
        other.ask(there, "CLUSTER", "FLUSHSLOTS")
        lone.do("CLUSTER", "MEET", "127.0.0.1", there.port, there.bus_port)
        other_id = other.ask(there, "CLUSTER", "MYID")
        wait_until(lambda: other_id in lone.do("CLUSTER", "NODES"), "they have met")
        lone.do("CLUSTER", "SETSLOT", slot, "MIGRATING", other_id)
        try:
            # The copy, the missing output and the ticket would all lie in the slot that moves.
            calls: list[Call] = [
                lambda: lone.execute(["{a}x"], ["{a}y"]),
                lambda: lone.execute(["{a}x"], ["{a}x"]),
                lambda: lone.predict("TICKET", "ks:{a}:t"),
            ]
            for call in calls:
                with pytest.raises(TryAgain):
                    call()
                assert healthy(lone)
            assert lone.length() == 1, "nothing was queued"
            outputs = [(b"{a}y", b"V", ROW)]
            assert lone.complete("e1", [ok(queued, *outputs)]) == b"5", "it has not ended: it belongs elsewhere"
            assert lone.reply(lone.node.ticket(b"CPU/" + queued.id)) is None
            assert queued.id in lone.pending()
        finally:
            lone.do("CLUSTER", "SETSLOT", slot, "STABLE")
            lone.do("CLUSTER", "FORGET", other_id)


def test_the_node_tag_follows_when_its_slot_has_gone(lone: Hand) -> None:
    lone.store()
    slot = keys.slot(b"{%b}" % lone.node.tag)
    assert slot == 0
    lone.do("FLUSHALL")
    lone.do("CLUSTER", "DELSLOTS", slot)
    try:
        wait_until(lambda: b"cluster_state:fail" in lone.do("CLUSTER", "INFO"), "the loss is noticed", 5)
        lone.do("CONFIG", "SET", "cluster-require-full-coverage", "no")
        wait_until(lambda: b"cluster_state:ok" in lone.do("CLUSTER", "INFO"), "it goes on", 5)
        assert lone.beat("e1")[1] == keys.slot_tag(1)
    finally:
        lone.do("CLUSTER", "ADDSLOTS", slot)
        lone.do("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        wait_until(lambda: b"cluster_state:ok" in lone.do("CLUSTER", "INFO"), "it is whole again", 5)
        lone.do("FUNCTION", "LOAD", "REPLACE", library.source())  # it forgets what it kept
