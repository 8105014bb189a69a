"""FastAPI behind uvicorn."""

from collections.abc import Sequence
from pathlib import Path

from peers.base import REFERENCE_BYTES, SERVERS, Peer

__all__ = ["FastApi"]


class FastApi(Peer):
    """FastAPI, with uvicorn's fast event loop and parser."""

    key = "fastapi"
    name = "FastAPI + uvicorn"
    packages = ("fastapi==0.165.0", "uvicorn==0.54.0", "uvloop==0.23.0", "httptools==0.9.0")
    settings = "2 workers, uvloop, httptools, no access log, raw bytes"

    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """See `Peer.command`."""
        options = "--workers 2 --loop uvloop --http httptools --no-access-log --log-level warning"
        return [
            str(python), "-m", "uvicorn", "fastapi_app:app", "--app-dir", str(SERVERS),
            "--host", "127.0.0.1", "--port", str(self.port), *options.split(),
        ]  # fmt: skip

    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """See `Peer.around`."""
        return self.post("/predict", len(transaction) + REFERENCE_BYTES) + transaction, b""
