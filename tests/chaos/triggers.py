"""Events on each kind of trigger, with two executors of which one is killed midway: `python -m tests.chaos.triggers`.

Every result is written to a stream, with the source of its event; afterwards they are counted: which events have none,
and which have more than one.
"""

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
from tests import models, raw
from tests.executors import Executor
from tests.servers import Kind, Server, wait_until
from tests.triggers import set_trigger, stats, tensor

__all__ = ["KINDS", "Outcome", "run"]

Outcome = dict[str, Any]
PART = 20
ROUND_MS = 1000
MEMBERS = 1000


def _tensorset(pipe: Any, number: int) -> None:
    pipe.execute_command("FCALL", "AI_TENSORSET", 1, f"s:{number}", "INT64", 1, 1, "VALUES", number)


def _set(pipe: Any, number: int) -> None:
    pipe.set(f"s:{number}", tensor(number))


def _publish(pipe: Any, number: int) -> None:
    pipe.publish("in", json.dumps({"id": number, "x": f"k:{number % 100}"}))


def _xadd(pipe: Any, number: int) -> None:
    pipe.xadd("in", {"x": tensor(number)})


KEY = ("echo", "INPUTS", 1, "KEY", "{key}", "OUTPUTS", 1, "o:{n}")
KINDS: dict[str, tuple[tuple[Any, ...], tuple[Any, ...], Callable[[Any, int], None] | None]] = {
    "set": (("SET", "s:{n}"), KEY, _tensorset),
    "stream": (("STREAM", "in"), ("echo", "INPUTS", 1, "VALUE", "{x}"), _xadd),
    "publish": (("PUBLISH", "in"), ("echo", "INPUTS", 1, "KEY", "{x}"), _publish),
    "notify": (("SET", "s:{n}", "NOTIFY"), KEY, _set),
    "schedule": (
        ("SCHEDULE", ROUND_MS, "MEMBERS", "all"),
        ("echo", "INPUTS", 1, "KEY", "{member}", "OUTPUTS", 1, "o:{member}:{due}"),
        None,
    ),
}
"""What each trigger is set on, what it runs, and how event number n comes about; None: by itself."""

EXACT = ("set", "stream")
"""Kinds of which each event has one result, whatever happens."""


def run(kind: str, server_kind: Kind = "redis", count: int = 10_000, rate: int = 1000, kill: bool = True) -> Outcome:
    """Let events come about, kill the executor that serves the trigger midway, and count the results.

    Args:
        kind: of the trigger.
        server_kind: of the server.
        count: of events.
        rate: events in a second.
        kill: one of the executors.
    """
    on, what, make = KINDS[kind]
    with Server(server_kind) as server, server.client() as db:
        server.load_library()
        executors = [Executor(server, lease_ms=2000, beat_ms=200).start() for _ in range(2)]
        try:
            raw.store(db, "echo", models.echo_int64())
            raw.warm(db, "echo", np.array([[1]], np.int64))
            for number in range(100):
                db.set(f"k:{number}", tensor(number))
            if kind == "schedule":
                with db.pipeline(transaction=False) as pipe:
                    for number in range(MEMBERS):
                        pipe.set(f"m:{number}", tensor(number))
                        pipe.sadd("all", f"m:{number}")
                    pipe.execute()
            set_trigger(db, "t", on, (*what, "TIMEOUT", 60_000), ("RESULTS", "log", "ONERROR", "PUBLISH"))
            time.sleep(1.0)
            began = time.monotonic()
            if make is None:
                _wait_for_rounds(db, executors, count, kill)
                expected = None
            else:
                _make_events(db, make, count, rate, executors if kill else [])
                expected = count
            came = time.monotonic() - began
            _settle(db, expected)
            took = time.monotonic() - began
            return _figures(db, kind, server_kind, count, came, took)
        finally:
            for executor in executors:
                if executor.process is not None and executor.process.poll() is None:
                    executor.stop()


def _leader(db: Any, executors: list[Executor]) -> Executor:
    """The executor that serves the trigger; of a kind that all serve, the first."""
    holder = db.get("ks:{0}:lead:t")
    for executor in executors:
        if holder is not None and str(executor.pid) == holder.decode().split("-")[-2]:
            return executor
    return executors[0]


def _make_events(db: Any, make: Callable[[Any, int], None], count: int, rate: int, executors: list[Executor]) -> None:
    began = time.monotonic()
    for start in range(0, count, PART):
        if executors and start <= count // 2 < start + PART:
            _leader(db, executors).kill()
        with db.pipeline(transaction=False) as pipe:
            for number in range(start, min(start + PART, count)):
                make(pipe, number)
            pipe.execute()
        time.sleep(max(0.0, began + (start + PART) / rate - time.monotonic()))


def _wait_for_rounds(db: Any, executors: list[Executor], count: int, kill: bool) -> None:
    def served(least: int) -> bool:
        return int(db.xlen("log")) >= least

    wait_until(lambda: served(count // 2), "half of the results are there", 120)
    if kill:
        _leader(db, executors).kill()
    wait_until(lambda: served(count), "all results are there", 120)
    db.fcall("AI_TRIGGERPAUSE", 1, "t", "ON")


def _settle(db: Any, expected: int | None) -> None:
    """Wait until nothing comes any more."""
    last, since = -1, time.monotonic()
    while time.monotonic() - since < 5.0:
        now = db.xlen("log")
        if now != last:
            last, since = now, time.monotonic()
        if expected is not None and now >= expected and not db.xlen("ks:{0}:jobs:CPU"):
            time.sleep(0.5)  # doubles would come now
            return
        time.sleep(0.05)


def _figures(db: Any, kind: str, server: Kind, count: int, came: float, took: float) -> Outcome:
    sources: Counter[str] = Counter()
    errors: Counter[str] = Counter()
    for _, fields in db.xrange("log"):
        result = json.loads(fields[b"result"])
        if "error" in result:
            errors[result["error"].split()[0]] += 1
        else:
            sources[result["outputs"]["y"]["key"] if kind == "schedule" else result["source"]] += 1
    # Each round has all members; outputs are named o:<member>:<time of the round>.
    rounds = {source.rpartition(":")[2] for source in sources}
    expected = len(rounds) * MEMBERS if kind == "schedule" else count
    return {
        "kind": kind,
        "server": server,
        "events": expected,
        "results": sum(sources.values()),
        "lost": expected - len(sources),
        "doubles": sum(number - 1 for number in sources.values()),
        "errors": dict(errors),
        "seconds_of_events": round(came, 1),
        "seconds": round(took, 1),
        "fired": stats(db, "t")["fired"],
        "pending": db.xpending("in", "kst")["pending"] if kind == "stream" else 0,
        "queued": db.xlen("ks:{0}:jobs:CPU"),
    }


def problems(found: Outcome) -> list[str]:
    """What is not as it must be."""
    said = []
    if found["doubles"]:
        said.append(f"{found['doubles']} results too many")
    if found["lost"] and found["kind"] in EXACT:
        said.append(f"{found['lost']} events without a result")
    if found["errors"]:
        said.append(f"errors: {found['errors']}")
    if found["pending"] or found["queued"]:
        said.append("something is left behind")
    return said


def main() -> int:
    """Run it from the command line; returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.triggers", description=__doc__)
    parser.add_argument("--kind", choices=[*KINDS, "all"], default="all", help="of the trigger")
    parser.add_argument("--server", choices=["redis", "valkey"], default="redis", help="kind of the server")
    parser.add_argument("--count", type=int, default=10_000, help="events")
    parser.add_argument("--rate", type=int, default=1000, help="events in a second")
    parser.add_argument("--unharmed", action="store_true", help="kill nobody")
    options = parser.parse_args()
    failed = False
    for kind in KINDS if options.kind == "all" else [options.kind]:
        found = run(kind, options.server, options.count, options.rate, not options.unharmed)
        said = problems(found)
        failed = failed or bool(said)
        print(json.dumps(found | {"problems": said}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
