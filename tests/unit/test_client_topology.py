"""Where a client of a cluster sends what, decided without a server."""

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from keyside.clients import inputs, way
from keyside.clients.address import parse_address
from keyside.clients.endpoint import Endpoint, NotConnected
from keyside.clients.request import Identity, Request
from keyside.clients.topology import Topology, check_slots
from keyside.clients.way import Way
from keyside.tensorstore import commands, keys, plain
from keyside.tensorstore.commands import NodeReport, QueueReport
from keyside.tensorstore.errors import (
    BadArg,
    BadShape,
    CrossSlot,
    LibraryMissing,
    NoModel,
    ServerError,
    TryAgain,
    Unreachable,
    from_reply,
)

RANGES = [(0, 5460, "h", 1), (5461, 10922, "h", 2), (10923, 16383, "h", 3)]


def report(tag: bytes, *, live: int = 1, queued: int = 0, complete: bool = True) -> NodeReport:
    return NodeReport(tag, True, 0, 9, complete, {"CPU": QueueReport(live, queued, -1)})


@pytest.fixture
def topology() -> Topology:
    made = Topology()
    made.update(RANGES)
    for node in made.nodes.values():
        made.looked(node, report(node.tag))
    return made


def request(*, key: bytes | None = None) -> Request:
    bound = inputs.bind(inputs.Key(key) if key else np.zeros(3))
    return inputs.request("m", bound, (), 5.0, Identity(), b"")


def a_way(topology: Topology, made: Request | None = None, **more: Any) -> Way:
    return Way(topology, time.monotonic() + 5, request=made, **more)


def test_nodes_have_the_tags_of_their_lowest_slots_until_they_say_theirs(topology: Topology) -> None:
    assert [node.tag for node in topology.nodes.values()] == [keys.slot_tag(first) for first, *_ in RANGES]
    node = topology.owner(0)
    assert node is not None
    topology.looked(node, report(b"xyz"))
    assert node.tag == b"xyz"
    topology.update([(0, 16383, "h", 1)])
    assert topology.owner(16383) is node
    assert node.tag == b"xyz"


def test_moved_is_believed_and_asked_about(topology: Topology) -> None:
    teller = topology.owner(0)
    assert teller is not None
    assert not topology.stale
    assert topology.moved(7, ":2", teller) is topology.owner(5461)
    assert topology.owner(7) is topology.owner(5461)
    assert topology.stale
    assert topology.moved(8, "elsewhere:99", teller).address == "elsewhere:99"


def picks(topology: Topology, count: int = 200, **more: Any) -> set[str]:
    found = (topology.pick("CPU", **more) for _ in range(count))
    return {node.address for node in found if node is not None}


def test_a_node_is_picked_that_serves_the_device_and_is_not_left_out(topology: Topology) -> None:
    one, two, three = topology.nodes.values()
    assert picks(topology) == {"h:1", "h:2", "h:3"}
    topology.looked(one, report(one.tag, live=0))
    assert picks(topology) == {"h:2", "h:3"}
    two.leave_out()
    assert picks(topology) == {"h:3"}
    # Rather one without an executor than one that has just refused it.
    assert picks(topology, avoid=[three]) == {"h:1"}
    topology.looked(two, report(two.tag))
    topology.looked(three, report(three.tag, complete=False))
    assert picks(topology) == {"h:2"}


def test_the_node_with_less_to_do_is_picked(topology: Topology) -> None:
    one, two, three = topology.nodes.values()
    topology.looked(one, report(one.tag, queued=100))
    two.flying = 50
    counts = {node.address: 0 for node in (one, two, three)}
    for _ in range(300):
        node = topology.pick("CPU")
        assert node is not None
        counts[node.address] += 1
    assert counts["h:1"] == 0
    assert counts["h:3"] > counts["h:2"] > 0


def test_what_was_said_long_ago_is_no_ground_to_choose(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    assert not topology.outdated()
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now + 3.1)
    assert topology.outdated()
    topology.looked(next(iter(topology.nodes.values())), Unreachable("gone"))
    assert topology.outdated()
    topology.looked(next(iter(topology.nodes.values())), report(b"xyz"))
    assert not topology.outdated()


def test_a_job_is_stranded_where_no_executor_is_left_but_elsewhere(topology: Topology) -> None:
    topology.learn("m", "CPU")
    free = a_way(topology, request())
    node, _ = free.next()
    job = b"CPU!H@%b/1-0" % node.tag
    assert not free.stranded(job)
    topology.looked(node, report(node.tag, live=0))
    assert free.stranded(job)
    assert not free.stranded(b"")
    assert not free.stranded(b"GPU/1-0"), "nobody serves that"
    for other in topology.nodes.values():
        topology.looked(other, report(other.tag, live=0))
    assert not free.stranded(job)
    topology.looked(node, report(node.tag, live=0))
    other = next(other for other in topology.nodes.values() if other is not node)
    topology.looked(other, report(other.tag))
    before = free.submitted.seq
    wait = free.failed(free.taken_back())
    assert (free.next()[0], free.job, wait) == (other, b"", 0.0)
    assert free.submitted.seq != before, "where it was that number is taken"
    assert not node.out, "it may serve other devices"
    # There and back again, though a third node, which has never had executors, has nothing to do.
    job = b"CPU@%b/1-0" % other.tag
    topology.looked(node, report(node.tag, queued=50))
    topology.looked(other, report(other.tag, live=0))
    assert free.stranded(job)
    free.failed(free.taken_back())
    assert free.next()[0] is node
    topology.looked(node, report(node.tag, live=0))
    topology.looked(other, report(other.tag))
    late = Way(topology, time.monotonic() + 0.1, request=request())
    late.to(node)
    late.next()
    assert not late.stranded(job), "there is no time to begin anew"
    keyed = a_way(topology, request(key=b"k"))
    free.failed(free.taken_back())
    assert free.next()[0] is other
    topology.looked(keyed.next()[0], report(keyed.next()[0].tag, live=0))
    assert not keyed.stranded(job), "its keys are there"
    free.doubt = True
    topology.looked(other, report(other.tag, live=0))
    assert not free.stranded(job)


def test_being_left_out_takes_longer_each_time(topology: Topology, monkeypatch: pytest.MonkeyPatch) -> None:
    now = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: now)
    node = topology.owner(0)
    assert node is not None
    spans = []
    for _ in range(9):
        node.leave_out()
        spans.append(round(node.out - time.monotonic(), 2))
        node.out = time.monotonic()
    assert spans == sorted(spans)
    assert 3 < spans[-1] <= 4


def test_a_call_with_keys_goes_to_their_owner_and_stays_there(topology: Topology) -> None:
    went = a_way(topology, request(key=b"{user}x"))
    owner = topology.owner(keys.slot("{user}x"))
    for error in (TryAgain("a slot moves"), Unreachable("lost"), NotConnected("no"), ServerError("READONLY You can't")):
        assert went.next() == (owner, False)
        assert went.failed(error) > 0
    assert went.doubt
    with pytest.raises(BadShape):
        went.failed(BadShape("no"))
    with pytest.raises(NoModel):
        went.failed(NoModel("no"))


def test_redirections(topology: Topology) -> None:
    made = request(key=b"{user}x")
    went, slot = a_way(topology, made), keys.slot("{user}x")
    other = topology.nodes["h:1" if topology.owner(slot) is not topology.nodes["h:1"] else "h:2"]
    went.next()
    assert went.failed(from_reply(f"ASK {slot} {other.address}")) == 0
    assert went.next() == (other, True)
    assert went.failed(TryAgain("not all keys are here")) > 0
    assert went.next() == (topology.owner(slot), False)
    assert went.failed(from_reply(f"MOVED {slot} {other.address}")) == 0
    assert went.next() == (other, False)
    assert not went.doubt


@pytest.mark.parametrize("error", [TryAgain("no"), NotConnected("no"), LibraryMissing("no"), Unreachable("LOADING x")])
def test_what_was_surely_not_taken_goes_to_another_node(topology: Topology, error: Any) -> None:
    made = request()
    went = a_way(topology, made)
    seen = []
    for _ in range(3):
        node, asking = went.next()
        assert not asking
        assert made.tag == node.tag
        seen.append(node.address)
        assert went.failed(error) == (0 if len(seen) < 3 else pytest.approx(0.02))
    assert len(set(seen)) == 3


def test_what_may_have_been_taken_stays_with_the_slot_of_its_tag(topology: Topology) -> None:
    made = request()
    went = a_way(topology, made)
    first, _ = went.next()
    went.failed(Unreachable("lost"))
    tag = made.tag
    assert went.next() == (first, False)
    # The slot of that tag has another owner now.
    other = next(node for node in topology.nodes.values() if node is not first)
    topology.moved(keys.slot(b"{%b}" % tag), other.address, first)
    went.failed(TryAgain("not here"))
    assert went.next() == (other, False)
    assert made.tag == tag


def test_a_model_that_a_node_does_not_know_is_asked_for_at_its_home(topology: Topology) -> None:
    home = topology.home("m@1")
    assert home is not None
    made = request()
    went = a_way(topology, made)
    node, _ = went.next()
    while node is home:
        went = a_way(topology, made)
        node, _ = went.next()
    assert went.failed(NoModel("no model 'm'")) == 0
    assert went.next() == (home, False)
    with pytest.raises(NoModel):
        went.failed(NoModel("no model 'm'"))


def test_the_end_of_a_way_says_which_node_is_broken(topology: Topology) -> None:
    went = Way(topology, time.monotonic(), request=request(key=b"k"))
    node, _ = went.next()
    topology.looked(node, from_reply("ERR Script attempted to access a non local key in a cluster node"))
    with pytest.raises(TryAgain, match=rf"node {node.address} owns slot {keys.slot('k')}.*restart"):
        went.failed(from_reply("TRYAGAIN a key of this call is not on this node now"))


def test_large_values_follow_a_call_to_where_it_goes() -> None:
    made = inputs.request("m", inputs.bind(np.zeros(10_000)), (), 5.0, Identity(), b"")
    for tag in (b"abc", b"xyz"):
        made.place(tag)
        assert all(name.startswith(b"ks:{%b}:tmp:" % tag) for name in made.temporaries)
        assert made.before[0].args[1] == made.temporaries[0]
        assert made.ticket(made.tag).startswith(b"ks:{%b}:t:" % tag)


def test_keys_of_one_call() -> None:
    check_slots([b"{a}x", b"{a}y", b"z{a}"])
    with pytest.raises(CrossSlot) as caught:
        check_slots([b"x", b"y"])
    for part in ("'x' (slot 16287)", "'y' (slot 12222)", "'{user42}:x'", "move=True"):
        assert part in caught.value.text
    bound = inputs.bind([inputs.Key("{a}x"), inputs.Key("b"), np.zeros(3), inputs.Key("{a}z")])
    assert inputs.strangers(bound, ()) == [1]
    assert inputs.strangers(bound, [b"b"]) == [0, 3]
    # On one server it does not matter.
    assert inputs.request("m", bound, (), 5.0, Identity(), b"0").keyed
    with pytest.raises(CrossSlot):
        inputs.request("m", bound, (), 5.0, Identity(), b"")


SLOTS: list[tuple[Callable[[], Any], int | None]] = [
    (commands.ks_version, None),
    (commands.ai_node, None),
    (lambda: plain.scan_strings(0, ""), None),
    (lambda: plain.get_value("{a}x"), keys.slot("a")),
    (lambda: commands.ai_info("a"), keys.slot("a")),
    (lambda: plain.blmpop(b"ks:{a}:mb:1", 1), keys.slot("a")),
    (lambda: plain.copy("{a}x", "{a}y", replace=True), keys.slot("a")),
    (lambda: commands.ai_cancel("ks:{a}:t:1", "CPU/1-1"), keys.slot("a")),
    (lambda: commands.ai_cancel("ks:{a}:t:1", "CPU!H@b/1-1"), keys.slot("b")),
    (lambda: plain.is_queued(b"CPU!H@b/1-1"), keys.slot("b")),
]


@pytest.mark.parametrize(("build", "slot"), SLOTS, ids=itertools.count())
def test_the_slot_of_a_command(build: Callable[[], Any], slot: int | None) -> None:
    assert way.slot_of(build()) == slot


def test_the_device_in_a_job_id() -> None:
    for job in (b"GPU:1/1-0", b"GPU:1!H/1-0", b"GPU:1@0aB/1-0", b"GPU:1!L@0aB/1-0"):
        assert way.bare_device(job) == "GPU:1"


@pytest.mark.parametrize(
    ("url", "one", "hosts", "service"),
    [
        ("redis://h:1/2", "redis://h:1/2", (), ""),
        ("unix:///a,b", "unix:///a,b", (), ""),
        ("redis://u:p@h1:1,h2,[::1]:3/0", "redis://u:p@h1:1/0", (("h1", 1), ("h2", 6379), ("::1", 3)), ""),
        ("rediss://h1,h2?ssl_cert_reqs=none", "rediss://h1:6379?ssl_cert_reqs=none", (("h1", 6379), ("h2", 6379)), ""),
        ("redis+sentinel://u:p@h1,h2:5/mine/3", "redis://u:p@h1:26379/3", (("h1", 26379), ("h2", 5)), "mine"),
        ("rediss+sentinel://h1/mine", "rediss://h1:26379", (("h1", 26379),), "mine"),
    ],
)
def test_addresses(url: str, one: str, hosts: Any, service: str) -> None:
    assert parse_address(url) == (one, hosts, service)


@pytest.mark.parametrize("url", ["redis+sentinel://h1:1", "redis+sentinel:///mine", "redis://h1:x,h2", "redis://h1,:2"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(BadArg):
        Endpoint(url, {})


def test_settings_hold_for_all_nodes() -> None:
    first = Endpoint("rediss://u:p@h:1?ssl_cert_reqs=none", {"client_name": "mine", "socket_keepalive": True})
    settings = first.at("other", 9)._pools[0].connection_kwargs
    wanted = {
        "username": "u",
        "password": "p",
        "ssl_cert_reqs": "none",
        "client_name": "mine",
        "host": "other",
        "port": 9,
    }
    assert wanted.items() <= settings.items()
    sentinels = Endpoint(
        "rediss+sentinel://u:p@h:1/mine", {"sentinel_password": "q", "ssl_cert_reqs": "none"}
    ).sentinels
    settings = sentinels[0]._pools[0].connection_kwargs
    assert (settings["password"], settings.get("username"), settings["ssl_cert_reqs"]) == ("q", None, "none")
