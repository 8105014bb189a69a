"""`keyside model`: models in, and what becomes of them."""

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click

from keyside.clients.cli.common import State, common, human_bytes, option, say, table

__all__ = ["model"]


@click.group()
def model() -> None:
    """Store, show, list and remove models."""


@model.command("put")
@click.argument("name")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@option("--backend", metavar="NAME", help="ONNX or TORCH. [default: by the ending of the file]")
@option("--device", metavar="NAME", default="CPU", show_default=True, help="The queue whose executors shall run it.")
@option("--tag", metavar="TEXT", default="", help="Any text.")
@option("--batch-size", type=click.IntRange(0), default=0, metavar="N", help="Rows that are run together, at most.")
@option("--min-batch-size", type=click.IntRange(0), default=0, metavar="N", help="Rows for which a batch waits.")
@option("--min-batch-timeout-ms", type=click.IntRange(0), default=0, metavar="MS", help="How long it waits for them.")
@click.option(
    "--input", "inputs", multiple=True, metavar="NAME", help="Name of an input, if the file has none; in order."
)
@click.option("--output", "outputs", multiple=True, metavar="NAME", help="Name of an output; in order.")
@option("--options", metavar="JSON", help="For the backend, such as session options: a JSON object.")
@click.option("--wait/--no-wait", default=True, help="Return only once it serves. [default: wait]")
@option(
    "--timeout", type=click.FloatRange(0), default=120.0, show_default=True, metavar="SECONDS", help="To wait, at most."
)
@common
def put(state: State, name: str, file: str, options: str | None, wait: bool, timeout: float, **settings: Any) -> None:
    """Store a model: a new version, which serves as soon as an executor has loaded it.

    The same file with the same settings gives the version that is there already. If a version cannot be loaded, the
    one before it goes on serving.
    """
    parsed = _json_object(options)
    with state.client() as client:
        with _progress(name) as progress:
            stored = client.store(name, file, options=parsed, wait=False, progress=progress, **settings)
        if wait and stored.state != "ready":
            _look_for_executor(state, stored.info.device)
            stored = client.wait_ready(stored.target, timeout=timeout)
    state.emit(_version_data(stored.name, stored.info), _version_text(stored.name, stored.info))


@model.command("ls")
@common
def list_models(state: State) -> None:
    """List the models."""
    from keyside.tensorstore.errors import NoModel, WrongType

    found = []
    with state.client() as client:
        for listed in client.models():
            try:
                found.append((listed.tag, client.model_info(listed.name)))
            except (NoModel, WrongType):
                continue  # it has gone meanwhile
    found.sort(key=lambda one: one[1].key)
    rows = []
    for tag, info in found:
        number = info.default or max(info.versions, default=0)
        version = info.versions.get(number)
        if version is not None:
            of = (version.backend, version.device, human_bytes(version.size), tag)
            rows.append((info.key, info.default or "-", version.state, len(info.versions), *of))
    text = table(("NAME", "DEFAULT", "STATE", "VERSIONS", "BACKEND", "DEVICE", "SIZE", "TAG"), rows) if rows else ""
    state.emit([_model_data(info) for _, info in found], text)
    if not found:
        say("no models: store one with keyside model put NAME FILE")


@model.command("show")
@click.argument("target")
@common
def show(state: State, target: str) -> None:
    """Show a model and its versions, or with NAME@3 that version."""
    name, _, _ = target.partition("@")
    with state.client() as client:
        if name != target:
            version = client.version(target)
            data = _version_data(version.name, version.info) | {"stats": _stats(client, target)}
            state.emit(data, _version_text(version.name, version.info) + _stats_text(data["stats"]))
            return
        info = client.model_info(name)
        stats = {number: _stats(client, f"{name}@{number}") for number in info.versions}
    data = _model_data(info)
    for version_data in data["versions"]:
        version_data["stats"] = stats[version_data["version"]]
    rows = [
        (
            f"{number}{' (default)' if number == info.default else ''}",
            version.state,
            version.backend,
            version.device,
            human_bytes(version.size),
            stats[number]["calls"],
            stats[number]["errors"],
            version.tag,
        )
        for number, version in info.versions.items()
    ]
    heads = ("VERSION", "STATE", "BACKEND", "DEVICE", "SIZE", "CALLS", "ERRORS", "TAG")
    lines = [f"{info.key}", "", table(heads, rows)]
    shown = info.versions.get(info.default or max(info.versions, default=0))
    if shown is not None:
        lines += ["", _version_text(info.key, shown)]
    lines += [f"{info.key}@{n}: {one.reason}" for n, one in info.versions.items() if one.reason and one is not shown]
    state.emit(data, "\n".join(lines))


@model.command("rm")
@click.argument("targets", nargs=-1, required=True, metavar="NAME[@VERSION]...")
@common
def remove(state: State, targets: tuple[str, ...]) -> None:
    """Remove models, or single versions of them. Jobs already queued still run."""
    with state.client() as client:
        for target in targets:
            client.delete_model(target)
            say(f"{target}: removed")
    state.emit({"removed": list(targets)}, "")


def _rate(_context: click.Context, parameter: click.Parameter, text: str | None) -> tuple[int, float] | None:
    if text is None:
        return None
    count, slash, seconds = text.partition("/")
    try:
        return int(count), float(seconds) if slash else 1.0
    except ValueError:
        raise click.BadParameter("JOBS/SECONDS, such as 100/1", param=parameter) from None


@model.command("limits")
@click.argument("name", required=False)
@click.option("--jobs", type=click.IntRange(0), metavar="N", help="Jobs that may wait or run at a time; 0: any number.")
@click.option("--bytes", "nbytes", type=click.IntRange(0), metavar="N", help="That their inputs may hold together.")
@click.option("--rate", callback=_rate, metavar="JOBS/SECONDS", help="How many jobs may come in how many seconds.")
@click.option("--user-rate", callback=_rate, metavar="JOBS/SECONDS", help="The same for each user.")
@common
def limits(state: State, name: str | None, **given: Any) -> None:
    """Show what may be queued of a model, and how often; without NAME, on this server in each queue.

    With options that is set anew: what they do not name is not bounded any more. On a cluster all of it holds for each
    node.
    """
    import msgspec

    with state.client() as client:
        if any(value is not None for value in given.values()):
            client.set_limits(name, **given)
        found = client.limits(name)
    lines = [f"jobs {found.jobs or 'any number'}", f"bytes {human_bytes(found.nbytes) if found.nbytes else 'any'}"]
    for what, rate in (("rate", found.rate), ("user rate", found.user_rate)):
        lines.append(f"{what} {f'{rate[0]} in {rate[1]:g} s' if rate else 'any'}")
    if found.queued:
        lines.append(f"now {found.queued} jobs, {human_bytes(found.held)}")
    state.emit({"name": name, **msgspec.to_builtins(found._asdict())}, "\n".join(lines))


def _json_object(text: str | None) -> dict[str, Any] | None:
    if not text:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise click.BadParameter(f"not JSON: {error}", param_hint="--options") from None
    if not isinstance(value, dict):
        raise click.BadParameter("not a JSON object", param_hint="--options")
    return value


@contextlib.contextmanager
def _progress(name: str) -> Iterator[Callable[[int, int], None] | None]:
    """A bar on stderr, if that is a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def _look_for_executor(state: State, device: str) -> None:
    """Say early that nobody will load it: the wait for that is long."""
    from keyside.clients.cli.nodes import alive

    with state.connect() as plain:
        executors = alive(plain)
    if not any(device in one.get("devices", ()) for one in executors):
        say(f"stored; waiting for an executor that serves {device} to load it, and none does now (keyside executor)")


def _stats(client: Any, target: str) -> dict[str, int]:
    from keyside.tensorstore.errors import NoModel

    try:
        stats = client.model_stats(target)
    except NoModel:
        return dict.fromkeys(("calls", "samples", "errors", "duration_us"), 0)
    return {
        "calls": stats.calls,
        "samples": stats.samples,
        "errors": stats.errors,
        "duration_us": stats.duration,
    }


def _stats_text(stats: dict[str, int]) -> str:
    if not stats["calls"]:
        return ""
    return "\n  {calls} calls, {samples} samples, {errors} errors".format(**stats)


def _model_data(info: Any) -> dict[str, Any]:
    versions = [_version_data(info.key, version) for version in info.versions.values()]
    return {"name": info.key, "default": info.default, "versions": versions}


def _version_data(name: str, version: Any) -> dict[str, Any]:
    import msgspec

    data: dict[str, Any] = msgspec.to_builtins(version)
    return {"name": name, "target": f"{name}@{version.version}", **data}


def _version_text(name: str, version: Any) -> str:
    lines = [
        f"{name}@{version.version}: {version.state}, {version.backend} on {version.device}, {human_bytes(version.size)}"
    ]
    if version.state == "failed":
        lines.append(f"  {version.reason}")
    if version.signature is not None:
        for what, specs in (("input", version.signature.inputs), ("output", version.signature.outputs or ())):
            lines += [f"  {what:<6} {spec.name}  {spec.dtype or 'any dtype'}  {_shape(spec.shape)}" for spec in specs]
    for word, value in (("batchsize", version.batchsize), ("minbatchsize", version.minbatchsize)):
        if value:
            lines.append(f"  {word} {value}")
    if version.digest:
        lines.append(f"  sha256 {version.digest}")
    return "\n".join(lines)


def _shape(shape: tuple[int, ...] | None) -> str:
    if shape is None:
        return "any shape"
    return "[" + ", ".join("?" if dim < 0 else str(dim) for dim in shape) + "]"
