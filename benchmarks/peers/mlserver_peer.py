"""MLServer."""

import base64
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rig import free_port

from peers.base import REFERENCE_BYTES, Peer

__all__ = ["MLServer"]

_END = b'"]}]}'


class MLServer(Peer):
    """MLServer. Its REST door takes no binary tensors: the bytes go as base64 in the JSON of the V2 protocol."""

    key = "mlserver"
    name = "MLServer"
    packages = ("mlserver==1.7.1", "uvloop==0.21.0")  # with a newer uvloop its workers do not start
    settings = "V2 REST, base64 in JSON, parallel_workers=0"

    def command(self, python: Path, scratch: Path) -> Sequence[str]:
        """See `Peer.command`."""
        settings = {
            "host": "127.0.0.1", "http_port": self.port, "grpc_port": free_port(), "metrics_port": free_port(),
            "parallel_workers": 0, "debug": False, "metrics_endpoint": None,
        }  # fmt: skip
        model = {"name": "fraud", "implementation": "mlserver_app.FraudModel"}
        (scratch / "settings.json").write_text(json.dumps(settings))
        (scratch / "model-settings.json").write_text(json.dumps(model))
        return [str(python.parent / "mlserver"), "start", str(scratch)]

    def around(self, transaction: bytes) -> tuple[bytes, bytes]:
        """See `Peer.around`; 120 bytes are whole groups of base64, so what follows them can be encoded apart."""
        body = b'{"inputs":[{"name":"both","shape":[1],"datatype":"BYTES","data":["%b' % self.encode(transaction)
        size = len(body) + len(self.encode(bytes(REFERENCE_BYTES))) + len(_END)
        return self.post("/v2/models/fraud/infer", size, "Content-Type: application/json") + body, _END

    def encode(self, reference: bytes) -> bytes:
        """See `Peer.encode`."""
        return base64.b64encode(reference)

    def read(self, body: bytes) -> NDArray[np.float32]:
        """See `Peer.read`."""
        return np.array(json.loads(body)["outputs"][0]["data"], np.float32)
