"""What a run has come to: figures, a verdict, and the text that says both."""

import statistics
from typing import Any

from tests.chaos.callers import Callers
from tests.chaos.faults import Trouble
from tests.chaos.world import World

__all__ = ["growth", "report", "show", "verdict"]

# What calls may end with while things go wrong. Everything else was not to be expected of right calls.
EXPECTED = {
    "UNREACHABLE", "TIMEDOUT", "BUSY", "OOM", "TRYAGAIN", "INPUTLOST", "DEADLETTER", "CANCELLED", "NOLIBRARY",
}  # fmt: skip
LONGEST_MS = 90_000
"""Numbers of requests are remembered for 70 s and some; nothing of ours for a short job lives longer."""


def growth(samples: list[tuple[float, int]]) -> float | None:
    """By how much the last third of a process's samples is above its second third; None: too few of them."""
    if len(samples) < 15:
        return None
    third = len(samples) // 3
    before = statistics.median(value for _, value in samples[third : 2 * third])
    after = statistics.median(value for _, value in samples[2 * third :])
    return after / before - 1


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
        "slots moved": trouble.mover.moved if trouble.mover else 0,
        "callers killed": callers.killed,
        "calls": sum(total.calls.values()),
        "by kind": dict(total.calls),
        "right": sum(total.right.values()),
        "codes": dict(total.codes),
        "wrong": total.wrong,
        "hung": total.hung,
        "late": total.late,
        "latest": round(total.latest, 2),
        "strange": total.strange,
        "jobs": total.jobs,
        "counted": sum(world.counted().values()),
        "keys looked at": callers.checked,
        "doubled": callers.doubled,
        "unsure": callers.unsure,
        "left": world.left(),
        "executors": world.trouble(),
        "memory": {name: {"first": found[0][1], "last": found[-1][1], "growth": growth(found)} for name, found in memory.items()},
        "samples": memory,
    }


def verdict(found: dict[str, Any], *, waited: bool, flat: float | None = None) -> list[str]:
    """Say what is not as it must be; empty: all is well.

    Args:
        found: by `report`.
        waited: the longest TTL has passed, so that nothing of ours may be left.
        flat: how much memory may have grown; None: that is not looked at.
    """
    wrong = []
    for name in ("wrong", "hung", "late", "strange", "doubled", "executors", "faults failed"):
        if found[name]:
            wrong.append(f"{name}: {len(found[name])}, such as {found[name][0]}")
    odd = {code: count for code, count in found["codes"].items() if code not in EXPECTED}
    if odd:
        wrong.append(f"codes that nothing explains: {odd}")
    if found["calls"] != found["right"] + sum(found["codes"].values()) + len(found["wrong"]) + len(found["hung"]) + len(found["strange"]) - sum(
        "internal" in text or "ERR" in text for text in found["strange"]
    ):
        wrong.append("calls, answers and codes do not add up")
    if not found["slots moved"] and not found["callers killed"] and found["counted"] > found["jobs"]:
        wrong.append(f"executors have ended {found['counted']} jobs of {found['jobs']}")
    if found["right"] < 0.5 * found["calls"]:
        wrong.append(f"only {found['right']} of {found['calls']} calls had an answer")
    left = found["left"]
    if left["forever"]:
        wrong.append(f"keys without TTL: {left['forever'][:5]}")
    lasting = {kind: most for kind, (_, most) in left["kinds"].items() if most > LONGEST_MS and kind not in ("gone", "up")}
    if lasting:
        wrong.append(f"keys that live too long (ms): {lasting}")
    if waited:
        still = {kind: count for kind, (count, _) in left["kinds"].items() if kind not in ("executor",)}
        if still:
            wrong.append(f"keys left once the longest TTL has passed: {still}")
    if flat is not None:
        for name, one in found["memory"].items():
            if one["growth"] is not None and one["growth"] > flat:
                wrong.append(f"memory of {name} has grown by {one['growth']:.0%}")
    return wrong


def show(found: dict[str, Any], problems: list[str]) -> str:
    """The report as text."""
    lines = [
        "",
        f"{found['about']}, seed {found['seed']}, {found['seconds']:g} s, {found['faults']} faults, "
        f"{found['callers killed']} callers killed, {found['slots moved']} slots moved",
        f"calls {found['calls']:,}: right {found['right']:,}, codes {found['codes']}",
        f"  by kind: {found['by kind']}",
        f"  wrong {len(found['wrong'])}, hung {len(found['hung'])}, late {len(found['late'])} (latest {found['latest']:g} s), "
        f"not a KeysideError or internal {len(found['strange'])}",
        f"jobs {found['jobs']:,}, ended by executors {found['counted']:,}; keys looked at again {found['keys looked at']:,}, "
        f"written twice {len(found['doubled'])}, not to be told after a failover {found['unsure']}",
        f"left: {found['left']['kinds']} (number, longest TTL in ms), without TTL {len(found['left']['forever'])}, "
        f"replies nobody read {found['left']['unread']}",
    ]
    for name, one in sorted(found["memory"].items()):
        grown = "" if one["growth"] is None else f", last third over second {one['growth']:+.1%}"
        lines.append(f"  {name}: {one['first'] / 1e6:.1f} -> {one['last'] / 1e6:.1f} MB{grown}")
    for name in ("wrong", "hung", "late", "strange", "doubled", "executors"):
        lines += [f"  {name}: {text}" for text in found[name][:5]]
    lines += [f"NOT WELL: {text}" for text in problems] or ["All is well."]
    return "\n".join(lines)
