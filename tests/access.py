"""A server with a user of each role, models and tensors of two of them, and an executor under its role."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import redis
from tests import models
from tests.executors import Executor
from tests.raw import store
from tests.servers import Kind, Server

from keyside.clients import acl, admin
from keyside.tensorstore import npy

__all__ = ["ROLES_OF", "World", "X", "send", "world"]

X = np.arange(8, dtype=np.float32).reshape(2, 4)

ROLES_OF: dict[str, tuple[str, dict[str, Any]]] = {
    "alice": ("predictor", {"keys": ["alice:*"], "read": ["shared:*"], "models": ["fraud*"]}),
    "bob": ("predictor", {"keys": ["bob:*"], "models": ["other*"]}),
    "ruth": ("reader", {"keys": ["alice:*"], "read": ["shared:*"], "models": ["fraud*"]}),
    "mary": ("model-manager", {"models": ["fraud*"]}),
    "exec": ("executor", {}),
    "root": ("admin", {}),
}
"""The users, and what each was made with."""


def send(db: Any, *command: Any) -> Any:
    """Send a command as it is."""
    return db.execute_command(*command)


class World:
    """A server with these users."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.admin = server.client()

    def make_users(self) -> None:
        """Make the users anew."""
        for name, (role, given) in ROLES_OF.items():
            self.make_user(name, role, **given)

    def make_user(self, name: str, role: str, **given: Any) -> None:
        """Make one user, whose password is pw."""
        words = acl.set_user(name, acl.rules(role, user=name, **given), "pw")
        send(self.admin, *words)

    def url(self, user: str) -> str:
        """The server, for a user."""
        return f"unix://{user}@{self.server.socket}?password=pw"

    def connect(self, user: str) -> redis.Redis:
        """A plain client of a user."""
        return self.server.client(username=user, password="pw")

    def executor(self, **settings: Any) -> Executor:
        """An executor that logs in as its role."""
        made = Executor(self.server, **settings)
        made.url = self.url("exec")
        return made

    def fill(self) -> None:
        """Models and tensors of several owners."""
        for name in ("fraud", "other"):
            store(self.admin, name, models.affine())
        for key in ("alice:x", "bob:x", "shared:x"):
            self.admin.set(key, npy.to_bytes(X))


@contextmanager
def world(kind: Kind, *, sign: bool = True) -> Iterator[World]:
    """Start a server and make it one."""
    with Server(kind) as server:
        made = World(server)
        with made.admin:
            admin.ensure_library(made.admin, seal=admin.new_seal(made.admin) if sign else None)
            made.make_users()
            yield made
