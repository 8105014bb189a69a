"""`set` of both clients is one transaction: a plain SET, and the call that starts what waits for the tensor."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models
from tests.clients import Connect, connector
from tests.proxy import Proxy
from tests.servers import Server

from keyside import errors
from keyside.tensorstore import npy

SMALL, LARGE = np.arange(6.0).reshape(2, 3), np.arange(200_000.0)
Told = Callable[[str], None]


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def client(connect: Connect, db: Any, url: str) -> Any:
    return connect(url)


@pytest.fixture
def tells(db: Any, server: Server) -> Iterator[Told]:
    """Puts a function in the place of AI_TENSORCHANGED."""

    def put(body: str) -> None:
        db.function_flush()
        db.function_load(
            f"#!lua name=stub\nredis.register_function('AI_TENSORCHANGED', function(KEYS, ARGV) {body} end)\n"
        )

    yield put
    db.function_flush()
    server.load_library()


@pytest.mark.parametrize("array", [SMALL, LARGE, np.zeros(0)], ids=["small", "large", "empty"])
@pytest.mark.parametrize("options", [{}, {"ex": 100}])
async def test_the_function_sees_what_was_set(
    client: Any, db: Any, tells: Told, array: Any, options: dict[str, Any]
) -> None:
    tells("redis.call('INCR', 'calls') return redis.call('COPY', KEYS[1], 'seen', 'REPLACE')")
    for round_ in (1, 2):
        await client.set("x", array * round_, **options)
        assert db.get("seen") == db.get("x") == npy.to_bytes(array * round_)
        assert db.get("calls") == b"%d" % round_
        assert np.array_equal(await client.get("x"), array * round_)  # the connection has no reply left over
        assert (db.ttl("x") == -1) == (not options)


async def test_a_server_without_the_library_takes_tensors(client: Any, db: Any, tells: Told) -> None:
    tells("return 0")
    db.function_flush()
    for array in (SMALL, LARGE):
        await client.set("x", array)
        assert np.array_equal(await client.get("x"), array)


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
async def test_what_cannot_be_started_now_is_said(client: Any, tells: Told, array: Any) -> None:
    for code, error in (
        ("BUSY queue full, and the tensor is written; retry in 50 ms", errors.Busy),
        ("OOM no room", errors.OutOfMemory),
        ("NOPERM the tensor \\'x\\' is written, but the model is not yours", errors.NoPerm),
    ):
        tells(f"return redis.error_reply('{code}')")
        with pytest.raises(error):
            await client.set("x", array)
        assert np.array_equal(await client.get("x"), array)


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
async def test_a_user_who_may_not_call_it_writes_all_the_same(
    connect: Connect, db: Any, server: Server, tells: Told, array: Any
) -> None:
    tells("return redis.call('INCR', 'calls')")
    for rules in (("+set", "+get", "+multi", "+exec"), ("+set", "+get"), ("+@all", "-fcall"), ("+@all", "-multi")):
        db.execute_command("ACL", "SETUSER", "writer", "reset", "on", ">secret", "~*", "+hello", "+client", *rules)
        db.delete("calls")
        writer = connect(server.url_unix.replace("unix://", "unix://writer:secret@"))
        for round_ in (1, 2):
            await writer.set("x", array * round_, px=100_000)
            assert np.array_equal(await writer.get("x"), array * round_)
            assert db.pttl("x") > 0
        assert db.get("calls") == (b"2" if rules[-1] == "-multi" else None)
        await writer.close()
    db.acl_deluser("writer")


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
async def test_a_user_who_may_not_look_what_triggers_there_are_writes_all_the_same(
    connect: Connect, db: Any, server: Server, array: Any
) -> None:
    db.execute_command("ACL", "SETUSER", "writer", "reset", "on", ">secret", "~x*", "+@all")
    writer = connect(server.url_unix.replace("unix://", "unix://writer:secret@"))
    db.fcall("AI_TRIGGERSET", 1, "t", "ON", "SET", "x:{n}", "RUN", "m", "INPUTS", 1, "KEY", "{key}")
    await writer.set("x:1", array)
    assert np.array_equal(await writer.get("x:1"), array)
    db.execute_command("ACL", "SETUSER", "writer", "~ks:*")
    db.fcall("AI_MODELSTORE", 1, "m", "ONNX", "CPU", "BLOB", models.affine())
    with pytest.raises(errors.NoPerm, match="is written, but trigger 't' could not start"):
        await writer.set("x:1", array)
    db.acl_deluser("writer")
    db.flushall()


async def test_a_user_who_may_not_write_is_refused(connect: Connect, db: Any, server: Server, tells: Told) -> None:
    tells("return 0")
    db.execute_command("ACL", "SETUSER", "writer", "reset", "on", ">secret", "~y*", "+@all")
    writer = connect(server.url_unix.replace("unix://", "unix://writer:secret@"))
    for array in (SMALL, LARGE):
        with pytest.raises(errors.NoPerm):
            await writer.set("x", array)
        await writer.set("y", array)
    assert not db.exists("x")
    db.acl_deluser("writer")


async def test_a_full_server_refuses_it_whole(client: Any, db: Any, tells: Told) -> None:
    tells("return redis.call('INCR', 'calls')")
    await client.set("x", SMALL)
    db.config_set("maxmemory", 1)
    try:
        for array in (SMALL * 2, LARGE):
            with pytest.raises(errors.OutOfMemory):
                await client.set("x", array)
            assert np.array_equal(await client.get("x"), SMALL)
    finally:
        db.config_set("maxmemory", 0)
    assert db.get("calls") == b"1"


@pytest.mark.parametrize("array", [SMALL, LARGE], ids=["small", "large"])
async def test_a_set_that_is_sent_again_starts_nothing_twice(
    connect: Connect, db: Any, server: Server, array: Any
) -> None:
    on = ("ON", "SET", "x:{n}", "RESULTS", "log:{n}", "RUN", "nothing", "INPUTS", 1, "KEY", "{key}")
    with Proxy(server) as proxy:
        client = connect(proxy.url)
        await client.set("x:0", array)
        db.fcall("AI_MODELSTORE", 1, "nothing", "ONNX", "CPU", "BLOB", models.affine())  # nobody loads it: runs wait
        db.fcall("AI_TRIGGERSET", 1, "t", *on)
        cut: list[bytes] = []

        def once(said: bytes) -> bool:
            if b"EXEC" in said and not cut:
                cut.append(said)
                return True
            return False

        proxy.after = once
        for number in (1, 2, 3):
            cut.clear()
            await client.set(f"x:{number}", array + number)
            assert cut, "the answer was lost"
            assert db.get(f"x:{number}") == npy.to_bytes(array + number)
        stats = db.fcall("AI_TRIGGERINFO", 1, "t")
        assert dict(zip(stats[::2], stats[1::2], strict=True))[b"fired"] == 3
    assert [db.fcall("AI_TENSORCHANGED", 1, "x:1", "ID", "c1", 7) for _ in range(3)] == [1, 0, 0]
    for wrong in (("ID",), ("ID", "c1"), ("ID", "c-1", 1), ("ID", "c1", -1), ("ID", "c1", 1, 2), ("IT", "c1", 1)):
        with pytest.raises(redis_py.ResponseError, match="BADARG"):
            db.fcall("AI_TENSORCHANGED", 1, "x:1", *wrong)
    db.flushall()  # with the jobs that nobody takes


async def test_a_broken_connection_is_made_anew(client: Any, db: Any, tells: Told) -> None:
    tells("return 0")
    for array in (SMALL, LARGE):
        await client.set("x", array)
        db.client_kill_filter(_type="normal", skipme=True)
        await client.set("x", array * 2)
        assert np.array_equal(await client.get("x"), array * 2)
