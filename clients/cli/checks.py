"""What `keyside doctor` looks at: each check makes findings of the facts, and says how to fix what is wrong."""

import dataclasses
from collections.abc import Iterator

from keyside import __version__
from keyside.clients.binary import MINIMUM
from keyside.clients.cli.common import human_bytes
from keyside.clients.cli.facts import Facts
from keyside.tensorstore import library

__all__ = ["Finding", "examine"]

OK, WARN, FAIL = "ok", "warn", "fail"
OLD_MS = 30_000  # the default TIMEOUT of a job
DEEP = 1_000
CLOCK_MS = 2_000
MIN_HZ = 10


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    Attributes:
        name: What was looked at.
        status: `ok`, `warn` or `fail`.
        text: What is so.
        fix: What to do about it.
    """

    name: str
    status: str
    text: str
    fix: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Make all findings."""
    checks = (
        _server, _role, _cluster, _library, _executors, _reach, _queues, _models, _dead, _memory, _eviction,
        _persistence, _clients, _clock, _hz, _unread,
    )  # fmt: skip
    return [finding for check in checks for finding in check(facts)]


def _server(facts: Facts) -> Iterator[Finding]:
    text = f"{facts.server}, answers in {facts.latency_ms:.1f} ms"
    least = MINIMUM.get(facts.kind)
    if least is None:
        yield Finding("server", WARN, text, "Keyside is tested with Redis >= 7.0 and Valkey >= 7.2 only")
    elif facts.version < least:
        wanted = ".".join(map(str, least))
        yield Finding("server", FAIL, text, f"functions need {facts.kind} {wanted} or newer: upgrade the server")
    else:
        yield Finding("server", OK, text)


def _role(facts: Facts) -> Iterator[Finding]:
    if facts.info.get("role") == "slave":
        primary = f"{facts.info.get('master_host')}:{facts.info.get('master_port')}"
        yield Finding("role", FAIL, "a replica, which takes no writes", f"name the primary instead: {primary}")


def _cluster(facts: Facts) -> Iterator[Finding]:
    if facts.number("cluster_enabled"):
        yield Finding("cluster", OK, "this looks at one node: call it with the address of each")


def _library(facts: Facts) -> Iterator[Finding]:
    if "library" in facts.problems:
        yield Finding(
            "library",
            FAIL,
            f"functions cannot be called: {facts.problems['library']}",
            "the server must have functions, and the user must be allowed FCALL and FCALL_RO",
        )
        return
    if facts.library is None:
        yield Finding("library", FAIL, "the function library is not loaded", "keyside install (executors do it, too)")
        return
    number, digest = facts.library
    text = f"version {number}"
    if number < library.LIBRARY_VERSION:
        yield Finding("library", FAIL, f"{text}, older than ours ({library.LIBRARY_VERSION})", "keyside install")
    elif number > library.LIBRARY_VERSION:
        yield Finding(
            "library", WARN, f"{text}, newer than ours ({library.LIBRARY_VERSION})", "upgrade keyside on this machine"
        )
    elif digest != library.digest():
        yield Finding("library", WARN, f"{text}, but another text than ours", "keyside install")
    else:
        yield Finding("library", OK, text)


def _executors(facts: Facts) -> Iterator[Finding]:
    if "executors" in facts.problems:
        return
    if not facts.executors:
        yield Finding("executors", FAIL, "none is alive: no model runs", "start one: keyside executor, or keyside up")
    for one in facts.executors:
        devices, backends = (", ".join(map(str, one.get(what, ()))) for what in ("devices", "backends"))
        used, budget = int(one.get("memory", 0)), int(one.get("budget", 0))
        text = (
            f"{one.get('name')} on {one.get('host')} serves {devices} with {backends}, "
            f"models take {human_bytes(used)} of {human_bytes(budget)}"
        )
        status, fix = OK, ""
        if one["beat_ms"] > int(one.get("lease_ms", 10_000)):
            status, fix = WARN, "it may hang or be short of CPU: see its log"
            text += f", last heard of {one['beat_ms'] / 1000:.0f} s ago"
        elif budget and used > 0.95 * budget:
            status, fix = WARN, "models are loaded again and again if they do not fit: raise --memory-budget"
        elif str(one.get("keyside", __version__)) != __version__:
            status, fix = WARN, f"it is of keyside {one['keyside']}, this is {__version__}: upgrade the older one"
        yield Finding("executor", status, text, fix)


def _reach(facts: Facts) -> Iterator[Finding]:
    if facts.remote_executors:
        yield Finding(
            "executors",
            WARN,
            f"{facts.remote_executors} connected over a network: each tensor crosses it twice",
            "run executors on the server's own host, over its unix socket",
        )


def _queues(facts: Facts) -> Iterator[Finding]:
    for queue in facts.queues:
        name = f"queue {queue['device']}"
        if "error" in queue:
            yield Finding(name, FAIL, str(queue["error"]), "something else has written to this key of Keyside's")
            continue
        text = f"{queue['depth']} jobs, {queue['claimed']} of them running"
        if queue["oldest_ms"] is not None:
            text += f", the oldest {queue['oldest_ms'] / 1000:.1f} s old"
        serve = f"start one: keyside executor --devices {queue['device']}"
        if not queue["executors"]:
            yield Finding(name, FAIL if queue["depth"] else WARN, f"{text}; no executor serves it", serve)
        elif (queue["oldest_ms"] or 0) > OLD_MS or queue["depth"] > DEEP:
            yield Finding(name, WARN, text, "work comes in faster than it is done: add executors, or batch more")
        else:
            yield Finding(name, OK, text)


def _models(facts: Facts) -> Iterator[Finding]:
    if "models" in facts.problems:
        return
    versions: dict[tuple[str, int], dict[str, object]] = {}
    for record in facts.models.values():
        key, version = record.get("key"), record.get("version")
        if isinstance(key, str) and isinstance(version, int):
            versions[key, version] = record
    failed = [(one, record) for one, record in sorted(versions.items()) if record.get("state") == "failed"]
    for (key, version), record in failed[:5]:
        yield Finding(
            f"model {key}@{version}",
            WARN,
            f"failed to load: {record.get('reason')}",
            "store a version that works; `keyside model rm` removes this one",
        )
    loading = sum(record.get("state") == "loading" for record in versions.values())
    names = len({key for key, _ in versions})
    text = f"{names} models, {len(versions)} versions, {loading} loading, {len(failed)} failed"
    yield Finding("models", OK, text)


def _dead(facts: Facts) -> Iterator[Finding]:
    if facts.dead:
        yield Finding(
            "dead letters",
            WARN,
            f"{facts.dead} jobs were given up, the last because: {facts.last_dead}",
            "find what killed the executors: `keyside dead ls` shows the jobs, `keyside dead drop --all` drops them",
        )


def _memory(facts: Facts) -> Iterator[Finding]:
    used, limit = facts.number("used_memory"), facts.number("maxmemory")
    machine = facts.number("total_system_memory")
    if limit:
        text = f"{human_bytes(used)} of {human_bytes(limit)} ({used / limit:.0%})"
        fix = "raise maxmemory, or remove tensors and models; at the limit nothing more is stored or run"
        status = FAIL if used > 0.95 * limit else WARN if used > 0.8 * limit else OK
        yield Finding("memory", status, text, fix if status != OK else "")
    elif machine and used > 0.8 * machine:
        text = f"{human_bytes(used)}, and the machine has {human_bytes(machine)}"
        yield Finding("memory", WARN, text, "set maxmemory, so that the system does not kill the server")
    else:
        yield Finding("memory", OK, f"{human_bytes(used)}, no limit")


def _eviction(facts: Facts) -> Iterator[Finding]:
    policy = str(facts.info.get("maxmemory_policy", ""))
    if not policy:
        yield Finding("eviction", WARN, "the server does not tell its policy", "make sure that it is noeviction")
        return
    if policy == "noeviction":
        yield Finding("eviction", OK, policy)
        return
    what = "running jobs' private keys" if policy.startswith("volatile") else "models, queues and tensors"
    fix = "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file"
    if facts.number("maxmemory"):
        status = WARN if policy.startswith("volatile") else FAIL
        yield Finding("eviction", status, f"{policy}: at maxmemory the server throws away {what}", fix)
    else:
        yield Finding("eviction", WARN, f"{policy}: once maxmemory is set, {what} are thrown away at the limit", fix)


def _persistence(facts: Facts) -> Iterator[Finding]:
    if facts.info.get("aof_last_write_status", "ok") != "ok":
        yield Finding("persistence", FAIL, "the append-only file cannot be written", "see the server's log and disk")
        return
    if facts.info.get("rdb_last_bgsave_status", "ok") != "ok":
        yield Finding("persistence", FAIL, "the last snapshot failed", "see the server's log and disk")
        return
    fix = "CONFIG SET appendonly yes, and the same in the server's configuration file"
    if facts.number("aof_enabled"):
        yield Finding("persistence", OK, "append-only file")
    elif "save" not in facts.config:
        yield Finding("persistence", WARN, "no append-only file; the server does not tell about snapshots", fix)
    elif facts.config["save"]:
        yield Finding("persistence", OK, f"snapshots ({facts.config['save']}): what came after the last can be lost")
    else:
        yield Finding("persistence", WARN, "none: models and tensors are lost when the server restarts", fix)


def _clients(facts: Facts) -> Iterator[Finding]:
    most = facts.number("maxclients") or int(facts.config.get("maxclients") or 0)
    now = facts.number("connected_clients")
    if most and now > 0.9 * most:
        yield Finding("clients", WARN, f"{now} of at most {most} connections", "raise maxclients, or share connections")


def _clock(facts: Facts) -> Iterator[Finding]:
    if abs(facts.clock_ms) > CLOCK_MS:
        ahead = "ahead of" if facts.clock_ms > 0 else "behind"
        text = f"the server's is {abs(facts.clock_ms) / 1000:.1f} s {ahead} this machine's"
        yield Finding("clock", WARN, text, "set both by NTP; deadlines go by the server's, logs by each machine's own")


def _hz(facts: Facts) -> Iterator[Finding]:
    hz = facts.number("hz")
    if 0 < hz < MIN_HZ:
        text = f"{hz}: timeouts of waiting clients are noticed up to {1000 // hz} ms late"
        yield Finding("hz", WARN, text, f"CONFIG SET hz {MIN_HZ}")


def _unread(facts: Facts) -> Iterator[Finding]:
    for what, why in facts.problems.items():
        if what not in ("library", "config"):
            yield Finding(what, WARN, f"could not be looked at: {why}", "allow this user to read it, or use another")
