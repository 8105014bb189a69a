"""Functions and executors on clusters of three primaries and three replicas."""

from collections.abc import Iterator
from typing import Any, get_args

import numpy as np
import pytest
import redis as redis_py
from tests import models, raw
from tests.executors import Executor
from tests.lua.jobs import ROW, SHAPES, Hand, healthy, session
from tests.servers import Cluster, Kind, Server, wait_until

from keyside.tensorstore import keys, library, npy
from keyside.tensorstore.errors import CrossSlot, ServerError, TryAgain, Unreachable

X = np.arange(8, dtype=np.float32).reshape(2, 4)


@pytest.fixture(scope="module", params=get_args(Kind))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param) as cluster:
        cluster.load_library()
        yield cluster


@pytest.fixture
def nodes(cluster: Cluster) -> Iterator[list[Hand]]:
    """The steps of callers and executors on each primary; all of them must be in good health afterwards."""
    hands = [Watchful(node.url_unix) for node in cluster.primaries]
    for hand in hands:
        hand.do("FLUSHALL")
        hand.node = keys.NodeKeys(hand.beat("e1")[1])
    yield list(hands)
    for hand in hands:
        hand.do("FLUSHALL")
        hand.wire.close()


class Watchful(Hand):
    """Looks after each function whether the node still works."""

    def fcall(self, name: str, names: Any, *args: Any) -> Any:
        try:
            return super().fcall(name, names, *args)
        finally:
            if name != "AI_MODELSCAN":
                assert healthy(self), f"{name} broke the node"


def owner(nodes: list[Hand], key: bytes | str) -> Hand:
    """The node of a key: three primaries share the slots equally."""
    return nodes[sum(keys.slot(key) >= 16384 * i // 3 for i in (1, 2))]


def test_the_library_is_on_all_nodes_and_cannot_be_loaded_on_a_replica(cluster: Cluster) -> None:
    for node in cluster.nodes:
        with Hand(node.url_unix) as hand:
            assert hand.do("FCALL_RO", "KS_VERSION", 0) == [library.LIBRARY_VERSION, library.digest().encode()]
    with Hand(cluster.replicas[0].url_unix) as replica, pytest.raises((Unreachable, ServerError), match="READONLY"):
        replica.do("FUNCTION", "LOAD", "REPLACE", library.source())


def test_each_node_has_a_tag_of_its_own(nodes: list[Hand]) -> None:
    slots = [16384 * i // 3 for i in range(3)]
    assert [hand.node.tag for hand in nodes] == [keys.slot_tag(slot) for slot in slots]
    for hand in nodes:
        for key in hand.do("KEYS", "*"):
            assert owner(nodes, key) is hand
            assert key.startswith(b"ks:{%b}:" % hand.node.tag)


def test_tensors(cluster: Cluster, nodes: list[Hand]) -> None:
    for key in SHAPES:
        hand = owner(nodes, key)
        hand.fcall("AI_TENSORSET", [key], "FLOAT", 2, "VALUES", 1, 2.5)
        assert hand.fcall("AI_TENSORGET", [key], "VALUES") == [b"1", b"2.5"]
        assert npy.decode(hand.do("GET", key)).tolist() == [1, 2.5]
        other = next(node for node in nodes if node is not hand)
        with pytest.raises((TryAgain, ServerError), match="MOVED"):
            other.fcall("AI_TENSORSET", [key], "FLOAT", 1)
    with Hand(cluster.replicas[0].url_unix) as replica:
        replica.do("READONLY")
        key = next(key for key in SHAPES if owner(nodes, key) is nodes[0])
        wait_until(lambda: replica.do("EXISTS", key), "the replica has it")
        assert replica.do("FCALL_RO", "AI_TENSORGET", 1, key, "VALUES") == [b"1", b"2.5"]


def test_every_function_with_keys_of_every_shape(nodes: list[Hand]) -> None:
    for hand in nodes:
        names = [name for name in SHAPES if all(owner(nodes, name + end) is hand for end in (b"", b".x", b".t"))]
        model = next(name for name in (b"m%d" % i for i in range(100)) if owner(nodes, name) is hand)
        session(hand, names, model)
        for key in hand.do("KEYS", "*"):
            assert owner(nodes, key) is hand


def test_keys_that_one_call_cannot_have_together(nodes: list[Hand]) -> None:
    model = owner(nodes, "{m}")
    model.store("{m}")
    model.do("SET", "{m}x", ROW)
    far = next(f"{{a{i}}}y" for i in range(100) if owner(nodes, f"{{a{i}}}y") is not model)
    near = next(f"{{a{i}}}y" for i in range(100) if owner(nodes, f"{{a{i}}}y") is model)
    for output in (far, near):
        with pytest.raises(CrossSlot):
            model.execute(["{m}x"], [output], target="{m}")
    elsewhere = next(hand for hand in nodes if hand is not model)
    ticket = b"ks:{%b}:t" % elsewhere.node.tag
    with pytest.raises(TryAgain):
        model.predict("TICKET", ticket, target="{m}")
    with pytest.raises(TryAgain, match="not complete"):
        elsewhere.predict(target="{m}")
    assert model.length() == 0
    assert elsewhere.fcall("AI_CANCEL", [], ticket, "CPU/1-1") == 0
    with pytest.raises(TryAgain):
        elsewhere.fcall("AI_CANCEL", [], b"ks:{%b}:ticket:CPU/1-1" % model.node.tag)


@pytest.fixture
def node(cluster: Cluster, nodes: list[Hand]) -> Server:
    """The primary that has the slot of {m}."""
    return cluster.owner("{m}")


@pytest.fixture
def executor(node: Server) -> Iterator[Executor]:
    """An executor of that node."""
    with Executor(node, lease_ms=500, beat_ms=100) as executor:
        yield executor


def test_a_model_runs_beside_its_tensors(cluster: Cluster, node: Server, executor: Executor, nodes: list[Hand]) -> None:
    hand = owner(nodes, "{m}")
    with node.client() as db:
        raw.store(db, "{m}", models.affine())
        for rows in (1, 20_000):  # small enough to ride along, and too large for that
            x = np.full((rows, 4), 3, np.float32)
            raw.put(db, "{m}x", x)
            assert raw.run(db, raw.execute("{m}", ["{m}x"], ["{m}y"])).outputs == {}
            np.testing.assert_array_equal(raw.get(db, "{m}y"), 2 * x + 1)
            np.testing.assert_array_equal(raw.run(db, raw.predict("{m}", ("KEY", "{m}x"))).outputs["y"], 2 * x + 1)
        np.testing.assert_array_equal(raw.run(db, raw.predict("{m}", X)).outputs["y"], 2 * X + 1)
        assert raw.private_keys(db) == set()
        for key in db.keys("ks:*"):
            assert owner(nodes, key) is hand
        assert healthy(hand)


def test_an_executor_follows_when_the_slot_of_its_tag_moves(
    cluster: Cluster, node: Server, executor: Executor, nodes: list[Hand]
) -> None:
    hand = owner(nodes, "{m}")
    before = hand.node.tag
    slot = keys.slot(b"{%b}" % before)
    other = next(one for one in cluster.primaries if one is not node)
    move(cluster, slot, node, other)
    try:
        moved = keys.slot_tag(slot + 1)
        wait_until(lambda: hand.do("EXISTS", keys.NodeKeys(moved).executors), "it beats under another tag")
        with node.client() as db:
            raw.store(db, "{m}", models.affine())
            np.testing.assert_array_equal(raw.run(db, raw.predict("{m}", X)).outputs["y"], 2 * X + 1)
    finally:
        move(cluster, slot, other, node)
        executor.stop()
        for one in cluster.primaries:
            one.load_library()  # it forgets the tag that it worked out
            cluster.ask(one, "FLUSHALL")


def move(cluster: Cluster, slot: int, source: Server, target: Server) -> None:
    """Move a slot, with what is in it, from one primary to another."""
    ids = {server: cluster.ask(server, "CLUSTER", "MYID") for server in cluster.primaries}
    cluster.ask(target, "CLUSTER", "SETSLOT", slot, "IMPORTING", ids[source])
    cluster.ask(source, "CLUSTER", "SETSLOT", slot, "MIGRATING", ids[target])
    while found := cluster.ask(source, "CLUSTER", "GETKEYSINSLOT", slot, 100):
        try:
            cluster.ask(source, "MIGRATE", "127.0.0.1", target.port, "", 0, 5000, "REPLACE", "KEYS", *found)
        except redis_py.ResponseError as error:
            if "NOKEY" not in str(error):  # it expired meanwhile
                raise
    for server in (target, source, *cluster.primaries):
        cluster.ask(server, "CLUSTER", "SETSLOT", slot, "NODE", ids[target])
