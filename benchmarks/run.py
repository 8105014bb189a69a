"""Runs all benchmarks, writes results.json, and prints the targets with what was measured.

`run.py` is short (about two minutes), with those of the HTTP peers FastAPI and mosec that are installed.

`run.py --full` takes what the targets ask for, five rounds of each, in about 20 minutes on two cores besides the first
installation of the peers, and draws the charts in docs/benchmarks/. The table of targets is printed last, and lies
beside results.json as results.md. Sizes:

- fraud: 4,000 requests of one client and 3 s of load for each contender; all HTTP peers; Redis and the bundled Valkey
- concurrency: 0.8 s for each of 1 to 64 clients
- batching: 3 s saturated and 6 s at a given load, with batching and without
- tensors: 400 of 600 KB and 40 of 16 MiB; image: 60 images; many: 10,000 rows
- features: 2,000 requests of each way to get at a reference
- redis_cpu: 4,000 requests of one client and 3 s of 32
- store: a model of 500 MB; models: 200 of 5 MB, room for 50; flat: 1, 100 and 10,000 models, 1,000,000 keys
- graph: 3,000 requests of each
- start: an empty data directory, and one with a model
- scaling: 8 s at 300 requests/s for each shard, of 1 and of 3; 10 s at rest and two stores on 1, 3 and 5 primaries

Each benchmark runs by itself as well; `--rounds` and `--scale`, a share of these sizes, are for all of them.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import plots
from measure import summary
from rig import server_version
from targets import TARGETS

HERE = Path(__file__).resolve().parent
# Rounds and scale of a short run.
BENCHMARKS: dict[str, tuple[int, float]] = {
    "fraud": (3, 0.1),
    "concurrency": (2, 0.2),
    "batching": (3, 0.15),
    "tensors": (3, 0.2),
    "image": (3, 0.15),
    "many": (3, 0.2),
    "features": (3, 0.2),
    "redis_cpu": (3, 0.15),
    "store": (2, 0.2),
    "models": (3, 0.1),
    "flat": (3, 0.02),
    "graph": (3, 0.1),
    "start": (3, 1.0),
    "scaling": (3, 0.3),
}


def run(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one benchmark and return its document."""
    rounds, scale = (5, 1.0) if options.full else BENCHMARKS[name]
    rounds, scale = options.rounds or rounds, options.scale or scale
    path = folder / f"{name}.json"
    command = [sys.executable, str(HERE / f"bench_{name}.py"), "--rounds", str(rounds), "--scale", str(scale)]
    command += ["--server", options.server, "--json", str(path)]
    if name in ("fraud", "concurrency") and (peers := options.peers or ("all" if options.full else None)):
        command += ["--peers", peers]
    if name == "fraud":
        command += ["--valkey"] if options.full else []
        command += ["--redisai-module", str(options.redisai_module)] if options.redisai_module else []
    print(f"== {name}", file=sys.stderr, flush=True)
    began = time.monotonic()
    done = subprocess.run(command, check=False)
    print(f"== {name}: {time.monotonic() - began:.0f} s", file=sys.stderr, flush=True)
    if done.returncode:
        return {"title": name, "failed": f"exit code {done.returncode}", "ratios": {}}
    document: dict[str, Any] = json.loads(path.read_text())
    document["machine"]["server"] = f"{options.server} {server_version(options.server)}"
    return document


def table(documents: dict[str, dict[str, Any]]) -> str:
    """Return the targets with what was measured, in bold what misses."""
    ratios = {name: values for document in documents.values() for name, values in document["ratios"].items()}
    rows = [["what", "target", "measured"]]
    rows += [target.row(ratios.get(name, [])) for name, target in TARGETS.items()]
    return summary(rows)


def report(documents: dict[str, dict[str, Any]], options: argparse.Namespace) -> str:
    """Return the table of targets as Markdown, with what the figures depend on."""
    machines = [document["machine"] for document in documents.values() if "machine" in document]
    lines = ["# All targets", ""]
    if machines:
        machine = machines[0]
        versions = (f"{name} {machine[name]}" for name in ("python", "redis-py", "hiredis", "numpy", "onnxruntime"))
        lines += [f"{machine['cpu']}, {machine['cores']} cores for everything, Linux {machine['kernel']};"]
        lines += [f"{machine['server']}; {', '.join(versions)}.", ""]
    kind = "Full" if options.full else "Short"
    lines += [f"{kind} run; median [least-most] of rounds, in bold what misses its target.", "", table(documents)]
    if not options.full:
        lines += ["", "A short run stores and sends less than the names say; each benchmark tells how much above."]
    return "\n".join(lines) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--peers", help="as for bench_fraud.py")
    parser.add_argument("--redisai-module", type=Path, metavar="FILE", help="as for bench_fraud.py")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(name, options, Path(folder)) for name in options.names or BENCHMARKS}
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    if options.full:
        plots.draw(found, plots.CHARTS)
    text = report(found, options)
    options.output.with_suffix(".md").write_text(text)
    print(f"\n{text}")
    failed = [name for name, document in found.items() if "failed" in document]
    if failed:
        print(f"\nFailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
