"""Processes of contenders: what they and their children cost, and their end."""

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

__all__ = ["cpu_seconds", "rss_mb", "stop_tree", "tree"]

TICKS = os.sysconf("SC_CLK_TCK")


def _stat(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def tree(pid: int) -> list[int]:
    """Return a process and its descendants, found by their parents: some servers rewrite their environment."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                children.setdefault(int(_stat(int(entry.name))[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:
        found += children.get(parent, [])
    return found


def cpu_seconds(pid: int, known: Sequence[int] | None = None) -> float:
    """Return the CPU time that a process and its descendants have used, those included that have ended.

    Args:
        pid: the process.
        known: what `tree` says of it, where looking again would disturb what is measured.
    """
    total = 0.0
    for one in tree(pid) if known is None else known:
        with contextlib.suppress(OSError):
            # The process's own clock, as clock_getcpuclockid(3) has it: /proc counts ticks of 10 ms, too coarse for
            # what one client costs. Of children that have ended, /proc alone knows.
            total += time.clock_gettime((~one << 3) | 2)
            total += sum(int(field) for field in _stat(one)[13:15]) / TICKS
    return total


def rss_mb(pid: int) -> float:
    """Return the memory of a process tree in MB, with what processes share counted in parts (PSS)."""
    total = 0
    for one in tree(pid):
        with contextlib.suppress(OSError):
            for line in Path(f"/proc/{one}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1])
    return total / 1000


def stop_tree(process: "subprocess.Popen[bytes]", seconds: float = 10.0) -> None:
    """End a process and all that it has started: some leave their children behind."""
    pids = tree(process.pid)
    process.terminate()
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(seconds)
    left = _alive(pids)
    for number in (signal.SIGTERM, signal.SIGKILL):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, number)
        end = time.monotonic() + 3
        while (left := _alive(left)) and time.monotonic() < end:
            time.sleep(0.02)
            process.poll()
    process.wait(seconds)


def _alive(pids: Sequence[int]) -> list[int]:
    found = []
    for pid in pids:
        with contextlib.suppress(OSError):
            if _stat(pid)[0] != "Z":
                found.append(pid)
    return found
