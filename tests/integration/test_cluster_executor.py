"""Executors whose node becomes a replica or a primary, dies, or stops understanding its own functions."""

import json
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
from tests import models, more_models, raw
from tests.executors import Executor
from tests.servers import Cluster, Kind, Server, free_port, wait_until

from keyside.tensorstore import keys

FAST = {"lease_ms": 600, "beat_ms": 100, "catalog_check_s": 1}
X = np.arange(4, dtype=np.float32).reshape(1, 4)


class Standby(Executor):
    """An executor that may have nothing to register on."""

    def __init__(self, server: Server, **settings: Any) -> None:
        self.port = free_port()
        super().__init__(server, http_port=self.port, **settings)

    def registered(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.output
        return self.health("live")[0] == 200

    def health(self, what: str) -> tuple[int, str]:
        """Status and text of a health check."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/v2/health/{what}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
        except OSError as error:
            return 0, str(error)

    @property
    def ready(self) -> bool:
        """Whether it serves."""
        return self.health("ready")[0] == 200


@pytest.fixture(params=get_args(Kind))
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    # Three primaries, since a majority elects; one replica, of the first.
    with Cluster(request.param, primaries=3, replicas=1, **{"repl-ping-replica-period": 1}) as cluster:
        cluster.load_library()
        yield cluster


def name_on(cluster: Cluster, server: Server) -> str:
    return next(name for name in (f"m{n}" for n in range(1000)) if cluster.owner(name) is server)


def promote(cluster: Cluster, replica: Server) -> None:
    """Make a replica the primary, in agreement with the old one."""
    asked = 0.0

    def promoted() -> bool:
        nonlocal asked
        role, *rest = cluster.ask(replica, "ROLE")
        # The others elect nobody in place of the same node twice within a few seconds: then it is asked again.
        if role == b"slave" and rest[2] == b"connected" and time.monotonic() - asked > 6:
            asked = time.monotonic()
            cluster.ask(replica, "CLUSTER", "FAILOVER")
        return bool(role == b"master")

    wait_until(promoted, "the replica is the primary", 30)


def predict(server: Server, name: str, x: Any = X) -> Any:
    with server.client() as db:
        return raw.run(db, raw.predict(name, x)).outputs["y"]


def test_an_executor_of_a_replica_stands_by_until_that_is_promoted(cluster: Cluster) -> None:
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    name = name_on(cluster, primary)
    with Standby(primary, **FAST) as first, Standby(replica, **FAST) as second, primary.client() as db:
        raw.store(db, name, models.affine())
        loaded = f"loaded {db.hget(name, 'uid').decode()}-1"
        wait_until(lambda: loaded in second.output, "the one that stands by has loaded it", 5)
        status, text = second.health("ready")
        assert status == 503
        assert f"standby: its node is a replica of 127.0.0.1:{primary.port}" in json.loads(text)["error"]
        assert second.output.count("standby") == 1
        assert first.ready
        promote(cluster, replica)
        promoted = time.monotonic()
        wait_until(lambda: second.ready, "its executor serves", 5)
        assert time.monotonic() - promoted < 3
        np.testing.assert_array_equal(predict(replica, name), 2 * X + 1)
        wait_until(lambda: "standby: its node is a replica" in first.health("ready")[1], "the other one stands by", 5)
        assert first.health("live")[0] == 200
        assert second.output.count(loaded) == 1
        promote(cluster, primary)
        wait_until(lambda: first.ready and not second.ready, "and back again", 10)
        np.testing.assert_array_equal(predict(primary, name), 2 * X + 1)


def test_jobs_in_flight_survive_a_failover(cluster: Cluster) -> None:
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    name = name_on(cluster, primary)
    with Standby(primary, **FAST) as first, Standby(replica, **FAST) as second, primary.client() as db:
        raw.store(db, name, more_models.slow())
        running = raw.call(db, *raw.predict(name, more_models.turns_for(1.5)))
        queued = [raw.call(db, *raw.predict(name, np.full((1, 1), n, np.int64))) for n in range(5)]
        wait_until(lambda: pending(cluster, primary), "the first runs")
        assert db.wait(1, 5000) == 1, "the replica has them"
        promote(cluster, replica)
        wait_until(lambda: second.ready and not first.ready, "the roles have changed", 10)
        with replica.client() as new:
            for n, ticket in enumerate(queued):
                assert raw.answer(new, ticket, 15).outputs["y"] == n
            assert raw.answer(new, running, 15).outputs["y"] > 0
            assert not new.exists(running, *queued), "each was answered once"
        assert "Traceback" not in first.output + second.output


def pending(cluster: Cluster, server: Server) -> bool:
    with server.client() as db:
        flat = db.fcall_ro("AI_NODE", 0)
        return bool(db.xpending(keys.NodeKeys(flat[1]).jobs("CPU"), "ks")["pending"])


def test_jobs_in_flight_survive_a_primary_that_is_killed(cluster: Cluster) -> None:
    primary, replica = cluster.primaries[0], cluster.replicas[0]
    name = name_on(cluster, primary)
    with Standby(primary, **FAST) as first, Standby(replica, **FAST) as second:
        with primary.client() as db:
            raw.store(db, name, more_models.slow())
            running = raw.call(db, *raw.predict(name, more_models.turns_for(2.0)))
            queued = [raw.call(db, *raw.predict(name, np.full((1, 1), n, np.int64))) for n in range(5)]
            wait_until(lambda: pending(cluster, primary), "the first runs")
            assert db.wait(1, 5000) == 1, "the replica has them"
        primary.kill()
        wait_until(lambda: second.ready, "the replica's executor serves", 30)
        with replica.client() as new:
            for n, ticket in enumerate(queued):
                assert raw.answer(new, ticket, 15).outputs["y"] == n
            assert raw.answer(new, running, 15).outputs["y"] > 0
        primary.start()
        wait_until(lambda: "standby: its node is a replica" in first.health("ready")[1], "the old one stands by", 20)


def test_an_executor_of_a_node_without_slots_stands_by_until_it_has_some(cluster: Cluster) -> None:
    kind = cluster.nodes[0].kind
    with Server(kind, cluster_enabled="yes", cluster_node_timeout=2000) as fresh:
        first = cluster.primaries[0]
        cluster.ask(first, "CLUSTER", "MEET", "127.0.0.1", fresh.port, fresh.bus_port)
        wait_until(lambda: b"cluster_state:ok" in fresh_info(fresh), "it has joined")
        with Standby(fresh, **FAST) as executor:
            wait_until(lambda: "its node owns no slots" in executor.health("ready")[1], "it stands by", 10)
            owner = cluster.primaries[1]
            name = name_on(cluster, owner)
            with Executor(owner, **FAST), owner.client() as db:
                raw.store(db, name, models.affine())
                node = cluster.ask(fresh, "CLUSTER", "MYID")
                for server in (fresh, *cluster.primaries):
                    cluster.ask(server, "CLUSTER", "SETSLOT", 0, "NODE", node)
                wait_until(lambda: executor.ready, "it serves", 10)
                wait_until(lambda: knows(fresh, name), "it knows the models", 10)
                np.testing.assert_array_equal(predict(fresh, name), 2 * X + 1)


def fresh_info(server: Server) -> bytes:
    with server.client() as db:
        db.response_callbacks.clear()
        return bytes(db.execute_command("CLUSTER", "INFO"))


def knows(server: Server, name: str) -> bool:
    with server.client() as db:
        tag = db.fcall_ro("AI_NODE", 0)[1]
        return bool(db.hexists(keys.NodeKeys(tag).catalog, name))


def test_a_node_whose_scripts_are_broken_is_told_to_be_restarted() -> None:
    with Cluster("valkey", primaries=1, replicas=0) as cluster:
        cluster.load_library()
        server = cluster.primaries[0]
        with Standby(server, **FAST) as executor, server.client() as db:
            wait_until(lambda: executor.ready, "it serves")
            code = "function() return redis.pcall('MGET', 'a', 'b') end"
            register = "redis.register_function{function_name='bad', flags={'allow-cross-slot-keys'}, callback=%s}"
            db.function_load("#!lua name=bad\n" + register % code)
            with pytest.raises(Exception, match="non local"):
                db.fcall("bad", 0)
            wait_until(lambda: "restart the server" in executor.health("ready")[1], "it is seen", 10)
            assert executor.output.count("the server must be restarted") == 1
            assert executor.health("live")[0] == 200
            server.restart()
            wait_until(lambda: executor.ready, "it serves again", 20)


# --- several executors, and executors elsewhere


def test_executors_of_one_shard_share_its_jobs(cluster: Cluster) -> None:
    server = cluster.primaries[0]
    name = name_on(cluster, server)
    started = [Executor(server, **{**FAST, "lease_ms": 5000}) for _ in range(3)]
    try:
        for executor in started:
            executor.start()
        with server.client() as db:
            raw.store(db, name, more_models.slow(), "BATCHSIZE", 1)
            loaded = f"loaded {db.hget(name, 'uid').decode()}-1"
            wait_until(lambda: all(loaded in executor.output for executor in started), "all have loaded it", 10)
            names = keys.NodeKeys(db.fcall_ro("AI_NODE", 0)[1])
            turns = more_models.turns_for(0.02)
            taken: dict[bytes, set[bytes]] = {}
            tickets = [raw.call(db, *raw.predict(name, turns)) for _ in range(240)]
            while db.xlen(names.jobs("CPU")):
                for one in db.xpending_range(names.jobs("CPU"), "ks", "-", "+", 1000):
                    taken.setdefault(one["consumer"], set()).add(one["message_id"])
            for ticket in tickets:
                raw.answer(db, ticket)
        counts = [len(ids) for ids in taken.values()]
        assert len(counts) == 3
        mean = sum(counts) / 3
        assert all(0.5 * mean <= count <= 2 * mean for count in counts), counts
    finally:
        for executor in started:
            executor.stop()


def test_an_executor_on_another_host_reaches_all_by_tcp(cluster: Cluster, tmp_path: Path) -> None:
    server, home = cluster.primaries[:2]
    name = name_on(cluster, home)
    for one in cluster.primaries:
        cluster.ask(one, "ACL", "SETUSER", "worker", "on", ">secret", "~*", "&*", "+@all")
        cluster.ask(one, "ACL", "SETUSER", "default", "resetpass", ">other")
    for one in cluster.nodes:
        one.client = with_password(one)  # type: ignore[method-assign]
    far = Executor(server, **FAST, cache_dir=tmp_path)
    far.url = f"redis://worker:secret@127.0.0.1:{server.port}"
    beside = Executor(home, **FAST)
    beside.url = f"unix://worker:secret@{home.socket}"
    with far, beside, home.client() as db:
        raw.store(db, name, models.affine())
        wait_until(lambda: knows(server, name), "it is known", 5)
        np.testing.assert_array_equal(predict(server, name), 2 * X + 1)
        assert len(list(tmp_path.glob("*.blob"))) == 1


def with_password(server: Server) -> Any:
    plain = server.client
    return lambda **options: plain(password="other", **options)
