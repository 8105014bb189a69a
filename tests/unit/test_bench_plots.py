"""The benchmarks' charts: well-formed, labelled, and without what there are no figures for."""

from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
MACHINE = {"cpu": "A & B", "cores": 2, "server": "redis v=7.0.15 malloc=jemalloc"}
OPTIONS = {"server": "redis", "rounds": 3}


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import plots

    return plots


def document(**more: Any) -> dict[str, Any]:
    return {"machine": MACHINE, "options": OPTIONS, "figures": {}, "distributions": {}, **more}


def texts(path: Path) -> list[str]:
    return [
        element.text or "" for element in ElementTree.parse(path).getroot().iter("{http://www.w3.org/2000/svg}text")
    ]


def growth() -> dict[str, Any]:
    def figures(factor: float) -> dict[str, list[float]]:
        found: dict[str, list[float]] = {}
        for clients in (1, 2, 4):
            found[f"{clients} clients: /s"] = [1000.0 * factor * clients, 1100.0 * factor * clients]
            found[f"{clients} clients: p99 ms"] = [0.5 * clients / factor, 0.7 * clients / factor]
        return found

    return document(figures={"Keyside, raw socket": figures(2), "mosec": figures(1)})


def test_throughput(plots: Any, tmp_path: Path) -> None:
    written = {path.stem: path for path in plots.draw({"concurrency": growth()}, tmp_path)}
    assert sorted(written) == ["p99", "throughput"]
    found = texts(written["throughput"])
    assert found[:2] == [
        "Fraud scenario: throughput against clients",
        "A & B, 2 cores for everything; redis v=7.0.15 malloc=jemalloc; 3 rounds; median, bars from least to most",
    ]
    for text in ("1", "2", "4", "0", "4,000", "answers per second", "clients, each with one request in flight"):
        assert text in found
    assert found[-2:] == ["Keyside, raw socket", "mosec"], "the legend has the order of the lines"


def test_latencies_and_costs(plots: Any, tmp_path: Path) -> None:
    fraud = document(
        distributions={"mosec": [(1, 200.0), (50, 300.0), (99, 900.0)], "floor (a): relay": [(1, 90.0), (50, 100.0)]},
        figures={
            "mosec": {
                f"load: {part} CPU us": [value] for part, value in (("Redis", 20), ("server", 150), ("client", 50))
            },
            "floor (c)": {"1 client: p50 us": [9.0]},
        },
    )
    written = {path.stem: path for path in plots.draw({"fraud": fraud}, tmp_path)}
    assert sorted(written) == ["cpu-per-request", "latency-one-client"]
    assert texts(written["latency-one-client"])[-2:] == ["floor (a): relay", "mosec"]
    assert {"mosec", "220", "Redis", "server", "client"} <= set(texts(written["cpu-per-request"]))
    assert "floor (c)" not in texts(written["cpu-per-request"])


def test_nothing_is_drawn_of_what_failed(plots: Any, tmp_path: Path) -> None:
    failed = {"title": "fraud", "failed": "exit code 1", "ratios": {}}
    assert plots.draw({"fraud": failed, "concurrency": document()}, tmp_path) == []
