"""Tensors through both clients."""

from collections.abc import AsyncIterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, raw
from tests.clients import Connect, connector
from tests.servers import Server

from keyside import TensorMeta, errors
from keyside.tensorstore import npy


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def client(connect: Connect, db: redis_py.Redis, url: str) -> Any:
    return connect(url)


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "?", "S5"])
async def test_every_dtype_comes_back_as_it_went(client: Any, dtype: str) -> None:
    array = np.arange(6).reshape(2, 3).astype(dtype)
    await client.set("x", array)
    found = await client.get("x")
    assert found.dtype == array.dtype
    assert (found == array).all()
    found[0, 0] = found[1, 1]  # the memory is the caller's


@pytest.mark.parametrize("shape", [(), (0,), (0, 3), (1,), (2, 0, 3), (100, 331), (3_000_001,)])
async def test_every_shape_comes_back_as_it_went(client: Any, shape: tuple[int, ...]) -> None:
    array = np.random.default_rng(1).standard_normal(shape)
    await client.set("x", array)
    found = await client.get("x")
    assert found.shape == shape
    assert np.array_equal(found, array)
    assert found.flags.writeable
    assert await client.meta("x") == TensorMeta("DOUBLE", shape, array.nbytes)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (3, np.array(3)),
        (2.5, np.array(2.5)),
        ([[1, 2], [3, 4]], np.array([[1, 2], [3, 4]])),
        (["a", "déjà"], np.array([b"a", "déjà".encode()])),
        (True, np.array(True)),
        (np.arange(10)[::2], np.arange(0, 10, 2)),
        (np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(6).reshape(2, 3)),
    ],
)
async def test_what_is_no_array_becomes_one(client: Any, value: object, expected: np.ndarray[Any, Any]) -> None:
    await client.set("x", value)
    assert np.array_equal(await client.get("x"), expected)


async def test_a_tensor_is_a_plain_npy_file(client: Any, db: redis_py.Redis) -> None:
    array = np.arange(4, dtype=np.float32)
    await client.set("x", array)
    assert db.get("x") == npy.to_bytes(array)
    db.set("y", npy.to_bytes(array * 2))
    assert np.array_equal(await client.get("y"), array * 2)


async def test_what_cannot_be_a_tensor_is_refused(client: Any, db: redis_py.Redis) -> None:
    for value, error in (
        (np.array([object()]), errors.BadDtype),
        (np.zeros(2, complex), errors.BadDtype),
        (np.zeros(2, ">f4"), errors.BadDtype),
        ([1, "a"], errors.BadDtype),
        (["ends in NUL\0"], errors.BadValue),
    ):
        with pytest.raises(error):
            await client.set("x", value)
    assert not db.exists("x")


async def test_more_than_a_string_can_hold_is_refused(client: Any, db: redis_py.Redis) -> None:
    with pytest.raises(errors.TooBig, match="512 MiB, split it"):
        await client.set("x", np.broadcast_to(np.float64(0), (1 << 26, 1))[:, :])
    assert not db.exists("x")


async def test_missing_and_other_keys_are_told_apart(client: Any, db: redis_py.Redis) -> None:
    db.rpush("list", 1)
    db.set("text", "hello")
    db.set("damaged", npy.to_bytes(np.zeros(4))[:-1])
    for read in (client.get, client.meta):
        for key, error in (
            ("missing", errors.NoTensor),
            ("list", errors.WrongType),
            ("text", errors.WrongType),
            ("damaged", errors.BadNpy),
        ):
            with pytest.raises(error):
                await read(key)


async def test_a_header_longer_than_what_is_read_first(client: Any, db: redis_py.Redis) -> None:
    text = b"{'descr': '<i8', 'fortran_order': False, 'shape': (1,), }" + b" " * 500 + b"\n"
    db.set("x", npy.MAGIC + len(text).to_bytes(2, "little") + text + bytes(8))
    assert await client.meta("x") == TensorMeta("INT64", (1,), 8)


async def test_set_takes_the_old_time_to_live_away(client: Any, db: redis_py.Redis) -> None:
    await client.set("x", 1, ex=100)
    assert 99_000 < db.pttl("x") <= 100_000
    await client.set("x", 1, px=5000)
    assert 4000 < db.pttl("x") <= 5000
    await client.set("x", np.zeros(100_000), ex=0.5)
    assert 0 < db.pttl("x") <= 500
    await client.set("x", 1)
    assert db.pttl("x") == -1
    for options in ({"ex": 0}, {"px": -1}, {"ex": 1, "px": 1000}):
        with pytest.raises(errors.BadArg):
            await client.set("x", 1, **options)


async def test_expire(client: Any, db: redis_py.Redis) -> None:
    await client.set("x", 1)
    assert await client.expire("x", 10)
    assert 9000 < db.pttl("x") <= 10_000
    assert await client.expire("x", None)
    assert db.pttl("x") == -1
    assert not await client.expire("missing", 10)


async def test_copy_rename_exists_delete(client: Any) -> None:
    await client.set("x", [1, 2])
    assert await client.exists("x")
    assert not await client.exists("y")
    assert await client.copy("x", "y")
    assert not await client.copy("x", "y")
    await client.set("x", [3])
    assert await client.copy("x", "y", replace=True)
    assert np.array_equal(await client.get("y"), [3])
    await client.rename("y", "z")
    assert not await client.exists("y")
    assert await client.delete("x", "z", "missing") == 2
    assert await client.delete() == 0
    with pytest.raises(errors.NoTensor):
        await client.copy("missing", "y")
    with pytest.raises(errors.NoTensor):
        await client.rename("missing", "y")


async def test_models_do_not_go_like_tensors(client: Any, db: redis_py.Redis) -> None:
    await client.store("m", models.affine(), wait=False)
    await client.set("x", [1])
    db.hset("hash", "field", 1)
    db.rpush("list", 1)
    for call in (
        client.delete("x", "list", "m"),
        client.copy("x", "m", replace=True),
        client.rename("x", "m"),
        client.rename("m", "y"),
    ):
        with pytest.raises(errors.WrongType, match=r"'m' holds a model: .*delete_model"):
            await call
    assert not await client.copy("x", "m")
    assert db.type("m") == b"hash"
    assert await client.get("x") == [1]
    assert not await client.exists("y")
    assert await client.copy("x", "hash", replace=True)
    await client.rename("x", "list")
    assert await client.delete("hash", "list", "missing") == 2
    await client.delete_model("m")


async def test_names_of_our_own_keys_are_refused(client: Any) -> None:
    await client.set("x", 1)
    with pytest.raises(errors.BadArg):
        await client.set("ks:{0}:jobs:CPU", 1)
    with pytest.raises(errors.BadArg):
        await client.rename("x", "ks:{0}:jobs:CPU")
    with pytest.raises(errors.BadArg):
        await client.copy("x", "ks:{0}:jobs:CPU")


async def test_names_that_are_not_text(client: Any) -> None:
    name = b"\xff\x00{a}b"
    await client.set(name, 1)
    assert await client.exists(name)
    listed = [key async for key in client.tensors()]
    assert await client.exists(listed[0])
    assert await client.get(listed[0]) == 1


async def test_listing_finds_tensors_and_nothing_else(client: Any, db: redis_py.Redis) -> None:
    with db.pipeline() as pipe:
        for n in range(1200):
            pipe.set(f"t:{n}", npy.to_bytes(np.array(n)))
            pipe.set(f"s:{n}", "text")
        pipe.execute()
    db.rpush("t:list", 1)
    db.set("ks:{0}:out:1", npy.to_bytes(np.array(1)), px=10_000)
    db.set("t*", npy.to_bytes(np.array(1)))
    assert {key async for key in client.tensors("t:")} == {f"t:{n}" for n in range(1200)}
    assert sorted([key async for key in client.tensors()]) == sorted([*(f"t:{n}" for n in range(1200)), "t*"])
    assert [key async for key in client.tensors("t*")] == ["t*"]
    assert [key async for key in client.tensors("none")] == []


async def test_every_way_to_name_the_server(
    connect: Connect, redis: Server, db_redis: redis_py.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis.url_tcp)
    monkeypatch.setenv("KEYSIDE_URL", redis.url_unix)
    with redis.client() as plain_client:
        tcp = redis_py.Redis(port=redis.port, decode_responses=True)
        aio = redis_py.asyncio.Redis(unix_socket_path=str(redis.socket))
        try:
            for number, source in enumerate((None, redis.url_unix, redis.url_tcp, plain_client, tcp, aio)):
                made = connect(source)
                await made.set("x", number)
                assert await made.get("x") == number
        finally:
            tcp.close()
            await aio.aclose()
    assert str(redis.socket) in repr(connect())
    monkeypatch.delenv("KEYSIDE_URL")
    assert str(redis.port) in repr(connect())
    monkeypatch.delenv("REDIS_URL")
    with pytest.raises(errors.BadArg, match="KEYSIDE_URL"):
        connect()


async def test_the_database_of_the_url_is_used(connect: Connect, redis: Server, db_redis: redis_py.Redis) -> None:
    await connect(f"{redis.url_tcp}/3").set("x", 1)
    await connect(redis.url_tcp, db=4).set("y", 1)
    assert not db_redis.exists("x", "y")
    with redis.client(db=3) as three, redis.client(db=4) as four:
        assert three.exists("x")
        assert four.exists("y")


@pytest.mark.parametrize("url", ["http://localhost", "localhost:6379", "redis://localhost?db=x"])
async def test_a_malformed_url_is_refused(connect: Connect, url: str) -> None:
    with pytest.raises(errors.BadArg):
        connect(url)


async def test_an_unknown_setting_is_refused(connect: Connect, redis: Server) -> None:
    with pytest.raises(errors.BadArg, match="frobnicate"):
        await connect(redis.url_tcp, frobnicate=1).exists("x")


async def test_nobody_there(connect: Connect) -> None:
    made = connect("unix:///nonexistent/socket")
    for call in (made.get("x"), made.predict("m", [1.0]), made.set("x", 1)):
        with pytest.raises(errors.Unreachable, match="nonexistent") as caught:
            await call
        assert isinstance(caught.value, ConnectionError)


async def test_a_closed_client_says_so(client: Any) -> None:
    await client.set("x", 1)
    await client.close()
    await client.close()
    with pytest.raises(errors.Unreachable, match="closed"):
        await client.get("x")
    with pytest.raises(errors.Unreachable, match="closed"):
        await client.predict("m", [1.0])


async def test_a_user_of_the_acl(connect: Connect, redis: Server, db_redis: redis_py.Redis) -> None:
    raw.call(db_redis, "ACL", "SETUSER", "ann", "on", ">secret", "~a:*", "+@all")
    try:
        made = connect(redis.url_tcp, username="ann", password="secret")
        await made.set("a:x", 1)
        with pytest.raises(errors.NoPerm):
            await made.set("x", 1)
        with pytest.raises(errors.NoPerm):
            await connect(redis.url_tcp, username="ann", password="wrong").get("a:x")
    finally:
        raw.call(db_redis, "ACL", "DELUSER", "ann")


async def test_the_name_of_the_client_is_shown(connect: Connect, redis: Server, db_redis: redis_py.Redis) -> None:
    await connect(redis.url_unix).exists("x")
    await connect(redis.url_unix, client_name="mine").exists("x")
    names = {item["name"] for item in db_redis.client_list()}
    assert {"keyside-client", "mine"} <= names
