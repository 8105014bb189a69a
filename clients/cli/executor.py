"""`keyside executor`, and the options that say how an executor shall work."""

import dataclasses
import re
import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from keyside.clients.cli.common import State, common, need

__all__ = ["executor", "read_settings", "setting_options"]

_F = TypeVar("_F", bound=Callable[..., Any])
_LATER = frozenset({"url"})  # a global option


def descriptions() -> dict[str, str]:
    """Return what the docstring of the settings says about each."""
    from keyside.executor.settings import Settings

    _, _, text = (Settings.__doc__ or "").partition("Attributes:\n")
    found: dict[str, str] = {}
    name = ""
    for line in text.splitlines():
        if match := re.match(r" {8}(\w+): (.+)", line):
            name = match[1]
            found[name] = match[2].strip()
        elif name and line.strip():
            found[name] += " " + line.strip()
    return found


def setting_options(command: _F) -> _F:
    """Give a command one option for each setting of an executor.

    Their values are text, checked by the settings themselves, which read the variables too.
    """
    from keyside.executor.settings import Settings, variable

    helps = descriptions()
    for field in reversed(dataclasses.fields(Settings)):
        if field.name in _LATER:
            continue
        flag = "--" + field.name.replace("_", "-")
        text = helps[field.name]
        details = [f"env var: {variable(field.name)}"]
        if field.default is not dataclasses.MISSING and field.default not in (None, False, ""):
            default = field.default
            shown = ",".join(default) if isinstance(default, tuple) else f"{default}"
            details.append(f"default: {shown}")
        text = f"{text[0].upper()}{text[1:]}  [{'; '.join(details)}]"
        if field.type is bool or field.type == "bool":
            command = click.option(f"{flag}/--no-{flag[2:]}", field.name, default=None, help=text)(command)
        else:
            command = click.option(flag, field.name, metavar=_metavar(field.name), help=text)(command)
    return command


def _metavar(name: str) -> str:
    for ending, word in (
        ("_ms", "MS"),
        ("_s", "SECONDS"),
        ("_dir", "DIR"),
        ("devices", "NAME,.."),
        ("functions", "MODULE,.."),
    ):
        if name.endswith(ending):
            return word
    return {
        "name": "TEXT",
        "http_host": "HOST",
        "peer_url": "URL",
        "memory_budget": "SIZE",
        "run_memory": "SIZE",
        "log_level": "LEVEL",
    }.get(name, "FORMAT" if name == "log_format" else "N")


def read_settings(url: str, given: dict[str, Any]) -> Any:
    """Return the settings that options and variables make.

    Raises:
        click.UsageError: One of them is malformed or out of range.
    """
    from keyside.executor.settings import Settings, SettingsError

    try:
        return Settings.from_env(url=url, **given)
    except SettingsError as error:
        raise click.UsageError(str(error)) from None


@click.command()
@setting_options
@common
def executor(state: State, **given: Any) -> None:
    """Run an executor for a server that runs already, until SIGTERM or Ctrl-C.

    It loads the function library if the server has none or an older one. When it is told to stop, it ends the jobs that
    it has claimed (for at most --drain-s seconds) and leaves the others to the other executors.
    """
    need("keyside executor", "executor", "structlog", "prometheus_client", "onnxruntime")
    settings = read_settings(state.server_url(), given)
    from keyside.executor.__main__ import serve

    sys.exit(serve(settings))
