"""mosec."""

from collections.abc import Sequence
from pathlib import Path

from peers.base import REFERENCE_BYTES, SERVERS, Peer

__all__ = ["Mosec"]


class Mosec(Peer):
    """mosec: a server in Rust before workers in Python."""

    key = "mosec"
    name = "mosec"
    packages = ("mosec==0.9.8",)
    settings = "2 workers, no batching, raw bytes"

    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """See `Peer.command`."""
        return [
            str(python), str(SERVERS / "mosec_app.py"), "--address", "127.0.0.1", "--port", str(self.port),
            "--path", str(scratch / "sockets"), "--log-level", "warning",
        ]  # fmt: skip

    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """See `Peer.around`."""
        return self.post("/inference", len(transaction) + REFERENCE_BYTES) + transaction, b""
