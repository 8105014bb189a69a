"""How much memory there is, and how much of it this process has."""

import contextlib
import os
from pathlib import Path

__all__ = ["resident", "total"]

_STATM = Path("/proc/self/statm")
_CGROUPS = Path("/sys/fs/cgroup")


def resident() -> int:
    """Return how many bytes of this process are in memory; 0 where the system does not tell."""
    try:
        return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


def total(root: Path = _CGROUPS, own: Path = Path("/proc/self/cgroup")) -> int:
    """Return how many bytes this process could have: those of the machine, or of its cgroup if that has fewer.

    0: nobody knows.

    Args:
        root: where the cgroups are mounted.
        own: the file that says which one is that of this process.
    """
    found = []
    with contextlib.suppress(OSError, ValueError, AttributeError):
        found.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
    for place in _places(root, own):
        with contextlib.suppress(OSError, ValueError):  # `max` is no number: no limit
            found.append(int(place.read_text()))
    return min((size for size in found if size > 0), default=0)


def _places(root: Path, own: Path) -> list[Path]:
    """Return the files that may hold a limit: of the cgroup, and of those around it."""
    places = [root / "memory.max", root / "memory" / "memory.limit_in_bytes"]
    with contextlib.suppress(OSError):
        for line in own.read_text().splitlines():
            number, _, path = line.partition("::")
            if number == "0" and path.startswith("/") and ".." not in path:
                inner = root
                for part in path.strip("/").split("/"):
                    inner = inner / part
                    places.append(inner / "memory.max")
    return places
