"""`keyside run`: one call of a model, from the shell."""

import re
from collections.abc import Sequence
from typing import Any

import click

from keyside.clients.cli.common import State, clean, common, option, say

__all__ = ["read_inputs", "run", "show_outputs", "split_outputs"]

_NAMED = re.compile(r"(?!key:)([^=@\[{\"]+)=(.*)", re.DOTALL)


@click.command()
@click.argument("target")
@click.option(
    "-i", "--input", "inputs", multiple=True, required=True, metavar="[NAME=]WHAT",
    help="@FILE (.npy, .npz, .csv, .json; @- for stdin), key:NAME for a tensor key, or numbers such as [[1,2]].",
)  # fmt: skip
@click.option(
    "-o", "--output", "outputs", multiple=True, metavar="KEY | @FILE",
    help="Where the outputs go, in the model's order: tensor keys, or files. [default: stdout]",
)  # fmt: skip
@option("--timeout", type=click.FloatRange(0.001, 86400), default=30.0, show_default=True, metavar="SECONDS",
        help="Until the deadline.")  # fmt: skip
@common
def run(state: State, target: str, inputs: tuple[str, ...], outputs: tuple[str, ...], timeout: float) -> None:
    """Run a model, NAME or NAME@VERSION, on files, values or keys.

    \b
      keyside run iris --input '[[5.1, 3.5, 1.4, 0.2]]'
      keyside run fraud --input transaction=@t.npy --input reference=key:ref:42 --json
      keyside run fraud --input key:t --input key:ref --output score

    Inputs are given by name, or all without names in the model's order. Numbers that come as text get the dtype
    that the model takes.
    """  # noqa: D301  # click wants the character
    files, keys = split_outputs(outputs)
    split = _split(inputs)
    with state.client() as client:
        given = read_inputs(client, target, split)
        if keys:
            client.execute(target, given, keys, timeout=timeout)
            say(f"written: {', '.join(keys)}")
            state.emit({"target": target, "outputs": keys}, "")
            return
        found = client.predict(target, given, timeout=timeout, outputs="dict")
    show_outputs(state, target, found, files)


def split_outputs(outputs: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the files, or the keys, to which outputs go.

    Raises:
        click.UsageError: They go to both.
    """
    files = [output[1:] for output in outputs if output.startswith("@")]
    if files and len(files) != len(outputs):
        raise click.UsageError("outputs go to keys or to files, not to both")
    return files, [] if files else [output.removeprefix("key:") for output in outputs]


def read_inputs(client: Any, target: str, split: Sequence[tuple[str, str]]) -> Any:
    """Read the inputs of a call, each a name, or an empty one, and what was given; by name if they have names.

    Raises:
        KeysideError: One of them cannot be read.
    """
    return _Inputs(client, target).read(split)


def show_outputs(state: State, target: str, found: dict[str, Any], files: Sequence[str]) -> None:
    """Write what was found to files, or show it."""
    from keyside.clients.cli import values
    from keyside.tensorstore.errors import BadInput

    if files:
        if len(files) != len(found):
            raise BadInput(f"{len(files)} files for {len(found)} outputs: {', '.join(found)}")
        for file, array in zip(files, found.values(), strict=True):
            values.write_file(file, array)
        say(f"written: {', '.join(files)}")
        state.emit({"target": target, "outputs": dict(zip(found, files, strict=True))}, "")
        return
    outputs = {name: values.to_json(array) for name, array in found.items()} if state.json else {}
    text = "" if state.json else "\n".join(f"{name}: {values.to_text(array)}" for name, array in found.items())
    state.emit({"target": target, "outputs": outputs}, clean(text))


def _split(texts: Sequence[str]) -> list[tuple[str, str]]:
    """Split names from what is given; all have names, or none has."""
    found: list[tuple[str, str]] = []
    for text in texts:
        match = _NAMED.fullmatch(text)
        name, what = (match[1], match[2]) if match else ("", text)
        if found and bool(name) != bool(found[0][0]):
            raise click.UsageError(f"give all inputs a name, or none: {text[:60]}")
        if name and any(name == other for other, _ in found):
            raise click.UsageError(f"input {name} is given twice")
        found.append((name, what))
    return found


class _Inputs:
    """Reads the inputs of a call."""

    def __init__(self, client: Any, target: str) -> None:
        self._client = client
        self._target = target
        self._specs: list[Any] | None = None

    def read(self, split: Sequence[tuple[str, str]]) -> Any:
        """Return them by name if they have names, else in order."""
        if split[0][0]:
            return {name: self._one(what, 0, name) for name, what in split}
        return [self._one(what, index, "") for index, (_, what) in enumerate(split)]

    def _one(self, text: str, index: int, name: str) -> Any:
        import keyside
        from keyside.clients.cli import values

        if text.startswith("key:"):
            return keyside.Key(text.removeprefix("key:"))
        if not text.startswith("@"):
            return values.read_literal(text, self._dtype(index, name))
        path = text[1:]
        if path == "-" or path.lower().endswith((".csv", ".tsv", ".txt", ".json")):
            return values.read_file(path, self._dtype(index, name))
        return values.read_file(path)

    def _dtype(self, index: int, name: str) -> str | None:
        """The dtype that the model takes there, as far as one can know."""
        if self._specs is None:
            self._specs = self._look_up()
        if name:
            return next((spec.dtype or None for spec in self._specs if spec.name == name), None)
        return (self._specs[index].dtype or None) if index < len(self._specs) else None

    def _look_up(self) -> list[Any]:
        from keyside.tensorstore.errors import KeysideError, Unreachable

        name, _, number = self._target.partition("@")
        try:
            info = self._client.model_info(name)
        except Unreachable:
            raise
        except KeysideError:
            return []  # the call itself says it better
        version = info.versions.get(int(number) if number.isdigit() else info.default or 0)
        return list(version.signature.inputs) if version is not None and version.signature is not None else []
