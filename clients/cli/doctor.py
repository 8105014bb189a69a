"""`keyside doctor`: what is wrong with a server or a cluster, and how to fix it."""

import dataclasses
import sys
from collections.abc import Iterable
from typing import TYPE_CHECKING

import click

from keyside.clients.cli.common import State, clean, common, redacted
from keyside.tensorstore.errors import KeysideError, Unreachable

if TYPE_CHECKING:
    from keyside.clients.cli.checks import Finding
    from keyside.clients.cli.view import View

__all__ = ["doctor"]


@click.command()
@click.option(
    "--all", "everything", is_flag=True, help="On a cluster: show each check of each node, also those that are ok."
)
@common
def doctor(state: State, everything: bool) -> None:
    """Find out what is wrong, and how to fix it.

    Looks at the server, its version, memory, eviction and persistence, the function library, executors, queues, models
    and dead letters; of a cluster, at all of its nodes and at what they make together. The exit code is 1 if anything
    fails; warnings do not count.
    """
    from keyside.clients.cli.checks import FAIL, Finding
    from keyside.clients.cli.view import look

    url = state.server_url()
    view = None
    try:
        with state.connect() as client:
            view = look(client)
        findings = _findings(view)
    except Unreachable as error:
        fix = "start it (keyside up starts one), or correct --url, KEYSIDE_URL or REDIS_URL"
        findings = [Finding("server", FAIL, str(error), fix)]
    except KeysideError as error:
        findings = [
            Finding("server", FAIL, str(error), "put user and password into the URL: redis://user:password@host")
        ]
    failed = any(finding.status == FAIL for finding in findings)
    clustered = view is not None and view.clustered
    text = (
        _of_cluster(view, findings, everything)
        if view is not None and clustered
        else _table(("", one) for one in findings)
    )
    checks = [dataclasses.asdict(finding) for finding in findings]
    data = {"url": redacted(url), "clustered": clustered, "ok": not failed, "checks": checks}
    state.emit(data, "\n".join((redacted(url), *text)))
    sys.exit(int(failed))


def _findings(view: "View") -> "list[Finding]":
    from keyside.clients.cli.checks import examine
    from keyside.clients.cli.verdict import judge_cluster, judge_durability

    found = []
    if view.clustered:
        found = [*judge_cluster(view), *judge_durability(view)]
    elif view.errors:
        raise Unreachable(next(iter(view.errors.values())).partition(" ")[2])
    for node in view.nodes:
        facts = view.facts.get(node)
        if facts is not None:
            found += [dataclasses.replace(one, node=node.address if node.id else "") for one in examine(facts)]
    return found


def _of_cluster(view: "View", findings: "list[Finding]", everything: bool) -> list[str]:
    """Lines for the cluster as a whole, then what is wrong with nodes, then a line for each node."""
    from keyside.clients.cli.checks import OK
    from keyside.clients.cli.verdict import merged

    whole = [one for one in findings if not one.node]
    single = [one for one in findings if one.node and (everything or one.status != OK)]
    rows = merged((*whole, *single), len(view.nodes))
    lines = [view.title, "", *_table(rows), ""]
    for node in view.nodes:
        role = f"replica of {view.named(node.of)}" if not node.primary else "primary" if node.slots else "no slots"
        of_node = [one for one in findings if one.node == node.address]
        well = ", ".join(dict.fromkeys(one.name for one in of_node if one.status == OK))
        wrong = sum(one.status != OK for one in of_node)
        said = f"ok: {well}" if well else "could not be looked at"
        lines.append(f"{node.address}  {role}  {said}" + (f"; {wrong} not, see above" if well and wrong else ""))
    return lines


def _table(rows: "Iterable[tuple[str, Finding]]") -> list[str]:
    from keyside.clients.cli.checks import COLOURS

    listed = list(rows)
    width = max((len(clean(one.name)) for _, one in listed), default=0)
    lines = []
    for about, one in listed:
        status = click.style(f"{one.status:<4}", fg=COLOURS[one.status])
        at = f"{about}: " if about else ""
        lines.append(f"{status}  {clean(one.name):<{width}}  {clean(at + one.text)}")
        if one.fix:
            lines.append(f"      {'':<{width}}  -> {clean(one.fix)}")
    return lines
