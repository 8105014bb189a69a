"""What both clients do when connections break, servers vanish, and callers give up."""

import asyncio
import os
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, raw
from tests.clients import Connect, connector
from tests.clusters import until
from tests.executors import Executor
from tests.proxy import Proxy
from tests.servers import Server, free_port, wait_until

from keyside import errors
from keyside.tensorstore import library

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
BIG = np.random.default_rng(1).random((20_000, 4), np.float32)


@pytest.fixture(params=["blocking", "asyncio"])
async def connect(request: pytest.FixtureRequest) -> AsyncIterator[Connect]:
    async for made in connector(request.param):
        yield made


@pytest.fixture
def alone() -> Iterator[Server]:
    """A server without an executor."""
    with Server("redis") as server:
        server.load_library()
        yield server


@pytest.fixture
def alone_db(alone: Server) -> Iterator[redis_py.Redis]:
    """A plain client of that server."""
    with alone.client() as made:
        yield made


@pytest.fixture
def proxy(executor: Executor) -> Iterator[Proxy]:
    with Proxy(executor.server) as made:
        yield made


@pytest.fixture
async def client(connect: Connect, proxy: Proxy, db: redis_py.Redis) -> Any:
    made = connect(proxy.url, timeout=10)
    await made.store("m", models.affine())
    assert np.array_equal(await made.predict("m", X), Y)
    return made


async def runs(client: Any) -> int:
    return int((await client.model_stats("m")).calls)


def has(word: bytes) -> Callable[[bytes], bool]:
    return lambda data: word in data


submits = has(b"AI_PREDICT")


@pytest.mark.parametrize("x", [X, BIG], ids=["small", "large"])
@pytest.mark.parametrize("moment", ["before", "after"])
async def test_a_lost_submit_is_sent_again_and_runs_once(
    client: Any, proxy: Proxy, db: redis_py.Redis, moment: str, x: Any
) -> None:
    before = await runs(client)
    happened = proxy.once(moment, submits)
    assert np.array_equal(await client.predict("m", x), x * 2 + 1)
    assert happened.is_set()
    assert await runs(client) == before + 1
    assert not raw.private_keys(db)


async def test_a_lost_answer_to_a_submit_does_not_matter(
    client: Any, proxy: Proxy, executor: Executor, db: redis_py.Redis
) -> None:
    before = await runs(client)
    ended = proxy.ended
    happened = proxy.once("replies", has(b"CPU/"))
    with raw.paused(executor):
        asking = asyncio.ensure_future(client.predict("m", X))
        await asyncio.to_thread(happened.wait, 10)
        # What the server gives to a connection that is no more is lost: it sees the end of that before it hears this.
        await until(lambda: proxy.ended > ended)
        db.ping()
    assert np.array_equal(await asking, Y)
    assert await runs(client) == before + 1


async def test_a_lost_reply_is_called_that(connect: Connect, proxy: Proxy, executor: Executor) -> None:
    client = connect(proxy.url)
    await client.store("m", models.affine())
    happened = proxy.once("replies", has(b"m@1"))
    with pytest.raises(errors.TimedOut, match="connection"):
        await client.predict("m", X, timeout=2)
    assert happened.is_set()


async def test_many_lost_submits(client: Any, proxy: Proxy) -> None:
    before = await runs(client)
    happened = proxy.once("after", submits)
    x = np.random.default_rng(1).random((300, 4), np.float32)
    assert np.array_equal(await client.predict_many("m", x, batch=1, window=30), x * 2 + 1)
    assert happened.is_set()
    assert await runs(client) == before + 300


async def test_the_wait_goes_on_over_a_new_connection(client: Any, executor: Executor, proxy: Proxy) -> None:
    with raw.paused(executor):
        asking = asyncio.ensure_future(client.predict("m", X))
        handle = await client.submit("m", X)
        await asyncio.sleep(0.05)
        proxy.cut()
        await asyncio.sleep(0.05)
    assert np.array_equal(await asking, Y)
    assert np.array_equal(await handle.result(), Y)


async def test_a_server_that_stays_away(client: Any, proxy: Proxy) -> None:
    proxy.refuse()
    for call in (client.predict("m", X, timeout=0.3), client.get("x"), client.submit("m", X, timeout=0.3)):
        with pytest.raises(errors.Unreachable):
            await call
    with pytest.raises(errors.Unreachable):
        await client.predict_many("m", X, batch=1, timeout=0.3)
    proxy.serve()
    assert np.array_equal(await client.predict("m", X), Y)


async def test_a_server_that_comes_back_in_time(client: Any, proxy: Proxy) -> None:
    proxy.refuse()
    asking = asyncio.ensure_future(client.predict("m", X))
    await asyncio.sleep(0.1)
    proxy.serve()
    assert np.array_equal(await asking, Y)


async def test_reads_are_repeated_and_changes_are_not(client: Any, proxy: Proxy, db: redis_py.Redis) -> None:
    await client.set("x", X)
    for method, args, word in (
        (client.get, ("x",), b"\r\nGET\r\n"),
        (client.set, ("y", X), b"\r\nSET\r\n"),
        (client.exists, ("x",), b"EXISTS"),
        (client.model_info, ("m",), b"HGETALL"),
    ):
        happened = proxy.once("after", has(word))
        await method(*args)
        assert happened.is_set(), word
    proxy.once("after", has(b"UNLINK"))
    with pytest.raises(errors.Unreachable):
        await client.delete("x", "y")
    wait_until(lambda: not db.exists("x", "y"), "they are deleted all the same")


async def test_a_connection_that_broke_unused_is_not_noticed(client: Any, proxy: Proxy) -> None:
    await client.set("x", X)
    proxy.cut()
    await asyncio.sleep(1.1)
    assert await client.delete("x") == 1


async def test_a_reply_cut_in_the_middle(client: Any, proxy: Proxy) -> None:
    await client.set("x", BIG)
    happened = proxy.once("replies", lambda data: len(data) > 10_000)
    assert np.array_equal(await client.get("x"), BIG)
    assert happened.is_set()


async def test_a_server_that_says_nothing(connect: Connect, redis_own: Server) -> None:
    client = connect(redis_own.url_tcp, idle_timeout=1.2)
    await client.set("x", X)
    redis_own.pause()
    try:
        with pytest.raises(errors.Unreachable, match=r"nothing came for 1\.2 s|[Tt]imeout"):
            await client.copy("x", "y")
        with pytest.raises(errors.Unreachable, match=r"[Tt]imeout"):
            await client.get("x")
    finally:
        redis_own.resume()
    assert await client.exists("y")


async def test_a_job_may_take_longer_than_a_server_may_say_nothing(connect: Connect, redis_own: Server) -> None:
    redis_own.load_library()
    client = connect(redis_own.url_unix, idle_timeout=1.0, timeout=15)
    with Executor(redis_own) as executor:
        await client.store("m", models.affine())
        for _ in range(2):  # the limits are those of before
            executor.pause()
            try:
                task = asyncio.ensure_future(client.predict("m", X))
                await asyncio.sleep(2.2)  # twice as long as the server may say nothing: that is what is tested
            finally:
                executor.resume()
            assert np.array_equal(await task, Y)
        executor.pause()
        try:
            with pytest.raises(errors.TimedOut):
                await client.predict("m", X, timeout=0.3)
        finally:
            executor.resume()
        assert np.array_equal(await client.predict("m", X), Y)


async def test_a_server_that_was_restarted(connect: Connect, redis_own: Server) -> None:
    redis_own.load_library()
    client = connect(redis_own.url_unix, timeout=20)
    with Executor(redis_own):
        await client.store("m", models.affine())
        assert np.array_equal(await client.predict("m", X), Y)
        await asyncio.gather(*(client.set(f"x{n}", BIG) for n in range(8)))
        await asyncio.to_thread(redis_own.restart)
        assert np.array_equal(await client.get("x1"), BIG)
        assert np.array_equal(await client.predict("m", X), Y)
        await asyncio.to_thread(redis_own.kill)
        asking = asyncio.ensure_future(client.predict("m", X))
        await asyncio.to_thread(redis_own.start)
        assert np.array_equal(await asking, Y)


async def test_a_server_that_is_still_loading(connect: Connect, redis_own: Server) -> None:
    redis_own.load_library()
    with Executor(redis_own), redis_own.client() as plain_client:
        await connect(redis_own.url_unix).store("m", models.affine())
        plain_client.mset({f"filler{n}": b"x" * 2000 for n in range(400)})
        plain_client.bgrewriteaof()  # what is loaded slowly on request is the snapshot in front of the log
        done = {"aof_rewrite_in_progress": 0, "aof_rewrite_scheduled": 0}
        await asyncio.to_thread(
            wait_until, lambda: done.items() <= plain_client.info("persistence").items(), "the log is rewritten"
        )
        redis_own.kill()
        redis_own._config |= {"key-load-delay": "5000", "loading-process-events-interval-bytes": "1024"}
        starting = asyncio.ensure_future(asyncio.to_thread(redis_own.start))

        def loading() -> bool:
            try:
                plain_client.ping()
            except redis_py.BusyLoadingError:
                return True
            except redis_py.ConnectionError:
                return False
            raise AssertionError("it has loaded too quickly for this test")

        await asyncio.to_thread(wait_until, loading, "the server says that it is loading")
        client = connect(redis_own.url_unix, timeout=20)  # one that has never reached it before
        try:
            assert np.array_equal(await client.predict("m", X), Y)
        finally:
            await starting


async def test_a_full_server(connect: Connect) -> None:
    with Server("redis") as full:
        full.load_library()
        client = connect(full.url_unix, timeout=2)
        await client.store("m", models.affine(), wait=False)
        with full.client() as plain_client:
            plain_client.config_set("maxmemory", 1)
            for call in (client.set("x", X), client.predict("m", X), client.predict("m", BIG), client.store("n", b"x")):
                with pytest.raises(errors.OutOfMemory):
                    await call
            with pytest.raises(errors.OutOfMemory):
                await client.predict_many("m", X, batch=1)
            plain_client.config_set("maxmemory", 0)
            assert not [key for key in raw.private_keys(plain_client) if not key.startswith(b"ks:{m}:up:")]
        await client.set("x", X)


async def test_a_user_who_may_not(connect: Connect, executor: Executor, db: redis_py.Redis) -> None:
    await connect(executor.url).store("m", models.affine())
    raw.call(db, "ACL", "SETUSER", "ann", "on", ">pw", "~a:*", "~ks:*", "+@all")
    try:
        client = connect(executor.server.url_tcp, username="ann", password="pw")
        with pytest.raises(errors.NoPerm, match="may not use model 'm"):
            await client.predict("m", X)
        await client.store("a:m", models.affine())
        assert np.array_equal(await client.predict("a:m", X), Y)
        with pytest.raises(errors.NoPerm):
            await client.execute("a:m", X, "b")
        raw.call(db, "ACL", "SETUSER", "ann", "-fcall")
        with pytest.raises(errors.NoPerm):
            await client.predict("a:m", X)
    finally:
        raw.call(db, "ACL", "DELUSER", "ann")


async def test_a_queue_that_is_full(connect: Connect, alone: Server, alone_db: redis_py.Redis) -> None:
    client = connect(alone.url_unix, timeout=0.5)
    await client.store("m", models.affine(), wait=False)
    with alone_db.pipeline(transaction=False) as pipe:
        for _ in range(10_000):
            pipe.xadd("ks:{0}:jobs:CPU", {"x": "y"})
        pipe.execute()
    with pytest.raises(errors.Busy):
        await client.predict("m", X)


async def test_tls(connect: Connect, tmp_path: Path) -> None:
    key, cert = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    command += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    try:
        await asyncio.to_thread(subprocess.run, command, check=True, capture_output=True, timeout=60)
    except FileNotFoundError:
        pytest.skip("there is no openssl to make a certificate with")
    port = free_port()
    settings: dict[str, Any] = {
        "tls_port": port,
        "tls_cert_file": str(cert),
        "tls_key_file": str(key),
        "tls_ca_cert_file": str(cert),
    }
    with Server("redis", tls_auth_clients="no", **settings) as server:
        server.load_library()
        with Executor(server):
            client = connect(f"rediss://127.0.0.1:{port}", ssl_ca_certs=str(cert))
            large = np.random.default_rng(1).random(2_000_000)
            await client.set("x", large)
            assert np.array_equal(await client.get("x"), large)
            await client.store("m", models.affine())
            assert np.array_equal(await client.predict("m", X), Y)
            assert np.array_equal(await client.predict("m", BIG), BIG * 2 + 1)
            assert np.array_equal(await client.predict_many("m", X, batch=1), Y)
        with redis_py.Redis(port=port, ssl=True, ssl_ca_certs=str(cert)) as theirs:
            assert await connect(theirs).exists("x")
        with pytest.raises(errors.Unreachable, match=r"(?i)certificate"):
            await connect(f"rediss://127.0.0.1:{port}").get("x")


async def test_many_threads_and_tasks(client: Any) -> None:
    async def work(n: int) -> None:
        for step in range(5):
            x = np.full((1, 4), n * 10 + step, np.float32)
            await client.set(f"x{n}", x)
            assert np.array_equal(await client.predict("m", x), x * 2 + 1)
            await client.execute("m", f"x{n}", f"y{n}")
            assert np.array_equal(await client.get(f"y{n}"), x * 2 + 1)

    await asyncio.gather(*(work(n) for n in range(30)))


def test_a_forked_child_has_connections_of_its_own(redis: Server, db_redis: redis_py.Redis) -> None:
    script = """
        import asyncio, os, sys
        import keyside

        def child(work):
            pid = os.fork()
            if not pid:
                try:
                    work()
                except BaseException as error:
                    print(repr(error), flush=True)
                    os._exit(1)
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0

        client = keyside.Client(sys.argv[1])
        client.set("x", 1)
        ident = client._transport.identity.id

        def blocking():
            assert client.get("x") == 1
            client.set("y", 2)
            assert client._transport.identity.id != ident
            client.close()

        child(blocking)
        assert client.get("y") == 2
        assert client._transport.identity.id == ident
        client.close()

        other = keyside.AsyncClient(sys.argv[1])

        async def use(n):
            await other.set("z", n)
            assert await other.get("z") == n

        def again():
            # As in a server that forks its workers: they begin with a loop of their own.
            asyncio.set_event_loop(None)
            asyncio.events._set_running_loop(None)
            asyncio.run(use(2))

        async def main():
            await use(1)
            child(again)
            await use(3)
            await other.close()

        asyncio.run(main())
        print("well")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), redis.url_unix],
        capture_output=True, text=True, timeout=60, env={**os.environ, "PYTHONWARNINGS": ""},
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (0, "well\n"), done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_importing_the_package_brings_in_nothing_heavy() -> None:
    script = "import keyside, sys; print([m for m in ('onnxruntime', 'torch', 'click', 'rich') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"


def test_the_library_has_a_version() -> None:
    assert library.LIBRARY_VERSION >= 1
