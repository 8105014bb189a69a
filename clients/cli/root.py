"""The command `keyside` itself: its global options, and its commands, each loaded when it is called."""

import importlib
import os
import sys
from collections.abc import Callable
from typing import Any

import click

from keyside.clients.cli.common import State, fail, flag, option
from keyside.tensorstore.errors import KeysideError

__all__ = ["LazyGroup", "cli"]


class LazyGroup(click.Group):
    """A group that imports the module of a command when the command is called.

    Args:
        commands: For each command: `module:name`, and its line in the help.
    """

    def __init__(self, *args: Any, lazy: dict[str, tuple[str, str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  # click's signature
        """Names of the commands, in the order in which they are written."""
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002  # click's signature
        """Import a command."""
        if cmd_name not in self._lazy:
            return None
        module, _, name = self._lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), name)
        assert isinstance(command, click.Command)  # noqa: S101  # the table below is ours
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002  # click's signature
        """Write the list of commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self._lazy.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; what goes wrong becomes one line on stderr and exit code 1."""
        return _guarded(lambda: super(LazyGroup, self).invoke(ctx))


def _guarded(run: Callable[[], Any]) -> Any:
    try:
        return run()
    except KeysideError as error:
        fail(str(error))
    except BrokenPipeError:
        raise  # the reader of our output has gone: click ends quietly
    except KeyboardInterrupt:
        click.echo(err=True)
        sys.exit(130)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        fail(f"ERR {where}{error.strerror or error}")
    except (click.ClickException, click.Abort, click.exceptions.Exit):
        raise
    except Exception as error:
        if os.environ.get("KEYSIDE_DEBUG"):
            raise
        fail(f"ERR internal error, {type(error).__name__}: {error} (KEYSIDE_DEBUG=1 shows where)")


_HERE = "keyside.clients.cli"


@click.group(
    cls=LazyGroup,
    lazy={
        "up": (f"{_HERE}.up:up", "Start a server and an executor, and keep them running."),
        "cluster": (f"{_HERE}.cluster:cluster", "Start a cluster with executors on this machine, for development."),
        "executor": (f"{_HERE}.executor:executor", "Run an executor for a server that runs already."),
        "install": (f"{_HERE}.install:install", "Load the function library into a server."),
        "acl": (f"{_HERE}.acl:acl", "Print, apply and check ACL rules for users of a role."),
        "tensor": (f"{_HERE}.tensor:tensor", "Set, get, show, list and remove tensors."),
        "model": (f"{_HERE}.model:model", "Store, show, list and remove models."),
        "script": (f"{_HERE}.script:script", "Store, show, list, run and remove scripts and functions."),
        "graph": (f"{_HERE}.graph:graph", "Check, store, show, list and remove stored graphs."),
        "trigger": (f"{_HERE}.trigger:trigger", "Set, show, list, watch and remove triggers."),
        "run": (f"{_HERE}.run:run", "Run a model on files, values or keys."),
        "status": (
            f"{_HERE}.status:status",
            "Show each node: slots, executors, queues, models; and what is wrong.",
        ),
        "dead": (f"{_HERE}.dead:dead", "Show, retry and drop dead letters: jobs that were given up."),
        "info": (f"{_HERE}.info:info", "Show a server, its executors, its queues and its memory."),
        "doctor": (f"{_HERE}.doctor:doctor", "Find out what is wrong, and how to fix it."),
        "completion": (f"{_HERE}.completion:completion", "Print the completion script of a shell."),
    },
    context_settings={"help_option_names": ["-h", "--help"]},
)
@option("--url", metavar="URL", help="The server: redis://, rediss:// or unix://. [default: that of REDIS_URL]")
@flag("--json", "as_json", help="Write JSON to stdout.")
@click.version_option(package_name="keyside", message="keyside %(version)s")
@click.pass_context
def cli(ctx: click.Context, url: str | None, as_json: bool) -> None:
    """Tensors and models as keys in Redis or Valkey, executors beside them.

    What a command gives goes to stdout, what it has to say to stderr. The exit code is 0, 1 if it failed, 2 if it was
    called wrongly. Options have twins among the environment variables, which their help names.
    """
    ctx.obj = State(url=url or None, json=as_json)
