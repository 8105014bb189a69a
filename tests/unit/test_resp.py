"""resp: commands as hiredis would write them, replies in any split of the stream."""

import asyncio
import itertools
import socket
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import hiredis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyside.tensorstore import npy, resp

BIG = resp.BIG_ARGUMENT


def joined(pieces: Iterable[resp.Piece]) -> bytes:
    return b"".join(bytes(piece) for piece in pieces)


def parse_commands(data: bytes) -> list[Any]:
    """Read commands back as a server would: each is an array of bulk strings."""
    reader = hiredis.Reader(notEnoughData=None)
    reader.feed(data)
    commands = []
    while (command := reader.gets()) is not None:
        commands.append(command)
    assert not reader.has_data()
    return commands


# --- commands


def test_encode_small() -> None:
    assert resp.encode(("SET", b"k\xff", 1, -2, 1.5, "é", b"")) == [
        b"*7\r\n$3\r\nSET\r\n$2\r\nk\xff\r\n$1\r\n1\r\n$2\r\n-2\r\n$3\r\n1.5\r\n$2\r\n\xc3\xa9\r\n$0\r\n\r\n"
    ]
    assert resp.encode(["PING"]) == [b"*1\r\n$4\r\nPING\r\n"]
    assert resp.encode_many([]) == []


def test_encode_passes_large_buffers_through() -> None:
    array = np.arange(BIG, dtype=np.float64)
    view = array.data
    data = bytes(BIG)
    pieces = resp.encode_many([("PING",), ("SET", "a", view), ("SET", "b", data, "PX", 5), ("PING",)])
    assert [len(piece) < 200 for piece in pieces] == [True, False, True, False, True]
    assert np.shares_memory(np.frombuffer(pieces[1], np.uint8), array)
    assert pieces[3] is data
    assert parse_commands(joined(pieces)) == [
        [b"PING"],
        [b"SET", b"a", array.tobytes()],
        [b"SET", b"b", data, b"PX", b"5"],
        [b"PING"],
    ]


@pytest.mark.parametrize("size", [0, 1, BIG // 4 - 1, BIG // 4, BIG - 1, BIG, BIG + 1])
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, str])
def test_encode_sizes(kind: type[Any], size: int) -> None:
    data = bytes(size)
    args: dict[type[Any], resp.Argument] = {
        bytes: data,
        bytearray: bytearray(data),
        memoryview: memoryview(data),
        str: "\0" * size,
    }
    pieces = resp.encode(("SET", "k", args[kind], "x"))
    assert len(pieces) == (3 if size >= BIG else 1)
    assert parse_commands(joined(pieces)) == [[b"SET", b"k", data, b"x"]]
    wide = "\N{GRINNING FACE}" * (size // 4)
    assert parse_commands(joined(resp.encode(("SET", wide)))) == [[b"SET", wide.encode()]]


@pytest.mark.parametrize(
    "view",
    [
        np.arange(6, dtype=np.float32).reshape(2, 3).data,
        np.arange(100_000, dtype=np.int16).data[::2],
        np.arange(12).reshape(3, 4).T.data,
        np.zeros((0, 3)).data,
        np.array(7).data,
    ],
    ids=["rows", "every other", "columns", "empty", "scalar"],
)
def test_encode_views_of_any_shape(view: memoryview) -> None:
    assert parse_commands(joined(resp.encode(("X", view)))) == [[b"X", view.tobytes()]]


@pytest.mark.parametrize("shape", [(), (0,), (3,), (100, 200), (300, 400)])
def test_encode_a_tensor_as_it_lies(shape: tuple[int, ...]) -> None:
    array = np.ones(shape, np.float32)
    pieces = resp.encode(("SET", "k", npy.encode(array), "NX"))
    assert parse_commands(joined(pieces)) == [[b"SET", b"k", npy.to_bytes(array), b"NX"]]
    assert any(np.shares_memory(np.frombuffer(piece, np.uint8), array) for piece in pieces) is (array.nbytes >= BIG)
    assert parse_commands(joined(resp.encode(("X", ())))) == [[b"X", b""]]


def test_encode_numbers_of_numpy() -> None:
    command: Any = ("X", np.int64(-3), np.float64(0.1), np.uint8(4))
    pieces = resp.encode(command)
    assert parse_commands(joined(pieces)) == [[b"X", b"-3", b"0.1", b"4"]]


@pytest.mark.parametrize("arg", [None, True, [], {}, object(), 1j])
def test_encode_refuses_other_types(arg: Any) -> None:
    with pytest.raises(TypeError, match="an argument is"):
        resp.encode(("X", arg))


as_view: Callable[[bytes], memoryview] = memoryview
argument = st.one_of(
    st.binary(max_size=50),
    st.text(max_size=20),
    st.integers(),
    st.floats(allow_nan=False),
    st.binary(max_size=20).map(bytearray),
    st.binary(max_size=20).map(as_view),
    st.integers(BIG - 2, BIG + 2).map(bytes),
    st.lists(st.one_of(st.binary(max_size=9), st.just(bytes(BIG))), max_size=3).map(tuple),
)


@given(st.lists(st.lists(argument, min_size=1, max_size=6), max_size=6))
def test_encode_many_reads_back(commands: list[list[Any]]) -> None:
    pieces = resp.encode_many(commands)
    parsed = parse_commands(joined(pieces))
    assert len(parsed) == len(commands)
    for sent, got in zip(commands, parsed, strict=True):
        for arg, data in zip(sent, got, strict=True):
            if isinstance(arg, float):
                assert float(data) == arg
            elif isinstance(arg, tuple):
                assert data == b"".join(arg)
            else:
                assert data == (str(arg).encode() if isinstance(arg, int | str) else bytes(arg))
    # small things do not go out one by one
    assert not any(len(a) < 1000 and len(b) < 1000 for a, b in itertools.pairwise(pieces))


# --- replies


def plain(reply: object) -> object:
    """Make replies comparable: a large one is a memoryview, an error has no equality."""
    if isinstance(reply, memoryview):
        assert len(reply) > resp.BIG_REPLY
        assert not reply.readonly
        return bytes(reply)
    if isinstance(reply, bytes):
        return reply
    if isinstance(reply, list):
        return [plain_inside(item) for item in reply]
    return plain_inside(reply)


def plain_inside(reply: object) -> object:
    if isinstance(reply, hiredis.ReplyError):
        return ("error", str(reply))
    return [plain_inside(item) for item in reply] if isinstance(reply, list) else reply


def expected(data: bytes) -> list[object]:
    reader = hiredis.Reader(notEnoughData=resp.NOT_READY)
    reader.feed(data)
    replies = []
    while (reply := reader.gets()) is not resp.NOT_READY:
        replies.append(plain_inside(reply))
    return replies


def drain(reader: resp.ReplyReader) -> list[object]:
    replies = []
    while (reply := reader.gets()) is not resp.NOT_READY:
        assert not (isinstance(reply, bytes) and len(reply) > resp.BIG_REPLY)
        replies.append(plain(reply))
    return replies


def receive(reader: resp.ReplyReader, data: bytes) -> list[object]:
    """Hand over a part as a socket would."""
    replies = []
    while data:
        buffer = reader.get_buffer(-1)
        count = min(len(buffer), len(data))
        assert count > 0
        buffer[:count] = data[:count]
        reader.buffer_updated(count)
        data = data[count:]
        replies += drain(reader)
    return replies


def bulk(data: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(data), data)


# contents that look like replies, and sizes around the limit
line = st.sampled_from([b"OK", b"", b"$99999", b"$", b"*3", b"a b"])
small_bulk = st.one_of(
    st.binary(max_size=30),
    st.sampled_from([b"$40000\r\n", b"$40000\r", b"$", b"\r\n$99999\r\n", b"$1234567890123456789", b"+OK\r\n"]),
).map(bulk)
large = st.builds(
    lambda size, seed, tail: bulk((seed * (size // len(seed) + 1))[: size - len(tail)] + tail),
    st.one_of(
        st.integers(resp.BIG_REPLY - 2, resp.BIG_REPLY + 3),
        st.integers(65_500, 65_600),
        st.integers(100_000, 200_000),
    ),
    st.sampled_from([b"x", b"$40000\r\n", b"\r\n", b"\0\xff$"]),
    st.sampled_from([b"", b"$", b"$4000", b"\r", b"\r\n"]),
)
scalar = st.one_of(
    line.map(lambda text: b"+%b\r\n" % text),
    line.map(lambda text: b"-ERR %b\r\n" % text),
    st.integers(-(2**63), 2**63 - 1).map(lambda n: b":%d\r\n" % n),
    small_bulk,
    st.just(b"$-1\r\n"),
    st.just(b"*-1\r\n"),
    st.just(b"$0\r\n\r\n"),
)


def array(items: Sequence[bytes]) -> bytes:
    return b"*%d\r\n" % len(items) + b"".join(items)


nested = st.recursive(scalar, lambda inner: st.lists(inner, max_size=4).map(array), max_leaves=8)
reply = st.one_of(nested, large, st.tuples(scalar, large, scalar).map(array))


@given(st.lists(reply, min_size=1, max_size=6), st.data())
def test_any_split_gives_the_same_replies(replies: list[bytes], data: st.DataObject) -> None:
    stream = b"".join(replies)
    # cuts anywhere, and close to where replies begin
    starts = np.cumsum([0, *map(len, replies)]).tolist()
    cut = st.one_of(
        st.integers(0, len(stream)),
        st.tuples(st.sampled_from(starts), st.integers(-3, 12)).map(lambda pair: max(0, sum(pair))),
    )
    cuts = sorted({0, len(stream), *(min(c, len(stream)) for c in data.draw(st.lists(cut, max_size=12)))})
    reader = resp.ReplyReader()
    got = []
    for start, end in itertools.pairwise(cuts):
        got += receive(reader, stream[start:end])
    assert got == expected(stream)
    assert reader.idle


@given(st.lists(st.one_of(nested, st.just(bulk(b"z" * (resp.BIG_REPLY + 1)))), min_size=1, max_size=3))
def test_byte_by_byte(replies: list[bytes]) -> None:
    stream = b"".join(replies)
    reader = resp.ReplyReader()
    got = []
    at = 0
    while at < len(stream):
        # the inside of the large ones in one go
        step = 1 if stream[at : at + 50] != b"z" * 50 else 32_700
        got += receive(reader, stream[at : at + step])
        at += step
    assert got == expected(stream)


def test_feed_is_the_same() -> None:
    stream = b"+OK\r\n" + bulk(b"q" * 200_000) + bulk(b"r" * 100_000) + b":1\r\n"
    reader = resp.ReplyReader()
    reader.feed(stream)
    assert drain(reader) == expected(stream)


def test_large_reply_is_received_into_its_own_memory() -> None:
    size = 1_000_000
    reader = resp.ReplyReader()
    reader.feed(b"$%d\r\n" % size)
    buffer = reader.get_buffer()
    assert len(buffer) == size + 2
    base = np.frombuffer(buffer, np.uint8)
    buffer[:] = b"y" * size + b"\r\n"
    reader.buffer_updated(size + 2)
    got = reader.gets()
    assert type(got) is memoryview
    assert len(got) == size
    assert np.frombuffer(got, np.uint8).ctypes.data == base.ctypes.data
    got[0] = 1
    assert reader.gets() is resp.NOT_READY
    assert reader.idle


def test_large_replies_do_not_share_memory() -> None:
    reader = resp.ReplyReader()
    reader.feed(bulk(b"a" * 40_000) + bulk(b"b" * 40_000))
    first, second = reader.gets(), reader.gets()
    reader.feed(bulk(b"c" * 40_000))
    assert (bytes(first[:2]), bytes(second[:2])) == (b"aa", b"bb")


def test_idle() -> None:
    reader = resp.ReplyReader()
    assert reader.idle
    for part in (b"$", b"3\r\nab", b"c\r\n"):
        reader.feed(part)
        assert not reader.idle
    assert reader.gets() == b"abc"
    assert reader.idle
    reader.feed(b"*2\r\n:1\r\n")
    assert reader.gets() is resp.NOT_READY
    assert not reader.idle
    reader.feed(b":2\r\n$50000\r\n")
    assert reader.gets() == [1, 2]
    assert not reader.idle
    assert not resp.NOT_READY
    assert repr(resp.NOT_READY) == "NOT_READY"


@pytest.mark.parametrize(
    "bad",
    [
        b"!x\r\n",
        b"\0\0\0\0\r\n",
        b"$40000\r\n" + b"x" * 40_002,
        b"$9999999999999999999\r\n",
        b"*x\r\n",
        b":a\r\n",
    ],
    ids=lambda bad: repr(bad[:12]),
)
def test_what_is_not_resp(bad: bytes) -> None:
    reader = resp.ReplyReader()
    reader.feed(b"+OK\r\n" + bad)
    assert reader.gets() == b"OK"
    for _ in range(2):
        with pytest.raises(hiredis.ProtocolError):
            reader.gets()
        reader.feed(b"+OK\r\n")  # never to be trusted again
    assert len(reader.get_buffer()) > 0


def test_over_a_blocking_socket() -> None:
    near, far = socket.socketpair()
    with near, far:
        far.sendall(b"+OK\r\n" + bulk(b"v" * 50_000))
        reader = resp.ReplyReader()
        got: list[object] = []
        while len(got) < 2:
            while (reply := reader.gets()) is resp.NOT_READY:
                reader.buffer_updated(near.recv_into(reader.get_buffer()))
            got.append(plain(reply))
    assert got == [b"OK", b"v" * 50_000]


@pytest.mark.parametrize("size", [1, 7, 40, 64 * 1024])
def test_small_replies_one_by_one(size: int) -> None:
    stream = b"$3\r\njob\r\n*2\r\n$1\r\nt\r\n" + bulk(b"v" * 50_000) + b"-ERR no\r\n"
    reader = resp.ReplyReader()
    buffer = reader.get_buffer()
    got: list[object] = []
    for start in range(0, len(stream), size):
        part = stream[start : start + size]
        buffer[: len(part)] = part
        reply = reader.receive(len(part))
        while reply is not resp.NOT_READY:
            got.append(plain(reply))
            reply = reader.gets()
    assert got == [b"job", [b"t", b"v" * 50_000], ("error", "ERR no")]
    assert reader.idle


async def test_as_a_buffered_protocol() -> None:
    done: asyncio.Future[list[object]] = asyncio.get_running_loop().create_future()
    replies = []

    class Protocol(resp.ReplyReader, asyncio.BufferedProtocol):
        def buffer_updated(self, nbytes: int) -> None:
            super().buffer_updated(nbytes)
            replies.extend(drain(self))
            if len(replies) == 3:
                done.set_result(replies)

    near, far = socket.socketpair()
    far.setblocking(False)
    transport, _ = await asyncio.get_running_loop().create_connection(Protocol, sock=near)
    stream = b"+OK\r\n" + bulk(b"v" * 3_000_000) + bulk(b"w" * 3)
    await asyncio.get_running_loop().sock_sendall(far, stream)
    assert await asyncio.wait_for(done, 20) == [b"OK", b"v" * 3_000_000, b"www"]
    transport.close()
    far.close()
