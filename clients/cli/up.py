"""`keyside up`: a server and an executor, kept running until Ctrl-C."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar

import click

from keyside.clients.cli.common import DATA_DIR, State, common, need, option, redacted, say
from keyside.clients.cli.executor import read_settings, setting_options
from keyside.tensorstore.errors import KeysideError, StateError

if TYPE_CHECKING:
    from keyside.clients.server import EmbeddedServer

__all__ = ["up"]


class NotUp(StateError):
    """The executor does not start."""

    code: ClassVar[str] = "NOSTART"


class Unclean(StateError):
    """Not all ended as it should when it was told to stop."""

    code: ClassVar[str] = "UNCLEAN"


DEFAULT_PORT = 6399  # not 6379: a Redis of the user's may run there
TICK_S = 0.1
STEADY_S = 30.0  # what ran that long starts again at once
PAUSES = (0.5, 10.0)
TRIES = 3  # starts of an executor that never became ready


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
    environment = {f"KEYSIDE_{name.upper()}": _text(value) for name, value in given.items() if value is not None}
    keeper = Keeper(environment, settings.drain_s)
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
                _announce(state, keeper.start(named), named, None)
            else:
                server = _start_server(keeper, data_dir, port, server_bin, maxmemory)
                _announce(state, keeper.start(server.url), server.url, server)
            keeper.keep()
    except KeyboardInterrupt:
        say("stopped before all was up")
    finally:
        orderly = keeper.stop()
    if not orderly:
        raise Unclean("not all ended as it should: what was said about it is above")
    say("stopped")


def _text(value: object) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


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
    keeper.server = server
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


class Keeper:
    """Keeps a server and an executor running.

    Args:
        environment: Variables for the executor besides ours.
        drain_s: How long the executor may take to stop.

    Attributes:
        server: The server, if it is ours.
    """

    def __init__(self, environment: dict[str, str], drain_s: float) -> None:
        self.server: EmbeddedServer | None = None
        self._environment = environment
        self._drain_s = drain_s
        self._executor: Any = None
        self._started = 0.0
        self._pause = PAUSES[0]
        self._asked = threading.Event()
        self._times_asked = 0
        self._interruptible = False

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take SIGINT, SIGTERM and SIGHUP as the request to stop."""

        def ask(_number: int, _frame: types.FrameType | None) -> None:
            self._times_asked += 1
            self._asked.set()
            if self._interruptible:
                raise KeyboardInterrupt

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it, for one
                signal.signal(number, ask)
        yield  # they stay: a second request must not end us while we stop

    @contextlib.contextmanager
    def interruptible(self) -> Iterator[None]:
        """Let the request to stop break off what takes long and can be broken off.

        Raises:
            KeyboardInterrupt: It came.
        """
        self._interruptible = True
        try:
            if self._asked.is_set():
                raise KeyboardInterrupt
            yield
        finally:
            self._interruptible = False

    def start(self, url: str) -> int:
        """Start the executor and wait until it serves; return its process id.

        Raises:
            KeysideError: It ends again and again.
            KeyboardInterrupt: The request to stop came.
        """
        self._environment["KEYSIDE_URL"] = url
        for attempt in range(TRIES):
            if attempt and self._asked.wait(self._pause):
                break
            self._spawn()
            while (code := self._executor.poll()) is None:
                if self._asked.wait(TICK_S):
                    raise KeyboardInterrupt
                if self._is_ready(url):
                    pid: int = self._executor.pid
                    return pid
            say(f"the executor ended with {_described(code)} before it was ready")
        if self._asked.is_set():
            raise KeyboardInterrupt
        raise NotUp("the executor does not start: what it says is above")

    def keep(self) -> None:
        """Start again what ends, until the request to stop comes.

        Raises:
            NoServer: The server does not start again.
        """
        restart_at = 0.0
        while not self._asked.wait(TICK_S):
            if self.server is not None and (code := self.server.poll()) is not None:
                say(f"the server ended with {_described(code)}; it is started again (log: {self.server.log_path})")
                with self.interruptible():
                    self.server.restart()
            code = self._executor.poll()
            now = time.monotonic()
            if code is None:
                continue
            if not restart_at:
                if now - self._started > STEADY_S:
                    self._pause = PAUSES[0]
                say(f"the executor ended with {_described(code)}; it is started again in {self._pause:g} s")
                restart_at = now + self._pause
                self._pause = min(self._pause * 2, PAUSES[1])
            elif now >= restart_at:
                restart_at = 0.0
                self._spawn()

    def stop(self) -> bool:
        """End the executor, then the server; return whether both ended as they should."""
        orderly = True
        if self._executor is not None and self._executor.poll() is None:
            say("stopping")
            orderly = self._stop_executor()
        if self.server is not None and not self.server.stop():
            say("the server did not stop in time and was killed")
            orderly = False
        return orderly

    def _stop_executor(self) -> bool:
        self._executor.signal(signal.SIGTERM)
        asked = max(self._times_asked, 1)
        end = time.monotonic() + self._drain_s + 15
        while (code := self._executor.wait(TICK_S)) is None:
            if self._times_asked > asked:
                say("not waiting for the executor: the jobs that it has claimed run when one serves again")
                self._executor.kill()
                return True
            if time.monotonic() > end:
                say("the executor did not stop in time and was killed")
                self._executor.kill()
                return False
        if code:
            say(f"the executor ended with {_described(code)}")
        return not code

    def _spawn(self) -> None:
        from keyside.clients.child import Child

        self._started = time.monotonic()
        command = [sys.executable, "-m", "keyside.executor"]
        self._executor = Child(command, env={**os.environ, **self._environment}, output=sys.stderr.fileno())

    def _is_ready(self, url: str) -> bool:
        from keyside.clients.admin import connect
        from keyside.clients.cli.node import executors

        try:
            with connect(url) as client:
                return any(one.get("pid") == self._executor.pid for one in executors(client))
        except KeysideError:
            return False


def _described(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
