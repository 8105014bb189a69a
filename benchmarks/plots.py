"""Draws what `run.py` has measured: `plots.py [RESULTS.json] [FOLDER]`; by default results.json into docs/benchmarks/.

Four charts: the distribution of latencies of one client, throughput and p99 against the number of clients, and the CPU
that a request costs each process. What a file has no figures for is not drawn.
"""

import json
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from charts import Axis, Line, bars, lines

__all__ = ["CHARTS", "draw"]

ROOT = Path(__file__).resolve().parent.parent
CHARTS = ROOT / "docs/benchmarks"
# By the beginning of a contender's name: colours that also those tell apart who see few (Okabe and Ito), and its dash.
STYLES: dict[str, tuple[str, str]] = {
    "Keyside, raw socket": ("#0072b2", ""),
    "Keyside, Client": ("#56b4e9", ""),
    "Keyside, AsyncClient": ("#56b4e9", "7 3"),
    "floor (a)": ("#222222", "2 3"),
    "floor (c)": ("#888888", "2 3"),
    "RedisAI": ("#d55e00", ""),
    "FastAPI": ("#009e73", ""),
    "mosec, batching": ("#e69f00", "7 3"),
    "mosec": ("#e69f00", ""),
    "Flask": ("#cc79a7", ""),
    "MLServer": ("#8c6d31", "7 3"),
    "Ray": ("#a05195", "7 3"),
    "Triton": ("#999999", "7 3"),
}
PARTS = {"Redis": "#d55e00", "server": "#0072b2", "client": "#c8c8c8"}

Document = Mapping[str, Any]


def _style(name: str) -> tuple[str, str]:
    return next((style for start, style in STYLES.items() if name.startswith(start)), ("#444444", ""))


def _note(document: Document) -> str:
    """Return the line about machine and run."""
    machine, options = document["machine"], document["options"]
    server = " ".join(machine.get("server", options["server"]).split())
    return f"{machine['cpu']}, {machine['cores']} cores for everything; {server}; {options['rounds']} rounds"


def _latencies(document: Document) -> str | None:
    found = {name: pairs for name, pairs in document.get("distributions", {}).items() if "(Valkey)" not in name}
    if not found:
        return None
    order = sorted(found, key=lambda name: next(us for percent, us in found[name] if percent >= 50))
    drawn = []
    for name in order:
        points = [(us, percent) for percent, us in found[name] if percent <= 99.5]
        colour, dash = _style(name)
        drawn.append(Line(name.replace("onnxruntime in this process", "onnxruntime"), points, colour, dash=dash))
    note = f"{_note(document)}; all rounds together, up to the 99.5th percentile"
    axis = Axis("latency, microseconds", log=True)
    percent = Axis("share of the requests, %", least=0, ticks=range(0, 101, 20))
    return lines("Fraud scenario, one client: distribution of latencies", note, axis, percent, drawn)


def _against_clients(document: Document, title: str, quantity: str, axis: Axis) -> str | None:
    drawn = []
    for name, figures in document["figures"].items():
        series: list[tuple[int, list[float]]] = []
        for key, values in figures.items():
            group, _, what = key.rpartition(": ")
            if what == quantity:
                series.append((int(group.split()[0]), values))
        series.sort()
        colour, dash = _style(name)
        points = [(clients, statistics.median(values)) for clients, values in series]
        spread = [(min(values), max(values)) for _, values in series]
        drawn.append(Line(name, points, colour, spread, dash, marks=True))
    if not any(line.points for line in drawn):
        return None
    last = 0 if axis.log else -1
    drawn.sort(key=lambda line: line.points[last][1], reverse=not axis.log)
    clients = Axis("clients, each with one request in flight", log=True, ticks=[x for x, _ in drawn[0].points])
    return lines(title, f"{_note(document)}; median, bars from least to most", clients, axis, drawn)


def _costs(document: Document) -> str | None:
    rows: dict[str, Sequence[float]] = {}
    for name, figures in document["figures"].items():
        values = [figures.get(f"load: {part} CPU us", []) for part in PARTS]
        if values[0] and "(Valkey)" not in name:
            rows[name] = [statistics.median(value) if value else 0.0 for value in values]
    if not rows:
        return None
    ordered = dict(sorted(rows.items(), key=lambda row: sum(row[1])))
    title = "Fraud scenario under load: CPU per request"
    note = f"{_note(document)}; medians; 'server' runs the model"
    return bars(title, note, "CPU per request, microseconds", PARTS, ordered)


def draw(documents: Mapping[str, Document], folder: Path) -> list[Path]:
    """Write the charts that there are figures for, and return their paths."""
    charts: dict[str, str | None] = {}
    fraud, growth = documents.get("fraud", {}), documents.get("concurrency", {})
    if fraud.get("figures"):
        charts["latency-one-client"] = _latencies(fraud)
        charts["cpu-per-request"] = _costs(fraud)
    if growth.get("figures"):
        rate, p99 = Axis("answers per second", least=0), Axis("p99, milliseconds", log=True)
        charts["throughput"] = _against_clients(growth, "Fraud scenario: throughput against clients", "/s", rate)
        charts["p99"] = _against_clients(growth, "Fraud scenario: p99 against clients", "p99 ms", p99)
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, chart in charts.items():
        if chart is not None:
            path = folder / f"{name}.svg"
            path.write_text(chart)
            written.append(path)
    return written


def main() -> None:
    results = Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT / "benchmarks/results.json"
    folder = Path(sys.argv[2]) if len(sys.argv) > 2 else CHARTS
    for path in draw(json.loads(results.read_text()), folder):
        print(path)


if __name__ == "__main__":
    main()
