"""Builders for plain commands of the server, on tensors and on the keys that Keyside keeps.

Pure, and the same for every transport.
"""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import msgspec
from numpy.typing import NDArray

from keyside.tensorstore import dtypes, keys, npy
from keyside.tensorstore.command import Command, Name, Value, nothing, same, text, to_bytes
from keyside.tensorstore.errors import BadArg, BadNpy, InputLost, NoModel, NoTensor, WrongType
from keyside.tensorstore.records import ModelInfo, Signature

_STAGED_MS = 60_000
_BIG = 64 * 1024


# --- plain commands on tensors


class TensorMeta(NamedTuple):
    """What a tensor is.

    Attributes:
        dtype: its name in the dtype table, such as FLOAT.
        shape: its dims.
        nbytes: size of its elements together.
    """

    dtype: str
    shape: tuple[int, ...]
    nbytes: int


def set_value(key: Name, header: bytes, data: memoryview, px: int | None = None) -> Command[None]:
    """Write a tensor, with a time to live in ms."""
    value: Any = Value(header, data) if data.nbytes >= _BIG else b"".join((header, data))
    expiry = () if px is None else (b"PX", px)
    return Command((b"SET", to_bytes(key), value, *expiry), nothing, repeatable=True, bulk=data.nbytes >= _BIG)


def set_around(key: bytes, header: bytes, data: memoryview, px: int | None) -> tuple[bytes, bytes]:
    """Encode what stands before and behind the elements in `set_value`."""
    size = len(header) + data.nbytes
    if px is None:
        return b"*3\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b" % (len(key), key, size, header), b"\r\n"
    head = b"*5\r\n$3\r\nSET\r\n$%d\r\n%b\r\n$%d\r\n%b" % (len(key), key, size, header)
    ms = b"%d" % px
    return head, b"\r\n$2\r\nPX\r\n$%d\r\n%b\r\n" % (len(ms), ms)


def set_temporary(key: Name, header: bytes, data: memoryview) -> Command[None]:
    """Write a tensor that a call behind it in the same write takes over."""
    return set_value(key, header, data, _STAGED_MS)


def get_value(key: Name) -> Command[NDArray[Any]]:
    """Read a tensor, into memory of its own."""
    return Command((b"GET", to_bytes(key)), partial(_read_value, key), repeatable=True, bulk=True)


def _read_value(key: Name, reply: Any) -> NDArray[Any]:
    if reply is None:
        raise NoTensor(f"there is no key {text(key)!r}")
    try:
        return array(reply)
    except BadNpy:
        _check_magic(key, reply)
        raise


def get_output(key: Name) -> Command[NDArray[Any]]:
    """Read an output that a reply names, into memory of its own."""

    def parse(reply: Any) -> NDArray[Any]:
        if reply is None:
            raise InputLost(
                f"an output is gone: one above 32 KiB is kept for {_STAGED_MS // 1000} s after the run, and it was "
                "asked for later than that, or evicted; run it again, or name keys for the outputs"
            )
        return array(reply)

    return Command((b"GET", to_bytes(key)), parse, repeatable=True, bulk=True)


def array(value: bytes | memoryview) -> NDArray[Any]:
    """Read a tensor that is the caller's own from now on.

    Raises:
        BadNpy: it is damaged.
    """
    found = npy.decode(value)
    # A large reply lies in memory of its own; that of a small one cannot be written to.
    return found if found.flags.writeable else found.copy()


def _check_magic(key: Name, value: bytes | memoryview) -> None:
    if bytes(value[:6]) != npy.MAGIC[:6]:
        raise WrongType(f"key {text(key)!r} holds a string that is not a tensor")


def get_bytes(key: Name) -> Command[bytes | memoryview | None]:
    """Read a string."""
    return Command((b"GET", to_bytes(key)), same, repeatable=True, bulk=True)


def get_prefix(key: Name, size: int) -> Command[bytes]:
    """Read the first bytes of a string; none if there is no such key."""
    return Command((b"GETRANGE", to_bytes(key), 0, size - 1), same, repeatable=True)


def get_suffix(key: Name, size: int) -> Command[bytes]:
    """Read the last bytes of a string; none if there is no such key."""
    return Command((b"GETRANGE", to_bytes(key), -size, -1), same, repeatable=True)


def strlen(key: Name) -> Command[int]:
    """Ask for the length of a string."""
    return Command((b"STRLEN", to_bytes(key)), int, repeatable=True)


def read_meta(key: Name, prefix: bytes, total: int) -> TensorMeta:
    """Read what a tensor is from its first bytes.

    Raises:
        NoTensor: there is no such key.
        WrongType: it is no tensor.
        BadNpy: it is a damaged one.
    """
    if not total:
        raise NoTensor(f"there is no key {text(key)!r}")
    _check_magic(key, prefix)
    header = npy.parse_header(prefix, total)
    return TensorMeta(dtypes.of(header.dtype).name, header.shape, header.nbytes)


def exists(key: Name) -> Command[bool]:
    """Ask whether a key exists."""
    return Command((b"EXISTS", to_bytes(key)), bool, repeatable=True)


def is_model(key: Name) -> Command[bool]:
    """Ask whether a key holds a model; the reply is WRONGTYPE if it is not even a hash."""
    return Command((b"HGET", to_bytes(key), b"type"), lambda reply: reply == b"model", repeatable=True)


def is_target(target: Name) -> Command[bool]:
    """Ask the home of a target whether there is anything of its name that can be run."""
    name = to_bytes(target).partition(b"@")[0]
    return Command((b"HGET", name, b"type"), lambda reply: reply in (b"model", b"endpoint"), repeatable=True)


def unlink(names: Sequence[Name]) -> Command[int]:
    """Delete keys; the result is how many there were."""
    return Command((b"UNLINK", *map(to_bytes, names)), int)


def copy(source: Name, destination: Name, *, replace: bool) -> Command[bool]:
    """Copy a key; the result is whether that was done."""
    return Command((b"COPY", to_bytes(source), to_bytes(destination), *((b"REPLACE",) if replace else ())), bool)


def rename(source: Name, destination: Name) -> Command[None]:
    """Rename a key."""
    return Command((b"RENAME", to_bytes(source), to_bytes(destination)), nothing)


def pexpire(key: Name, ms: int | None) -> Command[bool]:
    """Set or take away the time to live of a key; the result is whether that was done."""
    if ms is None:
        return Command((b"PERSIST", to_bytes(key)), bool, repeatable=True)
    return Command((b"PEXPIRE", to_bytes(key), ms), bool, repeatable=True)


_GLOB = str.maketrans({char: "\\" + char for char in "*?[]\\"})


def scan_strings(cursor: int, prefix: str, count: int = 500) -> Command[tuple[int, list[bytes]]]:
    """List some string keys that begin with a prefix: the next cursor, 0 at the end, and what was found."""
    match = to_bytes(prefix.translate(_GLOB) + "*")
    return Command(
        (b"SCAN", cursor, b"MATCH", match, b"COUNT", count, b"TYPE", b"string"),
        lambda reply: (int(reply[0]), list(reply[1])),
        repeatable=True,
    )


# --- plain commands on models and the node's own keys


def set_chunk(key: bytes, chunk: bytes | memoryview) -> Command[None]:
    """Write a chunk of a model that is being uploaded; it goes by itself after an hour."""
    return Command((b"SET", key, chunk, b"PX", 3_600_000), nothing, repeatable=True, bulk=True)


def model_hash(name: Name) -> Command[ModelInfo]:
    """Read a model key."""
    return Command((b"HGETALL", to_bytes(name)), lambda reply: ModelInfo.from_hash(name, reply), repeatable=True)


class CatalogRecord(msgspec.Struct, frozen=True):
    """What the functions of a node know about a target."""

    key: str
    uid: str
    version: int
    state: str
    device: str
    signature: Signature | None
    reason: str = ""


_CATALOG = msgspec.json.Decoder(CatalogRecord)


def catalog_record(node: bytes, target: Name) -> Command[CatalogRecord]:
    """Read what the functions of a node know about a target."""

    def parse(reply: Any) -> CatalogRecord:
        if reply is None:
            raise NoModel(f"no model {text(target)!r}")
        try:
            return _CATALOG.decode(reply)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise BadArg(f"the catalog has an unreadable record of {text(target)!r}: {error}") from None

    return Command((b"HGET", keys.NodeKeys(node).catalog, to_bytes(target)), parse, repeatable=True)


def blpop(key: bytes, seconds: float) -> Command[bytes | None]:
    """Wait for a reply on a ticket."""
    return Command((b"BLPOP", key, f"{max(seconds, 0.001):.3f}"), lambda reply: None if reply is None else reply[1])


def blmpop(key: bytes, seconds: float, count: int = 100) -> Command[list[bytes]]:
    """Wait for replies on a list that many requests share."""
    return Command(
        (b"BLMPOP", f"{max(seconds, 0.001):.3f}", 1, key, b"LEFT", b"COUNT", count),
        lambda reply: [] if reply is None else list(reply[1]),
    )


def lpop(key: bytes) -> Command[bytes | None]:
    """Take a reply off a ticket if there is one."""
    return Command((b"LPOP", key), same)


def llen(key: bytes) -> Command[int]:
    """Ask how many replies are on a ticket."""
    return Command((b"LLEN", key), int, repeatable=True)


def rpush(key: bytes, value: bytes) -> Command[int]:
    """Put something on a ticket."""
    return Command((b"RPUSH", key, value), int)


def cluster_slots() -> Command[list[tuple[int, int, str, int]]]:
    """Ask which primary owns which slots: first and last slot, host (empty: not known there) and port."""
    return Command((b"CLUSTER", b"SLOTS"), _parse_slots, repeatable=True)


def _parse_slots(reply: Any) -> list[tuple[int, int, str, int]]:
    return [(int(first), int(last), text(primary[0] or b""), int(primary[1])) for first, last, primary, *_ in reply]


def asking() -> Command[None]:
    """Let the next command be served where a slot is moving to."""
    return Command((b"ASKING",), nothing)


def sentinel_primary(service: str) -> Command[tuple[str, int] | None]:
    """Ask a sentinel where the primary of a service is; None: it does not know the service."""
    return Command(
        (b"SENTINEL", b"GET-MASTER-ADDR-BY-NAME", service),
        lambda reply: None if reply is None else (text(reply[0]), int(reply[1])),
        repeatable=True,
    )


def role() -> Command[str]:
    """Ask a server whether it is a `master`, a `slave` or a `sentinel`."""
    return Command((b"ROLE",), lambda reply: text(reply[0]), repeatable=True)


def counters(node: bytes, model_id: str) -> Command[list[int]]:
    """Read what a node has counted of one version: duration, samples, calls, errors."""
    return Command(
        (b"HMGET", keys.NodeKeys(node).stats(model_id), b"duration", b"samples", b"calls", b"errors"),
        lambda reply: [int(value or 0) for value in reply],
        repeatable=True,
    )


def is_queued(job: bytes) -> Command[bool]:
    """Ask whether a job still waits or runs: `DEVICE/id`, or `DEVICE@tag/id` on a cluster."""
    queue, _, entry = job.partition(b"/")
    device, at, tag = queue.partition(b"@")
    stream = keys.NodeKeys(tag if at else keys.STANDALONE_TAG).jobs(device)
    return Command((b"XRANGE", stream, entry, entry), bool, repeatable=True)


def executor_names(node: bytes) -> Command[list[str]]:
    """List the executors that have registered with a node, dead ones too."""
    return Command(
        (b"ZRANGE", keys.NodeKeys(node).executors, 0, 99), lambda reply: [text(name) for name in reply], repeatable=True
    )


def executor_infos(node: bytes, names: Sequence[str]) -> Command[list[dict[str, Any]]]:
    """Read what the executors of these names tell about themselves; dead ones tell nothing."""
    of = keys.NodeKeys(node)
    return Command((b"MGET", *(of.executor(to_bytes(name)) for name in names)), _parse_infos, repeatable=True)


def _parse_infos(reply: Any) -> list[dict[str, Any]]:
    found = []
    for raw in reply:
        if raw is not None:
            try:
                info = msgspec.json.decode(raw)
            except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
                continue
            if isinstance(info, Mapping):
                # Whoever may write there may have written anything: what everybody looks at is a list of words.
                devices = info.get("devices", [])
                if not isinstance(devices, list) or not all(isinstance(word, str) for word in devices):
                    info = {**info, "devices": []}
                found.append(dict(info))
    return found
