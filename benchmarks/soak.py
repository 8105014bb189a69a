"""Half an hour of mixed load with faults: does anything grow, double or go wrong?

The load and the faults are those of tests/chaos. It goes on for 30 minutes by default, then waits until the longest
TTL has passed, and writes its figures as JSON: exit code 1 if anything was not as it must be.
"""

import argparse
import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.chaos.__main__ import run
from tests.chaos.report import show

FLAT = 0.10
"""By how much the memory of a process may be larger in the last third of a run than in the second."""


def main() -> int:
    """Run it from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis", help="a single server of this kind")
    parser.add_argument("--cluster", choices=["redis", "valkey"], help="three primaries and three replicas instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=float, default=5.0, help="seconds between two faults")
    parser.add_argument("--output", type=Path, default=Path(".cache/soak.json"))
    options = parser.parse_args()
    found, problems = run(
        options.cluster or options.server, cluster=bool(options.cluster), seconds=options.minutes * 60,
        seed=options.seed, every=options.every, wait=True, flat=FLAT,
    )  # fmt: skip
    print(show(found, problems))
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps(found | {"problems": problems}, indent=1) + "\n")
    print(f"figures in {options.output}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
