"""Connections to the nodes of a cluster: those that are needed, made from the executor's own URL, for one thread."""

import re
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import hiredis

from keyside.executor.topology import Chart, Node
from keyside.executor.wire import Command, Wire, checked
from keyside.tensorstore import keys
from keyside.tensorstore.errors import TryAgain, Unreachable

__all__ = ["Peers", "moved_to", "on_the_move", "peer_url"]

TIMEOUT_S = 2.0
CONNECT_S = 1.0
HOPS = 5
_MOVED = re.compile(r"(MOVED|ASK) (\d+) (\S*):(\d+)")


def peer_url(url: str, host: str, port: int, template: str = "") -> str:
    """Return the URL of another node of the cluster.

    Args:
        url: of one's own node: its credentials and TLS settings hold for the others.
        host: of the other node.
        port: of the other node.
        template: the URL to take instead; its host and port are replaced.
    """
    parts = urlsplit(template or url)
    user, at, _ = parts.netloc.rpartition("@")
    place = f"{user}{at}{f'[{host}]' if ':' in host else host}:{port}"
    if parts.scheme == "unix":
        return f"redis://{place}"  # the path of the socket, and what else stands there, is of that node alone
    return urlunsplit((parts.scheme, place, "", parts.query, ""))  # a cluster has database 0 alone


def on_the_move(reply: Any) -> bool:
    """Whether a reply says that a key is not, or not surely, on the node that was asked."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(
        ("MOVED ", "ASK ", "TRYAGAIN ", "CLUSTERDOWN ")
    )


def moved_to(reply: Any) -> tuple[str, str, int] | None:
    """Return what a redirection says: `MOVED` or `ASK`, host (empty: the same), and port; None if it is none."""
    if not isinstance(reply, hiredis.ReplyError):
        return None
    match = _MOVED.match(str(reply))
    if match is None:
        return None
    host = match[3].strip("[]")
    return match[1], "" if host == "?" else host, int(match[4])


class Peers:
    """Calls on the owners of keys. For one thread.

    Args:
        url: of the executor's own node.
        template: see `peer_url`.
        chart: the cluster as the own node sees it.
        new_wire: makes a connection to the own node.
        role: part of the names of the connections.
        readonly: read from the own node although it is a replica.
    """

    def __init__(
        self,
        url: str,
        template: str,
        chart: Chart,
        new_wire: Callable[[str], Wire],
        role: str,
        *,
        readonly: bool = False,
    ) -> None:
        self._url = url
        self._template = template
        self._chart = chart
        self._role = role
        self._readonly = readonly
        self._own = new_wire(role)
        self._wires: dict[tuple[str, int], Wire] = {}
        self._used: dict[tuple[str, int], float] = {}

    def own(self) -> Wire:
        """Return the connection to the own node.

        Raises:
            Unreachable: there is none to be had.
        """
        if not self._own.connected:
            self._own.connect()
            if self._readonly:
                self._own.call_many(((b"READONLY",),))
        return self._own

    def to(self, node: Node) -> Wire:
        """Return the connection to a node.

        Raises:
            Unreachable: there is none to be had.
        """
        if node.id == self._chart.now.my_id:
            return self.own()
        return self._at(node.host, node.port)

    def _at(self, host: str, port: int) -> Wire:
        me = self._chart.now.me
        if me is not None and port == me.port and host in ("", me.host):
            return self.own()
        where = (host, port)
        self._used[where] = time.monotonic()
        wire = self._wires.get(where)
        if wire is None:
            self._tidy()
            url = peer_url(self._url, host or self.own().host or "127.0.0.1", port, self._template)
            wire = Wire(url, name=f"keyside-{self._role}", timeout=TIMEOUT_S, connect_s=CONNECT_S)
            self._wires[where] = wire
        if not wire.connected:
            wire.connect()
        return wire

    def _tidy(self) -> None:
        """Close connections that nobody has used for long: nodes come and go."""
        old = time.monotonic() - 600
        for where, used in list(self._used.items()):
            if used < old and where in self._wires:
                self._wires.pop(where).close()
                del self._used[where]

    def call(self, key: keys.Key, *command: Any) -> Any:
        """Call the owner of a key's slot, wherever that is now; on a standalone server, that server.

        Raises:
            TryAgain: the slot is on the move.
            Unreachable: its owner cannot be reached.
            KeysideError: an error reply, as its class.
        """
        chart = self._chart
        if not chart.now.clustered:
            return self.own().call(*command)
        slot = keys.slot(key)
        node = chart.now.owner(slot)
        if node is None:
            raise TryAgain(f"nobody owns slot {slot} now")
        try:
            wire = self.to(node)
            (reply,) = wire.call_many((command,))
        except Unreachable:
            # A failover, maybe: the own node knows.
            if not chart.look(self.own()) or (found := chart.now.owner(slot)) in (None, node) or found is None:
                raise
            wire = self.to(found)
            (reply,) = wire.call_many((command,))
        return checked(self._follow(command, reply))

    def _follow(self, command: Command, reply: Any) -> Any:
        for _ in range(HOPS):
            redirected = moved_to(reply)
            if redirected is None:
                return reply
            how, host, port = redirected
            wire = self._at(host, port)
            if how == "ASK":
                reply = wire.call_many(((b"ASKING",), command))[-1]
            else:
                (reply,) = wire.call_many((command,))
        raise TryAgain("the slot of the key is moving from node to node")

    def call_many(self, node: Node, commands: Sequence[Command]) -> list[Any]:
        """Send commands to one node; error replies are among what comes.

        Raises:
            Unreachable: it cannot be reached.
        """
        return self.to(node).call_many(commands)

    def close(self) -> None:
        """Close all connections."""
        self._own.close()
        for wire in self._wires.values():
            wire.close()
        self._wires.clear()
        self._used.clear()
