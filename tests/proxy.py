"""A relay between a client and a server that breaks connections at a chosen moment."""

import contextlib
import socket
import threading
from collections.abc import Callable, Sequence
from typing import Self

from tests.servers import Server

__all__ = ["Proxy"]

Rule = Callable[[bytes], bool]
"""Whether a connection shall break when these bytes have come."""


class Proxy:
    """Relays TCP connections to a server's unix socket.

    A rule sees what was just received from one side. Where it says so, the connection is reset: before the bytes are
    passed on (`before`, `replies`: they never arrive) or after (`after`: they do, and nothing comes back).
    """

    def __init__(self, server: Server) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._lock = threading.Lock()
        self._deaf = threading.Event()
        self.before: Rule | None = None
        self.after: Rule | None = None
        self.replies: Rule | None = None
        self.accepted = 0

    @property
    def url(self) -> str:
        """Its address."""
        return f"redis://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()
        self.cut()

    def once(self, moment: str, rule: Rule) -> threading.Event:
        """Break one connection, the first for which the rule says so.

        Args:
            moment: "before" or "after" the bytes of a client are passed on, or "replies": instead of the server's.
            rule: which bytes.

        Returns:
            Is set when it has happened.
        """
        done = threading.Event()

        def first(data: bytes) -> bool:
            if done.is_set() or not rule(data):
                return False
            done.set()
            return True

        setattr(self, moment, first)
        return done

    def cut(self) -> None:
        """Break all connections."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            _reset(pair)

    def refuse(self) -> None:
        """Break all connections and close every new one at once."""
        self._deaf.set()
        self.cut()

    def serve(self) -> None:
        """Take connections again."""
        self._deaf.clear()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self.accepted += 1
            server = socket.socket(socket.AF_UNIX)
            try:
                if self._deaf.is_set():
                    raise ConnectionRefusedError
                server.connect(str(self._server.socket))
            except OSError:
                client.close()
                server.close()
                continue
            pair = (client, server)
            with self._lock:
                self._pairs.append(pair)
            for source, sink, from_client in ((client, server, True), (server, client, False)):
                threading.Thread(target=self._pump, args=(source, sink, pair, from_client), daemon=True).start()

    def _pump(
        self, source: socket.socket, sink: socket.socket, pair: tuple[socket.socket, socket.socket], from_client: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                before = self.before if from_client else self.replies
                if before is not None and before(data):
                    break
                last = from_client and self.after is not None and self.after(data)
                if last:
                    # First: or the answer might still reach the client.
                    _reset((source,))
                sink.sendall(data)
                if last:
                    break
        _reset(pair)
        with self._lock, contextlib.suppress(ValueError):
            self._pairs.remove(pair)


def _reset(sockets: Sequence[socket.socket]) -> None:
    for one in sockets:
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)
        one.close()
