"""What every benchmark shares: noise probes, and the figures of rounds with their targets."""

import argparse
import contextlib
import json
import os
import platform
import statistics
from collections.abc import Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from drivers import latencies
from targets import TARGETS

from keyside.executor.wire import Wire

__all__ = ["Book", "Figures", "arguments", "percentile", "ping_us", "steal_ticks", "summary", "turns"]

T = TypeVar("T")


def percentile(values: Sequence[float], percent: float) -> float:
    """Return the value below which `percent` of the values are."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(len(ordered) * percent / 100))]


def ping_us(url: str, count: int = 200) -> float:
    """Return the median of PING: a probe of how noisy the machine is."""
    wire = Wire(url, name="probe")
    wire.connect()
    seconds, _ = latencies(lambda _: wire.call(b"PING"), count)
    wire.close()
    return statistics.median(seconds) * 1e6


def steal_ticks() -> tuple[int, int]:
    """Return (stolen, all) CPU ticks of the machine since it started."""
    values = [int(word) for word in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return values[7], sum(values)


def turns(items: Sequence[T], number: int) -> list[T]:
    """Return the order of a round: each begins with another one, and every second one goes backwards."""
    at = number // 2 % len(items)
    order = [*items[at:], *items[:at]]
    return order[::-1] if number % 2 else order


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
        self._options = options

    def note(self, contender: str, quantity: str, value: float) -> None:
        """Add the value of a round."""
        self.figures.setdefault(contender, {}).setdefault(quantity, Figures()).values.append(value)

    def note_latencies(self, contender: str, seconds: Sequence[float], prefix: str = "") -> None:
        """Add p50 and p99 of a round."""
        self.note(contender, f"{prefix}p50 us", percentile(seconds, 50) * 1e6)
        self.note(contender, f"{prefix}p99 us", percentile(seconds, 99) * 1e6)

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
    def probed(self, contender: str, url: str) -> Iterator[None]:
        """Probe the machine before a phase, and the steal during it."""
        self.note(contender, "PING us", ping_us(url))
        stolen, ticks = steal_ticks()
        yield
        stolen_now, ticks_now = steal_ticks()
        self.note(contender, "steal %", 100 * (stolen_now - stolen) / max(1, ticks_now - ticks))

    def remark(self, text: str) -> None:
        """Add what a reader has to know."""
        self.remarks.append(text)

    def text(self) -> str:
        """Return all of it as Markdown."""
        columns = list(dict.fromkeys(quantity for found in self.figures.values() for quantity in found))
        probes: list[str] = [name for name in ("PING us", "steal %") if name in columns]
        columns = [name for name in columns if name not in probes] + probes
        rows = [["", *columns]]
        for contender, found in self.figures.items():
            rows.append([contender, *(found[name].text() if name in found else "" for name in columns)])
        options = self._options
        lines = [f"## {self.title}", ""]
        lines.append(
            f"{options.server}, {options.rounds} rounds, scale {options.scale:g}; median [least-most] of rounds."
        )
        lines += ["", summary(rows)]
        if self.ratios:
            head = ["what", "target", "measured"]
            lines += ["", summary([head, *(TARGETS[name].row(ratio.values) for name, ratio in self.ratios.items())])]
        lines += ["", *(f"- {text}" for text in self.remarks)] if self.remarks else []
        return "\n".join(lines) + "\n"

    def end(self) -> None:
        """Print all of it, and write the JSON if that was asked for."""
        print(self.text())
        path: Path | None = self._options.json
        if path is not None:
            path.write_text(json.dumps(self._document(), indent=1) + "\n")

    def _document(self) -> dict[str, Any]:
        told = {name: value for name, value in vars(self._options).items() if name != "json"}
        return {
            "title": self.title,
            "options": told,
            "machine": machine(),
            "figures": {c: {q: rounded(f) for q, f in found.items()} for c, found in self.figures.items()},
            "ratios": {name: rounded(ratio) for name, ratio in self.ratios.items()},
            "remarks": self.remarks,
        }


def rounded(figures: Figures) -> list[float]:
    """Return values with the digits that mean something."""
    return [float(f"{value:.5g}") for value in figures.values]


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
