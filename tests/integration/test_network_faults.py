"""Networks that delay, cut, drip, swallow and fall apart, between client and server; servers and clients that die."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.clients import Connect, connector
from tests.executors import Executor
from tests.faults import QUICK, STREAM
from tests.proxy import Proxy
from tests.servers import ROOT, Server, wait_until

from keyside import Key, errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)
IDLE = 0.4
SLACK = 1.0
"""On top of a call's deadline and of the time after which a silent connection counts as lost."""

submits = b"AI_PREDICT"


# --- between client and server


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def proxy(executor: Executor) -> Iterator[Proxy]:
    with Proxy(executor.server) as made:
        yield made


@pytest.fixture
async def client(connect: Connect, proxy: Proxy, db: redis_py.Redis) -> Any:
    made = connect(proxy.url, timeout=5, idle_timeout=IDLE)
    await made.store("m", models.affine())
    assert np.array_equal(await made.predict("m", X), Y)
    return made


async def right_or_lost(client: Any, timeout: float) -> None:  # noqa: ASYNC109
    """The answer is right, or the caller is told that a connection took it along."""
    found: Any = (await asyncio.gather(client.predict("m", X, timeout=timeout), return_exceptions=True))[0]
    if isinstance(found, errors.TimedOut):
        assert "connection" in str(found)
    else:
        assert np.array_equal(found, Y)


async def runs(client: Any) -> int:
    return int((await client.model_stats("m")).calls)


class ended_within:  # noqa: N801  # reads as what it is
    """What is in the `with` ends in so many seconds, and some."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def __enter__(self) -> None:
        self.began = time.monotonic()

    def __exit__(self, *_: object) -> None:
        took = time.monotonic() - self.began
        assert took < self.seconds + SLACK, f"{took:.1f} s instead of {self.seconds:g}"


async def test_slow_replies(client: Any, proxy: Proxy) -> None:
    before = await runs(client)
    proxy.delay(0.15)
    with ended_within(3):
        assert np.array_equal(await client.predict("m", X), Y)
        await client.set("x", X)
        assert np.array_equal(await client.get("x"), X)
    proxy.heal()
    assert await runs(client) == before + 1


@pytest.mark.parametrize("direction", ["replies", "requests"])
async def test_bytes_that_drip(client: Any, proxy: Proxy, direction: Any) -> None:
    before = await runs(client)
    await client.set("x", BIG)
    fault = proxy.drip(3 if direction == "replies" else 50, 0.001, direction, lambda data: len(data) < 2000)
    assert np.array_equal(await client.predict("m", X), Y)
    assert fault.happened.is_set()
    proxy.heal()
    assert np.array_equal(await client.get("x"), BIG)
    assert await runs(client) == before + 1


@pytest.mark.parametrize("keep", [0, 1, 4, 20, 150])
async def test_a_reply_that_is_cut_short(client: Any, proxy: Proxy, keep: int) -> None:
    """Whatever of it arrives: it is not taken for the whole, and the call goes on over another connection."""
    before = await runs(client)
    fault = proxy.truncate(keep, "replies", lambda data: b"CPU/" in data or b"m@1" in data)
    await right_or_lost(client, 1)
    assert fault.happened.is_set()
    proxy.heal()
    assert await runs(client) == before + 1


@pytest.mark.parametrize("keep", [1, 30, 200])
async def test_a_request_that_is_cut_short(client: Any, proxy: Proxy, keep: int, db: redis_py.Redis) -> None:
    before = await runs(client)
    fault = proxy.truncate(keep, "requests", lambda data: submits in data)
    assert np.array_equal(await client.predict("m", X), Y)
    assert fault.happened.is_set()
    assert await runs(client) == before + 1
    fault = proxy.truncate(keep, "requests", lambda data: submits in data or len(data) > 10_000)
    assert np.array_equal(await client.predict("m", BIG), BIG * 2 + 1)
    assert fault.happened.is_set()
    assert await runs(client) == before + 2
    wait_until(lambda: not raw.private_keys(db), "nothing private is left")


async def test_a_large_value_that_is_cut_short(client: Any, proxy: Proxy) -> None:
    await client.set("x", BIG)
    fault = proxy.truncate(100_000, "replies", lambda data: len(data) > 10_000)
    assert np.array_equal(await client.get("x"), BIG)
    assert fault.happened.is_set()
    fault = proxy.truncate(100_000, "requests", lambda data: len(data) > 10_000)
    await client.set("y", BIG + 1)
    assert fault.happened.is_set()
    assert np.array_equal(await client.get("y"), BIG + 1)


async def test_replies_that_vanish(client: Any, proxy: Proxy) -> None:
    """A connection that is half open: the server has all, the client hears nothing more on it."""
    before = await runs(client)
    # The job's id; or nothing, where it was asked for again already, as after a stall of this machine.
    fault = proxy.swallow("replies", lambda data: b"CPU/" in data or data.startswith(b"$0\r\n"), once=True)
    with ended_within(5):
        # It is not to be told whether this has run, so it is asked for again, under its number.
        await right_or_lost(client, 4)
    assert fault.happened.is_set()
    proxy.heal()
    assert await runs(client) == before + 1
    assert np.array_equal(await client.predict("m", X), Y)


async def test_requests_that_vanish(client: Any, proxy: Proxy) -> None:
    before = await runs(client)
    fault = proxy.swallow("requests", lambda data: submits in data, once=True)
    with ended_within(5):
        assert np.array_equal(await client.predict("m", X, timeout=4), Y)
    assert fault.happened.is_set()
    assert await runs(client) == before + 1


async def test_a_blackhole_ends_each_call_in_its_time(client: Any, proxy: Proxy) -> None:
    await client.set("x", X)
    with proxy.blackholed():
        calls: list[tuple[Callable[[], Any], float]] = [
            (lambda: client.predict("m", X, timeout=0.5), 0.5),
            (lambda: client.execute("m", "x", "y", timeout=0.5), 0.5),
            (lambda: client.predict_many("m", X, batch=1, timeout=0.5), 0.5),
            (lambda: client.get("x"), IDLE),
            (lambda: client.set("x", X), IDLE),
        ]
        for call, seconds in calls:
            # Twice, since what was lost may be tried once more; and what it takes to connect.
            with ended_within(seconds + 0.5 + 2 * IDLE), pytest.raises(errors.KeysideError) as caught:
                await call()
            assert caught.value.code in ("UNREACHABLE", "TIMEDOUT"), caught.value
    assert np.array_equal(await client.predict("m", X), Y)


async def test_a_deadline_that_is_shorter_than_the_idle_timeout(connect: Connect, proxy: Proxy) -> None:
    client = connect(proxy.url, timeout=5, idle_timeout=4)
    await client.store("m", models.affine())
    await client.predict("m", X)
    with proxy.blackholed(), ended_within(0.5 + 0.5), pytest.raises(errors.KeysideError):
        await client.predict("m", X, timeout=0.5)


async def test_a_blackhole_that_ends_in_time(client: Any, proxy: Proxy) -> None:
    before = await runs(client)
    proxy.blackhole()
    asking = asyncio.ensure_future(client.predict("m", X, timeout=8))
    await asyncio.sleep(1.0)
    proxy.heal()
    with ended_within(7):
        assert np.array_equal(await asking, Y)
    assert await runs(client) == before + 1


async def test_a_partition_that_ends_in_time(client: Any, proxy: Proxy) -> None:
    """All that was said arrives late, the call that was sent meanwhile as well: it runs once.

    The client had given up the connection by then. If what was held on it is read before the server learns that it was
    closed, the reply goes there and is lost, and the caller ends with that word.
    """
    before = await runs(client)
    with proxy.partitioned():
        asking = asyncio.ensure_future(client.predict("m", X, timeout=3))
        await asyncio.sleep(1.2)
    said: object = (await asyncio.gather(asking, return_exceptions=True))[0]
    if isinstance(said, errors.TimedOut):
        assert "may have taken the reply along" in said.text
    else:
        assert np.array_equal(np.asarray(said), Y)
    # What was held has arrived by now: a call behind it on a new connection has been answered.
    assert np.array_equal(await client.predict("m", X), Y)
    assert await runs(client) == before + 2


async def test_more_connections_than_a_pool_of_redis_py_would_make(client: Any, proxy: Proxy) -> None:
    """redis-py's pool counts what it has ever made, and stops at 100."""
    for n in range(130):
        proxy.cut()
        assert np.array_equal(await client.predict("m", X + n), (X + n) * 2 + 1)


# --- CLIENT KILL and CLIENT PAUSE under load


def load(client: Any, seconds: float, meanwhile: Callable[[], None], width: int = 6) -> tuple[int, list[str]]:
    """Ask from some threads while something is done now and then; how many were answered, and what was said else."""
    over = threading.Event()
    right: list[int] = []
    said: list[str] = []

    def work(number: int) -> None:
        n = 0
        while not over.is_set():
            n += 1
            x = np.full((1, 4), number * 100_000 + n, np.float32)
            began = time.monotonic()
            try:
                answer = client.predict("m", x, timeout=5)
            except errors.KeysideError as error:
                said.append(error.code)
            else:
                assert np.array_equal(answer, x * 2 + 1)
                right.append(n)
            assert time.monotonic() - began < 5 + SLACK + 0.5

    with ThreadPoolExecutor(width) as pool:
        workers = [pool.submit(work, number) for number in range(width)]
        ends = time.monotonic() + seconds
        while time.monotonic() < ends:
            meanwhile()
        over.set()
        for worker in workers:
            worker.result()
    return len(right), said


@pytest.fixture
def shared(executor: Executor, db: redis_py.Redis) -> Iterator[Any]:
    import keyside

    with keyside.Client(executor.url, timeout=5) as client:
        client.store("m", models.affine())
        yield client


@pytest.mark.parametrize("kind", ["normal", "pubsub", "by one"])
def test_client_kill_under_load(shared: Any, db: Any, executor: Executor, kind: str) -> None:
    before = shared.model_stats("m").calls

    def kill() -> None:
        time.sleep(0.15)
        if kind == "by one":
            ids = [one["id"] for one in db.client_list() if one["name"].startswith("keyside-")]
            for one in ids[::2]:
                db.client_kill_filter(_id=one)
        else:
            db.execute_command("CLIENT", "KILL", "TYPE", kind, "SKIPME", "yes")

    right, said = load(shared, 2.0, kill)
    assert right > 50
    # A reply that was on its way on a connection that was killed is lost, and is called that.
    assert set(said) <= {"TIMEDOUT", "UNREACHABLE"}, said
    wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
    ended = shared.model_stats("m").calls - before
    assert right <= ended <= right + len(said)
    assert np.array_equal(shared.predict("m", X), Y)


@pytest.mark.parametrize("what", ["ALL", "WRITE"])
def test_client_pause_under_load(shared: Any, db: Any, what: str) -> None:
    before = shared.model_stats("m").calls

    def pause() -> None:
        db.execute_command("CLIENT", "PAUSE", 250, what)
        time.sleep(0.4)

    right, said = load(shared, 2.0, pause)
    assert said == []
    assert right > 50
    assert shared.model_stats("m").calls - before == right


@pytest.mark.slow
def test_the_server_is_killed_under_load(redis_own: Server) -> None:
    import keyside

    redis_own.load_library()
    with Executor(redis_own, **QUICK), keyside.Client(redis_own.url_unix, timeout=5) as client:
        client.store("m", models.affine())
        before = client.model_stats("m").calls

        def crash() -> None:
            time.sleep(0.7)
            redis_own.kill()
            redis_own.start()

        right, said = load(client, 3.0, crash)
        assert right > 50
        assert set(said) <= {"TIMEDOUT", "UNREACHABLE"}, said
        with redis_own.client() as db:
            wait_until(lambda: db.xlen(STREAM) == 0, "the queue is empty")
            # What was said yes to was in the log: none ran twice, and none was lost but for replies on their way.
            ended = client.model_stats("m").calls - before
            assert right <= ended <= right + len(said)
            assert not raw.private_keys(db)


# --- clients that die


def test_a_client_is_killed_with_jobs_in_flight(executor: Executor, db: redis_py.Redis) -> None:
    """Its temporaries, captures and tickets go by themselves."""
    raw.store(db, "slow", more_models.slow())
    raw.put(db, "x", np.zeros((8000, 1), np.int64))
    script = """
        import sys, threading, numpy as np, keyside
        client = keyside.Client(sys.argv[1], timeout=3)  # after which it would take its jobs back
        big = np.zeros((8000, 1), np.int64)
        for n in range(6):
            threading.Thread(target=client.predict, args=("slow", big), daemon=True).start()
            client.submit("slow", keyside.Key("x"))
            client.submit("slow", "x", "y")
        print("sent", flush=True)
        threading.Event().wait()
    """
    with raw.paused(executor):
        process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(script), executor.url], stdout=subprocess.PIPE, cwd=ROOT, text=True
        )
        assert process.stdout is not None
        assert process.stdout.readline() == "sent\n"
        wait_until(lambda: db.xlen(STREAM) == 18, "all of them are queued")
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
        assert any(b":cap:" in key for key in raw.private_keys(db))
        for key in db.scan_iter("ks:{*", count=1000):
            if key.partition(b"}:")[2].split(b":")[0] in (b"cap", b"tmp", b"t", b"seen", b"ticket"):
                assert 0 < db.pttl(key) <= 90_000, key
    wait_until(lambda: db.xlen(STREAM) == 0, "they are run, or are over")
    kinds = (b"cap", b"tmp", b"t", b"ticket")

    def left(kinds: tuple[bytes, ...]) -> list[bytes]:
        return [key for key in db.scan_iter("ks:{*", count=1000) if key.partition(b"}:")[2].split(b":")[0] in kinds]

    wait_until(lambda: not left(kinds), "nothing of it is left", 20)
    for key in left((b"out",)):  # large outputs that a reply has named
        assert 0 < db.pttl(key) <= 60_000


def test_a_ticket_expires(executor: Executor, db: redis_py.Redis) -> None:
    """A reply that nobody fetches goes 10 s after the deadline, and no one who comes later waits for it for ever."""
    raw.store(db, "m", models.affine())
    ticket = raw.call(db, *raw.predict("m", X, options=("TIMEOUT", 300)))
    wait_until(lambda: db.exists(ticket), "the reply is there")
    assert 9_000 < db.pttl(ticket) <= 10_300
    db.pexpire(ticket, 50)
    wait_until(lambda: not db.exists(ticket), "it is gone")
    assert db.blpop([ticket], timeout=0.2) is None
    assert db.fcall("AI_CANCEL", 0, ticket) == 0


# --- memory


def test_captures_that_are_evicted(redis_own: Server) -> None:
    """allkeys-lru takes what was captured: the caller is told INPUTLOST, and nothing is written."""
    import keyside

    redis_own.load_library()
    with (
        Executor(redis_own, **QUICK) as executor,
        redis_own.client() as db,
        keyside.Client(redis_own.url_unix) as client,
    ):
        client.store("m", models.affine())
        client.set("x", BIG)
        with raw.paused(executor):
            handles = [client.submit("m", Key("x"), timeout=20) for _ in range(8)]
            captures = [key for key in raw.private_keys(db) if b":cap:" in key]
            assert len(captures) == 8
            db.config_set("maxmemory-policy", "allkeys-lru")
            # Whatever else is there has been used since: the captures are the oldest.
            time.sleep(1.1)
            for key in db.scan_iter(count=1000):
                if key not in captures:
                    db.touch(key)
            db.config_set("maxmemory-samples", 64)
            db.config_set("maxmemory", int(db.info("memory")["used_memory"]) - 4 * BIG.nbytes)
            wait_until(
                lambda: (db.set("filler", b"x"), not all(db.exists(key) for key in captures))[1], "some are evicted"
            )
            db.config_set("maxmemory", 0)
            gone = sum(not db.exists(key) for key in captures)
            db.config_set("maxmemory-policy", "noeviction")
        lost = 0
        for handle in handles:
            try:
                np.testing.assert_allclose(handle.result(), BIG * 2 + 1, rtol=1e-6)
            except errors.InputLost:
                lost += 1
        assert lost == gone >= 1
        assert not raw.private_keys(db)
