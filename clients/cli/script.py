"""`keyside script`: scripts and functions of the operator in, and what becomes of them."""

import ast
import contextlib
from pathlib import Path
from typing import Any

import click

from keyside.clients.cli.common import State, clean, common, human_bytes, option, say, table
from keyside.clients.cli.run import read_inputs, show_outputs, split_outputs

__all__ = ["script"]


@click.group()
def script() -> None:
    """Store, show, list, run and remove scripts: TorchScript, or Python functions of the operator."""


@script.command("put")
@click.argument("name")
@click.argument("file", required=False, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "-e", "--entry-point", "points", multiple=True, metavar="FUNCTION",
    help="A function that may be called; again for each. [default: those of FILE that take tensors, keys, args]",
)  # fmt: skip
@click.option("--functions", is_flag=True, help="They are functions that the operator registered: there is no FILE.")
@click.option("--device", default="CPU", show_default=True, help="The queue whose executors shall run it.")
@click.option("--tag", default="", help="Any text.")
@click.option(
    "--run-limit-ms", type=click.IntRange(0), metavar="MS", help="A call that takes longer is given up; 0: none."
)
@click.option("--wait/--no-wait", default=True, help="Return only once it is ready. [default: wait]")
@option(
    "--timeout", type=click.FloatRange(0), default=120.0, show_default=True, metavar="SECONDS", help="To wait, at most."
)
@common
def put(state: State, name: str, file: str | None, points: tuple[str, ...], functions: bool, **settings: Any) -> None:
    """Store a script: a new version, which an executor compiles.

    \b
      keyside script put prep prep.py
      keyside script put text --functions -e tokenize -e detokenize

    The same file with the same settings gives the version that is there already.
    """  # noqa: D301  # click wants the character
    if functions == (file is not None):
        raise click.UsageError("give a FILE, or --functions with the names of functions (-e)")
    if not points:
        points = _entry_points(file)
    with state.client() as client:
        source = None if file is None else Path(file)
        stored = client.store_script(name, source, entry_points=points, functions=functions, **settings)
        found = client.script(stored.target)
    state.emit(_data(found), _text(found))


def _entry_points(file: str | None) -> tuple[str, ...]:
    if file is None:
        raise click.UsageError("--functions needs their names: -e NAME")
    found: list[str] = []
    with contextlib.suppress(SyntaxError, ValueError, RecursionError, MemoryError):  # the executor says what is wrong
        defined = [node for node in ast.parse(Path(file).read_bytes()).body if isinstance(node, ast.FunctionDef)]
        found = [node.name for node in defined if [one.arg for one in node.args.args] == ["tensors", "keys", "args"]]
    if not found:
        raise click.UsageError(f"{file} has no function that takes (tensors, keys, args): name some with -e")
    return tuple(found)


@script.command("ls")
@common
def list_scripts(state: State) -> None:
    """List the scripts."""
    from keyside.tensorstore.errors import NoModel, WrongType

    found = []
    with state.client() as client:
        for listed in client.scripts():
            with contextlib.suppress(NoModel, WrongType):  # it has gone meanwhile
                found.append(client.script(listed.name))
    found.sort(key=lambda one: one.name)
    rows = [
        (one.name, one.version, one.state, _kind(one), one.device, ", ".join(one.entry_points), one.tag)
        for one in found
    ]
    heads = ("NAME", "VERSION", "STATE", "KIND", "DEVICE", "FUNCTIONS", "TAG")
    state.emit([_data(one) for one in found], table(heads, rows) if rows else "")
    if not found:
        say("no scripts: store one with keyside script put NAME FILE")


@script.command("show")
@click.argument("target")
@common
def show(state: State, target: str) -> None:
    """Show a script with its source, or with NAME@3 that version."""
    with state.client() as client:
        found = client.script(target)
    source = "" if found.source is None else f"\n\n{found.source}"
    state.emit(_data(found), clean(_text(found) + source))


@script.command("rm")
@click.argument("targets", nargs=-1, required=True, metavar="NAME[@VERSION]...")
@common
def remove(state: State, targets: tuple[str, ...]) -> None:
    """Remove scripts, or single versions of them. Jobs already queued still run."""
    with state.client() as client:
        for target in targets:
            client.delete_script(target)
            say(f"{target}: removed")
    state.emit({"removed": list(targets)}, "")


@script.command("run")
@click.argument("target")
@click.argument("function")
@click.option(
    "-i", "--input", "inputs", multiple=True, metavar="WHAT",
    help="@FILE (.npy, .npz, .csv, .json; @- for stdin), key:NAME for a tensor key, or numbers such as [[1,2]].",
)  # fmt: skip
@click.option(
    "-k", "--key", "keys", multiple=True, metavar="NAME", help="A name that the function gets among its keys."
)
@click.option("-a", "--arg", "args", multiple=True, metavar="TEXT", help="A text that it gets among its args.")
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="KEY | @FILE",
    help="Where the results go, in their order: tensor keys, or files. [default: stdout]",
)  # fmt: skip
@option("--timeout", type=click.FloatRange(0.001, 86400), default=30.0, show_default=True, metavar="SECONDS",
        help="Until the deadline.")  # fmt: skip
@common
def run(
    state: State, target: str, function: str, inputs: tuple[str, ...], keys: tuple[str, ...], args: tuple[str, ...],
    outputs: tuple[str, ...], timeout: float,
) -> None:  # fmt: skip
    """Call a function of a script, NAME or NAME@VERSION, on files, values or keys.

    \b
      keyside script run prep scale --input '[[1, 2, 3]]' --arg 0.5
    """  # noqa: D301  # click wants the character
    files, names = split_outputs(outputs)
    with state.client() as client:
        given = read_inputs(client, target, [("", text) for text in inputs]) if inputs else []
        result = client.run_script(
            target, function, given, keys=keys, args=args, outputs=names or None, timeout=timeout
        )
    if names:
        say(f"written: {', '.join(names)}")
        state.emit({"target": target, "outputs": names}, "")
        return
    found = result if isinstance(result, list) else [result]
    show_outputs(state, target, {str(n): array for n, array in enumerate(found)}, files)


def _kind(found: Any) -> str:
    return "functions" if found.source is None else "TorchScript"


def _data(found: Any) -> dict[str, Any]:
    names = ("name", "target", "version", "state", "reason", "device", "tag", "entry_points", "source")
    return {name: getattr(found, name) for name in names}


def _text(found: Any) -> str:
    size = "" if found.source is None else f", {human_bytes(len(found.source.encode()))}"
    lines = [f"{found.target}: {found.state}, {_kind(found)} on {found.device}{size}"]
    if found.state == "failed":
        lines.append(f"  {found.reason}")
    return "\n".join([*lines, *(f"  {name}" for name in found.entry_points)])
