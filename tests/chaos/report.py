"""What a run has come to: figures, a verdict, and the text that says both."""

import itertools
import statistics
from typing import Any

from tests.chaos.callers import Callers
from tests.chaos.faults import Trouble
from tests.chaos.world import World

from keyside.tensorstore.keys import SLOTS

__all__ = ["growth", "report", "show", "verdict"]

LONGEST_MS = 90_000
"""Numbers of requests are remembered for 70 s and some; nothing of ours for a short job lives longer."""


START_S = 30.0
"""A process that has just begun still imports, and loads its models."""

SIGNS_OF_LIFE = frozenset(("executor", "replicator"))
"""What executors that are alive renew all the time."""


def growth(samples: list[tuple[float, int]]) -> float | None:
    """By how much the memory of a process grows from the first quarter of its samples to the last, its start left out.

    What has become larger once, as an executor does that stood by and now serves, has not grown: what leaks grows from
    each quarter to the next. So it is three times the least of these three steps.

    Returns:
        As a share of what it was; None: too few samples.
    """
    samples = [sample for sample in samples if sample[0] >= samples[0][0] + START_S]
    size = len(samples) // 4
    if size < 4:
        return None
    medians = [statistics.median(value for _, value in samples[n * size : (n + 1) * size]) for n in range(4)]
    return 3 * min(after / max(before, 1) - 1 for before, after in itertools.pairwise(medians))


def report(world: World, callers: Callers, trouble: Trouble, seconds: float, seed: int) -> dict[str, Any]:
    """Gather the figures."""
    total = callers.total
    memory: dict[str, list[tuple[float, int]]] = {}
    for sample in world.samples:
        for name, value in (sample.servers | sample.executors).items():
            memory.setdefault(name, []).append((round(sample.at, 1), value))
    return {
        "about": world.about(),
        "seed": seed,
        "seconds": round(seconds, 1),
        "faults": len(trouble.log),
        "faults failed": trouble.failed,
        # Processes take turns with the slots, so what the least has done all have done.
        "slots asked": min(len(total.places) * min(total.places, default=0), SLOTS),
        "slots moved": trouble.mover.moved if trouble.mover else 0,
        "callers killed": callers.killed,
        "calls": sum(total.calls.values()),
        "by kind": dict(total.calls),
        "right": sum(total.right.values()),
        "codes": dict(total.codes),
        "no code": total.bare,
        "wrong": total.wrong,
        "hung": total.hung,
        "late": total.late,
        "latest": round(total.latest, 2),
        "strange": total.strange,
        "odd": total.odd,
        "jobs": total.jobs,
        "counted": sum(world.counted().values()),
        "keys looked at": callers.checked,
        "doubled": callers.doubled,
        "unsure": callers.unsure,
        "left": world.left(),
        "executors": world.trouble(),
        "memory": {
            name: {"first": found[0][1], "last": found[-1][1], "growth": growth(found)}
            for name, found in memory.items()
        },
        "samples": memory,
    }


def verdict(found: dict[str, Any], *, waited: bool, flat: float | None = None) -> list[str]:
    """Say what is not as it must be; empty: all is well.

    Args:
        found: by `report`.
        waited: the longest TTL has passed, so that nothing of ours may be left.
        flat: how much memory may have grown; None: that is not looked at.
    """
    must_be_none = ("wrong", "hung", "late", "strange", "odd", "doubled", "executors", "faults failed")
    wrong = [f"{name}: {len(found[name])}, such as {found[name][0]}" for name in must_be_none if found[name]]
    ended = found["right"] + sum(found["codes"].values()) + len(found["wrong"]) + len(found["hung"]) + found["no code"]
    if found["calls"] != ended:
        wrong.append(f"{found['calls']} calls, and {ended} ends of calls")
    if not found["slots moved"] and not found["callers killed"] and found["counted"] > found["jobs"]:
        wrong.append(f"executors have ended {found['counted']} jobs of {found['jobs']}")
    if found["right"] < 0.5 * found["calls"]:
        wrong.append(f"only {found['right']} of {found['calls']} calls had an answer")
    left = found["left"]
    if left["forever"]:
        wrong.append(f"keys without TTL: {left['forever'][:5]}")
    kinds = {kind: most for kind, (_, most) in left["kinds"].items() if kind not in ("gone", "up")}
    lasting = {kind: most for kind, most in kinds.items() if most > LONGEST_MS}
    if lasting:
        wrong.append(f"keys that live too long (ms): {lasting}")
    if waited:
        still = {kind: count for kind, (count, _) in left["kinds"].items() if kind not in SIGNS_OF_LIFE}
        if still:
            wrong.append(f"keys left once the longest TTL has passed: {still}")
    if flat is not None:
        for name, one in found["memory"].items():
            if one["growth"] is not None and one["growth"] > flat:
                wrong.append(f"memory of {name} has grown by {one['growth']:.0%}")
    return wrong


def show(found: dict[str, Any], problems: list[str]) -> str:
    """The report as text."""
    late = f"late {len(found['late'])} (latest {found['latest']:g} s)"
    left = found["left"]
    lines = [
        "",
        f"{found['about']}, seed {found['seed']}, {found['seconds']:g} s",
        f"faults {found['faults']}, callers killed {found['callers killed']}",
        f"slots: keys in {found['slots asked']:,}, {found['slots moved']} moved",
        f"calls {found['calls']:,}: right {found['right']:,}, codes {found['codes']}",
        f"  by kind: {found['by kind']}",
        f"  wrong {len(found['wrong'])}, hung {len(found['hung'])}, {late}",
        f"  internal, or no KeysideError: {len(found['strange'])}; codes that nothing explains: {len(found['odd'])}",
        f"jobs {found['jobs']:,}, ended by executors {found['counted']:,}",
        f"keys looked at again {found['keys looked at']:,}, written twice {len(found['doubled'])}, "  # noqa: ISC004
        f"not to be told after a failover {found['unsure']}",
        f"left: {left['kinds']} (number, longest TTL in ms), without TTL {len(left['forever'])}, "  # noqa: ISC004
        f"replies that nobody read {left['unread']}",
    ]
    for name, one in sorted(found["memory"].items()):
        grown = "" if one["growth"] is None else f", growth {one['growth']:+.1%}"
        lines.append(f"  {name}: {one['first'] / 1e6:.1f} -> {one['last'] / 1e6:.1f} MB{grown}")
    for name in ("wrong", "hung", "late", "strange", "odd", "doubled", "executors"):
        lines += [f"  {name}: {text}" for text in found[name][:5]]
    lines += [f"NOT WELL: {text}" for text in problems] or ["All is well."]
    return "\n".join(lines)
