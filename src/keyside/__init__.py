"""Keyside: tensors and models as keys in Redis or Valkey, executors beside them, clients in front.

    with keyside.Client("redis://localhost:6379") as client:
        client.store("iris", "iris.onnx")
        client.predict("iris", [[5.1, 3.5, 1.4, 0.2]])

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods. Errors are in `keyside.errors`.
"""

from keyside.clients._async.client import AsyncClient
from keyside.clients._async.handle import AsyncHandle
from keyside.clients._sync.client import Client
from keyside.clients._sync.handle import Handle
from keyside.clients.inputs import Key
from keyside.clients.versions import ModelVersion
from keyside.tensorstore import errors
from keyside.tensorstore.commands import ListedModel, ModelStats
from keyside.tensorstore.errors import KeysideError
from keyside.tensorstore.plain import TensorMeta
from keyside.tensorstore.records import ModelInfo, Signature, TensorSpec, VersionInfo

__all__ = [
    "AsyncClient",
    "AsyncHandle",
    "Client",
    "Handle",
    "Key",
    "KeysideError",
    "ListedModel",
    "ModelInfo",
    "ModelStats",
    "ModelVersion",
    "Signature",
    "TensorMeta",
    "TensorSpec",
    "VersionInfo",
    "__version__",
    "errors",
]

__version__ = "0.1.0"
