"""`keyside graph`: stored graphs in, and what they do."""

import json
from pathlib import Path
from typing import Any

import click

from keyside.clients.cli.common import State, clean, common, option, say, table

__all__ = ["graph"]


@click.group()
def graph() -> None:
    """Check, store, show, list and remove stored graphs; `keyside run` runs them like models."""


@graph.command("put")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@option("--device", default="CPU", show_default=True, help="The queue whose executors shall run it.")
@option("--tag", default="", help="Any text.")
@click.option(
    "--run-limit-ms", type=click.IntRange(0), metavar="MS", help="A run that takes longer is given up; 0: none."
)
@click.option("--wait/--no-wait", default=True, help="Return only once it is ready. [default: wait]")
@option(
    "--timeout", type=click.FloatRange(0), default=120.0, show_default=True, metavar="SECONDS", help="To wait, at most."
)
@common
def put(
    state: State, name: str, file: str, device: str, tag: str, run_limit_ms: int | None, wait: bool, timeout: float
) -> None:
    """Store the program in FILE, a JSON object, as a graph: a new version."""
    program, blob = _read(file)
    options: dict[str, Any] = {"uses": list(program.uses)} if program.uses else {}
    if run_limit_ms is not None:
        options["run_limit_ms"] = run_limit_ms
    with state.client() as client:
        stored = client.store(
            name, blob, backend="GRAPH", device=device, tag=tag, options=options, wait=wait, timeout=timeout
        )
    text = f"{stored.target}: {stored.state}, GRAPH on {stored.info.device}\n{_text(program)}"
    state.emit({"name": name, "target": stored.target, "state": stored.state, **_data(program)}, clean(text))


@graph.command("check")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@common
def check(state: State, file: str) -> None:
    """Say whether the program in FILE can run, and what it runs, without a server."""
    program, _ = _read(file)
    state.emit(_data(program), clean(_text(program)))


@graph.command("ls")
@common
def list_graphs(state: State) -> None:
    """List the stored graphs."""
    from keyside.tensorstore.errors import NoModel, WrongType

    found = []
    with state.client() as client:
        for listed in client.models():
            try:
                info = client.model_info(listed.name)
            except (NoModel, WrongType):
                continue  # it has gone meanwhile
            version = info.versions.get(info.default or max(info.versions, default=0))
            if version is not None and version.backend == "GRAPH":
                found.append((info.key, version))
    found.sort(key=lambda one: one[0])
    rows = [
        (name, version.version, version.state, version.device, ", ".join(_uses(version)), version.tag)
        for name, version in found
    ]
    data = [
        {
            "name": name, "version": version.version, "state": version.state, "device": version.device,
            "uses": _uses(version), "tag": version.tag,
        }
        for name, version in found
    ]  # fmt: skip
    state.emit(data, table(("NAME", "VERSION", "STATE", "DEVICE", "RUNS", "TAG"), rows) if rows else "")
    if not found:
        say("no graphs: store one with keyside graph put NAME FILE")


@graph.command("show")
@click.argument("target")
@common
def show(state: State, target: str) -> None:
    """Show a graph with its program, or with NAME@3 that version."""
    from keyside.tensorstore.errors import WrongType
    from keyside.tensorstore.graph import parse

    with state.client() as client:
        version = client.version(target)
        if version.info.backend != "GRAPH":
            raise WrongType(f"{version.target} is no graph, but {version.info.backend}")
        blob = client.get_model(version.name, version.version)
    shown = json.loads(blob) if version.state != "failed" else None
    text = f"{version.target}: {version.state}, GRAPH on {version.info.device}"
    if shown is None:
        text += f"\n  {version.info.reason}"
    else:
        text += f"\n{_text(parse(blob))}\n\n{json.dumps(shown, indent=2, ensure_ascii=False)}"
    data = {"target": version.target, "state": version.state, "reason": version.info.reason, "program": shown}
    state.emit({**data, "uses": _uses(version.info)}, clean(text))


@graph.command("rm")
@click.argument("targets", nargs=-1, required=True, metavar="NAME[@VERSION]...")
@common
def remove(state: State, targets: tuple[str, ...]) -> None:
    """Remove graphs, or single versions of them. Jobs already queued still run."""
    with state.client() as client:
        for target in targets:
            client.delete_model(target)
            say(f"{target}: removed")
    state.emit({"removed": list(targets)}, "")


def _read(file: str) -> tuple[Any, bytes]:
    from keyside.tensorstore.graph import parse

    blob = Path(file).read_bytes()
    return parse(blob), blob


def _uses(version: Any) -> list[str]:
    uses = version.options.get("uses", [])
    return list(map(str, uses)) if isinstance(uses, list) else []


def _data(program: Any) -> dict[str, Any]:
    import msgspec

    inputs = msgspec.to_builtins(program.inputs)
    return {"inputs": inputs, "outputs": list(program.outputs), "uses": list(program.uses)}


def _text(program: Any) -> str:
    shown = [
        f"  input  {spec.name}  {spec.dtype or 'any'}"
        + ("" if spec.shape is None else f"  [{', '.join('?' if dim < 0 else str(dim) for dim in spec.shape)}]")
        for spec in program.inputs
    ]
    shown += [f"  output {name}" for name in program.outputs]
    return "\n".join([*shown, *(f"  runs   {target}" for target in program.uses)])
