"""What every benchmark shares: noise probes, costs of processes, and the figures of rounds with their targets."""

import argparse
import contextlib
import gc
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from drivers import RedisCaller, latencies, prepare
from processes import cpu_seconds, tree
from targets import TARGETS

__all__ = ["Book", "Figures", "Meter", "arguments", "interleaved", "percentile", "ping_us", "summary", "turns"]

T = TypeVar("T")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ping_us(url: str, count: int = 200) -> float:
    """Return the median of PING: a probe of how noisy the machine is."""
    caller = RedisCaller(url, prepare(lambda _: [["PING"]], 1), blocking=True)
    seconds, _ = latencies(caller.call, count)
    caller.close()
    return statistics.median(seconds) * 1e6


def steal_ticks() -> tuple[int, int]:
    """Return (stolen, all) CPU ticks of the machine since it started."""
    values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return values[7], sum(values)


class Meter:
    """What a timed part costs; a context manager for that part alone, without connecting, warming up and checking.

    Entered again, it adds up.

    Args:
        url: the server, for the PING before it.
        processes: pids by name; with their descendants. This process is counted as the client.
    """

    def __init__(self, url: str, processes: Mapping[str, int] | None = None) -> None:
        self._url = url
        self._processes = dict(processes or {})
        self._before: dict[str, float] = {}
        self._ticks = (0, 0)
        self._pings: list[float] = []
        self._known: dict[str, list[int]] = {}
        self._is_probed = False
        self._stolen, self._all_ticks = 0, 0
        self._used: dict[str, float] = {}

    def probe(self) -> None:
        """Do what would disturb the timed part: best before warming up; else it is done just before that part."""
        gc.collect()  # what is left of the last phase, which is not this one's to pay for
        self._pings.append(ping_us(self._url))
        self._known = {name: tree(pid) for name, pid in self._processes.items()}
        self._is_probed = True

    def __enter__(self) -> Self:
        if not self._is_probed:
            self.probe()
        self._is_probed = False
        self._ticks = steal_ticks()
        self._before = {name: cpu_seconds(pid, self._known[name]) for name, pid in self._processes.items()}
        self._before["client"] = time.process_time()
        return self

    def __exit__(self, *_: object) -> None:
        # The client's own clock first: reading the others takes a millisecond of it.
        client = time.process_time()
        after = {name: cpu_seconds(pid) for name, pid in self._processes.items()}
        after["client"] = client
        for name, before in self._before.items():
            self._used[name] = self._used.get(name, 0.0) + after[name] - before
        stolen, ticks = steal_ticks()
        self._stolen += stolen - self._ticks[0]
        self._all_ticks += ticks - self._ticks[1]

    def note(self, book: "Book", contender: str, prefix: str = "", requests: int = 0) -> None:
        """Put into a book what it found.

        Args:
            book: for the figures.
            contender: whose they are.
            prefix: of the names of the quantities.
            requests: how many were answered; with none, costs are not noted.
        """
        if requests:
            for name, seconds in self._used.items():
                book.note(contender, f"{prefix}{name} CPU us", seconds / requests * 1e6)
        book.note(contender, f"{prefix}PING us", statistics.median(self._pings))
        book.note(contender, f"{prefix}steal %", 100 * self._stolen / max(1, self._all_ticks))


def turns(items: Sequence[T], number: int) -> list[T]:
    """Return the order of a round: each begins with another one, and every second one goes backwards."""
    at = number // 2 % len(items)
    order = [*items[at:], *items[:at]]
    return order[::-1] if number % 2 else order


def interleaved(
    ones: Mapping[str, Callable[[int], Any]], count: int, number: int, slices: int = 10
) -> dict[str, tuple[list[float], list[tuple[int, Any]]]]:
    """Make `count` calls of each in many short turns, so that a change of the machine's mood hits all of them.

    Args:
        ones: what to call.
        count: of calls.
        number: of the round, for the order of the turns.
        slices: how many turns; each begins with a call that does not count.

    Returns:
        Seconds and answers of each, as of `latencies`.
    """
    found: dict[str, tuple[list[float], list[tuple[int, Any]]]] = {name: ([], []) for name in ones}
    each = max(1, count // slices)
    for n in range(slices):
        for name in turns(list(ones), number + n):
            ones[name](n * each)
            seconds, answers = latencies(ones[name], each, n * each)
            found[name][0].extend(seconds)
            found[name][1].extend(answers)
    return found


class Figures:
    """Values of one quantity, one per round."""

    def __init__(self, values: Sequence[float] = ()) -> None:
        self.values = list(values)

    @property
    def median(self) -> float:
        """The middle one."""
        return statistics.median(self.values)

    def ratio(self, other: "Figures") -> "Figures":
        """Return this over another, round by round: noise that both had falls out."""
        return Figures([a / b for a, b in zip(self.values, other.values, strict=True)])

    def plus(self, other: "Figures") -> "Figures":
        """Return the sum, round by round."""
        return Figures([a + b for a, b in zip(self.values, other.values, strict=True)])

    def text(self, form: str = "") -> str:
        """Return median [least-most], with three digits unless `form` says otherwise."""
        shown = [f"{value:{form}}" if form else short(value) for value in self._three()]
        return f"{shown[0]} [{shown[1]}-{shown[2]}]"

    def _three(self) -> tuple[float, float, float]:
        return self.median, min(self.values), max(self.values)


def short(value: float) -> str:
    """Return a number with about three digits."""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


class Book:
    """The figures of one benchmark: of contenders, of the machine beside them, and of ratios that have a target.

    Args:
        title: what was measured.
        options: the command line.
    """

    def __init__(self, title: str, options: argparse.Namespace) -> None:
        self.title = title
        self.figures: dict[str, dict[str, Figures]] = {}
        self.ratios: dict[str, Figures] = {}
        self.remarks: list[str] = []
        self._seconds: dict[str, list[float]] = {}
        self._options = options

    def note(self, contender: str, quantity: str, value: float) -> None:
        """Add the value of a round."""
        self.figures.setdefault(contender, {}).setdefault(quantity, Figures()).values.append(value)

    def note_latencies(self, contender: str, seconds: Sequence[float], prefix: str = "") -> None:
        """Add p50 and p99 of a round."""
        self.note(contender, f"{prefix}p50 us", percentile(seconds, 50) * 1e6)
        self.note(contender, f"{prefix}p99 us", percentile(seconds, 99) * 1e6)

    def note_distribution(self, contender: str, seconds: Sequence[float]) -> None:
        """Add the latencies of a round to those that the JSON tells the distribution of, all rounds together."""
        self._seconds.setdefault(contender, []).extend(seconds)

    def drop(self, contender: str) -> None:
        """Forget all figures of a contender."""
        self.figures.pop(contender, None)
        self._seconds.pop(contender, None)

    def of(self, contender: str, quantity: str) -> Figures:
        """Return the values of a quantity."""
        return self.figures[contender][quantity]

    def has(self, contender: str, quantity: str) -> bool:
        """Whether there are values of a quantity."""
        return quantity in self.figures.get(contender, {})

    def judge(self, target: str, ratio: Figures) -> None:
        """Set a ratio beside its target."""
        assert target in TARGETS, target
        self.ratios[target] = ratio

    def over(self, target: str, above: str, below: str, quantity: str) -> None:
        """Set the ratio of a quantity of two contenders beside its target."""
        self.judge(target, self.of(above, quantity).ratio(self.of(below, quantity)))

    @contextlib.contextmanager
    def probed(self, contender: str, url: str, prefix: str = "") -> Iterator[None]:
        """Probe the machine before a phase, and the steal during it."""
        with Meter(url) as meter:
            yield
        meter.note(self, contender, prefix)

    def remark(self, text: str) -> None:
        """Add what a reader has to know."""
        self.remarks.append(text)

    def text(self) -> str:
        """Return all of it as Markdown."""
        options = self._options
        lines = [f"## {self.title}", ""]
        lines.append(
            f"{options.server}, {options.rounds} rounds, scale {options.scale:g}; median [least-most] of rounds."
        )
        quantities = list(dict.fromkeys(quantity for found in self.figures.values() for quantity in found))
        # "32 clients: p99 us" belongs into a table of its own, that of "32 clients".
        for group in dict.fromkeys(quantity.rpartition(": ")[0] for quantity in quantities):
            lines += ["", self._table(group, [name for name in quantities if name.rpartition(": ")[0] == group])]
        if self.ratios:
            head = ["what", "target", "measured"]
            lines += ["", summary([head, *(TARGETS[name].row(ratio.values) for name, ratio in self.ratios.items())])]
        lines += ["", *(f"- {text}" for text in self.remarks)] if self.remarks else []
        return "\n".join(lines) + "\n"

    def _table(self, group: str, quantities: Sequence[str]) -> str:
        """Return the quantities of a group, the probes last, for the contenders that have one."""
        columns = sorted(quantities, key=lambda name: name.endswith(("PING us", "steal %")))
        rows = [[group, *(name.rpartition(": ")[2] for name in columns)]]
        for contender, found in self.figures.items():
            cells = [found[name].text() if name in found else "" for name in columns]
            if any(cells):
                rows.append([contender, *cells])
        return summary(rows)

    def end(self) -> None:
        """Print all of it, and write the JSON if that was asked for."""
        print(self.text())
        path: Path | None = self._options.json
        if path is not None:
            path.write_text(json.dumps(self._document(), indent=1, default=lambda value: value.name) + "\n")

    def _document(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self._options).items() if name != "json"}
        return {
            "title": self.title,
            "options": told,
            "machine": machine(),
            "figures": {c: {q: rounded(f) for q, f in found.items()} for c, found in self.figures.items()},
            "ratios": {name: rounded(ratio) for name, ratio in self.ratios.items()},
            "distributions": {c: distribution(seconds) for c, seconds in self._seconds.items()},
            "remarks": self.remarks,
        }


def rounded(figures: Figures) -> list[float]:
    """Return values with the digits that mean something."""
    return [float(f"{value:.5g}") for value in figures.values]


def distribution(seconds: Sequence[float]) -> list[tuple[float, float]]:
    """Return (percent, microseconds below which so many are) of latencies, closer together towards the slow end."""
    percents = [*range(1, 95), *(95 + n / 5 for n in range(20)), *(99 + n / 50 for n in range(46))]
    found = np.percentile(seconds, percents)
    return [(percent, float(f"{value * 1e6:.5g}")) for percent, value in zip(percents, found, strict=True)]


def machine() -> dict[str, Any]:
    """Return what the figures depend on besides the code."""
    found = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    return {
        "cpu": found[0].partition(":")[2].strip() if found else platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "redis-py": version("redis"),
        **{name: version(name) for name in ("keyside", "hiredis", "numpy", "onnxruntime")},
    }


def summary(rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table; the first row is its head."""
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return "\n".join(lines)


def arguments(doc: str | None, rounds: int = 5) -> argparse.ArgumentParser:
    """Return a parser of what all benchmarks take."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--scale", type=float, default=1.0, help="share of a full run: of its seconds, bytes or models")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures there")
    return parser
