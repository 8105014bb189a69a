"""Triton, by nvidia-pytriton."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rig import free_port

from peers.base import REFERENCE_BYTES, SERVERS, Peer

__all__ = ["PyTriton"]

_INPUTS = [
    {"name": name, "shape": [1, size], "datatype": "FP32", "parameters": {"binary_data_size": 4 * size}}
    for name, size in (("transaction", 30), ("reference", 256))
]
_OUTPUTS = [{"name": "probabilities", "parameters": {"binary_data": True}}]
_HEAD = json.dumps({"inputs": _INPUTS, "outputs": _OUTPUTS}, separators=(",", ":")).encode()


class PyTriton(Peer):
    """Triton with a model in Python, by the binary extension of the V2 protocol."""

    key = "pytriton"
    name = "Triton (pytriton)"
    packages = ("nvidia-pytriton==0.7.0",)
    settings = "V2 REST with binary tensors, dynamic batcher (32 at most, no delay)"
    start_s = 120.0
    # The Python inside it is that of a distribution: it fails on the standard library of some other builds of 3.11.
    python = "/usr/bin/python3" if Path("/usr/bin/python3").exists() else sys.executable

    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """See `Peer.command`."""
        ports = [str(self.port), str(free_port()), str(free_port())]
        return [str(python), str(SERVERS / "pytriton_app.py"), *ports]

    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """See `Peer.around`."""
        headers = f"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: {len(_HEAD)}"
        size = len(_HEAD) + len(transaction) + REFERENCE_BYTES
        return self.post("/v2/models/fraud/infer", size, headers) + _HEAD + transaction, b""

    def read(self, body: bytes) -> NDArray[np.float32]:
        """See `Peer.read`."""
        return np.frombuffer(body[-8:], np.float32)
