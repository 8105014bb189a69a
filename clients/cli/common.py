"""What all commands share: the global options, the server that is meant, output, errors."""

import dataclasses
import functools
import importlib.util
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn, TypeVar

import click

from keyside.tensorstore.errors import StateError

if TYPE_CHECKING:
    import redis

__all__ = [
    "CLUSTER_DIR",
    "DATA_DIR",
    "NoServerNamed",
    "State",
    "clean",
    "common",
    "count",
    "fail",
    "flag",
    "human_age",
    "human_bytes",
    "need",
    "option",
    "redacted",
    "say",
    "table",
]

DATA_DIR = "keyside-data"
"""Where `keyside up` keeps its data if nothing else is said."""
CLUSTER_DIR = "keyside-cluster"
"""Likewise `keyside cluster`."""

_F = TypeVar("_F", bound=Callable[..., Any])


class NoServerNamed(StateError):
    """No server was named, and none of `keyside up` runs here."""

    code: ClassVar[str] = "NOSERVER"


class MissingExtra(StateError):
    """A command needs packages that are not installed."""

    code: ClassVar[str] = "NOEXTRA"


@dataclasses.dataclass(slots=True)
class State:
    """What was said with the global options.

    Attributes:
        url: The server as named with --url or KEYSIDE_URL.
        json: Whether stdout shall be JSON.
    """

    url: str | None = None
    json: bool = False

    def named_url(self) -> str:
        """Return the server that was named, by --url, KEYSIDE_URL or REDIS_URL; empty if none was."""
        return self.url or os.environ.get("REDIS_URL", "").strip()

    def server_url(self) -> str:
        """Return the server that was named; else that of a `keyside up`, or a `keyside cluster`, in this directory.

        Raises:
            NoServerNamed: There is neither.
        """
        named = self.named_url()
        if named:
            return named
        from keyside.clients.cluster_dev import running_cluster
        from keyside.clients.server import running

        folder = os.environ.get("KEYSIDE_DATA_DIR") or DATA_DIR
        url = running(folder) or running_cluster(os.environ.get("KEYSIDE_CLUSTER_DIR") or CLUSTER_DIR)
        if not url:
            raise NoServerNamed(
                f"no server: name one with --url, KEYSIDE_URL or REDIS_URL, or start one here with `keyside up` "
                f"(none runs on {folder})"
            )
        return url

    def connect(self) -> "redis.Redis":
        """Return a plain client of the server.

        Raises:
            KeysideError: No server was named, or its address is malformed.
        """
        from keyside.clients.admin import connect

        return connect(self.server_url())

    def client(self) -> Any:
        """Return Keyside's client of the server.

        Raises:
            KeysideError: No server was named, or it cannot be reached.
        """
        import keyside

        return keyside.Client(self.server_url())

    def emit(self, data: Any, text: str | None = None) -> None:
        """Write the result: as JSON if that was asked for, else as text."""
        if self.json or text is None:
            click.echo(json.dumps(data, ensure_ascii=False, default=str))
        elif text:
            click.echo(text)


# --- options


def option(*names: str, twin: str | None = None, **attributes: Any) -> Callable[[_F], _F]:
    """Declare an option whose twin is KEYSIDE_ and its name.

    Args:
        *names: As `click.option` takes them.
        twin: Name of the variable, if it is another.
        **attributes: As `click.option` takes them.
    """
    long = next(name for name in names if name.startswith("--"))
    variable = twin or "KEYSIDE_" + long.split("/")[0].lstrip("-").replace("-", "_").upper()
    return click.option(*names, envvar=variable, show_envvar=True, **attributes)


def flag(*names: str, **attributes: Any) -> Callable[[_F], _F]:
    """Declare an option without a value, with a twin."""
    return option(*names, is_flag=True, **attributes)


def common(command: Callable[..., Any]) -> Callable[..., Any]:
    """Let a command take --url and --json too, and give it the state as its first argument."""

    def url(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value:
            ctx.ensure_object(State).url = value

    def as_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(State).json = True

    @functools.wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return command(click.get_current_context().ensure_object(State), *args, **kwargs)

    with_json = click.option(
        "--json", is_flag=True, expose_value=False, callback=as_json, help="Write JSON to stdout."
    )(wrapped)
    return click.option("--url", metavar="URL", expose_value=False, callback=url, help="The server.")(with_json)


# --- output


def say(text: str) -> None:
    """Tell the user something that is not the result."""
    click.echo(clean(text), err=True)


def fail(text: str) -> NoReturn:
    """Say in one line what went wrong, and exit with code 1."""
    sys.stdout.flush()
    say(" ".join(text.split()))
    sys.exit(1)


def clean(text: str) -> str:
    """Replace what a terminal would take for commands: names of keys may hold anything."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else c.encode("unicode_escape").decode() for c in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Set rows under headers, in columns."""
    cells = [[clean(str(cell)).replace("\n", " ") for cell in row] for row in (headers, *rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in cells)
    return "\n".join(line.rstrip() for line in lines)


def human_bytes(count: float) -> str:
    """Write a number of bytes as people do."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def human_age(ms: float) -> str:
    """Write a time that has passed as people do."""
    seconds = ms / 1000
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.0f} h"


def count(number: int, what: str, many: str = "") -> str:
    """Write a number of things.

    Args:
        number: How many.
        what: One of them.
        many: Several, if it is not made with an s.
    """
    return f"{number:,} {what if number == 1 else many or what + 's'}"


def redacted(url: str) -> str:
    """Return an address without its password."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        if parts.password:
            user = f"{parts.username or ''}:***@"
            return parts._replace(netloc=user + parts.netloc.rpartition("@")[2]).geturl()
    except ValueError:
        return "(a malformed address)"
    return url


def need(command: str, extra: str, *modules: str) -> None:
    """Check that the packages of an extra are there.

    Raises:
        MissingExtra: One of them is not.
    """
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    if missing:
        raise MissingExtra(f"{command} needs {', '.join(missing)}: pip install 'keyside[{extra}]'")
