"""Settings of an executor: one frozen dataclass, filled from KEYSIDE_* variables."""

import dataclasses
import math
import os
import re
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from keyside.executor import memory

__all__ = ["Settings", "SettingsError", "parse_bytes"]

PREFIX = "KEYSIDE_"
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")
LOG_FORMATS = ("console", "json")

_UNITS = {"": 1, "b": 1, "kb": 1 << 10, "mb": 1 << 20, "gb": 1 << 30, "tb": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?i?b?)", re.ASCII)
_QUEUE = re.compile(r"[A-Z0-9:_.\-]{1,32}", re.ASCII)
_MODULE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")
_NAME = re.compile(r"[A-Za-z0-9:_.\-]{1,64}", re.ASCII)


class SettingsError(ValueError):
    """A setting is malformed or out of range; the text names the setting and its variable."""


def parse_bytes(text: str) -> int:
    """Read a size: a whole number of bytes, or a number with a unit as in `512mb` or `1.5 GiB`.

    Units are powers of 1024, as in the configuration of Redis.

    Raises:
        ValueError: the text is not a size.
    """
    match = _SIZE.fullmatch(text.strip().lower())
    if match is None:
        raise ValueError("not a size such as 1048576, 512mb or 2gb")
    number, unit = match.groups()
    unit = unit.replace("i", "")
    if unit and not unit.endswith("b"):
        unit += "b"
    if unit in ("", "b") and "." in number:
        raise ValueError("not a whole number of bytes")
    return int(float(number) * _UNITS[unit]) if "." in number else int(number) * _UNITS[unit]


def _default_name() -> str:
    # Several executors may share a host, and containers often share pid numbers.
    host = re.sub(r"[^A-Za-z0-9_.\-]", "-", socket.gethostname())[:40] or "executor"
    return f"{host}-{os.getpid()}"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything that an executor can be told.

    Attributes:
        url: the server, `redis://`, `rediss://` or `unix://`; empty: none was named.
        devices: the device queues to serve, in this order of precedence.
        name: how this executor is called in listings, logs and metrics.
        lease_ms: an entry untouched for this long is taken over by other executors.
        beat_ms: time between heartbeats, which extend leases.
        max_deliveries: a job delivered this often without an end goes to the dead letters.
        max_batch: rows to stack at most for a model that sets no BATCHSIZE.
        claim: entries to take in one read.
        memory_budget: bytes that loaded models may take together.
        threads: threads that one run of a model may use.
        loader_threads: models to load at the same time.
        cache_dir: where blobs are kept by digest between starts; None keeps none.
        http_host: where /metrics and the health checks listen.
        http_port: 0 turns them off.
        log_level: debug, info, warning, error or critical.
        log_format: console or json.
        allow_code: load models that are code and cannot be checked.
        inline_ms: models whose runs take less than this run on the thread that reads jobs.
        spin_us: how long the thread that reads jobs looks for the next one before it sleeps, while jobs come that fast;
            0: never, and never where the process may use less than two cores.
        min_batch_timeout_ms: how long MINBATCHSIZE waits where MINBATCHTIMEOUT is not set.
        drain_s: how long to go on with claimed jobs after the request to stop; then they are left to other executors.
        run_limit_s: a run of a model that takes longer is abandoned, and the executor begins anew; a version may have
            its own limit (OPTIONS run_limit_ms). 0: none.
        load_limit_s: the same for the load of a model. 0: none.
        run_memory: when the process has grown by more bytes than that during one run, the run is abandoned like one
            that takes too long. 0: none is. Left out: half of what the machine, or the container, has.
        functions: modules of the operator's own with functions that scripts may name (`@keyside.function`).
        peer_url: on a cluster, how the other nodes are reached: a URL whose host and port are replaced. Empty: as the
            own node, or by `redis://` where that is reached by a unix socket.
        catalog_check_s: on a cluster, seconds between two comparisons of the whole catalog with those of other nodes.
    """

    url: str = dataclasses.field(default="", repr=False)  # may hold a password
    devices: tuple[str, ...] = ("CPU",)
    name: str = dataclasses.field(default_factory=_default_name)
    lease_ms: int = 10_000
    beat_ms: int = 1_000
    max_deliveries: int = 3
    max_batch: int = 64
    claim: int = 64
    memory_budget: int = 2 << 30
    threads: int = 1
    loader_threads: int = 1
    cache_dir: Path | None = None
    http_host: str = "127.0.0.1"
    http_port: int = 0
    log_level: str = "info"
    log_format: str = "console"
    allow_code: bool = False
    inline_ms: float = 2.0
    spin_us: int = 200
    min_batch_timeout_ms: int = 100
    drain_s: float = 30.0
    peer_url: str = dataclasses.field(default="", repr=False)
    catalog_check_s: float = 10.0
    run_limit_s: float = 60.0
    load_limit_s: float = 600.0
    run_memory: int = dataclasses.field(default_factory=lambda: memory.total() // 2)
    functions: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        for field, (low, high) in _RANGES.items():
            value = getattr(self, field)
            if not low <= value <= high:
                raise _error(field, f"must be {_number(low)} .. {_number(high)}, got {value}")
        if not self.devices:
            raise _error("devices", "names no device queue")
        for queue in self.devices:
            if not _QUEUE.fullmatch(queue):
                raise _error("devices", f"{queue!r} is not 1 to 32 capital letters, digits or :_.-")
        if len(set(self.devices)) != len(self.devices):
            raise _error("devices", "names a device queue twice")
        if not _NAME.fullmatch(self.name):
            raise _error("name", f"{self.name!r} is not 1 to 64 letters, digits or :_.-")
        for module in self.functions:
            if not _MODULE.fullmatch(module):
                raise _error("functions", f"{module[:80]!r} is not the name of a module, such as shop.functions")
        if self.log_level not in LOG_LEVELS:
            raise _error("log_level", f"must be one of {', '.join(LOG_LEVELS)}, got {self.log_level!r}")
        if self.log_format not in LOG_FORMATS:
            raise _error("log_format", f"must be one of {', '.join(LOG_FORMATS)}, got {self.log_format!r}")
        if self.peer_url and not self.peer_url.startswith(("redis://", "rediss://")):
            raise _error("peer_url", "must begin with redis:// or rediss://")
        if self.beat_ms * 3 > self.lease_ms:
            # Two beats may get lost before others take our jobs over.
            raise _error("beat_ms", f"must be at most a third of lease_ms, got {self.beat_ms}")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> "Settings":
        """Read the settings from KEYSIDE_* variables; REDIS_URL stands in for KEYSIDE_URL.

        An empty variable counts as not set. `overrides` (a command line's options) win over variables; those
        that are None do not.

        Raises:
            SettingsError: a value is malformed or out of range.
        """
        env = os.environ if environ is None else environ
        values: dict[str, Any] = {}
        for field in dataclasses.fields(cls):
            text = env.get(variable(field.name), "").strip()
            if not text and field.name == "url":
                text = env.get("REDIS_URL", "").strip()
            if text:
                values[field.name] = _parse(field.name, text)
        for name, value in overrides.items():
            if name not in _PARSERS:
                raise TypeError(f"no setting {name!r}")
            if value is not None:
                values[name] = _parse(name, value) if isinstance(value, str) else value
        return cls(**values)


def variable(field: str) -> str:
    """Return the name of the variable that sets a field."""
    return PREFIX + field.upper()


def _error(field: str, what: str) -> SettingsError:
    return SettingsError(f"{field} ({variable(field)}): {what}")


def _parse(field: str, text: str) -> Any:
    try:
        return _PARSERS[field](text)
    except ValueError as error:
        raise _error(field, f"{error}, got {text!r}") from None


def _integer(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("must be a whole number") from None


def _real(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError("must be a number")
    return value


def _boolean(text: str) -> bool:
    word = text.lower()
    if word in ("1", "true", "yes", "on"):
        return True
    if word in ("0", "false", "no", "off"):
        return False
    raise ValueError("must be yes or no")


def _devices(text: str) -> tuple[str, ...]:
    return tuple(queue.strip().upper() for queue in text.split(",") if queue.strip())


def _modules(text: str) -> tuple[str, ...]:
    return tuple(module.strip() for module in text.split(",") if module.strip())


def _path(text: str) -> Path:
    return Path(text).expanduser()


def _number(value: float) -> str:
    return f"{value:,}"


_PARSERS: dict[str, Callable[[str], Any]] = {
    "url": str,
    "devices": _devices,
    "name": str,
    "lease_ms": _integer,
    "beat_ms": _integer,
    "max_deliveries": _integer,
    "max_batch": _integer,
    "claim": _integer,
    "memory_budget": parse_bytes,
    "threads": _integer,
    "loader_threads": _integer,
    "cache_dir": _path,
    "http_host": str,
    "http_port": _integer,
    "log_level": str.lower,
    "log_format": str.lower,
    "allow_code": _boolean,
    "inline_ms": _real,
    "spin_us": _integer,
    "min_batch_timeout_ms": _integer,
    "drain_s": _real,
    "peer_url": str,
    "catalog_check_s": _real,
    "run_limit_s": _real,
    "load_limit_s": _real,
    "run_memory": parse_bytes,
    "functions": _modules,
}

_RANGES: dict[str, tuple[float, float]] = {
    "lease_ms": (100, 3_600_000),
    "beat_ms": (10, 60_000),
    "max_deliveries": (1, 1_000),
    "max_batch": (1, 65_536),
    "claim": (1, 10_000),
    "memory_budget": (1 << 20, 1 << 50),
    "threads": (1, 1_024),
    "loader_threads": (1, 64),
    "http_port": (0, 65_535),
    "inline_ms": (0, 60_000),
    "spin_us": (0, 10_000),
    "min_batch_timeout_ms": (0, 3_600_000),
    "drain_s": (0, 86_400),
    "catalog_check_s": (0.1, 3_600),
    "run_limit_s": (0, 86_400),
    "load_limit_s": (0, 86_400),
    "run_memory": (0, 1 << 50),
}
