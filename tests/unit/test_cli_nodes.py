"""What `keyside status` and `keyside doctor` make of what the nodes of a cluster say, without a cluster."""

import random
from typing import Any

import pytest
from tests.unit.test_cli import healthy

from keyside.clients.cli.checks import Finding, examine
from keyside.clients.cli.common import count, human_age
from keyside.clients.cli.nodes import Node, parse_nodes
from keyside.clients.cli.verdict import judge, judge_durability, merged, ranges
from keyside.clients.cli.view import Difference, View, differences
from keyside.tensorstore import keys

# As Redis 7.0 and Valkey 9 write it: with and without a name of the host, with what came later.
NODES = """\
c 10.0.0.3:6379@16379,,tls-port=0,shard-id=aa slave b 0 1700000000000 2 connected
b 10.0.0.2:6379@16379,host-b master - 0 1700000000000 2 connected 8192-16383
a :0@0 myself,master - 0 0 1 connected 0-8190 8191 [17->-b] [18-<-b]
d 10.0.0.4:6379@16379 slave,fail a 0 1700000000000 1 disconnected
e 10.0.0.5:6379@16379 master,fail? - 0 1700000000000 3 disconnected
f :0@0 master,noaddr - 0 0 0 disconnected
g 10.0.0.6:6379@16379 handshake - 0 0 0 disconnected
h fd00::7:6379@16379 slave zz 0 0 0 connected
"""


def test_what_cluster_nodes_says() -> None:
    nodes = parse_nodes(NODES, "localhost", 7000)
    assert [node.id for node in nodes] == ["a", "d", "b", "c", "e", "g", "h"]
    a, d, b, _, e, g, h = nodes
    assert (a.address, a.me, a.slots, a.slot_count, a.moving) == (
        "localhost:7000",
        True,
        ((0, 8190), (8191, 8191)),
        8192,
        2,
    )
    assert (d.primary, d.of, d.state, d.linked) == (False, "a", "failed", False)
    assert (b.address, b.state, b.slot_count) == ("10.0.0.2:6379", "ok", 8192)
    assert (e.state, g.state) == ("suspected", "joining")
    assert (h.host, h.port, h.of) == ("fd00::7", 6379, "zz")


def test_the_home_of_a_model_is_right() -> None:
    slots = {"low": [(0, 8191)], "high": [(8192, 16383)]}
    name = next(f"m{i}" for i in range(100) if keys.slot(f"m{i}") < 8192)
    assert differences(slots, {"low": {name: 5}, "high": {name: 5}}) == []
    for there, what in (({}, "missing"), ({name: 4}, "older"), ({name: 6}, "newer")):
        assert differences(slots, {"low": {name: 5}, "high": there}) == [Difference(name, "low", "high", what)]
    assert differences(slots, {"low": {}, "high": {name: 5}}) == [Difference(name, "low", "high", "gone")]
    # Without its home nothing is known of a model.
    assert differences(slots, {"high": {name: 5}}) == []
    assert differences({"high": slots["high"]}, {"high": {name: 5}}) == []


def test_the_words_of_all_slots_at_once() -> None:
    words = keys.slot_tags()
    assert len(words) == keys.SLOTS
    for slot in (0, keys.SLOTS - 1, *random.sample(range(keys.SLOTS), 50)):
        assert words[slot] == keys.slot_tag(slot)


def test_words() -> None:
    assert ranges({5, 1, 2, 3}) == "1-3, 5"
    assert ranges(range(0, 20, 2)) == "0, 2, 4, 6, 8, ..."
    assert [human_age(ms) for ms in (40, 119_900, 600_000, 86_400_000)] == ["0.0 s", "119.9 s", "10 min", "24 h"]
    assert [count(1, "job"), count(2_000, "job"), count(0, "primary", "primaries")] == [
        "1 job",
        "2,000 jobs",
        "0 primaries",
    ]


def test_what_is_said_of_several_nodes_is_said_once() -> None:
    one = [Finding("a", "warn", "t", "f", node) for node in ("x", "y", "x")]
    assert merged([*one, Finding("b", "fail", "t")], 3) == [
        ("x, y", Finding("a", "warn", "t", "f")), ("", Finding("b", "fail", "t")),
    ]  # fmt: skip
    assert merged(one, 2)[0][0] == "all 2 nodes"


# --- judging

A = Node("a", "h", 1, slots=((0, 8191),))
B = Node("b", "h", 2, slots=((8192, 16383),))
A2, B2 = (Node(one.id * 2, "h", one.port + 10, primary=False, of=one.id) for one in (A, B))


def view(*nodes: Node, state: str = "ok", **changes: Any) -> View:
    made = View(clustered=True, state=state, nodes=list(nodes))
    config = {"save": "", "min-replicas-to-write": "0", "cluster-require-full-coverage": "yes"}
    for node in nodes:
        info = {"cluster_enabled": 1, "role": "master" if node.primary else "slave", "master_link_status": "up"}
        facts = healthy(info=info, slots=list(node.slots), config=config, standby=1, **changes)
        if not node.primary:
            facts.executors, facts.queues = [], []
        made.facts[node] = facts
    return made


def wrong(seen: View) -> list[tuple[str, str, str]]:
    found = judge(seen)
    assert all(finding.fix for finding in found)
    return [(finding.status, finding.node, finding.name) for finding in found]


def test_nothing_is_said_of_a_cluster_that_is_well() -> None:
    seen = view(A, A2, B, B2)
    assert wrong(seen) == []
    assert {finding.status for facts in seen.facts.values() for finding in examine(facts)} == {"ok"}
    assert {finding.status for finding in judge_durability(seen)} == {"ok"}
    assert seen.title == "cluster of 2 primaries, 2 replicas"


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"executors": []}, ("fail", "h:1", "executors")),
        ({"library": None}, ("fail", "h:1", "library")),
        ({"lua": "TRYAGAIN not on this node"}, ("fail", "h:1", "functions")),
        ({"complete": False}, ("warn", "h:1", "catalog")),
        ({"dead": 2}, ("warn", "h:1", "dead letters")),
        ({"moved": [{"tag": "x", "device": "CPU", "depth": 1, "oldest_ms": 60_000}]}, ("warn", "h:1", "moved queue")),
        ({"library": (1, "x")}, ("warn", "", "library versions")),
        ({"version": (7, 2, 4)}, ("warn", "", "server versions")),
    ],
)
def test_what_is_wrong_with_one_node(change: dict[str, Any], expected: tuple[str, str, str]) -> None:
    seen = view(A, A2, B, B2)
    for name, value in change.items():
        setattr(seen.facts[A], name, value)
    assert expected in wrong(seen)


def test_queues_that_wait() -> None:
    seen = view(A, A2, B, B2)
    queue = {"device": "GPU", "depth": 3, "claimed": 0, "bytes": 0, "oldest_ms": 90_000, "executors": 0}
    seen.facts[A].queues = [queue]
    assert wrong(seen) == [("fail", "h:1", "queue GPU")]
    seen.facts[A].queues = [queue | {"executors": 1}]
    assert wrong(seen) == [("warn", "h:1", "queue GPU")]


def test_a_moved_queue_that_is_being_drained_is_no_problem() -> None:
    seen = view(A, A2, B, B2, moved=[{"tag": "x", "device": "CPU", "depth": 1, "oldest_ms": 100}])
    assert wrong(seen) == []


def test_slots_of_nobody() -> None:
    assert ("fail", "", "slots") in wrong(view(A, A2, state="fail"))
    down = Node("b", "h", 2, slots=B.slots, state="failed", linked=False)
    seen = view(A, A2, down, state="fail")
    del seen.facts[down]
    seen.errors[down] = "UNREACHABLE cannot reach the server: Connection refused"
    assert {("fail", "", "slots"), ("fail", "h:2", "node")} <= set(wrong(seen))
    # All slots have an owner that is up, and yet the node that was asked does not serve.
    assert ("fail", "", "cluster") in wrong(view(A, A2, B, B2, state="fail"))


def test_a_node_that_only_we_cannot_reach() -> None:
    seen = view(A, A2, B, B2)
    del seen.facts[B]
    seen.errors[B] = "UNREACHABLE cannot reach the server: timed out"
    assert wrong(seen) == [("fail", "h:2", "node")]
    assert "announces" in judge(seen)[0].fix


def test_a_replica_without_a_link_and_one_without_an_executor() -> None:
    seen = view(A, A2, B, B2)
    seen.facts[A2].info["master_link_status"] = "down"
    seen.facts[B2].standby = 0
    assert wrong(seen) == [("warn", "h:11", "replication"), ("warn", "h:12", "standby")]


def test_shards_without_replicas() -> None:
    assert wrong(view(A, B)) == [("warn", "h:1", "replicas"), ("warn", "h:2", "replicas")]
    assert [(one.name, one.status) for one in judge_durability(view(A, B))] == [("coverage", "warn")]


def test_many_differences_are_counted() -> None:
    seen = view(A, A2, B, B2)
    seen.differences = [Difference(f"m{i}", "h:1", "h:2", "missing") for i in range(8)]
    assert wrong(seen) == [("warn", "h:2", "catalog")]
    assert judge(seen)[0].text.endswith("lacks 'm4' (home: h:1), and 3 more")
