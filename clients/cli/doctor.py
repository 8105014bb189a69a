"""`keyside doctor`: what is wrong with a server, and how to fix it."""

import dataclasses
import sys

import click

from keyside.clients.cli.common import State, clean, common, redacted
from keyside.tensorstore.errors import KeysideError, Unreachable

__all__ = ["doctor"]

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "red"}


@click.command()
@common
def doctor(state: State) -> None:
    """Find out what is wrong, and how to fix it.

    Looks at the server, its version, memory, eviction and persistence, the function library, executors, queues, models
    and dead letters. The exit code is 1 if anything fails; warnings do not count.
    """
    from keyside.clients.cli.checks import Finding, examine
    from keyside.clients.cli.facts import gather

    url = state.server_url()
    try:
        with state.connect() as client:
            findings = examine(gather(client))
    except Unreachable as error:
        fix = "start it (keyside up starts one), or correct --url, KEYSIDE_URL or REDIS_URL"
        findings = [Finding("server", "fail", str(error), fix)]
    except KeysideError as error:
        findings = [
            Finding("server", "fail", str(error), "put user and password into the URL: redis://user:password@host")
        ]
    failed = any(finding.status == "fail" for finding in findings)
    width = max(len(clean(finding.name)) for finding in findings)
    lines = [redacted(url)]
    for finding in findings:
        status = click.style(f"{finding.status:<4}", fg=_COLOURS[finding.status])
        lines.append(f"{status}  {clean(finding.name):<{width}}  {clean(finding.text)}")
        if finding.fix:
            lines.append(f"      {'':<{width}}  -> {clean(finding.fix)}")
    checks = [dataclasses.asdict(finding) for finding in findings]
    state.emit({"url": redacted(url), "ok": not failed, "checks": checks}, "\n".join(lines))
    sys.exit(int(failed))
