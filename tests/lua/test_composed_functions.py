"""What is no plain model: scripts and graphs in the catalog, and what goes along with their jobs."""

import json
from typing import Any

import pytest
from tests.lua.jobs import ONE, ROW, Hand
from tests.servers import Server

from keyside.tensorstore.errors import KeysideError


def store(hand: Hand, name: str, backend: str = "ONNX", **options: Any) -> None:
    """Store a version and make it ready, as an executor does."""
    hand.fcall("AI_MODELSTORE", [name], backend, "CPU", "OPTIONS", json.dumps(options), "BLOB", f"blob of {name}")
    assert hand.publish(name, 1, ONE) == 1


def extra_of(hand: Hand) -> dict[bytes, Any]:
    (job,) = hand.claim()
    assert job.extra is not None
    return job.extra


def test_a_graph_goes_with_what_it_runs(hand: Hand) -> None:
    for name in ("a", "b"):
        store(hand, name)
    store(hand, "inner", "GRAPH", uses=["b", "b@1"])
    store(hand, "outer", "GRAPH", uses=["a", "inner"])
    hand.fcall("AI_PREDICT", [], "outer", "INPUTS", 1, "VALUE", ROW)
    found = extra_of(hand)[b"m"]
    assert [(target, key, version) for target, _, key, version in found] == [
        (b"a", b"a", 1), (b"inner", b"inner", 1), (b"b", b"b", 1), (b"b@1", b"b", 1),
    ]  # fmt: skip


def test_what_a_graph_runs_is_what_the_catalog_says_at_each_call(hand: Hand, server: Server) -> None:
    for name in ("a", "b"):
        store(hand, name)
    store(hand, "inner", "GRAPH", uses=["b"])
    store(hand, "outer", "GRAPH", uses=["a", "inner"])

    def versions() -> dict[bytes, int]:
        hand.predict(target="outer")
        return {target: version for target, _, _, version in extra_of(hand)[b"m"]}

    for _ in range(2):
        assert versions() == {b"a": 1, b"inner": 1, b"b": 1}
    store(hand, "b2")
    hand.fcall("AI_MODELSTORE", ["b"], "ONNX", "CPU", "BLOB", "another blob of b")
    assert hand.publish("b", 2, ONE) == 1
    for _ in range(2):
        assert versions() == {b"a": 1, b"inner": 1, b"b": 2}
    hand.fcall("AI_MODELSTORE", ["inner"], "GRAPH", "CPU", "OPTIONS", json.dumps({"uses": ["b2"]}), "BLOB", "other")
    assert hand.publish("inner", 2, ONE) == 1
    for _ in range(2):
        assert versions() == {b"a": 1, b"inner": 2, b"b2": 1}
    hand.do("ACL", "SETUSER", "bob", "on", "nopass", "+@all", "~ks:*", "~outer", "~inner", "~a")
    try:
        with Hand(f"unix://bob:@{server.socket}") as bob, pytest.raises(KeysideError, match=r"^NOPERM .*'b2@1'"):
            bob.predict(target="outer")
    finally:
        hand.do("ACL", "DELUSER", "bob")
    assert versions() == {b"a": 1, b"inner": 2, b"b2": 1}
    hand.fcall("AI_MODELDEL", ["b2"])
    with pytest.raises(KeysideError, match=r"^NOMODEL no model 'b2'"):
        hand.predict(target="outer")
    store(hand, "b2")
    assert versions() == {b"a": 1, b"inner": 2, b"b2": 1}
    hand.fcall("AI_LIMITSET", ["a"], "JOBS", 5)  # which stands in its record, too
    assert versions() == {b"a": 1, b"inner": 2, b"b2": 1}


@pytest.mark.parametrize("members", ["1", "null", "{}", '{"list":[],"targets":[],"raws":[],"records":[]}', "KNOWN"])
def test_no_record_says_who_may_use_what(hand: Hand, server: Server, members: str) -> None:
    store(hand, "secret")
    store(hand, "team:g", "GRAPH", uses=["secret"])
    raw = bytes(hand.do("HGET", hand.node.catalog, "team:g")).decode()
    if members == "KNOWN":
        secret = bytes(hand.do("HGET", hand.node.catalog, "secret")).decode()
        packed = bytes(hand.do("EVAL", "return cmsgpack.pack({m={{'secret', ARGV[1], 'secret', 1}}})", 0, "u-1"))
        known = {"list": [], "records": [], "targets": ["secret"], "raws": [secret], "packed": packed.decode("latin1")}
        members = json.dumps(known)
    for field in ("members", "templates", "known"):
        raw = raw.removesuffix("}") + f',"{field}":{members}}}'
    hand.do("HSET", hand.node.catalog, "team:g", raw)
    hand.do("ACL", "SETUSER", "bob", "on", "nopass", "+@all", "~ks:*", "~team:*")
    try:
        with Hand(f"unix://bob:@{server.socket}") as bob:
            for _ in range(2):
                with pytest.raises(KeysideError, match=r"^NOPERM .*'secret@1'"):
                    bob.predict(target="team:g")
                hand.predict(target="team:g")  # who may; what was found then is kept
    finally:
        hand.do("ACL", "DELUSER", "bob")
    assert len(hand.claim()) == 2


def test_a_member_that_fails_later_fails_its_graph(hand: Hand) -> None:
    store(hand, "a")
    store(hand, "g", "GRAPH", uses=["a"])
    hand.predict(target="g")
    raw = json.loads(bytes(hand.do("HGET", hand.node.catalog, "a")))
    hand.do("HSET", hand.node.catalog, "a", json.dumps({**raw, "state": "failed", "reason": "broken"}))
    with pytest.raises(KeysideError, match=r"^MODELFAILED model 'a@1' failed to load: broken"):
        hand.predict(target="g")


def test_graphs_in_a_circle(hand: Hand) -> None:
    store(hand, "one", "GRAPH", uses=["two"])
    store(hand, "two", "GRAPH", uses=["three"])
    store(hand, "three", "GRAPH", uses=["two"])
    error = hand.refused("AI_PREDICT", [], "one", "INPUTS", 1, "VALUE", ROW)
    assert str(error) == "BADMODEL graph 'one@1' runs itself: one@1 -> two@1 -> three@1 -> two@1"


def test_graphs_within_each_other_end(hand: Hand) -> None:
    store(hand, "g0")
    for n in range(1, 10):
        store(hand, f"g{n}", "GRAPH", uses=[f"g{n - 1}"])
    hand.fcall("AI_PREDICT", [], "g8", "INPUTS", 1, "VALUE", ROW)
    assert len(extra_of(hand)[b"m"]) == 8
    with pytest.raises(KeysideError, match=r"^BADMODEL graph 'g9@1' has more than 8 graphs within each other"):
        hand.fcall("AI_PREDICT", [], "g9", "INPUTS", 1, "VALUE", ROW)


def test_what_a_graph_runs_must_be_there(hand: Hand) -> None:
    store(hand, "g", "GRAPH", uses=["nobody"])
    with pytest.raises(KeysideError, match=r"^NOMODEL no model 'nobody'"):
        hand.fcall("AI_PREDICT", [], "g", "INPUTS", 1, "VALUE", ROW)


def test_a_script_is_called_otherwise(hand: Hand) -> None:
    store(hand, "s", "SCRIPT", entry_points=["fn"])
    with pytest.raises(KeysideError, match=r"^BADARG 's@1' is a script: call it with AI_SCRIPTEXECUTE"):
        hand.fcall("AI_PREDICT", [], "s", "INPUTS", 1, "VALUE", ROW)
    raw = hand.wire.call(b"HGET", hand.node.catalog, b"s")
    record = json.loads(bytes(raw))
    assert (record["kind"], record["functions"]) == ("script", ["fn"])


def test_options_that_somebody_has_spoilt(hand: Hand) -> None:
    store(hand, "g", "GRAPH", uses="a string")
    hand.fcall("AI_PREDICT", [], "g", "INPUTS", 1, "VALUE", ROW)
    (job,) = hand.claim()
    assert job.extra is None
