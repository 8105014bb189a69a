"""A cluster of one's own on loopback, for development: started, joined, watched, and stopped in order."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Self

import redis

from keyside.clients.admin import command, ensure_library
from keyside.clients.server import LOG_FILE, EmbeddedServer, NoServer, running
from keyside.tensorstore.errors import KeysideError
from keyside.tensorstore.keys import SLOTS

__all__ = ["DevCluster", "read_note", "running_cluster"]

NOTE_FILE = "cluster.json"
NODE_TIMEOUT_MS = 5_000
FORM_S = 60.0
_BUS = 10_000


class DevCluster:
    """Primaries with equal shares of the slots, and replicas dealt out to them, on consecutive ports of 127.0.0.1.

    Each node keeps its data, its log and its view of the cluster in a folder that is named after its port. Started
    again on the same data directory, it is the same cluster.

    Args:
        data_dir: For the folders of all nodes; made if it does not exist.
        primaries: How many.
        replicas: How many in all.
        port_base: The port of the first node. Each talks to the others on the port 10,000 above its own, or, if there
            is no such port, 10,000 below.
        server_bin: The servers' program; None: as `find_server` finds one.
        say: Is told what happens, in one line each.

    Attributes:
        nodes: The servers, by port.
    """

    def __init__(
        self,
        data_dir: str | Path,
        *,
        primaries: int = 3,
        replicas: int = 3,
        port_base: int,
        server_bin: str | Path | None = None,
        say: Callable[[str], None] = lambda _: None,
    ) -> None:
        self.data_dir = Path(data_dir).expanduser().absolute()
        self.primaries, self.replicas, self.port_base = primaries, replicas, port_base
        self._say = say
        self._seen: dict[EmbeddedServer, str] = {}
        self._state = "ok"
        self.nodes = [
            EmbeddedServer(
                self.data_dir / str(port), server_bin=server_bin, port=port, config=_config(port), library=False
            )
            for port in range(port_base, port_base + primaries + replicas)
        ]
        self.binary = self.nodes[0].binary

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """The address of its first node; a client learns of the others there."""
        return self.nodes[0].url_tcp

    @property
    def ports(self) -> str:
        """The ports of its nodes."""
        first, last = self.nodes[0].port, self.nodes[-1].port
        return f"{first}" if first == last else f"{first}-{last}"

    def start(self) -> None:
        """Start all nodes; join them if they are new; wait until the cluster is complete; load the function library.

        Raises:
            NoServer: A node does not start, or the data is that of another cluster.
            DataInUse: Another process runs on the data.
        """
        try:
            new = self._is_new()
            for node in self.nodes:
                node.start()
            if new:
                self._say(f"joining {self.primaries} primaries and {self.replicas} replicas")
                self._form()
            self._await_complete()
            self._note(formed=True)
            for node in self.nodes:
                with node.client() as client:
                    if self.role(node) == "primary":
                        ensure_library(client)
            self._seen = {node: self._describe(node) for node in self.nodes}
        except BaseException:
            self.stop()
            raise

    def stop(self) -> bool:
        """End all nodes, replicas first; return whether all ended by themselves."""
        orderly = True
        for node in self.stop_order():
            orderly = node.stop() and orderly
        return orderly

    def stop_order(self) -> list[EmbeddedServer]:
        """Return the nodes, replicas first: a primary that ends before its replica would be replaced by it."""
        return sorted(self.nodes, key=lambda node: self.role(node) == "primary")

    def role(self, node: EmbeddedServer) -> str:
        """Return `primary` or `replica`; empty if the node does not answer."""
        return self._describe(node).partition(" ")[0]

    def look(self) -> None:
        """Say what has changed since the last look: who is primary or replica, and whether all slots are served."""
        for node in self.nodes:
            now = self._describe(node)
            if now and now != self._seen.get(node, now):
                self._say(f"{node.name} is {'a ' if now == 'primary' else 'the '}{now} now")
            self._seen[node] = now or self._seen.get(node, "")
        states = {self._cluster_state(node) for node in self.nodes} - {""}
        state = "ok" if states == {"ok"} else "fail"
        if state != self._state:
            self._say("the cluster serves all slots again" if state == "ok" else "the cluster does not serve all slots")
            self._state = state

    # --- inside

    def _is_new(self) -> bool:
        """Whether the nodes have not been joined yet.

        Raises:
            NoServer: The data directory holds another cluster.
        """
        wanted = {"primaries": self.primaries, "replicas": self.replicas, "port_base": self.port_base}
        known = read_note(self.data_dir)
        if not known:
            try:
                self.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise NoServer(f"data directory {self.data_dir}: {error.strerror or error}") from error
            self._note(formed=False)
            return True
        if any(known.get(name) != value for name, value in wanted.items()):
            raise NoServer(
                f"data directory {self.data_dir} holds a cluster of {known.get('primaries')} primaries and "
                f"{known.get('replicas')} replicas from port {known.get('port_base')} on, not of {self.primaries} and "
                f"{self.replicas} from {self.port_base} on: choose another with --data-dir, or remove it"
            )
        return not known.get("formed")

    def _note(self, *, formed: bool) -> None:
        facts = {"primaries": self.primaries, "replicas": self.replicas, "port_base": self.port_base, "formed": formed}
        fresh = self.data_dir / f"{NOTE_FILE}.new"
        fresh.write_text(json.dumps(facts) + "\n")
        fresh.replace(self.data_dir / NOTE_FILE)

    def _form(self) -> None:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(node.client()) for node in self.nodes]
            for client in clients:
                command(client, "CLUSTER", "RESET", "HARD")  # an earlier start may have come half the way
            for i, client in enumerate(clients[: self.primaries]):
                first, last = SLOTS * i // self.primaries, SLOTS * (i + 1) // self.primaries - 1
                command(client, "CLUSTER", "ADDSLOTSRANGE", first, last)
                command(client, "CLUSTER", "SET-CONFIG-EPOCH", i + 1)
            for node in self.nodes[1:]:
                command(clients[0], "CLUSTER", "MEET", "127.0.0.1", node.port, bus_port(node.port))
            for node, client in zip(self.nodes, clients, strict=True):
                _until(partial(_knows, client, len(clients)), f"{node.name} does not get to know the others")
            ids = [_text(command(client, "CLUSTER", "MYID")) for client in clients[: self.primaries]]
            for i, client in enumerate(clients[self.primaries :]):
                name = self.nodes[self.primaries + i].name
                _until(partial(_replicates, client, ids[i % len(ids)]), f"{name} does not become a replica")
            for node, client in zip(self.nodes, clients, strict=True):
                _until(partial(_sees, client, self.replicas), f"{node.name} does not get to know the replicas")

    def _await_complete(self) -> None:
        for node in self.nodes:
            _until(partial(self._complete, node), f"{node.name} does not see a complete cluster")
        for node in self.nodes:
            _until(partial(self._linked, node), f"{node.name} has no link to its primary")

    def _complete(self, node: EmbeddedServer) -> bool:
        return self._cluster_state(node) == "ok"

    @staticmethod
    def _linked(node: EmbeddedServer) -> bool:
        with node.client() as client:
            return bool(command(client, "INFO", "replication").get("master_link_status", "up") == "up")

    @staticmethod
    def _cluster_state(node: EmbeddedServer) -> str:
        try:
            with node.client(socket_timeout=2.0) as client:
                return str(_cluster_info(client).get("cluster_state", ""))
        except KeysideError:
            return ""

    @staticmethod
    def _describe(node: EmbeddedServer) -> str:
        if not node.pid:
            return ""
        try:
            with node.client(socket_timeout=2.0) as client:
                info = command(client, "INFO", "replication")
        except KeysideError:
            return ""
        if info.get("role") == "master":
            return "primary"
        return f"replica of {info.get('master_host')}:{info.get('master_port')}"


def running_cluster(data_dir: str | Path) -> str:
    """Return the address of a node that runs on the data directory of a cluster; empty if none does."""
    folder = Path(data_dir).expanduser().absolute()
    known = read_note(folder)
    if not known.get("formed"):
        return ""
    with contextlib.suppress(TypeError, ValueError, OSError):
        if folder.stat().st_uid != os.getuid():
            return ""
        first = int(known["port_base"])
        for port in range(first, first + int(known["primaries"]) + int(known["replicas"])):
            if running(folder / str(port)):
                return f"redis://127.0.0.1:{port}"
    return ""


def read_note(data_dir: str | Path) -> dict[str, Any]:
    """Return what is written down of the cluster in a data directory; empty if there is none."""
    try:
        note = json.loads((Path(data_dir).expanduser() / NOTE_FILE).read_text())
    except (OSError, ValueError):
        return {}
    return note if isinstance(note, dict) else {}


def bus_port(port: int) -> int:
    """Return the port on which a node talks to the others."""
    return port + _BUS if port + _BUS <= 65535 else port - _BUS


def _config(port: int) -> dict[str, str | int]:
    return {
        "cluster-enabled": "yes",
        "cluster-config-file": "nodes.conf",
        "cluster-port": bus_port(port),
        "cluster-node-timeout": NODE_TIMEOUT_MS,
        "repl-diskless-sync-delay": 0,
    }


def _until(condition: Callable[[], bool], complaint: str) -> None:
    """Wait until a condition holds.

    Raises:
        NoServer: It does not within a minute.
    """
    end = time.monotonic() + FORM_S
    while not condition():
        if time.monotonic() > end:
            raise NoServer(f"{complaint} within {FORM_S:g} s: its log, {LOG_FILE} in its folder, may say why")
        time.sleep(0.02)


def _knows(client: redis.Redis, count: int) -> bool:
    return int(_cluster_info(client).get("cluster_known_nodes", 0)) >= count


def _sees(client: redis.Redis, replicas: int) -> bool:
    """Whether a node knows how many of the others are replicas, which it hears last of all."""
    client.response_callbacks.pop("CLUSTER NODES", None)
    lines = _text(command(client, "CLUSTER", "NODES")).splitlines()
    return sum("slave" in line.split(" ")[2] for line in lines) == replicas


def _replicates(client: redis.Redis, primary: str) -> bool:
    """Make a node a replica, unless it does not know its primary as one yet."""
    try:
        command(client, "CLUSTER", "REPLICATE", primary)
    except KeysideError as error:
        if "Unknown node" not in str(error) and "only replicate a" not in str(error):
            raise
        return False
    return True


def _cluster_info(client: redis.Redis) -> dict[str, str]:
    reply = command(client, "CLUSTER", "INFO")
    if isinstance(reply, dict):
        return {str(name): str(value) for name, value in reply.items()}
    return dict(line.partition(":")[::2] for line in _text(reply).splitlines())


def _text(reply: Any) -> str:
    return reply if isinstance(reply, str) else bytes(reply).decode()
