"""`keyside status`: the nodes of a cluster, or a single server, and what is wrong with them."""

import dataclasses
import sys
import time
from typing import Any

import click

from keyside.clients.cli.common import State, clean, common, count, human_age, redacted, table
from keyside.tensorstore.errors import KeysideError

__all__ = ["status"]


@click.command()
@click.option(
    "--watch", type=click.FloatRange(0.2, 3600), metavar="SECONDS",
    help="Show it again and again, until Ctrl-C; with --json one line each time.",
)  # fmt: skip
@common
def status(state: State, watch: float | None) -> None:
    """Show each node: its slots, executors, queues and models; and under it, what is wrong.

    Any node's address will do, also if others are down. The exit code is 1 if something is seriously wrong: slots that
    nobody serves, a node without executors, or one whose functions do not work.
    """
    url = state.server_url()
    if watch is None:
        sys.exit(_show(state, url))
    while True:
        try:
            _show(state, url, again=True)
        except KeysideError as error:  # it may come back
            _clear(state)
            click.echo(f"{time.strftime('%H:%M:%S')}  {redacted(url)}: {clean(str(error))}", err=state.json)
        sys.stdout.flush()
        time.sleep(watch)


def _clear(state: State) -> None:
    if not state.json:
        click.clear()  # only if stdout is a terminal


def _show(state: State, url: str, *, again: bool = False) -> int:
    from keyside.clients.cli.checks import FAIL
    from keyside.clients.cli.verdict import judge
    from keyside.clients.cli.view import look

    with state.connect() as client:
        view = look(client)
    findings = judge(view)
    failed = any(finding.status == FAIL for finding in findings)
    data = _data(view)
    data |= {"url": redacted(url), "ok": not failed, "problems": [dataclasses.asdict(one) for one in findings]}
    if again:
        _clear(state)
        data["time"] = time.time()
    state.emit(data, _text(data, view.title, again=again))
    return int(failed)


# --- as JSON


def _data(view: Any) -> dict[str, Any]:
    nodes = [_node(view, node) for node in view.nodes]
    homes = [one for one in nodes if one["role"] == "primary" and (one["slots"] or not view.clustered)]
    return {
        "clustered": view.clustered,
        "state": view.state,
        "nodes": nodes,
        "totals": {
            "primaries": len(homes),
            "replicas": sum(one["role"] == "replica" for one in nodes),
            "slots": sum(one["slot_count"] for one in nodes),
            "executors": sum(len(one["executors"]) for one in nodes),
            "standby": sum(one["standby"] for one in nodes),
            "jobs": sum(queue.get("depth", 0) for one in nodes for queue in one["queues"] + one["moved"]),
            "claimed": sum(queue.get("claimed", 0) for one in nodes for queue in one["queues"]),
            "oldest_ms": max(
                (
                    queue["oldest_ms"]
                    for one in nodes
                    for queue in one["queues"] + one["moved"]
                    if queue.get("oldest_ms")
                ),
                default=None,
            ),
            # Each node knows all models of the cluster: they are not added up.
            "models": max((one["models"]["known"] for one in homes), default=0),
            "models_ready": min((one["models"]["ready"] for one in homes if one["reachable"]), default=0),
            "dead": sum(one["dead"] for one in nodes),
        },
        "catalog_differences": [dataclasses.asdict(one) for one in view.differences],
    }


def _node(view: Any, node: Any) -> dict[str, Any]:
    from keyside.clients.cli.facts import Facts, bare

    facts = view.facts.get(node)
    reachable = facts is not None
    if facts is None:
        facts = Facts()
    replica = facts.replica if reachable else not node.primary
    known = bare(facts.models)
    return {
        "address": node.address if node.id else "",
        "id": node.id,
        "role": "replica" if replica else "primary",
        "primary": (view.named(node.of) or facts.primary) if replica else None,
        "state": node.state if reachable else "unreachable" if node.state == "ok" else node.state,
        "reachable": reachable,
        "error": view.errors.get(node),
        "link": facts.info.get("master_link_status") if replica else None,
        "server": facts.server if reachable else None,
        "slots": [list(one) for one in node.slots],
        "slot_count": node.slot_count,
        "moving": node.moving,
        "tag": facts.tag or None,
        "library": facts.library[0] if facts.library else None,
        "functions": "broken" if facts.lua else "ok" if facts.library else "missing" if reachable else None,
        "catalog": None if not facts.tag else "complete" if facts.complete else "incomplete",
        "latency_ms": round(facts.latency_ms, 3) if reachable else None,
        "executors": [_executor(one) for one in facts.executors],
        "standby": facts.standby,
        "queues": facts.queues,
        "moved": facts.moved,
        "models": {
            "known": len(known),
            "ready": sum(one.get("state") == "ready" for one in known),
        },
        "dead": facts.dead,
        "unread": facts.problems,
    }


def _executor(info: dict[str, Any]) -> dict[str, Any]:
    models = info.get("models")
    return {
        "name": info.get("name"),
        "host": info.get("host"),
        "pid": info.get("pid"),
        "local": info.get("local"),
        "devices": info.get("devices", []),
        "models": models if isinstance(models, int) else len(models or ()),
        "held": info.get("held", 0),
        "beat_ms": info.get("beat_ms"),
    }


# --- as text


def _text(data: dict[str, Any], title: str, *, again: bool) -> str:
    from keyside.clients.cli.checks import COLOURS, Finding
    from keyside.clients.cli.verdict import merged

    nodes, totals = data["nodes"], data["totals"]
    when = f"{time.strftime('%H:%M:%S')}  " if again else ""
    head = f"{when}{_headline(data, title)}"
    rows = [_row(one, data["clustered"]) for one in nodes]
    headers = ("NODE", "ROLE", "SLOTS", "TAG", "LIBRARY", "MODELS", "EXECUTORS", "JOBS", "RUNNING", "OLDEST", "DEAD")
    skip = 0 if data["clustered"] else 4
    lines = [head, "", table(headers[skip:], [row[skip:] for row in rows])]
    queues = [(one, queue) for one in nodes for queue in one["queues"] if queue.get("depth")]
    moved = [(one, queue) for one in nodes for queue in one["moved"]]
    if queues or moved:
        waiting = [
            (
                one["address"] or "-", queue["device"], queue["depth"], queue.get("claimed", "-"),
                "-" if queue["oldest_ms"] is None else human_age(queue["oldest_ms"]),
                queue.get("executors", f"came with tag {queue.get('tag')}"),
            )
            for one, queue in (*queues, *moved)
        ]  # fmt: skip
        lines += ["", table(("QUEUE AT", "DEVICE", "JOBS", "RUNNING", "OLDEST", "EXECUTORS"), waiting)]
    alive = [(one, executor) for one in nodes for executor in one["executors"]]
    if alive:
        shown = [
            (
                executor["name"], one["address"] or "-", executor["host"],
                {True: "local", False: "remote"}.get(executor["local"], "-"), ",".join(executor["devices"]),
                executor["models"], executor["held"], human_age(executor["beat_ms"]),
            )
            for one, executor in alive
        ]  # fmt: skip
        of_executors = ("EXECUTOR", "SERVES", "HOST", "REACH", "DEVICES", "MODELS", "JOBS", "HEARD")
        lines += ["", table(of_executors, shown)]
    if data["clustered"]:
        oldest = f", the oldest {human_age(totals['oldest_ms'])} old" if totals["oldest_ms"] else ""
        everything = (
            f"{count(totals['executors'], 'executor')} and {totals['standby']} standing by",
            f"{count(totals['jobs'], 'job')}, {totals['claimed']} of them running{oldest}",
            f"{count(totals['models'], 'model')}, {totals['models_ready']} ready on every node",
            count(totals["dead"], "dead letter"),
        )
        lines += ["", f"in all: {'; '.join(everything)}"]
    lines.append("")
    if not data["problems"]:
        lines.append(click.style("all is well", fg="green"))
    for about, problem in merged((Finding(**one) for one in data["problems"]), len(nodes)):
        at = f"{about}  " if about else ""
        status = click.style(problem.status, fg=COLOURS[problem.status])
        lines.append(f"{status}  {clean(at + problem.name)}: {clean(problem.text)}")
        if problem.fix:
            lines.append(f"      -> {clean(problem.fix)}")
    return "\n".join(lines)


def _headline(data: dict[str, Any], title: str) -> str:
    from keyside.tensorstore.keys import SLOTS

    totals = data["totals"]
    servers = ", ".join(sorted({one["server"] for one in data["nodes"] if one["server"]})) or "no server that answers"
    if not data["clustered"]:
        return f"{servers} at {data['url']}"
    down = sum(not one["reachable"] for one in data["nodes"])
    missing = f", {count(down, 'node')} not reachable" if down else ""
    return f"{title}, {servers}: state {data['state']}, {totals['slots']} of {SLOTS} slots{missing}"


def _row(one: dict[str, Any], clustered: bool) -> tuple[Any, ...]:
    role = "primary" if one["slots"] or not clustered else "no slots"
    if one["role"] == "replica":
        role = f"replica of {one['primary']}"
    address = one["address"] if not clustered or one["role"] == "primary" else f"  {one['address']}"
    if not one["reachable"]:
        word = {"unreachable": "not reachable", "failed": "down", "suspected": "down?"}.get(one["state"], one["state"])
        return (address, f"{role}, {word}", _slots(one), *("-",) * 8)
    if one["state"] != "ok":
        role += f", {one['state']}"
    elif one["link"] not in (None, "up"):
        role += ", link down"
    elif clustered and one["functions"] == "broken":
        role += ", functions broken"
    library = "none" if one["library"] is None else str(one["library"])
    if clustered and (one["role"] == "replica" or not one["slots"]):
        standby = f"{one['standby']} standing by" if one["standby"] else "none standing by"
        return (address, role, _slots(one), "-", library, "-", standby, "-", "-", "-", "-")
    oldest = max((queue["oldest_ms"] for queue in one["queues"] if queue.get("oldest_ms")), default=None)
    devices = sorted({device for executor in one["executors"] for device in executor["devices"]})
    models = f"{one['models']['ready']}/{one['models']['known']}"
    models += " ready" if one["catalog"] == "complete" else " (incomplete)"
    return (
        address,
        role,
        _slots(one),
        one["tag"],
        library,
        _known(one, "models", models),
        f"{len(one['executors'])} ({','.join(devices)})" if devices else _known(one, "executors", "none"),
        _known(one, "queues", sum(queue.get("depth", 0) for queue in one["queues"])),
        _known(one, "queues", sum(queue.get("claimed", 0) for queue in one["queues"])),
        "-" if oldest is None else human_age(oldest),
        _known(one, "dead", one["dead"]),
    )


def _known(one: dict[str, Any], what: str, value: Any) -> Any:
    return "?" if what in one["unread"] else value


def _slots(one: dict[str, Any]) -> str:
    if not one["slots"]:
        return "-"
    shown = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in one["slots"][:3])
    more = f", ... ({len(one['slots'])} ranges)" if len(one["slots"]) > 3 else ""
    return f"{shown}{more}" + (f", {one['moving']} moving" if one["moving"] else "")
