"""The process begins anew in its place: same command line, environment and process id, so that no supervisor is needed.

A thread that is stuck in a model's code cannot be ended otherwise.
"""

import contextlib
import dataclasses
import json
import os
import signal
import sys
from collections.abc import Iterator, MutableMapping
from typing import NoReturn

__all__ = ["History", "Requests", "again", "end", "listening"]

VARIABLE = "KEYSIDE_HISTORY"
"""What one life of the process tells the next."""
STOPS = (signal.SIGTERM, signal.SIGINT)
WINDOW_S = 600.0
KEPT = 100


@dataclasses.dataclass
class History:
    """What earlier lives of this process have given up.

    Attributes:
        runs: runs abandoned.
        loads: loads abandoned.
        lately: id of the version and wall-clock time of each within the last ten minutes.
    """

    runs: int = 0
    loads: int = 0
    lately: list[tuple[str, float]] = dataclasses.field(default_factory=list)

    @classmethod
    def take(cls, environ: MutableMapping[str, str] = os.environ) -> "History":
        """Read it, out of the environment: children have no use for it. What cannot be read is a new one."""
        try:
            runs, loads, lately = json.loads(environ.pop(VARIABLE, "") or "[0, 0, []]")
            return cls(int(runs), int(loads), [(str(model), float(when)) for model, when in lately])
        except (ValueError, TypeError):
            return cls()

    def strike(self, model_id: str, now: float) -> None:
        """Add that a version was given up."""
        self.lately = [one for one in self.lately if now - WINDOW_S < one[1] <= now][1 - KEPT :]
        self.lately.append((model_id, now))

    def strikes(self, model_id: str, now: float) -> int:
        """Return how often a version was given up within the last ten minutes."""
        return sum(model == model_id and now - WINDOW_S < when <= now for model, when in self.lately)

    def text(self) -> str:
        """Return it as `take` reads it."""
        return json.dumps([self.runs, self.loads, self.lately])


def again(history: History) -> NoReturn:
    """Begin anew, on any thread; all others end where they are.

    A request to stop that comes now is held back until the next life can take it (`listening`).
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)
    os.environ[VARIABLE] = history.text()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    program = sys.executable or sys.orig_argv[0]
    try:
        os.execv(program, [sys.orig_argv[0], *sys.orig_argv[1:]])  # noqa: S606  # the command that was started
    except OSError as error:
        with contextlib.suppress(OSError, ValueError):
            sys.stderr.write(f"keyside executor: cannot start {program} again: {error}\n")
    end(75)  # whoever supervises it starts it


def end(code: int) -> NoReturn:
    """End the process though threads are in the code of models: the interpreter's own way out may crash over them."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    os._exit(code)


class Requests:
    """Tells whether a request to stop came that Python could not act on: its main thread may be stuck in a model."""

    def __init__(self, reader: int) -> None:
        self._reader = reader
        self._came = 0.0

    def since(self, now: float) -> float:
        """Return for how many seconds it has been known that one came; 0: none did.

        Args:
            now: monotonic seconds.
        """
        if not self._came:
            with contextlib.suppress(BlockingIOError, OSError):
                if set(os.read(self._reader, 512)) & set(STOPS):
                    self._came = now
        return max(now - self._came, 1e-9) if self._came else 0.0


@contextlib.contextmanager
def listening() -> Iterator[Requests]:
    """Let requests to stop come; their handlers are in place. On the main thread."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    try:
        yield Requests(reader)
    finally:
        signal.set_wakeup_fd(before)
        os.close(reader)
        os.close(writer)
