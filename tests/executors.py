"""Executors as processes of their own, as users run them; tests may stop, wake and kill them."""

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.servers import Server, wait_until

__all__ = ["Executor"]


class Executor:
    """`python -m keyside.executor` for a server; a context manager.

    Args:
        server: it serves.
        **settings: as in `executor.settings.Settings`, such as lease_ms=500.
    """

    def __init__(self, server: Server, **settings: Any) -> None:
        self.server = server
        self.url = server.url_unix
        self.log = Path(tempfile.mkstemp(prefix="executor-", suffix=".log")[1])
        self.settings = settings
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Self:
        """Start it and wait until it has registered."""
        env = {k: v for k, v in os.environ.items() if not k.startswith(("KEYSIDE_", "REDIS_URL"))}
        env["KEYSIDE_URL"] = self.url
        for name, value in self.settings.items():
            env[f"KEYSIDE_{name.upper()}"] = str(value)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen([sys.executable, "-m", "keyside.executor"], env=env, stdout=log, stderr=log)
        try:
            # It takes a second of imports, which frequent looks would only hold up.
            wait_until(self.registered, "the executor registers", 30, every=0.03)
        except BaseException:
            self.process.kill()
            self.process.wait(10)
            raise
        return self

    def registered(self) -> bool:
        """Whether its heartbeat is there."""
        assert self.process is not None
        assert self.process.poll() is None, (
            f"the executor ended with {self.process.returncode}:\n{self.log.read_text()}"
        )
        pid = f'"pid": {self.process.pid}'.encode()
        with self.server.client() as client:
            return any(pid in (client.get(key) or b"") for key in client.scan_iter("ks:{*}:executor:*"))

    @property
    def pid(self) -> int:
        """Its process id."""
        assert self.process is not None
        return self.process.pid

    @property
    def output(self) -> str:
        """What it has logged."""
        return self.log.read_text()

    def pause(self) -> None:
        """SIGSTOP."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """SIGKILL."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(10)

    def stop(self) -> int:
        """SIGTERM, and wait; returns the exit code."""
        assert self.process is not None
        if self.process.poll() is None:
            os.kill(self.pid, signal.SIGCONT)
            self.process.terminate()
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(10)
                raise AssertionError(f"the executor did not stop:\n{self.output}") from None
        self.log.unlink(missing_ok=True)
        return self.process.returncode

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.stop()
