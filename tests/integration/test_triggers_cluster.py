"""Triggers on a cluster: served where the keys or the channel that they follow are, wherever their own key is."""

import json
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from tests import models, raw
from tests.clusters import Grid, move
from tests.servers import Kind, Server, wait_until
from tests.triggers import results_of, set_trigger, tensor

from keyside.tensorstore import keys

Clients = dict[Server, Any]


@pytest.fixture(scope="module", params=["redis", "valkey"])
def grid(request: pytest.FixtureRequest, lasting: set[int]) -> Iterator[Grid]:
    """Three primaries with an executor each, and a model that all of them know."""
    kind: Kind = request.param
    with Grid(kind, catalog_check_s=1) as found:
        pids = {executor.pid for executor in found.executors}
        lasting.update(pids)
        home = found.owner("echo")
        with home.client() as db:
            raw.store(db, "echo", models.echo_int64())
        for node in found.cluster.primaries:
            wait_until(partial(knows, found, node, "catalog", "echo"), "all nodes know the model")
        yield found
        lasting.difference_update(pids)


@pytest.fixture
def nodes(grid: Grid) -> Iterator[Clients]:
    """A client of each node."""
    found = {node: node.client() for node in grid.cluster.primaries}
    yield found
    for db in found.values():
        db.close()


def tag_of(grid: Grid, node: Server) -> bytes:
    flat = grid.cluster.ask(node, "FCALL_RO", "AI_NODE", 0)
    tag: bytes = flat[1]
    return tag


def knows(grid: Grid, node: Server, what: str, name: str) -> bool:
    return bool(grid.cluster.ask(node, "HEXISTS", b"ks:{%b}:%b" % (tag_of(grid, node), what.encode()), name))


def everywhere(grid: Grid, name: str) -> None:
    for node in grid.cluster.primaries:
        wait_until(partial(knows, grid, node, "triggers", name), f"{node} knows trigger {name}")


def away_from(grid: Grid, node: Server, stem: str) -> str:
    """A name whose slot another node owns."""
    return next(name for name in (f"{stem}{n}" for n in range(1000)) if grid.owner(name) is not node)


def literal(name: str) -> str:
    """A name as a template has it."""
    return name.replace("{", "{{").replace("}", "}}")


def values(db: Any, stream: str) -> list[int]:
    return sorted(one["outputs"]["y"]["values"][0] for one in results_of(db, stream))


def test_the_owner_of_a_stream_serves_it(grid: Grid, nodes: Clients) -> None:
    for node, db in nodes.items():
        tag = grid.key_at(node, "st")
        trigger = away_from(grid, node, f"ts{node.port}-")
        stream, out = f"in{{{tag}}}", f"out{{{tag}}}"
        set_trigger(
            nodes[grid.owner(trigger)], trigger, ("STREAM", stream), ("echo", "INPUTS", 1, "VALUE", "{x}"),
            ("RESULTS", literal(out)),
        )  # fmt: skip
        wait_until(partial(lambda db, stream: db.exists(stream), db, stream), "its node has made the group")
        for number in range(50):
            db.xadd(stream, {"x": tensor(number)})
        wait_until(partial(lambda db, out: db.xlen(out) == 50, db, out), "all have results")
        assert values(db, out) == list(range(50))
        nodes[grid.owner(trigger)].fcall("AI_TRIGGERDEL", 1, trigger)


@pytest.mark.parametrize("sharded", [False, True])
def test_the_owner_of_a_channel_serves_it(grid: Grid, nodes: Clients, sharded: bool) -> None:
    for node, db in nodes.items():
        tag = grid.key_at(node, "ch")
        trigger = away_from(grid, node, f"tc{node.port}-{sharded}-")
        channel, key, out = f"c{{{tag}}}{sharded}", f"x{{{tag}}}", f"out{{{tag}}}{sharded}"
        set_trigger(
            nodes[grid.owner(trigger)], trigger, ("PUBLISH", channel, *(("SHARDED",) if sharded else ())),
            ("echo", "INPUTS", 1, "KEY", "{x}", "OUTPUTS", 1, "{x}:y"), ("RESULTS", literal(out)),
        )  # fmt: skip
        count = "SHARDNUMSUB" if sharded else "NUMSUB"
        wait_until(
            partial(
                lambda db, channel, count: db.execute_command("PUBSUB", count, channel)[1] == 1, db, channel, count
            ),
            "its node listens",
        )
        others = [other for one, other in nodes.items() if one is not node]
        assert all(other.execute_command("PUBSUB", count, channel)[1] == 0 for other in others)
        db.set(key, tensor(7))
        (db if sharded else others[0]).execute_command(
            "SPUBLISH" if sharded else "PUBLISH", channel, json.dumps({"x": key})
        )
        wait_until(partial(lambda db, out: db.xlen(out), db, out), "there is a result")
        assert results_of(db, out)[0]["outputs"] == {"y": {"key": f"{key}:y"}}
        assert raw.get(db, f"{key}:y").tolist() == [[7]]
        nodes[grid.owner(trigger)].fcall("AI_TRIGGERDEL", 1, trigger)


def test_each_node_sees_to_its_own_writes(grid: Grid, nodes: Clients) -> None:
    home = grid.owner("ton")
    set_trigger(
        nodes[home], "ton", ("SET", "f:{n}", "NOTIFY"), ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "b:{n}"),
        ("RESULTS", "log:{n}"),
    )  # fmt: skip
    everywhere(grid, "ton")
    for db in nodes.values():
        wait_until(partial(lambda db: db.pubsub_numpat(), db), "it listens")
    for node, db in nodes.items():
        tag = grid.key_at(node, "w")
        db.fcall("AI_TENSORSET", 1, f"f:{{{tag}}}", "INT64", 1, 1, "VALUES", 3)
        wait_until(partial(lambda db, tag: db.xlen(f"log:{{{tag}}}") == 1, db, tag), "there is a result")
        assert raw.get(db, f"b:{{{tag}}}").tolist() == [[3]]
        db.set(f"f:{{{tag}}}", tensor(4))
        wait_until(partial(lambda db, tag: db.xlen(f"log:{{{tag}}}") == 2, db, tag), "there is another")
        assert raw.get(db, f"b:{{{tag}}}").tolist() == [[4]]
    nodes[home].fcall("AI_TRIGGERDEL", 1, "ton")


def test_members_of_a_schedule(grid: Grid, nodes: Clients) -> None:
    node, db = next(iter(nodes.items()))
    tag = grid.key_at(node, "m")
    for number in range(3):
        db.set(f"k{number}{{{tag}}}", tensor(number))
        db.sadd(f"all{{{tag}}}", f"k{number}{{{tag}}}")
    trigger = away_from(grid, node, "tm")
    set_trigger(
        nodes[grid.owner(trigger)], trigger, ("SCHEDULE", 200, "MEMBERS", f"all{{{tag}}}"),
        ("echo", "INPUTS", 1, "KEY", "{member}"), ("RESULTS", literal(f"log{{{tag}}}")),
    )  # fmt: skip
    wait_until(lambda: db.xlen(f"log{{{tag}}}") >= 6, "there are two rounds")
    assert values(db, f"log{{{tag}}}")[:2] == [0, 0]
    nodes[grid.owner(trigger)].fcall("AI_TRIGGERDEL", 1, trigger)


def test_a_stream_that_moves_is_served_by_its_new_owner(grid: Grid, nodes: Clients) -> None:
    source, target = grid.cluster.primaries[:2]
    tag = next(name for name in (f"v{n}" for n in range(1000)) if grid.owner(name) is source and keys.slot(name) > 100)
    stream, out = f"in{{{tag}}}", f"out{{{tag}}}"
    home = grid.owner("tv")
    set_trigger(nodes[home], "tv", ("STREAM", stream), ("echo", "INPUTS", 1, "VALUE", "{x}"), ("RESULTS", literal(out)))
    wait_until(lambda: nodes[source].exists(stream), "its node has made the group")
    for number in range(100):
        nodes[source].xadd(stream, {"x": tensor(number)})
    for _ in move(grid.cluster, keys.slot(stream), source, target):
        pass
    for number in range(100, 200):
        nodes[target].xadd(stream, {"x": tensor(number)})
    wait_until(lambda: nodes[target].xlen(out) >= 200, "all have results", 60)
    assert values(nodes[target], out) == list(range(200))
    wait_until(lambda: not nodes[target].xpending(stream, "kstv")["pending"], "all are acknowledged")
    for _ in move(grid.cluster, keys.slot(stream), target, source):
        pass
    nodes[home].fcall("AI_TRIGGERDEL", 1, "tv")
