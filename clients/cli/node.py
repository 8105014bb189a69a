"""What one node says about itself, its executors and its queues."""

import contextlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from keyside.tensorstore import keys
from keyside.tensorstore.errors import KeysideError

if TYPE_CHECKING:
    import redis

__all__ = ["devices", "executors", "is_clustered", "node_keys", "own_slots", "pairs", "queues", "text"]

GROUP = "ks"
PRIORITIES = ("", "!H", "!L")


def text(raw: Any) -> str:
    """Return the text of a reply."""
    return raw if isinstance(raw, str) else bytes(raw).decode("utf-8", "backslashreplace")


def node_keys(client: "redis.Redis") -> keys.NodeKeys:
    """Return the names of the node's own keys.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    if not is_clustered(client):
        return keys.NodeKeys()
    slots = own_slots(client)
    return keys.NodeKeys(keys.slot_tag(min(first for first, _ in slots))) if slots else keys.NodeKeys()


def is_clustered(client: "redis.Redis") -> bool:
    """Whether a server is a node of a cluster.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import command

    return bool(command(client, "INFO", "cluster").get("cluster_enabled"))


def own_slots(client: "redis.Redis") -> list[tuple[int, int]]:
    """Return the ranges of slots that a node of a cluster owns; of a replica there are none.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import command

    own_id = text(command(client, "CLUSTER", "MYID"))
    client.response_callbacks.pop("CLUSTER SLOTS", None)
    found = command(client, "CLUSTER", "SLOTS")
    return sorted((int(first), int(last)) for first, last, primary, *_ in found if text(primary[2]) == own_id)


def server_ms(client: "redis.Redis") -> int:
    """Return the time of the server in ms.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import command

    seconds, micros = command(client, "TIME")
    return int(seconds) * 1000 + int(micros) // 1000


def executors(client: "redis.Redis", names: keys.NodeKeys | None = None) -> list[dict[str, Any]]:
    """Return what the executors that are alive say about themselves, with `beat_ms`, the age of their last heartbeat.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import command

    names = names or node_keys(client)
    beats = command(client, "ZRANGE", names.executors, 0, -1, "WITHSCORES")
    now = server_ms(client)
    found = []
    for consumer, beat in pairs(beats):
        raw = command(client, "GET", names.executor(consumer))
        if raw is None:
            continue  # it died, and is still listed for its jobs to be taken over
        try:
            info = json.loads(raw)
        except ValueError:
            continue
        if isinstance(info, dict):
            found.append({"consumer": text(consumer), **info, "beat_ms": max(0, now - int(float(beat)))})
    return found


def devices(client: "redis.Redis", names: keys.NodeKeys, alive: list[dict[str, Any]]) -> list[str]:
    """Return the device queues that executors serve or models are stored for.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import command

    found = {device for one in alive for device in one.get("devices", ())}
    for raw in command(client, "HVALS", names.catalog):
        try:
            record = json.loads(raw)
        except ValueError:
            continue
        if isinstance(record, dict) and isinstance(record.get("device"), str):
            found.add(record["device"])
    return sorted(found)


def queues(
    client: "redis.Redis", names: keys.NodeKeys, alive: list[dict[str, Any]], more: Iterable[str] = ()
) -> list[dict[str, Any]]:
    """Return for each device queue: jobs in it, how many of them are claimed, bytes, age of the oldest, its executors.

    Args:
        client: A client of the node.
        names: Its own keys.
        alive: Its executors.
        more: Devices to look for besides those of the executors and the catalog.

    Raises:
        KeysideError: The server refuses or is gone.
    """
    from keyside.clients.admin import command

    now = server_ms(client)
    client.response_callbacks.pop("XPENDING", None)
    client.response_callbacks.pop("XRANGE", None)
    found: list[dict[str, Any]] = []
    for device in sorted({*devices(client, names, alive), *more}):
        depth = claimed = 0
        ages: list[int] = []
        try:
            for priority in PRIORITIES:
                stream = names.jobs(device + priority)
                count = int(command(client, "XLEN", stream))
                if not count:
                    continue
                depth += count
                first = command(client, "XRANGE", stream, "-", "+", "COUNT", 1)
                ages += [max(0, now - int(text(one[0]).partition("-")[0])) for one in first]
                with contextlib.suppress(KeysideError):  # no executor has served it yet: it has no group
                    claimed += int(command(client, "XPENDING", stream, GROUP)[0])
        except KeysideError as error:
            found.append({"device": device, "error": str(error)})
            continue
        held = command(client, "GET", names.bytes(device))
        found.append(
            {
                "device": device,
                "depth": depth,
                "claimed": claimed,
                "bytes": int(held or 0),
                "oldest_ms": max(ages, default=None),
                "executors": sum(device in one.get("devices", ()) for one in alive),
            }
        )
    return found


def pairs(reply: Any) -> list[tuple[Any, Any]]:
    """Return members and scores, which come flat or, through redis-py, in pairs."""
    if reply and isinstance(reply[0], list | tuple):
        return [(member, score) for member, score in reply]
    return list(zip(reply[::2], reply[1::2], strict=True))
