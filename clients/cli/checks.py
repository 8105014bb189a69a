"""What `keyside doctor` looks at: each check makes findings of the facts, and says how to fix what is wrong."""

import dataclasses
import socket
from collections.abc import Iterator

from keyside import __version__
from keyside.clients.binary import MINIMUM
from keyside.clients.cli.common import human_bytes
from keyside.clients.cli.facts import Facts
from keyside.tensorstore import library

__all__ = ["COLOURS", "FAIL", "OK", "OLD_MS", "WARN", "Finding", "examine", "lua_broken"]

OK, WARN, FAIL = "ok", "warn", "fail"
COLOURS = {OK: "green", WARN: "yellow", FAIL: "red"}
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
        node: The node of a cluster that it is about; empty: all of it, or a single server.
    """

    name: str
    status: str
    text: str
    fix: str = ""
    node: str = ""


def examine(facts: Facts) -> list[Finding]:
    """Make all findings."""
    checks = (
        _server, _role, _library, _executors, _reach, _queues, _models, _dead, _memory, _eviction,
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
    if facts.clustered and facts.replica:
        yield Finding("role", OK, f"replica of {facts.primary}")
    elif facts.clustered and not facts.slots:
        yield Finding("role", OK, "a primary without slots: it takes no keys and runs nothing")
    elif facts.replica:
        yield Finding("role", FAIL, "a replica, which takes no writes", f"name the primary instead: {facts.primary}")


def lua_broken(facts: Facts, node: str = "") -> Finding:
    """Say that functions do not work on a node, and how that came."""
    return Finding(
        "functions",
        FAIL,
        f"none works, though the node owns slots: each hears that its keys are elsewhere ({facts.lua}). On Valkey one "
        "script that names keys of two slots in one command does this to the whole node, whoever sent it",
        "restart this server (a failover to its replica first keeps the shard serving); then find that script: Keyside "
        "has none",
        node,
    )


def _library(facts: Facts) -> Iterator[Finding]:
    if facts.lua:
        yield lua_broken(facts)
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
    if "executors" in facts.problems or not facts.serves:
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
    names = [str(one.get("name")) for one in facts.executors if one.get("local") is False]
    number = max(len(names), facts.remote_executors or 0)
    if not number:
        return
    here = {one.get("host") for one in facts.executors if one.get("local") is False} & {socket.gethostname()}
    whence = "from here, which is that host," if here else "from this machine, which may be nearer or farther,"
    yield Finding(
        "executors",
        WARN,
        f"{', '.join(names) or number} connected from another host: every input and output crosses the network once "
        f"more, and each batch waits for one more round trip; {whence} one takes {facts.latency_ms:.2f} ms",
        "for small models run executors on the server's own host, over its unix socket: a local round trip takes some "
        "0.05 ms; where the model needs a GPU of another host, and runs for many milliseconds, it is well spent",
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
    if "models" in facts.problems or not facts.serves:
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
    fix = "CONFIG SET maxmemory-policy noeviction, and the same in the server's configuration file"
    if policy.startswith("volatile"):
        what = (
            "keys with a time to live first, and those are the inputs of queued jobs, replies and uploads: "
            "callers get INPUTLOST, or no answer"
        )
        status = WARN
    else:
        what = "any key: models, queues with the jobs in them, inputs that were captured for jobs, and tensors"
        status = FAIL
    when = "at maxmemory" if facts.number("maxmemory") else "maxmemory is not set; once it is, at the limit"
    yield Finding("eviction", status, f"{policy}: {when} the server throws away {what}", fix)


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
    reasons: dict[str, list[str]] = {}
    for what, why in facts.problems.items():
        if what not in ("library", "config"):
            reasons.setdefault(why, []).append(what)
    for why, whats in reasons.items():
        down = "CLUSTERDOWN" in why
        fix = "see what is said of the cluster" if down else "allow this user to read it, or use another"
        yield Finding(", ".join(whats), WARN, f"could not be looked at: {why}", fix)
