"""The servers that tests run on, and the look at what a test left there."""

import json
import os
import subprocess
from typing import Any

import pytest
import redis as redis_py
from tests.conftest import leaks
from tests.servers import Server


@pytest.mark.parametrize("kind", ["redis", "valkey"])
def test_the_life_of_a_server(kind: Any) -> None:
    with Server(kind, maxmemory="64mb") as server:
        port = server.port
        client, hasty = server.client(), server.client(socket_timeout=0.2)
        assert client.config_get("maxmemory")["maxmemory"] == str(64 << 20)
        with redis_py.Redis.from_url(server.url_tcp, protocol=2) as other:
            other.set("x", 1)
        server.pause()
        with hasty, pytest.raises(redis_py.TimeoutError):
            hasty.get("x")
        server.resume()
        assert client.get("x") == b"1"
        server.kill()
        with pytest.raises(redis_py.ConnectionError):
            client.get("x")
        server.start()
        server.restart()
        assert server.port == port
        assert client.get("x") is None
        client.close()
    assert not server.directory.exists()


def test_a_setting_that_the_server_refuses() -> None:
    server = Server("redis", no_such_setting=1)
    with pytest.raises(AssertionError, match="no-such-setting"):
        server.start()
    server.stop()


def test_what_may_stay(db: Any) -> None:
    db.hset("ks:{0}:catalog", "a", "b")
    db.xadd("ks:{0}:jobs:CPU", {"h": "x"})
    db.xtrim("ks:{0}:jobs:CPU", 0)
    db.set("ks:{0}:bytes:CPU", 0)
    db.set("ks:{x}:cap:1", 1, ex=100)
    db.hset("model", mapping={"type": "model", "uid": "u1"})
    db.set("ks:{model}:blob:u1:sha:0", 1)
    db.set("of:{a}:user", 1)
    assert leaks(db) == []


def test_what_may_not_stay(db: Any) -> None:
    db.xadd("ks:{0}:jobs:CPU", {"h": "x"})
    db.set("ks:{0}:bytes:CPU", 5000)
    db.set("ks:{x}:cap:1", 1)
    db.hset("model", mapping={"type": "model", "uid": "u1"})
    db.set("ks:{model}:blob:u2:sha:0", 1)
    assert sorted(leaks(db)) == sorted(
        ["ks:{0}:jobs:CPU", "ks:{0}:bytes:CPU", "ks:{x}:cap:1", "ks:{model}:blob:u2:sha:0"]
    )
    db.flushall()


def test_executors_may_not_stay(db: Any) -> None:
    with subprocess.Popen(["true"]) as ended:
        pass
    for name, pid in (("alive", os.getpid()), ("ended", ended.pid)):
        db.zadd("ks:{0}:executors", {name: 1})
        db.set(f"ks:{{0}}:executor:{name}", json.dumps({"pid": pid}), ex=100)
    db.zadd("ks:{0}:executors", {"gone": 1})
    assert leaks(db) == ["executor alive, still running"]
    db.flushall()
