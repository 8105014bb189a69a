"""Triggers on the nodes of a cluster: copies of what their homes say, and events where their keys are."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from tests.lua.jobs import ROW, Hand, healthy
from tests.lua.triggers import done, fire, info, lead, listening, onset, write
from tests.servers import Cluster, Kind, wait_until

from keyside.clients import acl
from keyside.tensorstore import commands_triggers as commands
from keyside.tensorstore import keys, library
from keyside.tensorstore.errors import CrossSlot, NoTrigger

RUN = ("RUN", "{{m}}", "INPUTS", 1, "KEY", "{key}")


@pytest.fixture(scope="module", params=get_args(Kind))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param, primaries=2, replicas=0) as cluster:
        cluster.load_library()
        yield cluster


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[Hand, Hand]]:
    """The home of the model {m} and of the trigger {m}t, and the other node."""
    hands = [Hand(node.url_unix) for node in cluster.primaries]
    for hand in hands:
        hand.do("FLUSHALL")
        hand.do("FUNCTION", "LOAD", "REPLACE", library.source())
        hand.node = keys.NodeKeys(hand.beat("e1")[1])
    home = hands[int(keys.slot("{m}") >= 8192)]
    other = next(hand for hand in hands if hand is not home)
    home.store("{m}")
    yield home, other
    for hand in hands:
        assert healthy(hand)
        hand.do("FLUSHALL")
        hand.wire.close()


def copy(home: Hand, other: Hand, mode: str = "NEWER") -> int:
    flat = []
    for name, rev, tag, records in home.fcall("KS_CATALOG", [], 0, 100)[3]:
        flat += [name, rev, tag, len(records), *records]
    done: int = other.fcall("KS_MERGE", [], mode, 1, *flat)
    return done


def test_a_trigger_that_was_made_by_hand_is_none(pair: tuple[Hand, Hand]) -> None:
    """Who may write models may write such a hash, and the catalog: executors must not do what it says."""
    home, other = pair
    onset(home, "{m}t", "{tag}:a:{x}", run=RUN)
    fields = home.do("HGETALL", "{m}t")
    home.do("HSET", "{m}evil", *fields)
    home.do("ZADD", home.node.revs, 5, "{m}evil")
    home.do("HSET", home.node.catalog, "{m}worse", home.do("HGET", home.node.triggers, "{m}t"))
    home.do("ZADD", home.node.revs, 6, "{m}worse")
    home.fcall("KS_REFRESH", [], "{m}evil", "{m}worse", "{m}t")
    copy(home, other)
    assert listed(home) == listed(other) == ["{m}t"]
    home.do("HSET", "{m}t", "spec", home.do("HGET", "{m}t", "spec").replace(b"{tag}:a:", b"{tag}:b:"), "rev", 1)
    home.fcall("KS_REFRESH", [], "{m}t")
    assert listed(home) == []


def test_a_predictor_starts_runs_on_a_cluster_too(pair: tuple[Hand, Hand], cluster: Cluster) -> None:
    home, _ = pair
    onset(home, "{m}t", "{tag}:a:{x}", run=RUN)
    key = here(home)
    first, second = cluster.primaries
    place = second if keys.slot("{m}") >= 8192 else first
    home.do(*acl.set_user("p", acl.rules("predictor", user="p", keys=["{*:a:*"], models=["*"]), "pw"))
    try:
        with Hand(place.url_unix.replace("unix://", "unix://p:pw@"), home.node.tag) as user:
            user.fcall("AI_TENSORSET", [key], "FLOAT", 1, 4, "VALUES", 1, 2, 3, 4)
        assert home.length() == 1
    finally:
        home.do("ACL", "DELUSER", "p")


def listed(hand: Hand) -> list[str]:
    command = commands.ai_triggerscan(0)
    return [found.name for found in command.result(hand.do(*command.args))[1]]


def here(hand: Hand, name: bytes = b":a:1") -> bytes:
    """A key on a node."""
    return b"{%b}%b" % (hand.node.tag, name)


def test_a_trigger_fires_where_its_keys_are(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    onset(home, "{m}t", "{tag}:a:{x}", run=(*RUN, "OUTPUTS", 1, "{tag}:b:{x}"))
    write(other, here(other))
    assert other.length() == 0
    assert copy(home, other) == 2
    assert copy(home, other) == 0
    assert listed(home) == listed(other) == ["{m}t"]
    for hand in pair:
        write(hand, here(hand))
        (job,) = hand.claim()
        assert job.extra == {b"e": [b"{m}t", here(hand)]}
        assert (job.ticket, job.outputs) == (hand.node.event("{m}t"), [here(hand, b":b:1")])
        assert hand.complete("e1", [done(job, (here(hand, b":b:1"), b"V", ROW))]) == b"1"
        assert hand.do("HGET", hand.node.tstats("{m}t"), "done") == b"1"
    assert info(home, "{m}t")["fired"] == 1, "counters are those of a node"


def test_changes_and_deletions_follow(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    onset(home, "{m}t", "{tag}:a:{x}", run=RUN)
    copy(home, other)
    write(other, here(other))
    home.fcall("AI_TRIGGERPAUSE", ["{m}t"], "ON")
    copy(home, other)
    write(other, here(other))
    assert other.length() == 1
    home.fcall("AI_TRIGGERSET", ["{m}t"], "ON", "PUBLISH", "news", "RUN", "{{m}}", "INPUTS", 1, "VALUE", "{payload}")
    copy(home, other)
    assert not other.do("EXISTS", other.node.onset)
    home.fcall("AI_TRIGGERDEL", ["{m}t"])
    assert copy(home, other) == 1
    assert listed(other) == []
    assert not other.do("EXISTS", other.node.triggers, other.node.tstats("{m}t"), other.node.inflight("{m}t"))
    # A model takes the name, and a trigger that of the model.
    home.store("{m}t")
    copy(home, other)
    other.predict(target="{m}t")
    home.fcall("AI_MODELDEL", ["{m}t"])
    onset(home, "{m}t", "{tag}:c:{x}", run=RUN)
    copy(home, other)
    assert listed(other) == ["{m}t"]
    assert not other.do("HEXISTS", other.node.catalog, "{m}t")


def test_what_came_with_its_slot_or_went_by_hand_is_noticed(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    onset(home, "{m}t", "{tag}:a:{x}", run=RUN)
    assert home.fcall("KS_REFRESH", [], "{m}t", "{m}none") == [0, []]
    home.do("UNLINK", home.node.triggers, home.node.onset, home.node.revs)
    assert home.fcall("KS_REFRESH", [], "{m}t") == [1, []]
    assert home.fcall("KS_REFRESH", [], "{m}t") == [0, []]
    write(home, here(home))
    assert home.length() == 1
    copy(home, other)
    home.do("DEL", "{m}t")
    assert home.fcall("KS_REFRESH", [], "{m}t") == [1, []]
    assert listed(home) == []
    assert copy(home, other) >= 1
    assert listed(other) == []


def test_executors_serve_what_hashes_to_their_node(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    channel = here(other, b"news").decode()
    value = ("RUN", "{{m}}", "INPUTS", 1, "VALUE", "{payload}")
    home.fcall("AI_TRIGGERSET", ["{m}p"], "ON", "PUBLISH", channel, *value)
    home.fcall("AI_TRIGGERSET", ["{m}s"], "ON", "STREAM", here(home, b"st"), *value)
    onset(home, "{m}n", "a:{x}", "NOTIFY", run=RUN)
    onset(home, "{m}q", "a:{x}", run=RUN)
    copy(home, other)

    def served(hand: Hand) -> set[bytes]:
        command = commands.ks_triggers()
        return {name for name, _ in command.result(hand.do(*command.args))}

    assert served(home) == {b"{m}s", b"{m}n"}
    assert served(other) == {b"{m}p", b"{m}n"}
    lead(other, "{m}p")
    assert fire(other, "{m}p", "1", payload=ROW)[0] == "FIRED"
    with pytest.raises(NoTrigger):
        fire(other, "none", "1", payload=ROW)


def test_all_of_an_event_is_in_one_slot(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    value = ("RUN", "{{m}}", "INPUTS", 1, "VALUE", "{payload}")
    for words in (
        ("ON", "PUBLISH", "{a}", "RESULTS", "{{b}}", *value),
        ("ON", "PUBLISH", "{a}", *value, "OUTPUTS", 1, "{{b}}y"),
        ("ON", "SCHEDULE", 5, "KEYS", 2, "{a}", "{b}", "RUN", "m", "INPUTS", 1, "KEY", "{member}"),
        ("ON", "SET", "a:{x}", "RESULTS", "results", *RUN),
    ):
        with pytest.raises(CrossSlot):
            home.fcall("AI_TRIGGERSET", ["{m}t"], *words)
    home.fcall(
        "AI_TRIGGERSET", ["{m}t"], "ON", "PUBLISH", "{m}news", "RESULTS", "{{m}}res", *value, "OUTPUTS", 1, "{{m}}y"
    )
    onset(home, "{m}u", "{tag}:a:{x}", "RESULTS", "{tag}res", run=(*RUN, "OUTPUTS", 1, "elsewhere"))
    key = here(home)
    write(home, key)
    assert home.length() == 0
    assert info(home, "{m}u")["last_error"].startswith(b"CROSSSLOT key 'elsewhere' is not in the slot of ")
    ((_, fields),) = home.do("XRANGE", here(home, b"res"), "-", "+")
    assert fields[:2] == [b"source", key]


def test_a_run_may_end_on_another_node(pair: tuple[Hand, Hand], cluster: Cluster) -> None:
    """Its keys have moved, and so was its entry."""
    home, other = pair
    onset(home, "{m}t", "{tag}:a:{x}", "INFLIGHT", 5, "COALESCE", run=RUN)
    copy(home, other)
    write(home, here(home))
    stream = home.node.jobs("CPU")
    ((_, ((entry, fields),)),) = home.do("XREADGROUP", "GROUP", "ks", "e1", "STREAMS", stream, ">")
    origin = b"%b/CPU/%b" % (home.node.tag, entry)
    assert other.fcall("KS_FORWARD", [here(other)], "CPU", origin, home.now() + 10_000, "", *fields)
    (job,) = other.claim()
    server = next(node for node in cluster.primaries if node.url_unix == _url(home))
    with listening(server) as ear:
        assert other.complete("e1", [done(job, text=b'{"trigger":"{m}t"}')]) == b"1"
        heard: list[Any] = []
        wait_until(lambda: heard.extend(ear.heard()) or heard, "it has come from the other node")  # type: ignore[func-returns-value]
        assert heard == [{"trigger": "{m}t"}]
    assert other.do("HGET", other.node.tstats("{m}t"), "done") == b"1"


def _url(hand: Hand) -> str:
    path = hand.do("CONFIG", "GET", "unixsocket")[1].decode()
    return f"unix://{path}"


def test_errors_pause_it_on_the_node_where_they_are(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    onset(home, "{m}t", "{tag}:a:{x}", "ONERROR", "PAUSE", run=RUN)
    copy(home, other)
    write(other, here(other))
    (job,) = other.claim()
    other.complete("e1", [done(job, text=b"RUNFAILED no")])
    for _ in range(2):
        write(other, here(other))
        assert other.length() == 0
        copy(home, other)
    write(home, here(home))
    assert home.length() == 1
    home.fcall("AI_TRIGGERPAUSE", ["{m}t"], "OFF")
    copy(home, other)
    write(other, here(other))
    assert other.length() == 1


def test_a_node_with_a_new_tag_still_knows_what_fires(pair: tuple[Hand, Hand]) -> None:
    """Its lowest slot has gone: until an executor tells it all triggers anew it goes by what it knew."""
    home, _ = pair
    onset(home, "{m}t", "{tag}:a:{x}", run=RUN)
    slots = sorted(
        number for start, end, (_, port, *_), *_ in home.do("CLUSTER", "SLOTS") if port == _port(home)
        for number in (start, end)
    )  # fmt: skip
    key = b"{%b}:a:1" % keys.slot_tag(slots[-1])
    write(home, key)
    assert home.length() == 1
    home.do("FLUSHALL")
    home.do("CLUSTER", "DELSLOTS", slots[0])
    try:
        wait_until(lambda: b"cluster_state:fail" in home.do("CLUSTER", "INFO"), "the loss is noticed")
        home.do("CONFIG", "SET", "cluster-require-full-coverage", "no")
        wait_until(lambda: b"cluster_state:ok" in home.do("CLUSTER", "INFO"), "it goes on")
        tag = home.beat("e1")[1]
        assert tag != home.node.tag
        home.node = keys.NodeKeys(tag)
        record = b'{"key":"{m}","uid":"u","version":1,"state":"ready","device":"CPU","signature":null,"reason":""}'
        home.do("HSET", home.node.catalog, "{m}", record)
        write(home, key)
        assert home.length() == 1
        (job,) = home.claim()
        assert home.complete("e1", [done(job)]) == b"1"
        assert home.do("HGET", home.node.tstats("{m}t"), "done") == b"1"
        home.do("HSET", home.node.catalog, "@", "1")  # now it has been told: there are none
        write(home, key)
        assert home.length() == 0
    finally:
        home.do("CLUSTER", "ADDSLOTS", slots[0])
        home.do("CONFIG", "SET", "cluster-require-full-coverage", "yes")
        wait_until(lambda: b"cluster_state:ok" in home.do("CLUSTER", "INFO"), "it is whole again")
        home.do("FUNCTION", "LOAD", "REPLACE", library.source())


def _port(hand: Hand) -> int:
    return int(hand.do("CONFIG", "GET", "port")[1])
