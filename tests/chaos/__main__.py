"""A mixed load whose answers are all checked, while things go wrong: `python -m tests.chaos --help`."""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tests.chaos.caller import Config
from tests.chaos.callers import Callers
from tests.chaos.faults import CLUSTERED, STANDALONE, Trouble, schedule
from tests.chaos.report import LONGEST_MS, report, show, verdict
from tests.chaos.world import World
from tests.servers import Kind

__all__ = ["main", "run"]


def run(
    kind: Kind,
    *,
    cluster: bool = False,
    seconds: float = 60.0,
    seed: int = 1,
    processes: int = 4,
    width: int = 6,
    every: float = 2.5,
    wait: bool = False,
    flat: float | None = None,
    pause: float = 0.02,
) -> tuple[dict[str, Any], list[str]]:
    """Run load and faults for some time; returns the figures, and what is not as it must be.

    Args:
        kind: of the servers.
        cluster: on three primaries with a replica each.
        seconds: that the load lasts.
        seed: of the faults, and of what is asked.
        processes: of callers; half of them use the asyncio client.
        width: calls at the same time of each.
        every: seconds between two faults.
        wait: until the longest TTL has passed: then nothing may be left.
        flat: how much memory may grow.
        pause: seconds between two calls of one worker, at most.
    """
    with World(kind, cluster=cluster) as world:
        configs = []
        for number in range(processes):
            # Of the single server's callers half go through the proxy, where connections break.
            url = world.proxies[0].url if world.proxies and number % 4 > 1 else world.url
            client = "asyncio" if number % 2 else "blocking"
            configs.append(
                Config(
                    url,
                    client,
                    number,
                    seed=seed,
                    width=width,
                    slots=processes if cluster else 0,
                    pause=pause,
                    timeout=8.0 if cluster else 5.0,
                )
            )
        callers = Callers(configs)
        trouble = Trouble(world, callers)
        try:
            began = time.monotonic()
            trouble.run(schedule(seed, seconds, CLUSTERED if cluster else STANDALONE, every))
            time.sleep(max(began + seconds - time.monotonic(), 0))
            callers.stop(60)
            took = time.monotonic() - began
            world.settle(30)
            callers.check(trouble.unsure, 120)
        finally:
            callers.end()
        if wait:
            time.sleep(LONGEST_MS / 1000)
        found = report(world, callers, trouble, took, seed)
        return found, verdict(found, waited=wait, flat=flat)


def main() -> int:
    """Run it from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis", help="a single server of this kind")
    parser.add_argument("--cluster", choices=["redis", "valkey"], help="three primaries and three replicas instead")
    parser.add_argument("--seconds", type=float, default=120.0, help="that the load lasts")
    parser.add_argument("--seed", type=int, default=1, help="of faults and load")
    parser.add_argument("--processes", type=int, default=4, help="of callers")
    parser.add_argument("--width", type=int, default=6, help="calls at the same time of each process")
    parser.add_argument("--every", type=float, default=2.5, help="seconds between two faults")
    parser.add_argument(
        "--wait", action="store_true", help="until the longest TTL has passed: nothing may be left then"
    )
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    found, problems = run(
        options.cluster or options.server,
        cluster=bool(options.cluster),
        seconds=options.seconds,
        seed=options.seed,
        processes=options.processes,
        width=options.width,
        every=options.every,
        wait=options.wait,
    )
    print(show(found, problems))
    if options.json:
        options.json.write_text(json.dumps(found | {"problems": problems}, indent=1) + "\n")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
