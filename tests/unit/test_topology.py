"""Who owns which slots, and how other nodes are reached."""

import hiredis
import pytest

from keyside.executor.peers import moved_to, on_the_move, peer_url
from keyside.executor.topology import Node, Topology
from keyside.tensorstore import keys

SLOTS = [
    [8192, 16383, [b"10.0.0.2", 7001, b"b", []]],
    [0, 99, [b"10.0.0.1", 7000, b"a", []], [b"10.0.0.3", 7002, b"c", []]],
    [200, 8191, [b"10.0.0.1", 7000, b"a", []], [b"10.0.0.3", 7002, b"c", []]],
]


def test_owners_of_slots() -> None:
    found = Topology.of_slots(b"a", SLOTS)
    assert (found.role, found.me) == ("primary", Node(b"a", "10.0.0.1", 7000))
    owners = [found.owner(slot) for slot in (0, 99, 100, 199, 200, 8191, 8192, 16383)]
    assert [owner.id if owner else b"" for owner in owners] == [b"a", b"a", b"", b"", b"a", b"a", b"b", b"b"]
    assert found.is_mine(99)
    assert not found.is_mine(100)
    assert not found.is_mine(9000)
    assert set(found.primaries) == {b"a", b"b"}
    assert found.slots_of(b"a") == [(0, 99), (200, 8191)]
    assert found.tag_of(b"a") == keys.slot_tag(0)
    assert found.tag_of(b"c") == b""
    assert Topology.of_slots(b"a", list(reversed(SLOTS))) == found


def test_roles() -> None:
    replica = Topology.of_slots(b"c", SLOTS)
    assert (replica.role, replica.primary) == ("replica", Node(b"a", "10.0.0.1", 7000))
    assert replica.me == Node(b"c", "10.0.0.3", 7002)
    assert Topology.of_slots(b"x", SLOTS).role == "none"
    assert Topology().role == "primary"
    assert Topology().is_mine(5)


def test_an_address_that_a_node_does_not_know() -> None:
    for host in (None, b"", b"?"):
        found = Topology.of_slots(b"a", [[0, 16383, [host, 7000, b"a", []]]])
        assert found.me == Node(b"a", "", 7000)


@pytest.mark.parametrize(
    ("url", "template", "expected"),
    [
        ("redis://127.0.0.1:1", "", "redis://10.0.0.1:7000"),
        ("redis://u:p%40@h:1/0?timeout=3", "", "redis://u:p%40@10.0.0.1:7000?timeout=3"),
        ("rediss://:p@h?ssl_ca_certs=/ca", "", "rediss://:p@10.0.0.1:7000?ssl_ca_certs=/ca"),
        ("unix:///tmp/s", "", "redis://10.0.0.1:7000"),
        ("unix://u:p@/tmp/s?db=0", "", "redis://u:p@10.0.0.1:7000"),
        ("unix:///tmp/s", "rediss://x:y@any:1?ssl_ca_certs=/ca", "rediss://x:y@10.0.0.1:7000?ssl_ca_certs=/ca"),
    ],
)
def test_urls_of_other_nodes(url: str, template: str, expected: str) -> None:
    assert peer_url(url, "10.0.0.1", 7000, template) == expected


def test_a_url_with_an_ipv6_address() -> None:
    assert peer_url("redis://h:1", "::1", 7000) == "redis://[::1]:7000"


def test_redirections() -> None:
    assert moved_to(hiredis.ReplyError("MOVED 5 10.0.0.1:7000")) == ("MOVED", "10.0.0.1", 7000)
    assert moved_to(hiredis.ReplyError("ASK 5 ::1:7000")) == ("ASK", "::1", 7000)
    assert moved_to(hiredis.ReplyError("MOVED 5 :7000")) == ("MOVED", "", 7000)
    assert moved_to(hiredis.ReplyError("ERR other")) is None
    assert moved_to(b"MOVED 5 10.0.0.1:7000") is None
    for text in ("MOVED 5 h:1", "ASK 5 h:1", "TRYAGAIN x", "CLUSTERDOWN x"):
        assert on_the_move(hiredis.ReplyError(text))
    assert not on_the_move(hiredis.ReplyError("WRONGTYPE x"))
    assert not on_the_move(b"MOVED 5 h:1")


def test_tags_of_all_slots_at_once() -> None:
    found = keys.slot_tags()
    assert len(found) == keys.SLOTS
    for slot in range(0, keys.SLOTS, 37):
        assert found[slot] == keys.slot_tag(slot)
