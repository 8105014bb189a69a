"""Nothing is lost on a cluster: `python -m tests.chaos.acceptance redis|valkey`.

On three primaries and three replicas many requests over keys in all slots are made and checked, while one primary is
killed and its replica promoted, one executor is killed, and slots move, those by which nodes call their own keys too.
Each call must end with one right answer or a code; none may be doubled, none wrong.
"""

import argparse
import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

from tests.chaos.caller import Config, now
from tests.chaos.callers import Callers
from tests.chaos.faults import Event, Trouble
from tests.chaos.report import report, show, verdict
from tests.chaos.world import World
from tests.servers import Kind

from keyside.tensorstore.keys import SLOTS

__all__ = ["main", "run"]

REQUESTS = 20_000
SLOTS_MOVED = 500
PROCESSES = 4
ASKED = ["keys", "captured", "own", "large keys"]


def run(
    kind: Kind, *, requests: int = REQUESTS, slots: int = SLOTS_MOVED, seed: int = 1, patience: float = 900.0
) -> tuple[dict[str, Any], list[str]]:
    """Make the requests while things go wrong; returns the figures, and what is not as it must be.

    Args:
        kind: of the servers.
        requests: to be made, and as many more as it takes until all that goes wrong is over.
        slots: to be moved.
        seed: of what is asked and of what goes wrong.
        patience: seconds that all of it may take.
    """
    with World(kind, cluster=True) as world:
        configs = [
            Config(
                world.url, "asyncio" if number % 2 else "blocking", number, seed=seed, width=8, timeout=15.0,
                count=requests // PROCESSES, slots=PROCESSES, only=ASKED, pause=0.1,
            )
            for number in range(PROCESSES)
        ]  # fmt: skip
        callers = Callers(configs)
        trouble = Trouble(world, callers)
        try:
            began = time.monotonic()
            # Half of the slots before the failover, half after it: all of it under load.
            mover = threading.Thread(target=move, args=(trouble, slots, seed))
            mover.start()
            trouble.run([Event(4.0, "kill an executor", seed), Event(8.0, "kill a primary", seed)])
            mover.join()
            callers.done(patience)
            callers.stop(30)
            took = time.monotonic() - began
            world.settle(60)
            callers.check(trouble.unsure, 300)
        finally:
            callers.end()
        found = report(world, callers, trouble, took, seed)
    found["asked"] = requests
    problems = verdict(found, waited=False)
    if found["slots moved"] < slots:
        problems.append(f"only {found['slots moved']} slots moved")
    if found["calls"] < requests:
        problems.append(f"only {found['calls']} requests were made")
    if found["slots asked"] < min(SLOTS, requests // 2):
        problems.append(f"keys lay in only {found['slots asked']} slots")
    return found, problems


def move(trouble: Trouble, count: int, seed: int) -> None:
    """Move slots around, from each node to the next, until so many have moved; those of the tags first."""
    rng = random.Random(seed)
    mover = trouble.mover
    assert mover is not None
    turn = 0
    ends = time.monotonic() + 300
    while mover.moved < count and time.monotonic() < ends:
        owned = mover.owned()
        ports = sorted(owned)
        source, target = ports[turn % len(ports)], ports[(turn + 1) % len(ports)]
        slots = [min(owned[source]), *rng.sample(owned[source], min(24, len(owned[source])))]
        print(now(), f"slots of {source} to {target}, first {slots[0]}", flush=True)
        trouble.moved(list(dict.fromkeys(slots))[: count - mover.moved], source, target)
        turn += 1
        time.sleep(0.2)


def main() -> int:
    """Run it from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.acceptance", description=__doc__)
    parser.add_argument("kinds", nargs="*", default=["redis", "valkey"], help="redis, valkey or both")
    parser.add_argument("--requests", type=int, default=REQUESTS, help="to be made")
    parser.add_argument("--slots", type=int, default=SLOTS_MOVED, help="to be moved")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path, help="write all figures here")
    options = parser.parse_args()
    figures, failed = {}, False
    for kind in options.kinds:
        found, problems = run(kind, requests=options.requests, slots=options.slots, seed=options.seed)
        print(show(found, problems), flush=True)
        figures[kind] = found | {"problems": problems}
        failed = failed or bool(problems)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1) + "\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
