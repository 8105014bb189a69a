"""What is wrong with a cluster as a whole, or with one of its nodes: for `keyside status` and `keyside doctor`."""

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from keyside.clients.cli.checks import FAIL, OK, OLD_MS, WARN, Finding, lua_broken
from keyside.clients.cli.common import count, human_age
from keyside.clients.cli.facts import Facts
from keyside.clients.cli.nodes import Node
from keyside.clients.cli.view import View
from keyside.tensorstore import keys, library

__all__ = ["judge", "judge_cluster", "judge_durability", "merged"]

MOVED_MS = 5_000  # the new owner of a queue finds it within that
SHOWN = 5


def judge(view: View) -> list[Finding]:
    """Say what is wrong, for `status`: nothing is said of what is well."""
    found = [finding for node, facts in view.facts.items() for finding in _node(node, facts)]
    if view.clustered:
        found += judge_cluster(view)
    return sorted((one for one in found if one.status != OK), key=lambda one: one.status != FAIL)


def judge_cluster(view: View) -> list[Finding]:
    """Say what only all nodes together show."""
    checks = (_slots, _unreachable, _versions, _moving, _moved, _catalogs, _standby)
    return [finding for check in checks for finding in check(view)]


# --- one node


def _node(node: Node, facts: Facts) -> Iterator[Finding]:
    at = node.address if node.id else ""
    if facts.lua:
        yield lua_broken(facts, at)
        return
    if "library" in facts.problems:
        yield Finding(
            "library", FAIL, f"functions cannot be called: {facts.problems['library']}",
            "the user must be allowed FCALL and FCALL_RO", at,
        )  # fmt: skip
    elif facts.library is None:
        yield Finding("library", FAIL, "the function library is not loaded", "keyside install", at)
    elif facts.library[0] < library.LIBRARY_VERSION:
        text = f"version {facts.library[0]} of the function library, ours is {library.LIBRARY_VERSION}"
        yield Finding("library", WARN, text, "keyside install", at)
    if facts.replica:
        if facts.info.get("master_link_status") != "up":
            text = f"it has no connection to its primary {facts.primary}: what it holds gets old"
            yield Finding("replication", WARN, text, "see its log; while the primary is up it connects by itself", at)
        return
    if facts.clustered and not facts.slots:
        return
    yield from _work(facts, at)


def _work(facts: Facts, at: str) -> Iterator[Finding]:
    if not facts.executors and "executors" not in facts.problems:
        fix = "start one: keyside executor, on the server's host, with its address as --url" + (
            ", or keyside up" * (not at)
        )
        yield Finding("executors", FAIL, "no executor is alive: jobs wait, and none is run", fix, at)
    for queue in facts.queues:
        name = f"queue {queue['device']}"
        if "error" in queue:
            yield Finding(name, FAIL, str(queue["error"]), "something else has written to this key of Keyside's", at)
        elif queue["depth"] and not queue["executors"]:
            text = f"{count(queue['depth'], 'job')} and no executor for {queue['device']}"
            if facts.executors:  # else it has been said
                yield Finding(name, FAIL, text, f"start one: keyside executor --devices {queue['device']}", at)
        elif (queue["oldest_ms"] or 0) > OLD_MS:
            text = f"the oldest of {count(queue['depth'], 'job')} is {human_age(queue['oldest_ms'])} old"
            yield Finding(name, WARN, text, "work comes in faster than it is done: add executors, or batch more", at)
    if facts.dead:
        text = f"{count(facts.dead, 'job')} given up, the last because: {facts.last_dead}"
        yield Finding("dead letters", WARN, text, "keyside dead ls shows them, with what to do about each", at)


# --- all nodes


def _slots(view: View) -> Iterator[Finding]:
    served = {slot for node in view.nodes if node.state != "failed" for first, last in node.slots
              for slot in range(first, last + 1)}  # fmt: skip
    owned = {slot for node in view.nodes for first, last in node.slots for slot in range(first, last + 1)}
    nobody, down = set(range(keys.SLOTS)) - owned, owned - served
    if nobody:
        text = f"{count(len(nobody), 'slot')} belong to no node ({ranges(nobody)}): calls on keys in them fail"
        yield Finding("slots", FAIL, text, "redis-cli --cluster fix HOST:PORT gives them to nodes")
    if down:
        text = f"{count(len(down), 'slot')} belong to nodes that are down ({ranges(down)}): calls on keys in them fail"
        yield Finding("slots", FAIL, text, "start the node again; a replica takes over by itself if there is one")
    if view.state != "ok" and not nobody and not down:
        text = "the node that was asked does not serve: it sees too few of the other primaries"
        yield Finding("cluster", FAIL, text, "check the network between the nodes, the bus ports (+10000) included")
    if not nobody and not down and view.state == "ok":
        yield Finding("slots", OK, f"all {keys.SLOTS} are served")


def _unreachable(view: View) -> Iterator[Finding]:
    for node, why in view.errors.items():
        reason = why.partition(" ")[2] or why
        if node.state == "ok" and (node.linked or node.me):
            text = f"does not answer here, though the cluster takes it for well: {reason}"
            fix = (
                "it may hang: see its log and its load; or clients do not reach the address that it announces "
                "(cluster-announce-ip), or it wants another password"
            )
            yield Finding("node", FAIL if node.primary else WARN, text, fix, node.address)
            continue
        what = (
            f"a replica of {view.named(node.of)}" if not node.primary else "a primary with slots" if node.slots else ""
        )
        text = (
            f"{what or 'a node without slots'} {'is down' if node.state == 'failed' else 'does not answer'}: {reason}"
        )
        fix = (
            "start it again"
            if node.slots
            else "start it again: it joins as a replica, or CLUSTER FORGET it on all nodes"
        )
        if not node.primary:
            fix = "start it again; until then its primary has no stand-in"
        yield Finding("node", FAIL if node.slots else WARN, text, fix, node.address)
    for node in view.facts:
        if node.state in ("failed", "suspected"):
            text = f"answers from here, but the cluster takes it for {node.state}"
            yield Finding(
                "node", FAIL, text, "check the network between the nodes, the bus ports included", node.address
            )


def _versions(view: View) -> Iterator[Finding]:
    for what, versions in (
        ("library", {node.address: facts.library for node, facts in view.facts.items() if facts.library}),
        ("server", {node.address: facts.server for node, facts in view.facts.items()}),
    ):
        if len(set(versions.values())) == 1 and what == "library":
            yield Finding("library versions", OK, "all nodes have the same")
        if len(set(versions.values())) < 2:
            continue
        groups: dict[Any, list[str]] = {}
        for address, version in versions.items():
            groups.setdefault(version, []).append(address)
        shown = []
        for version, addresses in sorted(groups.items(), key=lambda item: str(item[0])):
            name = f"{version[0]} ({version[1][:8]})" if isinstance(version, tuple) else version
            shown.append(f"{name} on {', '.join(addresses)}")
        fix = "keyside install brings all to one version" if what == "library" else "fine during an upgrade; finish it"
        yield Finding(f"{what} versions", WARN, f"nodes differ: {'; '.join(shown)}", fix)


def _moving(view: View) -> Iterator[Finding]:
    moving = sum(node.moving for node in view.nodes)
    if moving:
        yield Finding("slots", OK, f"{count(moving, 'slot')} on the move, as far as the node that was asked takes part")


def _moved(view: View) -> Iterator[Finding]:
    for node, facts in view.facts.items():
        for queue in facts.moved:
            old = (queue["oldest_ms"] or 0) > MOVED_MS
            text = (
                f"{count(queue['depth'], 'job')} for {queue['device']} came here with the slot of tag {queue['tag']}, "
                f"the oldest {human_age(queue['oldest_ms'] or 0)} old"
            )
            fix = "executors of this node take them over: is one alive that serves this device?" if old else ""
            yield Finding("moved queue", WARN if old else OK, text, fix, node.address)


def _catalogs(view: View) -> Iterator[Finding]:
    fix = "executors keep catalogs equal: see that one is alive on this node, and its log"
    for node, facts in view.facts.items():
        if facts.slots and not facts.complete:
            text = "the catalog is not complete yet: calls for models that it lacks are answered TRYAGAIN"
            yield Finding("catalog", WARN, text, fix, node.address)
    if view.facts and not view.differences and all(facts.complete for facts in view.facts.values() if facts.slots):
        yield Finding("catalogs", OK, "every node knows every model as its home does")
    by_node = Counter(one.node for one in view.differences)
    said = {
        "missing": "lacks {model} (home: {home})",
        "older": "has an older record of {model} than its home {home}",
        "newer": "has a newer record of {model} than its home {home}",
        "gone": "still has {model}, which was deleted (home: {home})",
    }
    for address, number in by_node.items():
        first = [one for one in view.differences if one.node == address][:SHOWN]
        parts = [said[one.what].format(model=repr(one.model), home=one.home) for one in first]
        more = f", and {number - SHOWN} more" if number > SHOWN else ""
        yield Finding("catalog", WARN, f"{'; '.join(parts)}{more}", fix, address)


def _standby(view: View) -> Iterator[Finding]:
    for node, facts in view.facts.items():
        if facts.replica and not facts.standby and "connections" not in facts.problems:
            text = "no executor stands by on this replica: if it is promoted, nothing runs there"
            fix = "start one on its host: keyside executor --url, with the address of the replica"
            yield Finding("standby", WARN, text, fix, node.address)
    for node in view.nodes:
        if node.slots and not any(one.of == node.id for one in view.nodes):
            text = "no replica: if it dies, its slots are not served, and the jobs in its queues wait until it is back"
            yield Finding(
                "replicas", WARN, text, "add one: redis-cli --cluster add-node NEW OLD --cluster-slave", node.address
            )


# --- durability


def judge_durability(view: View) -> list[Finding]:
    """Say what a failure may lose, for `doctor`."""
    return list(_durability(view))


def _durability(view: View) -> Iterator[Finding]:
    primaries = {node: facts for node, facts in view.facts.items() if facts.slots}
    replicas = Counter(node.of for node in view.nodes if node.of)
    single = [node.address for node in view.nodes if node.slots and not replicas[node.id]]
    coverage = {facts.config.get("cluster-require-full-coverage") for facts in primaries.values()}
    if "yes" in coverage:
        text = "cluster-require-full-coverage is yes: while one shard is lost, all others refuse their calls too"
        fix = "CONFIG SET cluster-require-full-coverage no, on every node, lets the other shards go on"
        yield Finding("coverage", WARN if single else OK, text, fix if single else "")
    least = {facts.config.get("min-replicas-to-write") for facts in primaries.values()} - {None}
    if replicas and least <= {"0"} and least:
        text = (
            "min-replicas-to-write is 0: what a primary accepted in its last moments, before its replica had it, a "
            "failover drops; Keyside's clients send such jobs again"
        )
        most = min(replicas.values())
        fix = (
            "CONFIG SET min-replicas-to-write 1, on every node, makes it stop after min-replicas-max-lag seconds"
            if most > 1
            else ""
        )
        yield Finding("durability", OK, text, fix)


# --- words


def merged(findings: Iterable[Finding], nodes: int) -> list[tuple[str, Finding]]:
    """Put findings that are alike but for the node together; return them with the nodes that they are about.

    Args:
        findings: Of all nodes.
        nodes: How many there are.
    """
    groups: dict[Finding, list[str]] = {}
    for one in findings:
        groups.setdefault(dataclasses.replace(one, node=""), []).append(one.node)
    found = []
    for one, addresses in groups.items():
        about = [address for address in dict.fromkeys(addresses) if address]
        found.append((f"all {nodes} nodes" if len(about) == nodes > 1 else ", ".join(about), one))
    return found


def ranges(slots: Iterable[int]) -> str:
    """Return slots as ranges, the first few of them."""
    found: list[tuple[int, int]] = []
    for slot in sorted(slots):
        if found and found[-1][1] == slot - 1:
            found[-1] = (found[-1][0], slot)
        else:
            found.append((slot, slot))
    shown = [str(first) if first == last else f"{first}-{last}" for first, last in found[:SHOWN]]
    return ", ".join(shown) + (", ..." if len(found) > SHOWN else "")
