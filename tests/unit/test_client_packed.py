"""Calls that are encoded without the builders, and replies that are read without a parser: both give the same."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from keyside.clients import inputs
from keyside.clients.forms import Forms
from keyside.clients.inputs import Key
from keyside.clients.packed import Packed, Packer
from keyside.clients.request import MARGIN_S, Identity
from keyside.tensorstore import keys, npy, plain
from keyside.tensorstore.command import Command, encode
from keyside.tensorstore.features import Hash, ListRange, Numbers, Rows, SortedSet
from keyside.tensorstore.records import encode_reply

A = np.arange(6, dtype=np.float32).reshape(2, 3)
MAILBOX = b"ks:{0}:mb:%d"  # with what a template could trip over
GOOD = [
    A,
    A.T,
    A[:, ::2],
    np.array(2.0),
    np.zeros((0, 3), np.int64),
    np.array([b"ab", b"c"]),
    Key("k"),
    [A],
    [A, Key("k")],
    (Key("k%d"), Key(b"\xff\n"), Key("k%d", "ref"), A),
    [Key("own", "own"), A, A],
    {"a": A, "é%s": Key("{t}k")},
    Hash("h", ["a", "b"]),
    [A, Hash(("h", "h", b"\xff%d"), "f", default=0.5), Key("h")],
    {"a": ListRange("{t}l", -3), "b": SortedSet("z", 0, 4, "members", reverse=True, dtype=None)},
    (Numbers(["n%d", "m"], "INT8", default=[1, 2]), Rows("k", [3, 1]), A),
]
ODD: list[Any] = [
    [1.0, 2.0],
    [A, 1.0],
    1.5,
    "text",
    [],
    {},
    {1: A},
    np.ma.masked_array([1.0]),
    np.zeros(2, object),
    np.zeros(2, ">f4"),
    np.array(["text"]),
    np.zeros(32 * 1024, np.uint8),
    np.float32(1),
    {"\ud800": A},
]


def packers() -> list[Packer]:
    return [Packer(Identity(), b"0"), Packer(Identity(), b"0", MAILBOX)]


def built(packer: Packer, given: object, target: str | bytes, timeout: float, seq: int, ticket: bytes) -> bytes:
    request = inputs.request(target, inputs.bind(given), (), timeout, packer.identity, b"0", seq)
    commands: Sequence[Command[Any]]
    if ticket == MAILBOX:
        commands = (request.submit(timeout, ticket, b"%d" % seq),)
    else:
        commands = (request.submit(timeout, ticket), plain.blpop(ticket, timeout + MARGIN_S))
    return b"".join(encode(commands))


@pytest.mark.parametrize("given", GOOD, ids=str)
@pytest.mark.parametrize(("target", "timeout"), [("m", 30.0), (b"m%s\xff@1", 0.001), ("é", 1)])
def test_the_bytes_are_those_of_the_builders(given: object, target: str | bytes, timeout: float) -> None:
    for packer in packers():
        for _ in range(12):  # numbers of one and of two digits
            packed = packer.pack(target, given, timeout)
            assert packed is not None
            ticket = MAILBOX if b"BLPOP" not in packed.data else packed.ticket(b"0")
            assert packed.data == built(packer, given, target, timeout, packed.seq, ticket)


def test_numbers_grow() -> None:
    packer = Packer(Identity(), b"0")
    data = [packed.data for _ in range(1001) if (packed := packer.pack("m", A, 2)) is not None]
    for seq in (1, 9, 10, 99, 100, 999, 1000, 1001):
        ticket = keys.client_ticket(b"0", packer.identity.id, seq)
        assert data[seq - 1] == built(packer, A, "m", 2, seq, ticket)


@pytest.mark.parametrize("given", ODD, ids=repr)
def test_what_is_not_usual_is_left_to_the_builders(given: object) -> None:
    for packer in packers():
        assert packer.pack("m", given, 30.0) is None
        assert packer.pack("m", A, 30.0) is not None
        assert packer.pack("m", given, 30.0) is None


@pytest.mark.parametrize("timeout", [0, -1, 1e9, float("nan"), None, "1", [1]])
def test_a_wrong_timeout_is_left_to_the_builders(timeout: Any) -> None:
    assert Packer(Identity(), b"0").pack("m", A, timeout) is None


@pytest.mark.parametrize("target", [1, None, ["m"]])
def test_a_wrong_target_is_left_to_the_builders(target: Any) -> None:
    assert Packer(Identity(), b"0").pack(target, A, 1.0) is None


def test_a_packed_request_can_be_built_again() -> None:
    packer = Packer(Identity(), b"0")
    packed = packer.pack("m", [A, Key("k")], 30.0)
    assert isinstance(packed, Packed)
    args = packed.submit(1.5, b"ks:{0}:t").args
    assert args[-3:] == (b"ID", packer.identity.id, packed.seq)
    assert args[args.index(b"TIMEOUT") + 1] == 1500


def test_the_form_of_a_reply_is_remembered() -> None:
    forms = Forms()
    first, second = (encode_reply("m@1", [("y", npy.to_bytes(A + i))]) for i in range(2))
    assert forms.read("m", first) is None
    forms.learn("m", first)
    for i, reply in enumerate((first, second)):
        found = forms.read("m", reply)
        assert found is not None
        assert np.array_equal(found, A + i)
        assert found.flags.writeable
        assert found.flags.owndata
    other = encode_reply("m@2", [("y", npy.to_bytes(A))])
    assert forms.read("m", other) is None
    assert forms.read("n", first) is None
    forms.learn("m", other)
    assert forms.read("m", other) is not None


@pytest.mark.parametrize(
    "reply",
    [
        b"OK",
        encode_reply("m@1", [("y", "ks:{0}:out:1")]),
        encode_reply("m@1", [("y", npy.to_bytes(np.zeros((0, 2))))]),
        encode_reply("m@1", [("y", npy.to_bytes(A)), ("z", "ks:{0}:out:1")]),
    ],
)
def test_other_replies_have_no_form(reply: bytes) -> None:
    forms = Forms()
    forms.learn("m", reply)
    assert forms.read("m", reply) is None
