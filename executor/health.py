"""A small HTTP server on a thread of its own: metrics, and whether the executor lives and is ready."""

import json
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

__all__ = ["HealthServer"]

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
TIMEOUT_S = 5.0  # a client that sends nothing must not keep a thread


class HealthServer:
    """Serves /metrics, /v2/health/live, /v2/health/ready and /healthz (the same as live).

    Args:
        host: where to listen.
        port: 0 takes a free one; see the attribute `port`.
        metrics: returns the text of /metrics.
        live: returns why the process should be restarted, or an empty text.
        ready: returns why it does not serve now, or an empty text.
    """

    def __init__(
        self,
        host: str,
        port: int,
        *,
        metrics: Callable[[], bytes],
        live: Callable[[], str],
        ready: Callable[[], str],
    ) -> None:
        def health(check: Callable[[], str], word: str) -> Callable[[], tuple[int, str, bytes]]:
            def answer() -> tuple[int, str, bytes]:
                reason = check()
                body: dict[str, Any] = {word: not reason}
                if reason:
                    body["error"] = reason
                return 503 if reason else 200, "application/json", json.dumps(body).encode()

            return answer

        alive = health(live, "live")
        routes: dict[str, Callable[[], tuple[int, str, bytes]]] = {
            "/metrics": lambda: (200, METRICS_TYPE, metrics()),
            "/v2/health/live": alive,
            "/v2/health/ready": health(ready, "ready"),
            "/healthz": alive,
        }
        self._server = _Server((host, port), routes)
        self.host = host
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="keyside-http", daemon=True
        )

    def start(self) -> "HealthServer":
        """Begin to answer."""
        self._thread.start()
        return self

    def close(self) -> None:
        """Stop answering, and free the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], routes: dict[str, Callable[[], tuple[int, str, bytes]]]) -> None:
        self.routes = routes
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind without the lookup of the host's name that HTTPServer does, which may hang."""
        # The next life of this process, which may come at once, finds connections of this one that are just closed.
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are no errors of ours."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = TIMEOUT_S
    server_version = "keyside"
    sys_version = ""

    def do_GET(self) -> None:
        route = self.server.routes.get(self.path.partition("?")[0])
        if route is None:
            status, kind, body = 404, "application/json", b'{"error": "not found"}'
        else:
            try:
                status, kind, body = route()
            except Exception as error:  # noqa: BLE001 - whatever it is, the one who asks is told
                status, kind = 500, "application/json"
                body = json.dumps({"error": type(error).__name__}).encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def log_message(self, *_: Any) -> None:
        """Log nothing: probes come every few seconds."""
