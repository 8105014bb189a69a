"""Fixtures for every test: real servers that nobody else uses, and a look at what a test left on them."""

import contextlib
import json
import os
import signal
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import redis as redis_py
from hypothesis import HealthCheck, settings
from tests.executors import Executor
from tests.servers import Kind, Server, wait_until
from tests.triggers import listened_to

from keyside.executor import cores

# A test must never touch a server of the user's.
for _name in ("KEYSIDE_URL", "REDIS_URL"):
    os.environ.pop(_name, None)

# Started in the background, a shell has this process ignore it, and whatever the tests start inherits that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_default = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
settings.register_profile("default", _default)
settings.register_profile("fuzz", _default, max_examples=5000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))

_started: dict[str, Server] = {}


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """What `-n auto` means: three workers for two cores, as tests often wait; with one core, only this process."""
    found = cores.allowed()
    return min(int(found * 1.5), 8) if found >= 2 else 0


def _session_server(kind: Kind) -> Iterator[Server]:
    with Server(kind) as server:
        _started[kind] = server
        yield server
        del _started[kind]


@pytest.fixture(scope="session")
def redis() -> Iterator[Server]:
    """A Redis for the whole session."""
    yield from _session_server("redis")


@pytest.fixture(scope="session")
def valkey() -> Iterator[Server]:
    """A Valkey for the whole session."""
    yield from _session_server("valkey")


@pytest.fixture(scope="session", params=["redis", "valkey"])
def server_kind(request: pytest.FixtureRequest) -> Kind:
    """Each kind of server in turn."""
    found: Kind = request.param
    return found


@pytest.fixture
def server(request: pytest.FixtureRequest, server_kind: Kind) -> Server:
    """Each of both in turn; the one with an executor, if the test uses that."""
    found = request.getfixturevalue("served" if "served" in request.fixturenames else server_kind)
    assert isinstance(found, Server)
    return found


@pytest.fixture
def url(server: Server) -> str:
    """Address of the server over its unix socket."""
    return server.url_unix


@pytest.fixture
def db(server: Server) -> Iterator[redis_py.Redis]:
    """A plain client of the server, which is empty but for the function library."""
    with server.client() as client:
        client.flushall()
        server.load_library()
        yield client


@pytest.fixture
def db_redis(redis: Server) -> Iterator[redis_py.Redis]:
    """`db`, of Redis alone: for what does not depend on the server."""
    with redis.client() as client:
        client.flushall()
        redis.load_library()
        yield client


@pytest.fixture
def redis_own() -> Iterator[Server]:
    """A Redis that the test may stop, kill and fill."""
    with Server("redis", appendonly="yes") as server:
        yield server


# Executors that serve many tests: starting one takes a second.
_lasting: set[int] = set()


@pytest.fixture(scope="session")
def lasting() -> set[int]:
    """Process ids of the executors that may outlive a test: for modules that start some of their own."""
    return _lasting


@pytest.fixture(scope="session")
def _session_executor(server_kind: Kind) -> Iterator[Executor]:
    # A server of its own: tests of the functions alone must not find somebody who takes their jobs.
    with Server(server_kind) as server, Executor(server) as executor:
        _started[f"{server_kind} with an executor"] = server
        _lasting.add(executor.pid)
        yield executor
        _lasting.discard(executor.pid)
        del _started[f"{server_kind} with an executor"]


@pytest.fixture(scope="session")
def served(_session_executor: Executor) -> Server:
    """The server that has the lasting executor."""
    return _session_executor.server


@pytest.fixture
def executor(_session_executor: Executor, served: Server, db: redis_py.Redis) -> Executor:
    """An executor of the server, which is empty but for what the two of them keep there."""
    # Emptying the server under it is part of what it must bear; then it registers again.
    wait_until(_session_executor.registered, "the executor registers again")
    # It still listens for triggers of the test before: who waits for it to listen must not take that for theirs.
    wait_until(lambda: not listened_to(db), "the executor has forgotten the triggers of the test before")
    return _session_executor


@pytest.fixture(autouse=True)
def leaves_nothing() -> Iterator[None]:
    """After each test: no private key that would stay for ever, no executor that still runs."""
    yield
    for server in _started.values():
        with server.client() as client:
            try:
                left = leaks(client)
                if left:  # what triggers have started until now may be about to end, where an executor goes on
                    with contextlib.suppress(AssertionError):
                        wait_until(partial(_clean, client), "all is over", 5.0)
                    left = leaks(client)
            finally:
                if client.dbsize():
                    client.flushall()
        assert not left, f"left on {server}: {', '.join(left)}"


def _clean(client: Any) -> bool:
    return not leaks(client)


def leaks(client: Any) -> list[str]:
    """What a test should not have left on a server."""
    keys = list(client.scan_iter(match="ks:{*", count=1000))
    left = [_text(key) for key in keys if client.ttl(key) == -1 and not _may_stay(client, key)]
    for tag in {_text(key).split("}")[0] for key in keys if key.endswith(b"}:executors")}:
        for name in client.zrange(f"{tag}}}:executors", 0, -1):
            info = client.get(f"{tag}}}:executor:{_text(name)}")
            pid = None if info is None else json.loads(info).get("pid")
            if info is not None and pid not in _lasting and _runs(pid):
                left.append(f"executor {_text(name)}, still running")
    return left


def _text(key: bytes) -> str:
    return key.decode(errors="backslashreplace")


def _may_stay(client: Any, key: bytes) -> bool:
    """Whether a key without a TTL is one that a node or a model keeps (docs/protocol.md, section 2)."""
    what = key.partition(b"}:")[2].split(b":")
    if what[0] in (
        b"dead",
        b"catalog",
        b"models",
        b"revs",
        b"dropped",
        b"stats",
        b"executors",
        b"limits",
        b"vouch",
        b"triggers",
        b"onset",
    ):
        return True
    if what[0] == b"tstats":
        return bool(client.hexists(key.partition(b"}:")[0] + b"}:triggers", key.partition(b":tstats:")[2]))
    if what[0] == b"jobs":
        return bool(client.xlen(key) == 0)
    if what[0] == b"bytes":
        return int(client.get(key)) == 0
    if what[0] == b"blob":
        models = client.scan_iter(_type="HASH", count=1000)
        return any(client.hmget(model, "type", "uid") == [b"model", what[1]] for model in models)
    return False


def _runs(pid: object) -> bool:
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
