"""Processes that end when this one does."""

import contextlib
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from typing import IO, Any

__all__ = ["Child"]

# Waits for the end of the pipe, which comes when the parent is gone, however it ended. Unlike PR_SET_PDEATHSIG it does
# not take the end of the thread that started the child for the end of the parent, and it works on every Unix.
_GUARD = (
    "read -r pid || exit 0; read -r _; kill -TERM $pid || exit 0; "
    "n=0; while kill -0 $pid 2>/dev/null && [ $n -lt 60 ]; do sleep 1; n=$((n+1)); done; kill -KILL $pid"
)


class Child:
    """A process that ends when this one does: it gets SIGTERM, and SIGKILL a minute later.

    It is in a session of its own, so that Ctrl-C in a terminal reaches this process only.

    Args:
        command: Program and arguments.
        env: Its environment; None: ours.
        output: Where its stdout and stderr go.
        pass_fds: Open files that it inherits.
    """

    def __init__(
        self,
        command: Sequence[str],
        *,
        env: Mapping[str, str] | None = None,
        output: IO[Any] | int | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        self._guard = subprocess.Popen(  # noqa: S603  # our own command
            ["/bin/sh", "-c", _GUARD],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        assert self._guard.stdin is not None  # noqa: S101  # it is a pipe
        self._pipe = self._guard.stdin
        started: list[subprocess.Popen[bytes] | OSError] = []
        decided, wanted = threading.Event(), threading.Event()

        def start() -> None:
            decided.wait()
            if not wanted.is_set():
                return
            try:
                process = subprocess.Popen(  # noqa: S603  # our own commands
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    env=env,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            except OSError as error:
                started.append(error)
            else:
                started.append(process)

        # On a thread: Ctrl-C, which only the main one gets, would otherwise leave a process behind that nobody knows.
        starter = threading.Thread(target=start)
        try:
            starter.start()
            wanted.set()
            decided.set()
            starter.join()
            (process,) = started
            if isinstance(process, OSError):
                raise process
            self._pipe.write(b"%d\n" % process.pid)
            self._pipe.flush()
        except BaseException:  # until the guard knows it, nobody else would end it
            if not decided.is_set():
                wanted.clear()  # it may be interrupted even before it is known whether the thread runs
                decided.set()
            if starter.ident is not None:
                starter.join()
            for one in started:
                if isinstance(one, subprocess.Popen):
                    one.kill()
                    one.wait()
            self._release()
            raise
        self._process = process
        self.pid = process.pid

    def poll(self) -> int | None:
        """Return the exit code, negative for a signal; None while it runs."""
        code = self._process.poll()
        if code is not None:
            self._release()
        return code

    def wait(self, timeout: float) -> int | None:
        """Wait for its end; return the exit code, or None if it still runs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout)
        return self.poll()

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, unless it has ended."""
        if self._process.poll() is None:
            self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self.signal(signal.SIGKILL)
        self._process.wait()
        self._release()

    def _release(self) -> None:
        if self._guard.returncode is None:
            self._guard.kill()
            self._guard.wait()
        with contextlib.suppress(OSError):
            self._pipe.close()
