"""wait_for_key of both clients."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests.clients import Connect, connector
from tests.clusters import until
from tests.servers import Server

from keyside import errors
from keyside.tensorstore import npy

EVENTS = "notify-keyspace-events"


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def quiet(db: redis_py.Redis) -> Iterator[redis_py.Redis]:
    """A server that tells nothing of what happens to keys."""
    db.config_set(EVENTS, "")
    yield db
    db.config_set(EVENTS, "")


@pytest.fixture
def client(connect: Connect, quiet: redis_py.Redis, url: str) -> Any:
    return connect(url)


def listens(db: Any, *keys: str) -> bool:
    return all(dict(db.pubsub_numsub(*[f"__keyspace@0__:{key}" for key in keys])).values())


async def begun(db: Any, wait: Awaitable[Any], *keys: str) -> "asyncio.Future[Any]":
    """Begin to wait, and come back when the server knows of it."""
    waiting = asyncio.ensure_future(wait)
    await until(lambda: listens(db, *keys) or waiting.done())
    return waiting


MAKES: dict[str, Callable[[Any], Any]] = {
    "set": lambda db: db.set("k", 1),
    "rename": lambda db: (db.set("other", 1), db.rename("other", "k")),
    "copy": lambda db: (db.set("other", 1), db.copy("other", "k")),
    "restore": lambda db: (db.set("other", 1), db.restore("k", 0, db.dump("other"))),
    "list": lambda db: db.rpush("k", 1),
    "hash": lambda db: db.hset("k", "a", 1),
    "stream": lambda db: db.xadd("k", {"a": 1}),
    "zset": lambda db: db.zadd("k", {"a": 1}),
    "set of members": lambda db: db.sadd("k", 1),
    "transaction": lambda db: db.pipeline().set("k", 1).execute(),
    "script": lambda db: db.eval("redis.call('SET', KEYS[1], 1)", 1, "k"),
}


@pytest.mark.parametrize("how", MAKES)
async def test_a_key_that_comes_into_being(client: Any, quiet: Any, how: str) -> None:
    waiting = await begun(quiet, client.wait_for_key("k", timeout=10), "k")
    MAKES[how](quiet)
    start = time.monotonic()
    assert await waiting is None
    assert time.monotonic() - start < 1


GOES: dict[str, Callable[[Any], Any]] = {
    "delete": lambda db: db.delete("k"),
    "unlink": lambda db: db.unlink("k"),
    "expiry": lambda db: db.pexpire("k", 50),
    "rename": lambda db: db.rename("k", "other"),
    "getdel": lambda db: db.getdel("k"),
}


@pytest.mark.parametrize("how", GOES)
async def test_a_key_that_goes(client: Any, quiet: Any, how: str) -> None:
    quiet.set("k", 1)
    waiting = await begun(quiet, client.wait_for_key("k", "gone", 10), "k")
    GOES[how](quiet)
    start = time.monotonic()
    assert await waiting is None
    assert time.monotonic() - start < 1


CHANGES: dict[str, Callable[[Any], Any]] = {
    "another value": lambda db: db.set("k", 2),
    "the same value": lambda db: db.set("k", 1),
    "append": lambda db: db.append("k", "x"),
    "setrange": lambda db: db.setrange("k", 0, "x"),
    "incr": lambda db: db.incr("k"),
    "deletion": lambda db: db.delete("k"),
    "expiry": lambda db: db.pexpire("k", 50),
}


@pytest.mark.parametrize("how", CHANGES)
async def test_a_key_that_changes(client: Any, quiet: Any, how: str) -> None:
    quiet.set("k", 1)
    waiting = await begun(quiet, client.wait_for_key("k", "changed", 10), "k")
    quiet.get("k")
    quiet.expire("k", 100)
    quiet.persist("k")
    quiet.set("other", 1)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    CHANGES[how](quiet)
    assert await waiting is None


async def test_a_value_that_will_do(client: Any, quiet: Any) -> None:
    waiting = await begun(quiet, client.wait_for_key("k", lambda array: array[0] >= 3, 10), "k")
    for number in range(3):
        quiet.set("k", npy.to_bytes(np.array([number, 7])))
        await asyncio.sleep(0.03)
        assert not waiting.done()
    quiet.set("k", npy.to_bytes(np.array([3, 7])))
    found = await waiting
    assert found.tolist() == [3, 7]


async def test_what_is_so_already_needs_no_notifications(client: Any, quiet: Any) -> None:
    assert await client.wait_for_key("k", "gone", 1) is None
    await client.set("k", [1, 2])
    assert await client.wait_for_key("k", "exists", 1) is None
    assert (await client.wait_for_key("k", lambda array: array.sum() == 3, 1)).tolist() == [1, 2]
    assert quiet.config_get(EVENTS) == {EVENTS: ""}


async def test_flags_that_are_set_stay(client: Any, quiet: Any) -> None:
    quiet.config_set(EVENTS, "El")
    with pytest.raises(errors.TimedOut, match=r"key 'k' is not there after 0\.05 s"):
        await client.wait_for_key("k", "exists", 0.05)
    assert set(quiet.config_get(EVENTS)[EVENTS]) == set("ElKg$xen")
    quiet.config_set(EVENTS, "KA")
    with pytest.raises(errors.TimedOut):
        await client.wait_for_key("k", "exists", 0.05)
    assert quiet.config_get(EVENTS)[EVENTS] == "AK"


async def test_what_does_not_come_ends_with_the_time(client: Any, quiet: Any) -> None:
    quiet.set("k", npy.to_bytes(np.zeros(2)))
    for condition, words in (
        ("gone", "is still there"),
        ("changed", "has not changed"),
        (lambda array: array.any(), "holds nothing that will do"),
    ):
        start = time.monotonic()
        with pytest.raises(errors.TimedOut, match=words):
            await client.wait_for_key("k", condition, 0.3)
        assert 0.25 < time.monotonic() - start < 1


async def test_what_cannot_be_waited_for(client: Any, quiet: Any) -> None:
    with pytest.raises(errors.BadArg, match="'exists', 'gone', 'changed' or a function"):
        await client.wait_for_key("k", "there")
    quiet.rpush("k", 1)
    with pytest.raises(errors.WrongType):
        await client.wait_for_key("k", lambda array: True, 1)
    await client.set("x", 1)
    with pytest.raises(ZeroDivisionError):
        await client.wait_for_key("x", lambda array: 1 / 0, 1)


async def test_a_connection_that_breaks_is_made_again(client: Any, quiet: Any) -> None:
    waiting = await begun(quiet, client.wait_for_key("k", "exists", 10), "k")
    for _ in range(3):
        quiet.client_kill_filter(_type="pubsub")
        await until(lambda: listens(quiet, "k"))
    quiet.set("k", 1)
    assert await waiting is None


async def test_a_change_while_the_connection_was_broken_is_seen(client: Any, quiet: Any) -> None:
    quiet.set("k", "before")
    waiting = await begun(quiet, client.wait_for_key("k", "changed", 10), "k")
    pipeline = quiet.pipeline()
    pipeline.execute_command("CLIENT", "KILL", "TYPE", "pubsub")
    pipeline.set("k", "behind")
    pipeline.execute()
    assert await waiting is None


async def test_several_wait_at_a_time(client: Any, quiet: Any) -> None:
    names = [f"k{number}" for number in range(4)]
    waiting = await begun(quiet, asyncio.gather(*[client.wait_for_key(name, timeout=10) for name in names]), *names)
    for name in names:
        quiet.set(name, 1)
    await waiting
    await until(lambda: not any(listens(quiet, name) for name in names))


async def test_a_wait_ends_with_its_client(connect: Connect, quiet: Any, url: str) -> None:
    client = connect(url)
    waiting = await begun(quiet, client.wait_for_key("k", timeout=10), "k")
    await client.close()
    start = time.monotonic()
    with pytest.raises(errors.Unreachable):
        await waiting
    assert time.monotonic() - start < 2


@pytest.fixture
def user(quiet: Any, server: Server) -> Iterator[Callable[..., str]]:
    """Makes a user who may use keys and channels, and these commands."""

    def make(*rules: str) -> str:
        quiet.execute_command("ACL", "SETUSER", "waiter", "reset", "on", ">secret", "+@all", "-config", *rules)
        return server.url_unix.replace("unix://", "unix://waiter:secret@")

    yield make
    quiet.acl_deluser("waiter")


async def test_a_user_who_may_not_turn_notifications_on_is_told_what_to_set(
    connect: Connect, quiet: Any, user: Callable[..., str]
) -> None:
    for more in ((), ("+config|get",)):
        client = connect(user("~*", "&*", *more))
        with pytest.raises(errors.NoPerm, match=r"run CONFIG SET notify-keyspace-events Kg\$xen"):
            await client.wait_for_key("k", timeout=5)


async def test_a_user_who_may_not_ask_waits_where_they_are_on(
    connect: Connect, quiet: Any, user: Callable[..., str]
) -> None:
    quiet.config_set(EVENTS, "KA")
    client = connect(user("~*", "&*"))
    waiting = await begun(quiet, client.wait_for_key("k", "changed", timeout=5), "k")
    await asyncio.sleep(1.3)  # what is said of the probe is nothing of k
    assert not waiting.done()
    quiet.set("k", 1)
    assert await waiting is None


async def test_a_user_without_the_channel_is_refused(connect: Connect, quiet: Any, user: Callable[..., str]) -> None:
    client = connect(user("~*", "resetchannels", "+config"))
    with pytest.raises(errors.NoPerm, match="__keyspace@0__:k"):
        await client.wait_for_key("k", timeout=5)
