"""The catalog on the nodes of a cluster: what is at home, what is copied, what has gone."""

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from tests.lua.jobs import ONE, ROW, Hand, healthy
from tests.servers import Cluster, Kind

from keyside.tensorstore import keys
from keyside.tensorstore.errors import BadArg, ModelFailed, NoModel, TryAgain


@pytest.fixture(scope="module", params=get_args(Kind))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with Cluster(request.param, primaries=2, replicas=0) as cluster:
        cluster.load_library()
        yield cluster


@pytest.fixture
def pair(cluster: Cluster) -> Iterator[tuple[Hand, Hand]]:
    """The home of the model {m}, and the other node."""
    hands = [Hand(node.url_unix) for node in cluster.primaries]
    for hand in hands:
        hand.do("FLUSHALL")
        hand.node = keys.NodeKeys(hand.beat("e1")[1])
    home = hands[int(keys.slot("{m}") >= 8192)]
    other = next(hand for hand in hands if hand is not home)
    yield home, other
    for hand in hands:
        assert healthy(hand)
        hand.do("FLUSHALL")
        hand.wire.close()


def catalog(hand: Hand, since: Any = 0, count: int = 100, *words: str) -> list[Any]:
    found: list[Any] = hand.fcall("KS_CATALOG", [], since, count, *words)[3]
    return found


def copy(home: Hand, other: Hand, mode: str = "NEWER", complete: int = 1) -> int:
    flat = []
    for name, rev, tag, records in catalog(home):
        flat += [name, rev, tag, len(records), *records]
    done: int = other.fcall("KS_MERGE", [], mode, complete, *flat)
    return done


def test_a_model_is_known_elsewhere_once_it_has_been_copied(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    home.store("{m}")
    with pytest.raises(TryAgain, match="not complete"):
        other.predict(target="{m}")
    assert copy(home, other) == 1
    assert other.predict(target="{m}").startswith(b"ks:{%b}:ticket:CPU/" % other.node.tag)
    other.predict(target="{m}@1")
    (job, again) = other.claim()
    assert (job.key, again.version) == (b"{m}", 1)
    assert other.fcall("AI_MODELSCAN", []) == [[b"{m}", b""]]
    with pytest.raises(NoModel):
        other.predict(target="{m}@2")
    with pytest.raises(NoModel):
        other.predict(target="none")
    assert catalog(other) == []  # it is not at home there
    assert copy(home, other) == 0
    assert copy(home, other, "FORCE") == 1


def test_changes_and_deletions_are_told_apart_by_revisions(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    home.store("{m}")
    first = int(catalog(home)[0][1])
    copy(home, other)
    home.store("{m}", "TAG", "two")
    ((name, rev, tag, records),) = catalog(home, first)
    assert (name, tag) == (b"{m}", b"two")
    assert int(rev) > first
    assert records[::2] == [b"{m}", b"{m}@1", b"{m}@2"]
    assert catalog(home, rev) == []
    assert int(home.do("HGET", "{m}", "rev")) == int(rev)
    copy(home, other)
    other.predict(target="{m}@2")
    home.fcall("AI_MODELDEL", ["{m}"], "VERSION", 2)
    copy(home, other)
    with pytest.raises(NoModel):
        other.predict(target="{m}@2")
    home.fcall("AI_MODELDEL", ["{m}"])
    ((name, gone, _, records),) = catalog(home)
    assert records == []
    assert int(gone) > int(rev)
    assert copy(home, other) == 1
    with pytest.raises(NoModel):
        other.predict(target="{m}")
    assert other.do("HLEN", other.node.models) == 0
    # An older word does not bring it back.
    assert other.fcall("KS_MERGE", [], "NEWER", 1, "{m}", rev, "", 0) == 0


def test_pages_of_the_catalog_miss_nothing(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    names = {b"{m}%d" % i for i in range(25)}
    for name in names:
        home.store(name)
    home.do("ZADD", home.node.revs, *(part for n in range(8) for part in (5, b"elsewhere%d" % n)))
    found: list[bytes] = []
    since: Any = 0
    while True:
        tag, complete, since_next, page = home.fcall("KS_CATALOG", [], since, 4, "REVS")
        assert (tag, complete) == (home.node.tag, 0)
        found += [name for name, _ in page]
        if not since_next:
            break
        since = since_next
    assert set(found) >= names
    assert {name for name in found if name not in names} <= {b"elsewhere%d" % n for n in range(8)}


def test_the_home_is_never_told_what_it_has(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    home.store("{m}")
    for mode in ("NEWER", "FORCE"):
        assert home.fcall("KS_MERGE", [], mode, 0, "{m}", 2**52, "", 0) == 0
    home.predict(target="{m}")


def test_what_was_done_to_a_model_key_by_hand_is_noticed(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    home.store("{m}")
    home.store("{m}x")
    assert home.fcall("KS_REFRESH", [], "{m}", "{m}x", "{m}none") == [0, []]
    home.do("DEL", "{m}")
    assert home.fcall("KS_REFRESH", [], "{m}", "{m}x") == [1, []]
    with pytest.raises((NoModel, TryAgain)):
        home.predict(target="{m}")
    home.do("UNLINK", home.node.catalog, home.node.models, home.node.revs)
    assert home.fcall("KS_REFRESH", [], "{m}", "{m}x") == [1, []]
    home.predict(target="{m}x@1")
    assert other.fcall("KS_REFRESH", [], "{m}") == [0, [b"{m}"]]


def test_changes_are_announced_to_all_nodes(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    with Hand(f"{_url(other)}") as ear:
        ear.do("SUBSCRIBE", "ks:catalog")
        home.store("{m}announced")
        rev = int(home.do("HGET", "{m}announced", "rev"))
        # What tests before have changed may still be on its way between the nodes, with revisions ahead of the clock.
        while (said := ear.wire.read()[2].split(b" ", 2))[1:] != [b"%d" % rev, b"{m}announced"]:
            assert said[2] != b"{m}announced" or int(said[1]) < rev, "no message of this change"
    assert said[0] == home.node.tag


def _url(hand: Hand) -> str:
    path = hand.do("CONFIG", "GET", "unixsocket")[1].decode()
    return f"unix://{path}"


def test_a_version_may_be_published_by_who_has_loaded_it_elsewhere(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    version = home.store("{m}", signature=None)
    uid = home.do("HGET", "{m}", "uid")
    with pytest.raises(BadArg):
        home.fcall("KS_PUBLISH", ["{m}"], "CPU", "far", "-", uid, version, "failed", "", "", "no reason")
    assert home.length() == 1
    args = ("CPU", "far", "-", uid, version, "ready", "0" * 64, ONE.to_json(), "")
    assert home.fcall("KS_PUBLISH", ["{m}"], *args) == 1
    assert home.do("HGET", "{m}", f"{version}:state") == b"ready"
    assert home.length() == 0
    assert home.fcall("KS_PUBLISH", ["{m}"], *args) == 0


def test_what_a_node_is(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    home.fcall("KS_BEAT", [], "e2", '{"devices": ["CPU", "GPU"]}', 2000, "CPU", "GPU")
    home.store("{m}")
    home.predict(target="{m}")
    flat = home.fcall("AI_NODE", [])
    found = dict(zip(flat[::2], flat[1::2], strict=True))
    assert found[b"tag"] == home.node.tag
    assert (found[b"cluster"], found[b"complete"]) == (1, 0)
    assert abs(found[b"now"] - home.now()) < 5000
    (cpu, gpu) = found[b"devices"]
    assert cpu[:3] == [b"CPU", 1, 1]
    assert cpu[3] >= 0
    assert gpu == [b"GPU", 1, 0, -1]


def test_a_request_with_keys_is_known_in_their_slot(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    home.store("{m}")
    home.do("SET", "{m}x", ROW, "PX", 60000)
    args = ("{m}", "INPUTS", 1, "KEY", "{m}x", "TICKET", "ks:{m}:t:c:7", "ID", "c", 7)
    job = home.fcall("AI_PREDICT", ["{m}x"], *args)
    assert job.startswith(b"CPU@%b/" % home.node.tag)
    assert home.do("TTL", keys.seen(b"m", "c", 7)) > 60
    assert home.fcall("AI_PREDICT", ["{m}x"], *args) == b""
    assert home.fcall("AI_CANCEL", [], "ks:{m}:t:c:7", job) == 1


def test_a_queue_of_another_tag_is_served_by_its_word(pair: tuple[Hand, Hand]) -> None:
    home, other = pair
    home.store("{m}")
    slot = keys.slot(b"{%b}" % home.node.tag) + 1
    tag = keys.slot_tag(slot)
    home.predict(target="{m}")
    moved = keys.NodeKeys(tag)
    ((_, fields),) = home.do("XRANGE", home.node.jobs("CPU"), "-", "+")
    home.do("XADD", moved.jobs("CPU"), "*", *fields)
    word = f"CPU@{tag.decode()}"
    home.do("XGROUP", "CREATE", moved.jobs("CPU"), "ks", "0")
    got = home.do("XREADGROUP", "GROUP", "ks", "e1", "STREAMS", moved.jobs("CPU"), ">")
    entry = got[0][1][0][0]
    assert home.fcall("KS_EXTEND", [], word, "e1", entry) == [entry]
    assert home.fcall("KS_RECOVER", [], word, "e2", 0, 3)[1][0] == entry
    assert home.fcall("KS_EXTEND", [], word, "e1", entry) == []
    ticket = moved.ticket(f"CPU/{entry.decode()}")
    assert home.fcall("AI_CANCEL", [], ticket) == 1
    with pytest.raises(TryAgain):
        home.fcall("KS_EXTEND", [], f"CPU@{other.node.tag.decode()}", "e1", entry)
    with pytest.raises(TryAgain):
        other.fcall("AI_CANCEL", [], ticket)
    for bad in ("CPU@", "CPU@abcd", "CPU!", "CPU!X", "CPU!H!L", "cpu", "CPU@0a\n"):
        with pytest.raises(BadArg):
            home.fcall("KS_EXTEND", [], bad, "e1", entry)


def test_a_catalog_that_somebody_spoilt_is_no_reason_to_fail(pair: tuple[Hand, Hand]) -> None:
    home, _ = pair
    home.do("HSET", home.node.catalog, "@", "1", "{m}", "7")
    for target in ("@", "{m}"):
        with pytest.raises((NoModel, ModelFailed)):
            home.predict(target=target)
