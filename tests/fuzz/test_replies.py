"""What clients read from the server: a right value or a KeysideError, whatever another client has written there."""

import asyncio
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tests.fuzz.budget import COUNTS, few, for_a_while
from tests.fuzz.records import ROW, SIGNATURE, hostile_json, hostile_text, infos, model_fields, replies
from tests.lua.jobs import LUA_ERROR, Hand
from tests.lua.test_garbage_calls import NATIVE
from tests.servers import Server

import keyside
from keyside.clients.versions import meant, newest
from keyside.tensorstore import plain
from keyside.tensorstore.commands import read_reply
from keyside.tensorstore.errors import CODES, KeysideError
from keyside.tensorstore.keys import client_ticket, mailbox
from keyside.tensorstore.records import ModelInfo
from keyside.tensorstore.resp import NOT_READY, ReplyReader

X = np.arange(4, dtype=np.float32).reshape(1, 4)


@pytest.fixture(scope="module")
def redis_alone() -> Iterator[Server]:
    with Server("redis") as server:
        server.load_library()
        yield server


def refused(error: KeysideError) -> None:
    assert error.code in CODES.keys() | NATIVE, error
    assert not LUA_ERROR.search(str(error)), error
    COUNTS["refused"] += 1


@for_a_while
@given(replies())
@few(300)
def test_replies_to_predictions(reply: bytes) -> None:
    try:
        found = read_reply(reply)
        for value in () if found is None else found.outputs.values():
            if isinstance(value, bytes):
                plain.array(value)
        COUNTS["taken"] += 1
    except KeysideError:
        COUNTS["refused"] += 1


@for_a_while
@given(model_fields(), st.booleans())
@example({"9" * 5000 + ":state": b"ready"}, False)
@example({"default": b"9" * 5000}, False)
@example({"uid": b"0", "1:signature": b"\xff"}, False)
@few(300)
def test_model_hashes(fields: dict[str, bytes], alone: bool) -> None:
    good = {"type": b"model", "uid": b"u", "last": b"1", "default": b"1", "1:state": b"ready", "1:backend": b"ONNX"}
    flat = [part for pair in ({} if alone else good | fields).items() for part in pair]
    raw = [part.encode("utf-8", "surrogateescape") if isinstance(part, str) else part for part in flat]
    try:
        info = ModelInfo.from_hash("m", raw)
        meant(info, None)
        newest(info, None)
        COUNTS["taken"] += 1
    except KeysideError:
        COUNTS["refused"] += 1


@for_a_while
@given(
    st.binary(max_size=60)
    | st.lists(
        st.sampled_from(
            [
                b"*",
                b"$",
                b":",
                b"+",
                b"-",
                b"\r\n",
                b"1",
                b"0",
                b"-1",
                b"3",
                b"99999",
                b"40000",
                b"_",
                b"~",
                b"%",
                b"#t",
                b"|",
                b">",
                b"=",
                b"(",
                b",",
                b"$-1\r\n",
                b"*-1\r\n",
                b"*2\r\n",
                b"$3\r\nabc\r\n",
                b"OK",
                b"$999999999999\r\n",
                b"$9223372036854775807\r\n",
            ]
        ),
        max_size=20,
    ).map(b"".join),
    st.integers(1, 7),
)
@example(b"*4000000000\r\n", 1)
@few(300)
def test_bytes_of_the_protocol(data: bytes, piece: int) -> None:
    """Whatever comes instead of RESP: replies, a wait for more, or an error that the connection is closed for."""
    import hiredis

    reader = ReplyReader()
    try:
        for at in range(0, len(data), piece):
            part = data[at : at + piece]
            buffer = reader.large if reader.large is not None else reader.get_buffer()
            count = min(len(part), len(buffer))
            buffer[:count] = part[:count]
            reader.buffer_updated(count)
            while reader.gets() is not NOT_READY:
                COUNTS["replies"] += 1
    except (hiredis.ProtocolError, OSError):
        COUNTS["refused"] += 1


@st.composite
def worlds(draw: st.DrawFn) -> dict[str, Any]:
    """What another client has written."""
    record = {
        "key": "m",
        "uid": "u",
        "version": 1,
        "state": "ready",
        "device": "CPU",
        "signature": SIGNATURE,
        "reason": "",
        "rev": 1,
    }
    texts = hostile_text.map(lambda text: text.encode("utf-8", "surrogateescape"))
    return {
        "catalog": draw(hostile_json(record)) if draw(st.booleans()) else None,
        "model": draw(model_fields()) if draw(st.booleans()) else {},
        "infos": draw(st.lists(infos(), max_size=3)),
        "names": draw(st.lists(texts, max_size=2)),
        "stats": draw(
            st.dictionaries(st.sampled_from(["calls", "errors", "duration", "samples", "x"]), texts, max_size=3)
        ),
        "bytes": draw(st.none() | texts),
        "reply": draw(replies() | st.just(b"")),
        "staged": draw(st.sampled_from([b"", ROW, ROW[:-1], b"junk"])),
        "types": draw(st.lists(st.sampled_from(["catalog", "models", "executors", "stats", "bytes"]), max_size=1)),
    }


def write(hand: Hand, world: dict[str, Any]) -> None:
    """Make a node on which all is well, and then write that over it."""
    hand.do("FLUSHALL")
    hand.beat("e1")
    hand.store("m", blob=b"one")
    node, uid = hand.node, bytes(hand.do("HGET", "m", "uid"))
    if world["catalog"] is not None:
        for target in ("m", "m@1"):
            hand.do("HSET", node.catalog, target, world["catalog"])
    if world["model"]:
        hand.do("HSET", "m", *(part for pair in world["model"].items() for part in pair))
    for n, info in enumerate(world["infos"]):
        hand.do("ZADD", node.executors, 1, f"f{n}")
        hand.do("SET", node.executor(f"f{n}"), info)
    for raw in world["names"]:
        hand.do("ZADD", node.executors, 1, raw)
    for field, value in world["stats"].items():
        hand.do("HSET", node.stats(uid.decode() + "-1"), field, value)
    if world["bytes"] is not None:
        hand.do("SET", b"ks:{0}:bytes:CPU", world["bytes"])
    if world["staged"]:
        hand.do("SET", "fuzz:staged", world["staged"])
    for kind in world["types"]:
        key = {
            "catalog": node.catalog,
            "models": node.models,
            "executors": node.executors,
            "stats": node.stats(uid.decode() + "-1"),
            "bytes": b"ks:{0}:bytes:CPU",
        }[kind]
        hand.do("DEL", key)
        hand.do("RPUSH", key, "another type")


@for_a_while
@given(worlds())
@few(15)
def test_a_client_in_a_damaged_world(redis_alone: Server, world: dict[str, Any]) -> None:
    """Every method: right or refused in words; never an exception of Python, and never for longer than it may take."""
    with Hand(redis_alone.url_unix) as hand, keyside.Client(redis_alone.url_unix, timeout=0.05) as client:
        write(hand, world)
        client.set("x", X)

        def answered() -> Any:
            # The next requests find this reply on their tickets.
            ident = client._transport.identity
            last = ident.number()
            for seq in range(last + 1, last + 8) if world["reply"] else ():
                hand.do("RPUSH", client_ticket(hand.node.tag, ident.id, seq), world["reply"])
            return client.predict("m", X, timeout=0.02)

        def tried(call: Callable[[], Any]) -> None:
            try:
                call()
                COUNTS["calls taken"] += 1
            except KeysideError as error:
                refused(error)

        # Those that nobody answers, at the same time; then those that change the model.
        waits = [
            answered,
            lambda: client.predict("m", [[1, 2, 3, 4]], timeout=0.02),
            lambda: client.execute("m@1", "x", "y", timeout=0.02),
            lambda: client.submit("m", X, timeout=0.02).result(),
            lambda: client.submit("m", X, timeout=0.02).cancel(),
            lambda: client.wait_ready("m", timeout=0.02),
        ]
        with ThreadPoolExecutor(len(waits)) as pool:
            list(pool.map(tried, waits))
        tried(lambda: client.model_info("m"))
        tried(lambda: client.version("m"))
        tried(lambda: client.model_stats("m"))
        tried(lambda: list(client.models()))
        tried(lambda: client.store("m", b"one", wait=False))
        tried(lambda: client.delete_model("m"))


@for_a_while
@given(
    st.lists(
        replies() | st.binary(max_size=20) | st.builds(lambda n, r: b"%d " % n + r, st.integers(0, 9), replies()),
        max_size=8,
    ),
    st.lists(infos(), max_size=3),
)
@few(10)
def test_a_mailbox_that_others_write_to(redis_alone: Server, items: list[bytes], said: list[bytes]) -> None:
    """The asyncio client's list of replies: what is none is passed over, and each call ends all the same."""

    async def run(hand: Hand) -> None:
        client = keyside.AsyncClient(redis_alone.url_unix, timeout=0.1)
        try:
            await client.set("x", X)
            key = mailbox(hand.node.tag, client._transport.identity.id)
            asked = [asyncio.ensure_future(client.predict("m", X, timeout=0.1)) for _ in range(5)]
            for item in items:
                await asyncio.to_thread(hand.do, "RPUSH", key, item)
            for result in await asyncio.wait_for(asyncio.gather(*asked, return_exceptions=True), 5):
                if isinstance(result, KeysideError):
                    refused(result)
                else:
                    assert isinstance(result, np.ndarray | dict), result
                    COUNTS["calls taken"] += 1
        finally:
            await client.close()

    with Hand(redis_alone.url_unix) as hand:
        hand.do("FLUSHALL")
        hand.beat("e1")
        hand.store("m", blob=b"one")
        for n, info in enumerate(said):
            hand.do("ZADD", hand.node.executors, 1, f"f{n}")
            hand.do("SET", hand.node.executor(f"f{n}"), info)
        asyncio.run(run(hand))


def test_the_good_reply_is_taken() -> None:
    """What the strategies wound is good before they do."""
    found = read_reply(msgspec.msgpack.encode({"target": "m@1", "outputs": {"y": ROW}}))
    assert found is not None
    assert np.array_equal(plain.array(found.outputs["y"]), X)  # type: ignore[arg-type]
