"""keys: slots, hash tags, and the names of section 2 of the protocol."""

import itertools
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from keyside.tensorstore import keys

ALPHABET = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz_-"

# keys with many braces, next to arbitrary ones
braced = st.lists(st.sampled_from([b"{", b"}", b"a", b"b:c", b"\xff", b"{}", b""]), max_size=8).map(b"".join)
any_key = st.one_of(braced, st.binary(max_size=40))


def crc16_by_the_book(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte << 8
        for _ in range(8):
            crc = (crc << 1 ^ 0x1021 if crc & 0x8000 else crc << 1) & 0xFFFF
    return crc


def slot_by_the_book(key: bytes) -> int:
    """Redis Cluster's specification, word by word."""
    start = key.find(b"{")
    if start != -1:
        end = key.find(b"}", start + 1)
        if end not in (-1, start + 1):
            key = key[start + 1 : end]
    return crc16_by_the_book(key) % 16384


def test_crc16_check_value() -> None:
    assert keys.crc16(b"123456789") == 0x31C3
    assert keys.crc16(b"") == 0


@given(st.binary(max_size=64))
def test_crc16(data: bytes) -> None:
    assert keys.crc16(data) == crc16_by_the_book(data)


@pytest.mark.parametrize(
    ("key", "slot"),
    # of a real server: CLUSTER KEYSLOT
    [
        ("123456789", 12739),
        ("foo", 12182),
        ("bar", 5061),
        ("{user1000}.following", 3443),
        ("foo{}{bar}", 8363),
    ],
)
def test_slots_of_a_real_server(key: str, slot: int) -> None:
    assert keys.slot(key) == slot
    assert keys.slot(key.encode()) == slot


@given(any_key)
def test_slot(key: bytes) -> None:
    assert keys.slot(key) == slot_by_the_book(key)


@given(any_key)
@example(b"")
@example(b"{}")
@example(b"}")
@example(b"{")
@example(b"{a}")
@example(b"{{a}}")
@example(b"{}{a}")
@example(b"a}{b")
@example(b"a}b")
@example(b"{a")
@example(b"x{y}z{w}")
@example(b"{}}a")
def test_tag_hashes_to_the_slot_of_its_key(key: bytes) -> None:
    tag = keys.tag(key)
    assert tag
    assert b"}" not in tag
    slot = slot_by_the_book(key)
    assert slot_by_the_book(b"ks:{%b}:cap:1" % tag) == slot
    assert keys.slot(keys.private(key, "cap", "1")) == slot
    assert keys.slot(keys.output(key, "1")) == slot


@pytest.mark.parametrize(
    ("key", "tag"),
    [
        ("x", b"x"),
        ("user:{7}:x", b"7"),
        ("{{a}}", b"{a"),
        ("{a", b"{a"),
        ("a{b", b"a{b"),
        ("ключ", "ключ".encode()),
        ("", keys.slot_tag(0)),
        ("{}", keys.slot_tag(keys.slot("{}"))),
        ("{}a", keys.slot_tag(keys.slot("{}a"))),
        ("a}", keys.slot_tag(keys.slot("a}"))),
        ("a}{b", keys.slot_tag(keys.slot("a}{b"))),
    ],
)
def test_tag_rules(key: str, tag: bytes) -> None:
    assert keys.tag(key) == tag


def test_slot_tag_is_the_first_word_of_each_slot() -> None:
    first: dict[int, bytes] = {}
    for word in map(bytes, itertools.product(ALPHABET, repeat=3)):
        first.setdefault(keys.crc16(word) % 16384, word)
    assert len(first) == 16384
    assert {slot: keys.slot_tag(slot) for slot in range(16384)} == first


@pytest.mark.parametrize("slot", [-1, 16384, 10**9])
def test_no_such_slot(slot: int) -> None:
    with pytest.raises(ValueError, match="no slot"):
        keys.slot_tag(slot)


def test_node_keys() -> None:
    node = keys.NodeKeys()
    assert node == keys.NodeKeys(b"0")
    assert node.tag == keys.STANDALONE_TAG
    assert node.jobs("GPU:0") == b"ks:{0}:jobs:GPU:0"
    assert node.dead == b"ks:{0}:dead"
    assert node.catalog == b"ks:{0}:catalog"
    assert node.models == b"ks:{0}:models"
    assert node.stats("uid-3") == b"ks:{0}:stats:uid-3"
    assert node.bytes(b"CPU") == b"ks:{0}:bytes:CPU"
    assert node.executors == b"ks:{0}:executors"
    assert node.executor("host-1") == b"ks:{0}:executor:host-1"
    assert node.seen("c1", 0, 12) == b"ks:{0}:seen:c1:0:12"
    assert node.ticket(b"1-0") == b"ks:{0}:ticket:1-0"


@given(st.integers(0, 16383))
def test_node_keys_of_a_cluster_are_in_the_slot(slot: int) -> None:
    node = keys.NodeKeys(keys.slot_tag(slot))
    named = [node.jobs("CPU"), node.dead, node.catalog, node.models, node.stats("a"), node.bytes("CPU")]
    named += [node.executors, node.executor("e"), node.seen("c", 0, 0), node.ticket("1-1")]
    assert {keys.slot(key) for key in named} == {slot}
    assert len(set(named)) == len(named)
    assert all(re.match(rb"ks:\{[0-9A-Za-z_-]{3}\}:", key) for key in named)


def test_private_keys() -> None:
    assert keys.capture("x", "id1") == b"ks:{x}:cap:id1"
    assert keys.output("x", b"id1") == b"ks:{x}:out:id1"
    assert keys.output(None, "id1") == b"ks:{0}:out:id1"
    assert keys.output(None, "id1", b"abc") == b"ks:{abc}:out:id1"
    assert keys.upload_chunk("fraud", "u1", 0) == b"ks:{fraud}:up:u1:0"
    assert keys.blob_chunk(b"{m}fraud", "uid", "ab12", 3) == b"ks:{m}:blob:uid:ab12:3"
    assert keys.gone("fraud", "uid") == b"ks:{fraud}:gone:uid"
    assert keys.private("fraud", "cap") == b"ks:{fraud}:cap"
    assert keys.capture("x", "1").startswith(keys.PREFIX)
