"""Flask behind gunicorn."""

from collections.abc import Sequence
from pathlib import Path

from peers.base import REFERENCE_BYTES, SERVERS, Peer

__all__ = ["Flask"]


class Flask(Peer):
    """Flask, in gunicorn's threaded workers: its others drop connections that are to be kept."""

    key = "flask"
    name = "Flask + gunicorn"
    packages = ("flask==3.1.3", "gunicorn==27.0.1")
    settings = "gthread, 2 workers x 4 threads, raw bytes"

    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """See `Peer.command`."""
        options = "--worker-class gthread --workers 2 --threads 4 --keep-alive 75 --log-level warning"
        return [
            str(python), "-m", "gunicorn", "flask_app:app", "--chdir", str(SERVERS),
            "--bind", f"127.0.0.1:{self.port}", *options.split(),
        ]  # fmt: skip

    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """See `Peer.around`."""
        return self.post("/predict", len(transaction) + REFERENCE_BYTES) + transaction, b""
