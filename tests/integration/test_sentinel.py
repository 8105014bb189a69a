"""Client and AsyncClient of a server that sentinels watch: they find it, and find the one that takes its place."""

import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Self, get_args

import numpy as np
import pytest
import redis as redis_py
from tests import models
from tests.clients import Connect, connector
from tests.clusters import Load, until
from tests.executors import Executor
from tests.servers import Kind, Server, find_binary, free_port, wait_until

import keyside
from keyside import errors

X = np.arange(8, dtype=np.float32).reshape(2, 4)
Y = X * 2 + 1
SETTINGS = """
port {port}
bind 127.0.0.1
dir {directory}
logfile {directory}/log
sentinel monitor mymaster 127.0.0.1 {primary} 2
sentinel down-after-milliseconds mymaster 1500
sentinel failover-timeout mymaster 3000
"""


class Watched:
    """A primary, a replica, and three sentinels; a context manager."""

    def __init__(self, kind: Kind) -> None:
        self.servers = [Server(kind), Server(kind)]
        self.ports = [free_port() for _ in range(3)]
        self._kind = kind
        self._sentinels: list[subprocess.Popen[bytes]] = []
        self._directory = tempfile.TemporaryDirectory(prefix="ks-sentinel-")

    def __enter__(self) -> Self:
        try:
            for server in self.servers:
                server.start()
            primary, replica = self.servers
            primary.load_library()
            with replica.client() as db:
                db.replicaof("127.0.0.1", primary.port)
                wait_until(lambda: db.execute_command("ROLE")[3] == b"connected", "the replica has come up")
            self._watch(primary)
        except BaseException:
            self.__exit__()
            raise
        return self

    def _watch(self, primary: Server) -> None:
        for port in self.ports:
            directory = Path(self._directory.name) / str(port)
            directory.mkdir()
            conf = directory / "sentinel.conf"
            conf.write_text(SETTINGS.format(port=port, directory=directory, primary=primary.port))
            binary = find_binary(self._kind, directory)
            self._sentinels.append(subprocess.Popen([str(binary), str(conf), "--sentinel"], stdin=subprocess.DEVNULL))
        for port in self.ports:
            wait_until(partial(self._knows, port), f"the sentinel on {port} knows all others")

    def _knows(self, port: int) -> bool:
        try:
            with redis_py.Redis(port=port, protocol=2) as sentinel:
                found = sentinel.execute_command("SENTINEL", "MASTER", "mymaster")
        except redis_py.ConnectionError:
            return False
        said = dict(zip(found[::2], found[1::2], strict=True))
        return bool(said[b"num-other-sentinels"] == b"2" and said[b"num-slaves"] == b"1")

    def __exit__(self, *_: object) -> None:
        for sentinel in self._sentinels:
            sentinel.kill()
            sentinel.wait(10)
        for server in self.servers:
            server.stop()
        self._directory.cleanup()

    @property
    def url(self) -> str:
        """Address of the sentinels; nobody listens on the first."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in (1, *self.ports))
        return f"redis+sentinel://{hosts}/mymaster"

    def primary(self) -> Server:
        """The primary, as the sentinels say."""
        with redis_py.Redis(port=self.ports[0], protocol=2) as sentinel:
            port = int(sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "mymaster")[1])
        return next(server for server in self.servers if server.port == port)

    def ask_for_failover(self) -> None:
        """Have a sentinel promote the replica."""
        with redis_py.Redis(port=self.ports[0], protocol=2) as sentinel:
            sentinel.execute_command("SENTINEL", "FAILOVER", "mymaster")


@pytest.fixture(params=get_args(Kind))
def watched(request: pytest.FixtureRequest) -> Iterator[Watched]:
    with Watched(request.param) as made:
        executor = Executor(made.servers[0], lease_ms=1000, beat_ms=100).start()
        try:
            yield made
        finally:
            executor.kill()  # its server may be dead: it would wait for that with the jobs that it has
            executor.stop()


@pytest.fixture(params=["blocking", "asyncio"])
async def client(request: pytest.FixtureRequest, watched: Watched) -> AsyncIterator[Any]:
    async for connect in connector(request.param):
        made = connect(watched.url, timeout=15)
        await made.store("m", models.affine())
        yield made


async def takes_over(old: Server, watched: Watched) -> Executor:
    """Wait until another server is the primary, and start an executor beside it."""
    await until(lambda: watched.primary() is not old)
    new = watched.primary()
    with new.client() as db:
        await until(lambda: db.execute_command("ROLE")[0] == b"master")
    executor = Executor(new, lease_ms=1000, beat_ms=100)
    await until(lambda: executor.start() is executor)
    return executor


async def test_what_a_client_does(client: Any, watched: Watched, connect_to: Connect) -> None:
    big = np.ones((20_000, 4), np.float32)
    for value in (X, big):
        np.testing.assert_array_equal(await client.predict("m", value), value * 2 + 1)
        await client.set("x", value)
        # Keys in different slots, on what is no cluster.
        await client.execute("m", "x", "another")
        np.testing.assert_array_equal(await client.get("another"), value * 2 + 1)
        np.testing.assert_array_equal(await client.predict("m", keyside.Key("x")), value * 2 + 1)
    assert await client.copy("x", "y")
    assert sorted([key async for key in client.tensors()]) == ["another", "x", "y"]
    assert await client.delete("x", "y", "another") == 3
    job = await client.submit("m", X)
    assert job.job_id.startswith("CPU/")
    np.testing.assert_array_equal(await job.result(), Y)
    rows = np.ones((500, 4), np.float32)
    np.testing.assert_array_equal(await client.predict_many("m", rows, batch=50), rows * 2 + 1)
    assert [name async for name, _ in client.models()] == ["m"]
    assert (await client.model_stats("m")).calls > 0
    with pytest.raises(errors.Unreachable, match="nobody"):
        await connect_to(watched.url.replace("mymaster", "nobody")).ping()
    with pytest.raises(errors.BadArg, match="name of a service"):
        connect_to(watched.url.replace("/mymaster", ""))


@pytest.fixture
async def connect_to() -> AsyncIterator[Connect]:
    async for connect in connector("blocking"):
        yield connect


@pytest.mark.parametrize("how", ["asked for", "killed"])
async def test_a_failover_under_load(client: Any, watched: Watched, how: str) -> None:
    old = watched.primary()
    async with Load(client, "t", lossy=True) as load:
        if how == "killed":
            old.kill()
        else:
            watched.ask_for_failover()
        executor = await takes_over(old, watched)
        await load.more(50)
    try:
        np.testing.assert_array_equal(await client.predict("m", X), Y)
    finally:
        executor.stop()
    assert load.slowest < 14
