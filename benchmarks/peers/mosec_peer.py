"""mosec."""

from collections.abc import Sequence
from pathlib import Path

from peers.base import HOME, REFERENCE_BYTES, SERVERS, Peer

__all__ = ["Mosec", "MosecBatching"]


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


class MosecBatching(Mosec):
    """mosec with its batching: it waits for a batch, so one client waits longer, and many together get more."""

    key = "mosec-batch"
    name = "mosec, batching"
    settings = "1 worker, batches of 16 at most, 1 ms of waiting (the least that it takes), raw bytes"

    @property
    def home(self) -> Path:
        """The same environment."""
        return HOME / Mosec.key

    def environment(self) -> dict[str, str]:
        """See `Peer.environment`."""
        return {"BENCH_BATCH": "16"}
