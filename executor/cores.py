"""How many cores this process may use."""

import os
from pathlib import Path

__all__ = ["allowed"]

_CGROUP = Path("/sys/fs/cgroup")


def allowed(cgroup: Path = _CGROUP) -> float:
    """Return the cores that this process may use: those it may run on, or fewer if a container's quota is less.

    Args:
        cgroup: where the control group of this process is mounted, as it is within a container; `cpu.max` of version 2,
            `cpu.cfs_quota_us` of version 1. What cannot be read sets no bound.
    """
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    quota = _quota(cgroup)
    return cores if quota is None else min(cores, quota)


def _quota(cgroup: Path) -> float | None:
    try:
        words = (cgroup / "cpu.max").read_text().split()
    except OSError:
        try:
            words = [(cgroup / "cpu" / name).read_text().strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
        except OSError:
            return None
    try:
        quota, period = map(int, words)
    except ValueError:  # "max": no quota
        return None
    return quota / period if quota > 0 and period > 0 else None
