"""Keeps servers and executors running until Ctrl-C: what `keyside up` and `keyside cluster` share."""

import contextlib
import os
import signal
import sys
import threading
import time
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from keyside.clients.cli.common import say
from keyside.tensorstore.errors import KeysideError, StateError

if TYPE_CHECKING:
    from keyside.clients.server import EmbeddedServer

__all__ = ["Keeper", "KeptExecutor", "NotUp", "Unclean", "variables"]


class NotUp(StateError):
    """An executor does not start."""

    code: ClassVar[str] = "NOSTART"


class Unclean(StateError):
    """Not all ended as it should when it was told to stop."""

    code: ClassVar[str] = "UNCLEAN"


TICK_S = 0.1
WATCH_S = 1.0
STEADY_S = 30.0  # what ran that long starts again at once
PAUSES = (0.5, 10.0)
TRIES = 3  # starts of an executor that never became ready


def variables(given: Mapping[str, object]) -> dict[str, str]:
    """Return the environment variables that say to an executor what options said to us."""
    texts = {name: ("yes" if value else "no") if isinstance(value, bool) else value for name, value in given.items()}
    return {f"KEYSIDE_{name.upper()}": str(text) for name, text in texts.items() if text is not None}


class KeptExecutor:
    """An executor that is started again whenever it ends.

    Args:
        url: The server that it serves.
        environment: Variables for it besides ours.
        label: How it is called in what we say.
        log: The file for what it says; None: our stderr.
        awaited: Whether it has to serve before all counts as up; one that stands by does not.
    """

    def __init__(
        self,
        url: str,
        environment: Mapping[str, str],
        *,
        label: str = "the executor",
        log: Path | None = None,
        awaited: bool = True,
    ) -> None:
        self.url = url
        self.label = label
        self.log = log
        self.awaited = awaited
        self.starts = 0
        self._environment = {**environment, "KEYSIDE_URL": url}
        self._child: Any = None
        self._started = 0.0
        self._pause = PAUSES[0]
        self._again_at = 0.0

    @property
    def pid(self) -> int:
        """Its process id; 0 if it was not started."""
        return self._child.pid if self._child else 0

    @property
    def said(self) -> str:
        """Where to read what it said."""
        return f"in {self.log}" if self.log else "above"

    def spawn(self) -> None:
        """Start it."""
        from keyside.clients.child import Child

        self.starts += 1
        self._again_at = 0.0
        self._started = time.monotonic()
        command = [sys.executable, "-m", "keyside.executor"]
        env = {**os.environ, **self._environment}
        if self.log is None:
            self._child = Child(command, env=env, output=sys.stderr.fileno())
            return
        with self.log.open("ab") as log:
            self._child = Child(command, env=env, output=log)

    def look(self, *, serves: bool = True) -> bool:
        """Start it again, after a pause, if it has ended; return whether it runs.

        Args:
            serves: Whether it had come so far; if not, that is said.
        """
        code = self._child.poll()
        if code is None:
            return True
        now = time.monotonic()
        if not self._again_at:
            if now - self._started > STEADY_S:
                self._pause = PAUSES[0]
            end = f"it is started again in {self._pause:g} s" if serves else "before it was ready"
            say(f"{self.label} ended with {described(code)}{';' if serves else ''} {end}")
            self._again_at = now + self._pause
            self._pause = min(self._pause * 2, PAUSES[1])
        elif now >= self._again_at:
            self.spawn()
            return True
        return False

    def running(self) -> bool:
        """Whether it runs now."""
        return self._child is not None and self._child.poll() is None

    def is_ready(self) -> bool:
        """Whether it serves: its heartbeat is on the server."""
        from keyside.clients.admin import connect
        from keyside.clients.cli.node import executors

        try:
            with connect(self.url) as client:
                return any(one.get("pid") == self.pid for one in executors(client))
        except KeysideError:
            return False

    def ask_to_stop(self) -> None:
        """Send it the request to stop."""
        self._child.signal(signal.SIGTERM)

    def wait(self, seconds: float) -> int | None:
        """Wait for its end; return its exit code, or None if it still runs."""
        code: int | None = self._child.wait(seconds)
        return code

    def kill(self) -> None:
        """End it at once."""
        self._child.kill()


class Keeper:
    """Keeps servers and executors running.

    Args:
        drain_s: How long an executor may take to stop.

    Attributes:
        servers: The servers that are ours, in the order in which they are to be stopped.
        executors: The executors.
    """

    def __init__(self, drain_s: float) -> None:
        self.servers: list[EmbeddedServer] = []
        self.executors: list[KeptExecutor] = []
        self._drain_s = drain_s
        self._asked = threading.Event()
        self._times_asked = 0
        self._interruptible = False
        self._retry_at: dict[EmbeddedServer, float] = {}

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

    def start(self, executors: Sequence[KeptExecutor]) -> None:
        """Start executors, and wait until those that are awaited serve.

        Raises:
            NotUp: One of them ends again and again.
            KeyboardInterrupt: The request to stop came.
        """
        for one in executors:
            self.executors.append(one)
            one.spawn()
        waiting = [one for one in executors if one.awaited]
        while waiting:
            for one in list(waiting):
                if one.look(serves=False):
                    if one.is_ready():
                        waiting.remove(one)
                elif one.starts >= TRIES:
                    raise NotUp(f"{one.label} does not start: what it says is {one.said}")
            if waiting and self._asked.wait(TICK_S):
                raise KeyboardInterrupt

    def keep(self, watch: Callable[[], None] = lambda: None) -> None:
        """Start again what ends, until the request to stop comes.

        Args:
            watch: Is called about once in a second.

        Raises:
            NoServer: The only server does not start again.
        """
        watch_at = 0.0
        while not self._asked.wait(TICK_S):
            for server in self.servers:
                self._look_at(server)
            for one in self.executors:
                one.look()
            if time.monotonic() >= watch_at:
                watch()
                watch_at = time.monotonic() + WATCH_S

    def _look_at(self, server: "EmbeddedServer") -> None:
        from keyside.clients.server import NoServer

        code = server.poll()
        if code is None or time.monotonic() < self._retry_at.get(server, 0.0):
            return
        name = f"the server {server.name}" if len(self.servers) > 1 else "the server"
        if server not in self._retry_at:
            say(f"{name} ended with {described(code)}; it is started again (log: {server.log_path})")
        with self.interruptible():
            try:
                server.restart()
            except NoServer as error:
                if len(self.servers) == 1:
                    raise
                say(f"{name} does not start again, the next try is in {PAUSES[1]:g} s: {error}")
                self._retry_at[server] = time.monotonic() + PAUSES[1]
            else:
                self._retry_at.pop(server, None)

    def stop(self) -> bool:
        """End the executors, then the servers; return whether all ended as they should."""
        orderly = True
        running = [one for one in self.executors if one.running()]
        if running:
            asked = max(self._times_asked, 1)  # before it is said: what comes then is a further request
            say("stopping")
            orderly = self._stop(running, asked)
        for server in self.servers:
            if not server.stop():
                name = f"the server {server.name}" if len(self.servers) > 1 else "the server"
                say(f"{name} did not stop in time and was killed")
                orderly = False
        return orderly

    def _stop(self, running: list[KeptExecutor], asked: int) -> bool:
        for one in running:
            one.ask_to_stop()
        end = time.monotonic() + self._drain_s + 15
        orderly = True
        while running:
            code = running[0].wait(TICK_S)
            if code is not None:
                if code and code != -signal.SIGTERM:  # told to stop before it had begun
                    say(f"{running[0].label} ended with {described(code)}")
                    orderly = orderly and not running[0].awaited  # one that stood by had nothing to end
                running.pop(0)
            elif self._times_asked > asked:
                for one in running:
                    say(f"not waiting for {one.label}: the jobs that it has claimed run when one serves again")
                    one.kill()
                return orderly
            elif time.monotonic() > end:
                for one in running:
                    say(f"{one.label} did not stop in time and was killed")
                    one.kill()
                return False
        return orderly


def described(code: int) -> str:
    """Say how a process ended."""
    if code >= 0:
        return f"code {code}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"
