"""What scripts and functions measure themselves, by one line in them; exported as `keyside_custom_metric`."""

import logging
import math
import re
import sys
import threading
from collections.abc import Iterator
from typing import Any, Final, TextIO

from prometheus_client.core import SummaryMetricFamily
from prometheus_client.metrics_core import Metric

__all__ = ["MAX_NAMES", "CustomMetrics", "Printing", "Running", "collected", "observe"]

MAX_NAMES: Final = 200
"""Of all scripts together; what comes then is counted under OTHER."""
OTHER: Final = ("other", "other")
MAX_NAME: Final = 64
MAX_LOGGED: Final = 2_000

# What print makes of `print("metric", name, value)`; a tensor of one element is followed by its type.
_METRIC: Final = re.compile(r"metric (\S+) +(\S+)\s*(?:\n?\[ \w+\{[\d,]*\} \])?\s*", re.ASCII)

_log = logging.getLogger("keyside.script")


class _Now(threading.local):
    """What this thread runs, and for whom it prints."""

    script = ""
    printing = ""


_now = _Now()


class CustomMetrics:
    """Count and sum of each, bounded in number."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], list[float]] = {}

    def observe(self, script: str, name: str, value: float) -> None:
        """Add one value; one that is no finite number is passed over, since it would spoil the sum for good."""
        if not math.isfinite(value):
            return
        key = (script, name[:MAX_NAME])
        with self._lock:
            row = self._rows.get(key)
            if row is None:
                row = self._rows.setdefault(key if len(self._rows) < MAX_NAMES else OTHER, [0, 0.0])
            row[0] += 1
            row[1] += value

    def collect(self) -> Iterator[Metric]:
        """Give the metric family to Prometheus; nothing where nothing was measured."""
        with self._lock:
            rows = [(key, tuple(row)) for key, row in sorted(self._rows.items())]
        if rows:
            family = SummaryMetricFamily(
                "keyside_custom_metric", "What scripts and functions measure.", labels=["script", "name"]
            )
            for key, (count, total) in rows:
                family.add_metric(list(key), int(count), total)
            yield family


_metrics = CustomMetrics()


def collected() -> Iterator[Metric]:
    """Give what was measured in this process to Prometheus."""
    return _metrics.collect()


class Running:
    """Lets what this thread measures or prints be that of a script; a context manager."""

    __slots__ = ("_before", "_script")

    def __init__(self, script: str) -> None:
        self._script = script

    def __enter__(self) -> None:
        self._before = _now.script
        _now.script = self._script

    def __exit__(self, *_: object) -> None:
        _now.script = self._before


def observe(name: str, value: Any) -> None:
    """Add one value to a metric of the script or function that runs on this thread.

    Args:
        name: of the metric.
        value: a number, or an array of one element.

    Raises:
        ValueError: it is no number. Likewise TypeError.
    """
    _metrics.observe(_now.script, str(name), float(value))


class _Output:
    """In the place of the process's stdout: takes what a script prints, and passes on all else."""

    def __init__(self, other: TextIO) -> None:
        self._other = other

    def write(self, text: str) -> int:
        """Take one text; torch hands over a whole call of print at once."""
        script = _now.printing
        if not script:
            return self._other.write(text)
        _take(script, text)
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._other, name)


def _take(script: str, text: str) -> None:
    match = _METRIC.fullmatch(text)
    if match is not None:
        try:
            value = {"True": 1.0, "False": 0.0}.get(match[2]) if match[2] in ("True", "False") else float(match[2])
        except ValueError:
            value = None
        if value is not None:
            _metrics.observe(script, match[1], value)
            return
    if text.strip():
        _log.info("script %s: %s", script, text.strip()[:MAX_LOGGED])


class Printing:
    """Takes what TorchScript prints on this thread: its metrics, and lines for the log; a context manager.

    Torch writes to `sys.stdout` as it is at that moment, from the thread that runs the script.
    """

    __slots__ = ("_before",)

    def __enter__(self) -> None:
        if type(sys.stdout) is not _Output:
            sys.stdout = _Output(sys.stdout)
        self._before = _now.printing
        _now.printing = _now.script or "script"

    def __exit__(self, *_: object) -> None:
        _now.printing = self._before
