"""Jobs whose keys, queues or tickets move to another node while they wait or run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, get_args

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.cluster import Nodes, begin_move, bring, end_move, move
from tests.executors import Executor
from tests.servers import Cluster, Kind, Server, wait_until

from keyside.tensorstore import keys
from keyside.tensorstore.errors import TimedOut

FAST = {"lease_ms": 600, "beat_ms": 100, "catalog_check_s": 1}
X = np.arange(4, dtype=np.float32).reshape(1, 4)
LARGE = np.arange(80_000, dtype=np.float32).reshape(20_000, 4)  # too large to ride along, in and out


@pytest.fixture(scope="module", params=get_args(Kind))
def _running(request: pytest.FixtureRequest) -> Iterator[Nodes]:
    with Cluster(request.param, primaries=3, replicas=0, **{"cluster-require-full-coverage": "no"}) as cluster:
        cluster.load_library()
        with Nodes(cluster, FAST) as nodes:
            yield nodes


@pytest.fixture
def nodes(_running: Nodes) -> Nodes:
    """Three primaries with an executor each."""
    _running.flush()
    return _running


@pytest.fixture
def model(nodes: Nodes) -> str:
    """A model that all nodes have loaded; its home is the third of them."""
    return stored(nodes, models.affine())


@pytest.fixture
def slow(nodes: Nodes) -> str:
    """A model whose runs take as long as its input says."""
    return stored(nodes, more_models.slow())


def stored(nodes: Nodes, blob: bytes) -> str:
    home = nodes.servers[2]
    name = nodes.name_on(home)
    raw.store(nodes.db(home), name, blob)
    loaded = nodes.db(home).hget(name, "uid").decode() + "-1"
    for one in nodes.servers:
        wait_until(partial(nodes.loaded, one, loaded), "its executor has it")
    return name


def tagged(nodes: Nodes, server: Server) -> str:
    """A hash tag whose slot a node owns."""
    return "{" + nodes.name_on(server) + "}"


@contextmanager
def moved(nodes: Nodes, slot: int, source: Server, target: Server) -> Iterator[None]:
    """The slot of some keys is moved for the length of a `with`."""
    move(nodes.cluster, slot, source, target)
    try:
        yield
    finally:
        move(nodes.cluster, slot, target, source)


def ticket_of(nodes: Nodes, ticket: bytes) -> Any:
    """The reply on a ticket, wherever that is now."""
    return raw.answer(nodes.db(nodes.cluster.owner(ticket)), ticket)


@pytest.mark.parametrize("x", [X, LARGE], ids=["inline", "captured"])
def test_a_job_follows_its_keys(nodes: Nodes, model: str, x: Any) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, source)
    db = nodes.db(source)
    raw.put(db, f"{tag}x", x)
    with raw.paused(nodes.executors[source]):
        chosen = raw.call(db, *raw.execute(model, [f"{tag}x"], [f"{tag}y"]))
        given = f"ks:{tag}:t:c:1".encode()
        raw.call(db, *raw.execute(model, [f"{tag}x"], [f"{tag}z"], "TICKET", given))
        raw.put(db, f"{tag}x", x * 0)  # what was captured counts
        move(nodes.cluster, keys.slot(tag), source, target)
    try:
        ticket_of(nodes, chosen)
        ticket_of(nodes, given)
        for output in ("y", "z"):
            np.testing.assert_array_equal(raw.get(nodes.db(target), f"{tag}{output}"), 2 * x + 1)
        left_nothing(nodes)
        assert calls(nodes, source, model) == 0, "what was computed here could not be written"
        assert calls(nodes, target, model) == 2
    finally:
        move(nodes.cluster, keys.slot(tag), target, source)


@pytest.mark.parametrize("rows", [1, 20_000], ids=["small", "large"])
def test_an_output_that_moves_while_its_job_runs(nodes: Nodes, slow: str, rows: int) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, source)
    x = np.full((rows, 1), more_models.turns_for(0.5).item(), np.int64)
    raw.put(nodes.db(source), f"{tag}x", x)
    forwarded = nodes.executors[source].output.count("job forwarded")
    ticket = raw.call(nodes.db(source), *raw.execute(slow, [f"{tag}x"], [f"{tag}y"]))
    wait_until(lambda: pending(nodes, source), "it runs")
    with moved(nodes, keys.slot(tag), source, target):
        ticket_of(nodes, ticket)
        np.testing.assert_array_equal(raw.get(nodes.db(target), f"{tag}y"), x)
        left_nothing(nodes)
        wait_until(lambda: nodes.executors[source].output.count("job forwarded") > forwarded, "its log says so")


def test_a_job_waits_while_its_keys_are_on_the_way(nodes: Nodes, model: str) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, source)
    db = nodes.db(source)
    raw.put(db, f"{tag}x", LARGE)
    with raw.paused(nodes.executors[source]):
        ticket = raw.call(db, *raw.execute(model, [f"{tag}x"], [f"{tag}y"]))
        begin_move(nodes.cluster, keys.slot(tag), source, target)
        bring(nodes.cluster, keys.slot(tag), source, target)
    try:
        wait_until(lambda: pending(nodes, source), "it is claimed")
        assert raw.call(db, "LLEN", ticket) == 0
    finally:
        end_move(nodes.cluster, keys.slot(tag), source, target)
    try:
        ticket_of(nodes, ticket)
        np.testing.assert_array_equal(raw.get(nodes.db(target), f"{tag}y"), 2 * LARGE + 1)
        left_nothing(nodes)
    finally:
        move(nodes.cluster, keys.slot(tag), target, source)


def test_a_job_whose_keys_came_back_runs_where_it_was(nodes: Nodes, model: str) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, source)
    db = nodes.db(source)
    raw.put(db, f"{tag}x", X)
    with raw.paused(nodes.executors[source]):
        ticket = raw.call(db, *raw.execute(model, [f"{tag}x"], [f"{tag}y"]))
        begin_move(nodes.cluster, keys.slot(tag), source, target)
    wait_until(lambda: pending(nodes, source), "it is claimed")
    for server in (source, target):
        nodes.cluster.ask(server, "CLUSTER", "SETSLOT", keys.slot(tag), "STABLE")
    ticket_of(nodes, ticket)
    np.testing.assert_array_equal(raw.get(db, f"{tag}y"), 2 * X + 1)
    left_nothing(nodes)


def test_a_job_whose_keys_never_arrive_times_out(nodes: Nodes, model: str) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, source)
    db = nodes.db(source)
    raw.put(db, f"{tag}x", LARGE)
    with raw.paused(nodes.executors[source]):
        ticket = raw.call(db, *raw.execute(model, [f"{tag}x"], [f"{tag}y"], "TIMEOUT", 700))
        begin_move(nodes.cluster, keys.slot(tag), source, target)
        bring(nodes.cluster, keys.slot(tag), source, target)
    try:
        with pytest.raises(TimedOut):
            raw.answer(db, ticket)
    finally:
        end_move(nodes.cluster, keys.slot(tag), source, target)
        move(nodes.cluster, keys.slot(tag), target, source)


def test_a_reply_is_brought_to_a_ticket_that_has_moved(nodes: Nodes, slow: str) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, source)
    alone = f"ks:{tag}:t:c:1".encode()
    shared = f"ks:{tag}:mb:c".encode()
    x = more_models.turns_for(0.4)
    db = nodes.db(source)
    raw.call(db, *raw.predict(slow, x, options=("TICKET", alone)))
    for n in range(3):
        raw.call(db, *raw.predict(slow, x, options=("TICKET", shared, f"c{n}")))
    wait_until(lambda: pending(nodes, source), "they run")
    with moved(nodes, keys.slot(tag), source, target):
        there = nodes.db(target)
        np.testing.assert_array_equal(raw.answer(there, alone).outputs["y"], x)
        found = sorted(there.blpop([shared], timeout=10)[1].partition(b" ")[0] for _ in range(3))
        assert found == [b"c0", b"c1", b"c2"]
        assert not there.exists(alone, shared)
        left_nothing(nodes)


# --- queues


def test_a_queue_that_moves_is_drained_by_its_new_owner(nodes: Nodes, model: str, slow: str) -> None:
    source, target, _ = nodes.servers
    tag = nodes.tag(source)
    db = nodes.db(source)
    with raw.paused(nodes.executors[source]):
        tickets = [raw.call(db, *raw.predict(model, X * n)) for n in range(40)]
        given = b"ks:{%b}:t:c:9" % tag
        raw.call(db, *raw.predict(model, X, options=("TICKET", given)))
        late = raw.call(db, *raw.predict(slow, more_models.turns_for(3), options=("TIMEOUT", 1500)))
        move(nodes.cluster, keys.slot(b"{%b}" % tag), source, target)
    try:
        there = nodes.db(target)
        for n, ticket in enumerate(tickets):
            np.testing.assert_array_equal(raw.answer(there, ticket).outputs["y"], 2 * X * n + 1)
        raw.answer(there, given)
        with pytest.raises(TimedOut):
            raw.answer(there, late)
        stream = keys.NodeKeys(tag).jobs("CPU")
        wait_until(lambda: not there.exists(stream), "the queue is empty and gone", 10)
        wait_until(lambda: nodes.tag(source) != tag, "the source has a queue of its own again")
        np.testing.assert_array_equal(raw.run(db, raw.predict(model, X)).outputs["y"], 2 * X + 1)
    finally:
        move(nodes.cluster, keys.slot(b"{%b}" % tag), target, source)
        nodes.new_tags()


def test_what_ran_when_its_queue_moved_is_taken_over(nodes: Nodes, slow: str) -> None:
    source, target, _ = nodes.servers
    tag = nodes.tag(source)
    x = more_models.turns_for(0.4)
    ticket = raw.call(nodes.db(source), *raw.predict(slow, x))
    wait_until(lambda: pending(nodes, source), "it runs")
    with moved(nodes, keys.slot(b"{%b}" % tag), source, target):
        np.testing.assert_array_equal(raw.answer(nodes.db(target), ticket).outputs["y"], x)
    nodes.new_tags()


def test_a_queue_that_had_moved_before_the_executor_came(nodes: Nodes, model: str) -> None:
    source, target, _ = nodes.servers
    tag = nodes.tag(source)
    db = nodes.db(source)
    nodes.executors[target].stop()
    with raw.paused(nodes.executors[source]):
        ticket = raw.call(db, *raw.predict(model, X))
        move(nodes.cluster, keys.slot(b"{%b}" % tag), source, target)
    try:
        nodes.executors[target] = Executor(target, **FAST).start()
        np.testing.assert_array_equal(raw.answer(nodes.db(target), ticket).outputs["y"], 2 * X + 1)
    finally:
        move(nodes.cluster, keys.slot(b"{%b}" % tag), target, source)
        nodes.new_tags()


def test_a_load_follows_its_model(nodes: Nodes) -> None:
    source, target, _ = nodes.servers
    name = nodes.name_on(source)
    with raw.paused(nodes.executors[source]):
        raw.call(nodes.db(source), *raw.modelstore(name, models.affine(offset=3)))
        move(nodes.cluster, keys.slot(name), source, target)
    try:
        wait_until(lambda: raw.state(nodes.db(target), name) == "ready", "it is ready", 10)
        for one in nodes.servers:
            wait_until(partial(nodes.has, one, name, 1), "all know", 5)
        left_nothing(nodes)
    finally:
        move(nodes.cluster, keys.slot(name), target, source)


# --- what there is afterwards


def pending(nodes: Nodes, server: Server) -> int:
    found: int = nodes.db(server).xpending(keys.NodeKeys(nodes.tag(server)).jobs("CPU"), "ks")["pending"]
    return found


def calls(nodes: Nodes, server: Server, name: str) -> int:
    """Jobs of the first version that a node has ended."""
    uid = nodes.record(server, name)["uid"]
    return int(nodes.db(server).hget(keys.NodeKeys(nodes.tag(server)).stats(f"{uid}-1"), "calls") or 0)


def left_nothing(nodes: Nodes) -> None:
    """All queues are empty; captures and outputs on their way are gone."""
    for server in nodes.servers:
        db = nodes.db(server)
        names = keys.NodeKeys(nodes.tag(server))
        wait_until(partial(nodes.idle, server), "the queue is empty, and no private key is left", 5)
        assert int(db.get(names.bytes("CPU")) or 0) == 0
        for key in db.scan_iter(match="ks:{*}:fwd:*"):
            assert 0 < db.pttl(key) <= 3_600_000


def test_a_forwarded_job_is_taken_once(nodes: Nodes, model: str) -> None:
    source, target, _ = nodes.servers
    tag = tagged(nodes, target)
    db = nodes.db(target)
    raw.put(db, f"{tag}x", X)
    with raw.paused(nodes.executors[target]):
        ticket = raw.call(db, *raw.execute(model, [f"{tag}x"], [f"{tag}y"]))
        stream = keys.NodeKeys(nodes.tag(target)).jobs("CPU")
        (entry,) = db.execute_command("XRANGE", stream, "-", "+")
        fields = [part for pair in entry[1].items() for part in pair]
        origin = f"{nodes.tag(source).decode()}/CPU/1-0"
        args = ("CPU", origin, 2**45, "", *fields)
        assert db.fcall("KS_FORWARD", 1, f"{tag}y", *args)
        assert db.fcall("KS_FORWARD", 1, f"{tag}y", *args) == b""
        assert db.xlen(stream) == 2
    raw.answer(db, ticket)
    with pytest.raises(redis_py.ResponseError, match="executors only"):
        db.fcall("KS_FORWARD", 1, f"{tag}y", "CPU", "no origin", 2**45, "", *fields)
    with pytest.raises(redis_py.ResponseError, match="none of ours"):
        db.fcall("KS_FORWARD", 1, f"{tag}y", "CPU", origin, 2**45, "", "h", "junk")
    assert db.fcall("KS_DROP", 0, "CPU", "nobody", "1-0", "2-0") == 0
    wait_until(lambda: db.xlen(stream) == 0, "both have run")
