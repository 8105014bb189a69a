"""Runs all benchmarks, writes results.json, and prints the targets with what was measured.

`run.py` is short, with the HTTP peers that are installed among FastAPI and mosec. `run.py --full` takes what the
targets ask for: full sizes, and all peers, which it installs. Each benchmark runs by itself as well.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import summary
from rig import server_version
from targets import TARGETS

HERE = Path(__file__).resolve().parent
# What a short run takes of each, so that all of them together take less than three minutes.
BENCHMARKS: dict[str, tuple[int, float]] = {
    "fraud": (3, 0.1),
    "batching": (3, 0.15),
    "tensors": (3, 0.2),
    "image": (3, 0.15),
    "many": (3, 0.2),
    "redis_cpu": (3, 0.15),
    "store": (2, 0.2),
    "models": (3, 0.1),
    "flat": (3, 0.02),
    "start": (3, 1.0),
}


def run(name: str, options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run one benchmark and return its document."""
    rounds, scale = (options.rounds or 5, options.scale or 1.0) if options.full else BENCHMARKS[name]
    rounds, scale = options.rounds or rounds, options.scale or scale
    path = folder / f"{name}.json"
    command = [sys.executable, str(HERE / f"bench_{name}.py"), "--rounds", str(rounds), "--scale", str(scale)]
    command += ["--server", options.server, "--json", str(path)]
    if name == "fraud":
        peers = options.peers or ("all" if options.full else None)
        command += ["--peers", peers] if peers else []
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; none: all")
    parser.add_argument("--full", action="store_true")
    parser.add_argument("--rounds", type=int)
    parser.add_argument("--scale", type=float)
    parser.add_argument("--peers", help="as for bench_fraud.py")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis")
    parser.add_argument("--output", type=Path, default=HERE / "results.json")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    with tempfile.TemporaryDirectory() as folder:
        found = {name: run(name, options, Path(folder)) for name in options.names or BENCHMARKS}
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    kind = "Full" if options.full else "Short"
    print(f"\n# All targets\n\n{kind} run on {options.server}; median [least-most] of rounds.\n")
    print(table(found))
    if not options.full:
        print("\nA short run stores and sends less than the names say; each benchmark tells how much above.")
    failed = [name for name, document in found.items() if "failed" in document]
    if failed:
        print(f"\nFailed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
