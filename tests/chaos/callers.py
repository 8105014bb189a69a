"""Processes of callers, as the harness starts, ends, kills and sums them up."""

import contextlib
import json
import select
import subprocess
import sys
import time
from collections import Counter
from dataclasses import asdict
from typing import Any

from tests.chaos.caller import Config, Result
from tests.servers import ROOT

__all__ = ["Callers", "Process"]


class Process:
    """One process of callers."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.chaos.caller", json.dumps(asdict(config))],
            cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def order(self, line: str) -> None:
        """Tell it something; `answer` has what it says."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def answer(self, seconds: float) -> dict[str, Any]:
        """Wait for what it says.

        Raises:
            TimeoutError: it says nothing.
        """
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            raise TimeoutError(f"caller {self.config.number} says nothing for {seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise TimeoutError(f"caller {self.config.number} has ended with {self._process.wait(5)}")
        said: dict[str, Any] = json.loads(line)
        return said

    def kill(self) -> None:
        """SIGKILL: what it had in flight is nobody's now."""
        self._process.kill()
        self._process.communicate()

    def end(self) -> None:
        """Let it close its connections and end."""
        with contextlib.suppress(BrokenPipeError, ValueError):
            assert self._process.stdin is not None
            self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Callers:
    """All of them."""

    def __init__(self, configs: list[Config]) -> None:
        self.running = [Process(config) for config in configs]
        self.killed = 0
        self.total = Result()
        self.checked = 0
        self.doubled: list[str] = []
        self.unsure = 0
        self._next = max(config.number for config in configs) + 1

    def replace(self, index: int) -> None:
        """Kill one, with all that it has in flight, and start another in its place."""
        old = self.running[index]
        old.kill()
        self.killed += 1
        config = Config(**{**asdict(old.config), "number": self._next})
        self._next += 1
        self.running[index] = Process(config)

    def done(self, seconds: float) -> None:
        """Wait until each has made the calls that it was told to make."""
        ends = time.monotonic() + seconds
        for process in self.running:
            process.answer(max(ends - time.monotonic(), 0.1))

    def stop(self, seconds: float) -> Result:
        """End the load; what all of them have counted."""
        for process in self.running:
            process.order("stop")
        for process in self.running:
            try:
                said = process.answer(seconds)
            except TimeoutError as error:
                self.total.hung.append(str(error))
                continue
            self._add(said)
        return self.total

    def _add(self, said: dict[str, Any]) -> None:
        total = self.total
        for name in ("calls", "right", "codes"):
            getattr(total, name).update(Counter(said[name]))
        for name in ("wrong", "hung", "late", "strange", "odd", "places"):
            getattr(total, name).extend(said[name])
        total.jobs += said["jobs"]
        total.bare += said["bare"]
        total.latest = max(total.latest, said["latest"])

    def check(self, unsure: list[tuple[float, float]], seconds: float) -> None:
        """Let each look at what it has written."""
        for process in self.running:
            process.order("check " + json.dumps(unsure))
        for process in self.running:
            said = process.answer(seconds)
            self.checked += said["looked"]
            self.doubled += said["doubled"]
            self.unsure += said["unsure"]

    def end(self) -> None:
        """End all of them."""
        for process in self.running:
            process.end()
