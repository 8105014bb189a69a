"""Servers and executors for benchmarks: the ones that the tests use."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import redis
from scenario import Fraud

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
from tests.executors import Executor  # noqa: E402
from tests.servers import Server, find_binary, free_port  # noqa: E402

import keyside  # noqa: E402

__all__ = [
    "ROOT",
    "Executor",
    "Rig",
    "Server",
    "find_binary",
    "free_port",
    "served",
    "server_version",
    "store",
    "upload",
]


@dataclass(frozen=True)
class Rig:
    """A server with an executor.

    Attributes:
        db: a plain client of the server.
    """

    server: Server
    executor: Executor
    db: redis.Redis

    @property
    def url(self) -> str:
        """The server, over its unix socket."""
        return self.server.url_unix

    def load_fraud(self) -> Fraud:
        """Store the references and the model of the fraud scenario, and return it."""
        fraud = Fraud()
        for n, reference in enumerate(fraud.references):
            self.db.set(Fraud.key(n), reference)
        store(self.db, "fraud", fraud.model)
        return fraud


@contextmanager
def served(kind: Any, **settings: Any) -> Iterator[Rig]:
    """Start a server with the function library, and an executor with these settings."""
    with Server(kind) as server, server.client() as db:
        server.load_library()
        with Executor(server, **settings) as executor:
            yield Rig(server, executor, db)


def server_version(kind: Any) -> str:
    """Return what the server's program says of itself."""
    with tempfile.TemporaryDirectory() as scratch:
        said = subprocess.run(
            [find_binary(kind, Path(scratch)), "--version"], capture_output=True, text=True, check=True
        )
    return " ".join(word for word in said.stdout.split() if word.startswith(("v=", "malloc=")))


def upload(url: str, name: str, blob: bytes, **settings: Any) -> None:
    """Store a model of any size and wait until it serves."""
    with keyside.Client(url) as client:
        client.store(name, blob, **settings)


def store(db: redis.Redis, name: str, blob: bytes, *settings: object) -> None:
    """Store a model of at most 8 MiB and wait until it serves."""
    version: Any = db.fcall("AI_MODELSTORE", 1, name, "ONNX", "CPU", *settings, "REPLY", "VERSION", "BLOB", blob)
    end = time.monotonic() + 120
    while (state := db.hget(name, f"{version}:state")) != b"ready":
        assert state == b"loading", f"{name}: {db.hget(name, f'{version}:reason')!r}"
        assert time.monotonic() < end, f"{name}: not loaded in time"
        time.sleep(0.005)
