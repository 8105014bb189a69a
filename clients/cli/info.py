"""`keyside info`: a server at a glance."""

from typing import Any

import click

from keyside.clients.cli.common import State, common, human_bytes, redacted, table

__all__ = ["info"]


@click.command()
@common
def info(state: State) -> None:
    """Show a server, its executors, its queues and its memory."""
    from keyside import __version__
    from keyside.clients.cli.facts import gather

    url = redacted(state.server_url())
    with state.connect() as client:
        facts = gather(client)
    versions = {(one.get("key"), one.get("version")) for one in facts.models.values()}
    data: dict[str, Any] = {
        "keyside": __version__,
        "url": url,
        "role": facts.role,
        "server": {"kind": facts.kind, "version": ".".join(map(str, facts.version))},
        "library": {"version": facts.library[0], "digest": facts.library[1]} if facts.library else None,
        "memory": {"used": facts.number("used_memory"), "limit": facts.number("maxmemory")},
        "models": {"names": len({key for key, _ in versions}), "versions": len(versions)},
        "executors": facts.executors,
        "queues": facts.queues,
        "dead": facts.dead,
        "problems": facts.problems,
    }
    limit = data["memory"]["limit"]
    lines = [
        f"server     {facts.server} at {url}",
        *([f"role       {facts.role}"] if facts.role != "primary" else []),
        f"library    {facts.library[0] if facts.library else 'not loaded'}",
        f"memory     {human_bytes(data['memory']['used'])}" + (f" of {human_bytes(limit)}" if limit else ""),
        f"models     {data['models']['names']}, in {data['models']['versions']} versions",
        f"executors  {len(facts.executors)}",
    ]
    if facts.executors:
        rows: list[tuple[Any, ...]] = [
            (
                one.get("name"),
                one.get("host"),
                ",".join(one.get("devices", ())),
                ",".join(one.get("backends", ())),
                one.get("models") if isinstance(one.get("models"), int) else len(one.get("models") or ()),
                human_bytes(int(one.get("memory", 0))),
                one.get("held"),
            )
            for one in facts.executors
        ]
        lines += ["", table(("EXECUTOR", "HOST", "DEVICES", "BACKENDS", "MODELS", "MEMORY", "JOBS"), rows)]
    if facts.queues:
        rows = [
            (
                one["device"],
                one.get("depth", "?"),
                one.get("claimed", "?"),
                human_bytes(one.get("bytes", 0)),
                "-" if one.get("oldest_ms") is None else f"{one['oldest_ms'] / 1000:.1f} s",
                one.get("executors", "?"),
            )
            for one in facts.queues
        ]
        lines += ["", table(("QUEUE", "JOBS", "RUNNING", "BYTES", "OLDEST", "EXECUTORS"), rows)]
    state.emit(data, "\n".join(lines))
