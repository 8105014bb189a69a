"""`keyside tensor`: tensors in and out."""

import contextlib
import json
import re
import sys
from typing import Any

import click

from keyside.clients.cli.common import State, clean, common, human_bytes, option, say, table

__all__ = ["tensor"]

STATISTICS_MAX = 64 << 20
"""Larger tensors are not read to show their statistics."""

_DTYPE = option("--dtype", metavar="DTYPE", help="Such as FLOAT, INT64, BOOL, STRING. [default: by the values]")


@click.group()
def tensor() -> None:
    """Set, get, show, list and remove tensors."""


@tensor.command("set", context_settings={"ignore_unknown_options": True})  # negative numbers look like options
@click.argument("key")
@click.argument("values", nargs=-1, required=True, metavar="VALUE... | @FILE")
@_DTYPE
@click.option("--shape", metavar="DIMS", help="Such as 1,4; one dim may be -1. [default: as it comes]")
@option("--ex", type=float, metavar="SECONDS", help="Time to live. [default: for ever]")
@common
def set_tensor(
    state: State, key: str, values: tuple[str, ...], dtype: str | None, shape: str | None, ex: float | None
) -> None:
    """Write a tensor: of numbers or words, or of a file.

    \b
      keyside tensor set x 5.1 3.5 1.4 0.2 --shape 1,4
      keyside tensor set x @x.npy           also .npz (@x.npz#name), .csv, .json
      some-program | keyside tensor set x @-

    Whole numbers become INT64, other numbers FLOAT, all else STRING, unless --dtype says otherwise. A .npy file keeps
    its dtype. In a .csv file a first line without numbers is taken for the names of the columns.
    """  # noqa: D301  # click wants the character
    from keyside.clients.cli import values as reading
    from keyside.tensorstore.errors import BadNpy, NoTensor

    dims = _dims(shape)
    if any(value.startswith("@") for value in values):
        if len(values) > 1:
            raise click.UsageError("@FILE stands alone")
        array = reading.read_file(values[0][1:], dtype)
    else:
        _refuse_options(values)
        array = reading.from_words(values, dtype)
    if dims is not None:
        array = reading.reshape(array, dims)
    with state.client() as client:
        with contextlib.suppress(NoTensor, BadNpy):  # what is missing or damaged may be written; a model may not
            client.meta(key)
        client.set(key, array, ex=ex)
        meta = client.meta(key)
    state.emit(_described(key, meta), "")
    say(f"{key}: {_short(meta)}")


@tensor.command("get")
@click.argument("key")
@click.option("-o", "--output", metavar="FILE", help="A .npy, .json or .csv file. [default: stdout]")
@click.option(
    "--format", "form", type=click.Choice(["npy", "json", "csv", "text"]),
    help="On stdout. [default: text on a terminal, else npy]",
)  # fmt: skip
@common
def get_tensor(state: State, key: str, output: str | None, form: str | None) -> None:
    """Read a tensor, to a file or to stdout.

    \b
      keyside tensor get y                  on a terminal: for people
      keyside tensor get y > y.npy
      keyside tensor get y -o y.csv
      keyside tensor get y --json | jq .values
    """  # noqa: D301  # click wants the character
    from keyside.clients.cli import values as writing
    from keyside.tensorstore import npy

    with state.client() as client:
        array = client.get(key)
    if output:
        writing.write_file(output, array)
        say(f"{output}: {array.size} elements")
        state.emit({"key": key, "file": output}, "")
        return
    form = form or ("json" if state.json else "text" if sys.stdout.isatty() else "npy")
    if form == "npy":
        out = sys.stdout.buffer
        header, data = npy.encode(array)
        out.write(header)
        out.write(data)
        out.flush()
    elif form == "json":
        click.echo(json.dumps({"key": key, **writing.to_json(array)}, ensure_ascii=False))
    elif form == "csv":
        click.echo(writing.to_csv(array), nl=False)
    else:
        click.echo(clean(writing.to_text(array)))


@tensor.command("show")
@click.argument("key")
@common
def show_tensor(state: State, key: str) -> None:
    """Show what a tensor is: dtype, shape, size, time to live, and some statistics."""
    from keyside.clients.admin import command
    from keyside.clients.cli.nodes import client_of_owner

    with state.client() as client:
        meta = client.meta(key)
        array = client.get(key) if meta.nbytes <= STATISTICS_MAX else None
    with state.connect() as entry, client_of_owner(entry, key) as owner:
        ttl_ms = int(command(owner, "PTTL", key))
    data = {**_described(key, meta), "ttl_ms": ttl_ms if ttl_ms >= 0 else None}
    if array is not None:
        data |= _statistics(array)
    ttl = "none" if ttl_ms < 0 else f"{ttl_ms / 1000:g} s"
    shown: dict[str, Any] = {**data, "bytes": human_bytes(meta.nbytes), "ttl_ms": ttl}
    lines = [f"{name.removesuffix('_ms'):<7}  {value}" for name, value in shown.items()]
    state.emit(data, clean("\n".join(lines)))


@tensor.command("ls")
@click.argument("prefix", default="")
@click.option("-l", "--long", is_flag=True, help="With dtype, shape and size.")
@common
def list_tensors(state: State, prefix: str, long: bool) -> None:
    """List tensors, or those whose names begin with PREFIX."""
    from keyside.tensorstore.errors import BadNpy, NoTensor, WrongType

    with state.client() as client:
        names = sorted(client.tensors(prefix))
        metas: dict[str, Any] = {}
        for name in names if long else ():
            try:
                metas[name] = client.meta(name)
            except (NoTensor, WrongType):
                continue  # it has gone meanwhile
            except BadNpy as error:
                say(f"{clean(name)} is damaged: {error}")
    if long:
        rows = [(name, meta.dtype, list(meta.shape), human_bytes(meta.nbytes)) for name, meta in metas.items()]
        text = table(("KEY", "DTYPE", "SHAPE", "SIZE"), rows) if rows else ""
        state.emit([_described(name, meta) for name, meta in metas.items()], text)
    else:
        state.emit([{"key": name} for name in names], "\n".join(map(clean, names)))
    if not names:
        say("no tensors" + (f" that begin with {prefix}" if prefix else ""))


@tensor.command("rm")
@click.argument("keys", nargs=-1, required=True, metavar="KEY...")
@common
def remove_tensors(state: State, keys: tuple[str, ...]) -> None:
    """Remove tensors. Keys of any other type are refused."""
    with state.client() as client:
        for key in keys:
            client.meta(key)
        count = client.delete(*keys)
    state.emit({"removed": count}, "")
    say(f"{count} removed")


def _refuse_options(values: tuple[str, ...]) -> None:
    for value in values:
        if value.startswith("-") and not re.fullmatch(r"-([\d.].*|inf|infinity|nan)", value, re.IGNORECASE):
            raise click.NoSuchOption(value)


def _dims(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(int(dim) for dim in re.split(r"[,x]", text.strip()) if dim.strip())
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 1,4", param_hint="--shape") from None


def _described(key: str, meta: Any) -> dict[str, Any]:
    return {"key": key, "dtype": meta.dtype, "shape": list(meta.shape), "bytes": meta.nbytes}


def _short(meta: Any) -> str:
    return f"{meta.dtype} {list(meta.shape)}, {human_bytes(meta.nbytes)}"


def _statistics(array: Any) -> dict[str, Any]:
    import numpy as np

    from keyside.clients.cli.values import to_json

    found: dict[str, Any] = {"first": to_json(array.ravel()[:8])["values"]}
    if array.dtype.kind in "iuf" and array.size:
        finite = array[np.isfinite(array)] if array.dtype.kind == "f" else array
        if finite.size:
            lowest, highest = to_json(finite.min())["values"], to_json(finite.max())["values"]
            found |= {"min": lowest, "max": highest, "mean": float(finite.mean(dtype=np.float64))}
        if array.dtype.kind == "f":
            found |= {"nan": int(np.isnan(array).sum()), "inf": int(np.isinf(array).sum())}
    return found
