"""`keyside up`: a server and an executor, kept running until Ctrl-C."""

import os
import sys
from typing import TYPE_CHECKING, Any

import click

from keyside.clients.cli.common import DATA_DIR, State, common, need, option, redacted, say
from keyside.clients.cli.executor import read_settings, setting_options
from keyside.clients.cli.keeper import Keeper, KeptExecutor, Unclean, variables

if TYPE_CHECKING:
    from keyside.clients.server import EmbeddedServer

__all__ = ["up"]


DEFAULT_PORT = 6399  # not 6379: a Redis of the user's may run there


@click.command()
@option("--data-dir", metavar="DIR", default=DATA_DIR, show_default=True, help="Where the server keeps its data.")
@option(
    "--port", type=click.IntRange(0, 65535), default=DEFAULT_PORT, show_default=True,
    help="TCP port on 127.0.0.1 for ordinary clients; 0: the unix socket only, which is closed to other users.",
)  # fmt: skip
@option(
    "--server-bin", metavar="PATH",
    help="The server's program. [default: valkey-server or redis-server on PATH, else the bundled one]",
)  # fmt: skip
@option("--maxmemory", metavar="SIZE", help="Memory limit of the server, such as 2gb. [default: none]")
@setting_options
@common
@click.pass_context
def up(
    ctx: click.Context, state: State, /, data_dir: str, port: int, server_bin: str | None, maxmemory: str | None,
    **given: Any,
) -> None:  # fmt: skip
    """Start a server and an executor, and keep them running.

    Every write is on disk within a second. An executor that dies, of a model that crashes for instance, is started
    again. Ctrl-C or SIGTERM ends all in order: the executor finishes what it has claimed, then the server stops; once
    more does not wait for the executor.

    With --url, KEYSIDE_URL or REDIS_URL no server is started: the executor serves that one.
    """
    need("keyside up", "local", "structlog", "prometheus_client", "onnxruntime")
    from keyside.clients.admin import command

    named = state.named_url()
    settings = read_settings(named or "unix://", given)
    if maxmemory is not None:
        _check_size(maxmemory)
    keeper = Keeper(settings.drain_s)
    try:
        with keeper.listening():
            if named:
                ignored = [
                    f"--{name.replace('_', '-')}"
                    for name in ("data_dir", "port", "server_bin", "maxmemory")
                    if ctx.get_parameter_source(name) is not click.core.ParameterSource.DEFAULT
                ]
                say(
                    f"using the server at {redacted(named)}, named by --url, KEYSIDE_URL or REDIS_URL: none is started"
                    + (f" ({', '.join(ignored)}: no effect)" if ignored else "")
                )
                with state.connect() as client:
                    command(client, "PING")  # now: the executor would wait for it
                server, url = None, named
            else:
                server = _start_server(keeper, data_dir, port, server_bin, maxmemory)
                url = server.url
            executor = KeptExecutor(url, variables(given))
            keeper.start([executor])
            _announce(state, executor.pid, url, server)
            keeper.keep()
    except KeyboardInterrupt:
        say("stopped before all was up")
    finally:
        orderly = keeper.stop()
    if not orderly:
        raise Unclean("not all ended as it should: what was said about it is above")
    say("stopped")


def _check_size(text: str) -> None:
    from keyside.executor.settings import parse_bytes

    try:
        parse_bytes(text)
    except ValueError as error:
        raise click.UsageError(f"--maxmemory (KEYSIDE_MAXMEMORY): {error}, got {text!r}") from None


def _start_server(
    keeper: "Keeper", data_dir: str, port: int, server_bin: str | None, maxmemory: str | None
) -> "EmbeddedServer":
    from keyside.clients.server import EmbeddedServer
    from keyside.executor.settings import parse_bytes

    limit = str(parse_bytes(maxmemory)) if maxmemory else None
    server = EmbeddedServer(data_dir, server_bin=server_bin, port=port, maxmemory=limit)
    say(f"starting {server.binary} ({server.binary.path}, from {server.binary.source}) on {server.data_dir}")
    keeper.servers.append(server)
    with keeper.interruptible():
        server.start()
    return server


def _announce(state: State, executor_pid: int, url: str, server: "EmbeddedServer | None") -> None:
    """Say how to connect."""
    from urllib.parse import urlsplit

    facts: dict[str, Any] = {"url": url, "pid": os.getpid(), "executor_pid": executor_pid}
    shown = redacted(url)
    lines = ["", "Keyside is up. To connect:", ""]
    if server is not None:
        facts |= {
            "url_tcp": server.url_tcp,
            "server": str(server.binary),
            "server_pid": server.pid,
            "data_dir": str(server.data_dir),
        }
        if server.url_tcp:
            shown = server.url_tcp
            lines.append(f"  redis-cli -p {server.port}")
        lines.append(f"  redis-cli -s {server.socket_path}")
    elif urlsplit(url).scheme == "unix":
        lines.append(f"  redis-cli -s {urlsplit(url).path}")
    else:
        lines.append(f"  redis-cli -u {shown}")
    lines += [
        f"  python:   import keyside; client = keyside.Client({shown!r})",
        f"  keyside:  export KEYSIDE_URL={shown}    then: keyside doctor",
        "",
        "Ctrl-C stops it.",
    ]
    state.emit(facts, "\n".join(lines))
    sys.stdout.flush()
