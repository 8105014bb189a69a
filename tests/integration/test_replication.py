"""Catalogs of a cluster's nodes: what is stored on one is known to all, whatever happens to them."""

import json
import time
from collections.abc import Iterator
from functools import partial
from typing import get_args

import numpy as np
import pytest
from redis.exceptions import TryAgainError
from tests import models, raw
from tests.cluster import Nodes, move
from tests.executors import Executor
from tests.servers import Cluster, Kind, Server, wait_until

from keyside.tensorstore import keys
from keyside.tensorstore.errors import NoModel, ServerError

X = np.arange(4, dtype=np.float32).reshape(1, 4)
FAST = {"lease_ms": 600, "beat_ms": 100, "catalog_check_s": 1}


@pytest.fixture(scope="module", params=get_args(Kind))
def _running(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with Cluster(request.param, primaries=3, replicas=0, **{"cluster-require-full-coverage": "no"}) as cluster:
        cluster.load_library()
        with Nodes(cluster, FAST) as nodes:
            yield nodes


@pytest.fixture
def nodes(_running: Nodes) -> Nodes:
    """Three primaries with an executor each, which know each other's (no) models."""
    _running.flush()
    return _running


def test_a_model_is_accepted_on_each_shard_within_a_second(nodes: Nodes) -> None:
    for server in nodes.servers:
        name = nodes.name_on(server)
        raw.call(nodes.db(server), *raw.modelstore(name, models.affine()))
        stored = time.monotonic()
        wait_until(partial(nodes.all_know, name), "all accept it", 5)
        assert time.monotonic() - stored < 1.0
        for one in nodes.servers:
            found = raw.run(nodes.db(one), raw.predict(name, X))
            np.testing.assert_array_equal(found.outputs["y"], 2 * X + 1)
            assert found.target == f"{name}@1"


def test_versions_and_deletions_are_known_everywhere(nodes: Nodes) -> None:
    home, *others = nodes.servers
    name = nodes.name_on(home)
    raw.store(nodes.db(home), name, models.affine())
    raw.store(nodes.db(home), name, models.affine(offset=5))
    for one in others:
        wait_until(partial(nodes.has, one, name, 2), "the second version is its default")
        np.testing.assert_array_equal(raw.run(nodes.db(one), raw.predict(name, X)).outputs["y"], 2 * X + 5)
        np.testing.assert_array_equal(raw.run(nodes.db(one), raw.predict(f"{name}@1", X)).outputs["y"], 2 * X + 1)
        assert raw.call(nodes.db(one), "FCALL", "AI_MODELSCAN", 0) == [[name.encode(), b""]]
    raw.call(nodes.db(home), "FCALL", "AI_MODELDEL", 1, name, "VERSION", 2)
    for one in others:
        wait_until(partial(nodes.has, one, name, 1), "the first version is its default again")
        with pytest.raises(NoModel):
            raw.call(nodes.db(one), *raw.predict(f"{name}@2", X))
    raw.call(nodes.db(home), "FCALL", "AI_MODELDEL", 1, name)
    for one in others:
        wait_until(partial(nodes.lacks, one, name), "it has gone")
        with pytest.raises(NoModel):
            raw.call(nodes.db(one), *raw.predict(name, X))


def test_models_are_loaded_before_they_are_asked_for(nodes: Nodes) -> None:
    home = nodes.servers[0]
    name = nodes.name_on(home)
    raw.store(nodes.db(home), name, models.affine())
    loaded = nodes.db(home).hget(name, "uid").decode() + "-1"
    for one in nodes.servers:
        wait_until(partial(nodes.loaded, one, loaded), "its executor has it")
        info = nodes.info(one)
        assert info["node"] == f"127.0.0.1:{one.port}"
        assert info["local"] is True
        misses = nodes.executors[one].output.count("loaded " + loaded)
        raw.run(nodes.db(one), raw.predict(name, X))
        assert nodes.executors[one].output.count("loaded " + loaded) == misses == 1


def test_a_version_that_its_home_cannot_load_is_loaded_elsewhere_and_made_ready(nodes: Nodes) -> None:
    home, other, _ = nodes.servers
    name = nodes.name_on(home)
    with Executor(other, devices="FAR", **FAST):
        raw.store(nodes.db(home), name, models.affine(), device="FAR")
        wait_until(lambda: nodes.version(other, name) == 1, "the other knows it")
        np.testing.assert_array_equal(raw.run(nodes.db(other), raw.predict(name, X)).outputs["y"], 2 * X + 1)
        assert nodes.db(home).xlen(keys.NodeKeys(nodes.tag(home)).jobs("FAR")) == 0


def test_a_node_that_was_flushed_knows_all_again(nodes: Nodes) -> None:
    home, flushed, third = nodes.servers
    kept, lost = nodes.name_on(home), nodes.name_on(flushed)
    raw.store(nodes.db(home), kept, models.affine())
    raw.store(nodes.db(flushed), lost, models.affine(offset=3))
    wait_until(lambda: all(nodes.knows(one, name) for one in nodes.servers for name in (kept, lost)), "all know both")
    nodes.db(flushed).flushall()
    wait_until(lambda: nodes.knows(flushed, kept), "it knows the other's model again", 5)
    for one in (home, third):
        wait_until(partial(nodes.lacks, one, lost), "what it has lost is forgotten", 10)
    np.testing.assert_array_equal(raw.run(nodes.db(flushed), raw.predict(kept, X)).outputs["y"], 2 * X + 1)
    wait_until(nodes.converged, "all are equal")
    raw.store(nodes.db(flushed), lost, models.affine(offset=4))
    wait_until(lambda: all(nodes.knows(one, lost) for one in nodes.servers), "it may be stored anew")


def test_a_node_that_restarts_with_nothing(nodes: Nodes) -> None:
    home, restarted, _ = nodes.servers
    name = nodes.name_on(home)
    raw.store(nodes.db(home), name, models.affine())
    restarted.restart()
    nodes.reconnect()
    wait_until(nodes.executors[restarted].registered, "its executor is back, with the library")
    raw.call(nodes.db(home), "FCALL", "AI_MODELDEL", 1, name)
    other = nodes.name_on(home)
    raw.store(nodes.db(home), other, models.affine(offset=2))
    wait_until(lambda: nodes.knows(restarted, other) and not nodes.knows(restarted, name), "it knows what is new", 20)
    np.testing.assert_array_equal(raw.run(nodes.db(restarted), raw.predict(other, X)).outputs["y"], 2 * X + 2)
    wait_until(nodes.converged, "all are equal")


def test_a_node_that_was_cut_off(nodes: Nodes) -> None:
    home, away, third = nodes.servers
    gone, name = nodes.name_on(home), nodes.name_on(home)
    raw.store(nodes.db(home), gone, models.affine())
    wait_until(lambda: nodes.knows(away, gone), "all know it")
    away.pause()
    try:
        raw.store(nodes.db(home), name, models.affine(offset=2))
        raw.call(nodes.db(home), "FCALL", "AI_MODELDEL", 1, gone)
        stored = time.monotonic()
        wait_until(lambda: nodes.knows(third, name), "the third node is told all the same", 5)
        assert time.monotonic() - stored < 4
    finally:
        away.resume()
    wait_until(lambda: nodes.knows(away, name) and not nodes.knows(away, gone), "it catches up", 20)
    wait_until(nodes.converged, "all are equal", 20)


def test_slots_with_models_move(nodes: Nodes) -> None:
    source, target, third = nodes.servers
    name = nodes.name_on(source)
    raw.store(nodes.db(source), name, models.affine())
    wait_until(partial(nodes.all_know, name), "all know it")
    slot = keys.slot(name)
    move(nodes.cluster, slot, source, target)
    try:
        for one in nodes.servers:
            np.testing.assert_array_equal(raw.run(nodes.db(one), raw.predict(name, X)).outputs["y"], 2 * X + 1)
        raw.store(nodes.db(target), name, models.affine(offset=7))
        for one in nodes.servers:
            wait_until(partial(nodes.has, one, name, 2), "a version stored there is known", 5)
        raw.call(nodes.db(target), "FCALL", "AI_MODELDEL", 1, name)
        for one in (source, third):
            wait_until(partial(nodes.lacks, one, name), "it has gone", 5)
        wait_until(nodes.converged, "all are equal")
    finally:
        move(nodes.cluster, slot, target, source)


def test_the_slot_of_a_tag_moves(nodes: Nodes) -> None:
    source, target, _ = nodes.servers
    old = nodes.tag(source)
    name, other = nodes.name_on(source), nodes.name_on(target)
    raw.store(nodes.db(source), name, models.affine())
    raw.store(nodes.db(target), other, models.affine(offset=2))
    wait_until(lambda: all(nodes.knows(one, n) for one in nodes.servers for n in (name, other)), "all know both")
    slot = keys.slot(b"{%b}" % old)
    move(nodes.cluster, slot, source, target)
    try:
        wait_until(lambda: nodes.tag(source) != old, "it has another tag")
        wait_until(lambda: nodes.complete(source), "its new catalog is complete", 10)
        for n, offset in ((name, 1), (other, 2)):
            assert nodes.knows(source, n)
            np.testing.assert_array_equal(raw.run(nodes.db(source), raw.predict(n, X)).outputs["y"], 2 * X + offset)
        assert nodes.knows(target, name)
        stale = keys.NodeKeys(old)
        wait_until(lambda: not nodes.db(target).exists(stale.catalog), "what lay under the old tag is cleared away", 10)
        raw.call(nodes.db(source), "FCALL", "AI_MODELDEL", 1, name)
        wait_until(lambda: not nodes.knows(target, name), "a deletion is known", 5)
        wait_until(nodes.converged, "all are equal")
    finally:
        move(nodes.cluster, slot, target, source)
        nodes.new_tags()


def test_many_models_are_fetched_in_pages(nodes: Nodes) -> None:
    home, other, _ = nodes.servers
    names = [nodes.name_on(home) for _ in range(130)]
    blob = models.affine()
    for name in names:
        raw.call(nodes.db(home), *raw.modelstore(name, blob, device="NOBODY"))
    nodes.db(other).flushall()
    wait_until(lambda: all(nodes.knows(other, name) for name in names), "it has all of them again", 20)
    wait_until(lambda: nodes.complete(other), "its catalog is complete")


def test_until_the_catalog_is_complete_a_model_is_not_said_to_be_none(nodes: Nodes) -> None:
    server = nodes.servers[0]
    name = nodes.name_on(nodes.servers[1])
    raw.store(nodes.db(nodes.servers[1]), name, models.affine())
    wait_until(lambda: nodes.knows(server, name), "it is known")
    executor = nodes.executors[server]
    with raw.paused(executor):
        nodes.db(server).flushall()
        with pytest.raises(TryAgainError):
            nodes.db(server).execute_command(*raw.predict(name, X))

    def accepted() -> bool:
        try:
            raw.call(nodes.db(server), *raw.predict(name, X))
        except ServerError:  # redis-py leaves its code away
            return False
        return True

    wait_until(accepted, "it is accepted, and NOMODEL is never said", 10)


def test_the_next_executor_goes_on_with_the_catalog(nodes: Nodes) -> None:
    server = nodes.servers[0]
    lease = keys.NodeKeys(nodes.tag(server)).replicator
    wait_until(lambda: nodes.db(server).get(lease), "the lease is held again")
    with Executor(server, **FAST):
        holder = nodes.db(server).get(lease)
        first = nodes.executors[server]
        assert json.loads(nodes.db(server).get(keys.NodeKeys(nodes.tag(server)).executor(holder)))["pid"] == first.pid
        with raw.paused(first):
            wait_until(lambda: nodes.db(server).get(lease) not in (None, holder), "another holds the lease", 10)
            name = nodes.name_on(nodes.servers[1])
            raw.store(nodes.db(nodes.servers[1]), name, models.affine())
            wait_until(lambda: nodes.knows(server, name), "it keeps the catalog", 2)


def test_models_are_loaded_ahead_on_a_standalone_server_too(server_kind: Kind) -> None:
    with Server(server_kind) as server:
        server.load_library()
        with Executor(server, **FAST) as one, Executor(server, **FAST) as other, server.client() as db:
            raw.store(db, "m", models.affine())
            raw.store(db, "nobody", models.affine(), device="CPU")
            loaded = db.hget("m", "uid").decode() + "-1"
            wait_until(lambda: all(f"loaded {loaded}" in each.output for each in (one, other)), "both have it", 5)
            with Executor(server, **FAST) as third:
                wait_until(lambda: f"loaded {loaded}" in third.output, "one that comes later has it too", 5)
            assert not db.exists("ks:{0}:replicator")
