"""Keyside: tensors and models as keys in Redis or Valkey, executors beside them, clients in front.

    with keyside.Client("redis://localhost:6379") as client:
        client.store("iris", "iris.onnx")
        client.predict("iris", [[5.1, 3.5, 1.4, 0.2]])

`Client` blocks, `AsyncClient` is for asyncio; both have the same methods. Errors are in `keyside.errors`.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from keyside import features
    from keyside.clients._async.client import AsyncClient
    from keyside.clients._async.graphs import AsyncDag
    from keyside.clients._async.handle import AsyncHandle
    from keyside.clients._async.subscription import AsyncSubscription
    from keyside.clients._sync.client import Client
    from keyside.clients._sync.graphs import Dag
    from keyside.clients._sync.handle import Handle
    from keyside.clients._sync.subscription import Subscription
    from keyside.clients.events import Event
    from keyside.clients.graph import Graph
    from keyside.clients.inputs import Key
    from keyside.clients.scripts import Script
    from keyside.clients.triggers import OnPublish, OnSchedule, OnSet, OnStream, Payload, TriggerInfo, Value
    from keyside.clients.versions import ModelVersion
    from keyside.executor.functions import function, metric
    from keyside.tensorstore import errors
    from keyside.tensorstore.commands import Limits, ListedModel, ModelStats
    from keyside.tensorstore.commands_scripts import ListedScript
    from keyside.tensorstore.commands_triggers import ListedTrigger, TriggerStats
    from keyside.tensorstore.errors import KeysideError
    from keyside.tensorstore.plain import TensorMeta
    from keyside.tensorstore.records import ModelInfo, Signature, TensorSpec, VersionInfo

__all__ = [
    "AsyncClient",
    "AsyncDag",
    "AsyncHandle",
    "AsyncSubscription",
    "Client",
    "Dag",
    "Event",
    "Graph",
    "Handle",
    "Key",
    "KeysideError",
    "Limits",
    "ListedModel",
    "ListedScript",
    "ListedTrigger",
    "ModelInfo",
    "ModelStats",
    "ModelVersion",
    "OnPublish",
    "OnSchedule",
    "OnSet",
    "OnStream",
    "Payload",
    "Script",
    "Signature",
    "Subscription",
    "TensorMeta",
    "TensorSpec",
    "TriggerInfo",
    "TriggerStats",
    "Value",
    "VersionInfo",
    "__version__",
    "errors",
    "features",
    "function",
    "metric",
]

__version__ = "0.1.0"

# Imported when first used: the command line, which shows its help in no time, is part of this package too.
_HOMES = {
    "AsyncClient": "clients._async.client",
    "AsyncDag": "clients._async.graphs",
    "AsyncHandle": "clients._async.handle",
    "AsyncSubscription": "clients._async.subscription",
    "Client": "clients._sync.client",
    "Dag": "clients._sync.graphs",
    "Event": "clients.events",
    "Graph": "clients.graph",
    "Handle": "clients._sync.handle",
    "Key": "clients.inputs",
    "KeysideError": "tensorstore.errors",
    "Limits": "tensorstore.commands",
    "ListedModel": "tensorstore.commands",
    "ListedScript": "tensorstore.commands_scripts",
    "ListedTrigger": "tensorstore.commands_triggers",
    "ModelInfo": "tensorstore.records",
    "ModelStats": "tensorstore.commands",
    "ModelVersion": "clients.versions",
    "OnPublish": "clients.triggers",
    "OnSchedule": "clients.triggers",
    "OnSet": "clients.triggers",
    "OnStream": "clients.triggers",
    "Payload": "clients.triggers",
    "Script": "clients.scripts",
    "Signature": "tensorstore.records",
    "Subscription": "clients._sync.subscription",
    "TensorMeta": "tensorstore.plain",
    "TensorSpec": "tensorstore.records",
    "TriggerInfo": "clients.triggers",
    "TriggerStats": "tensorstore.commands_triggers",
    "Value": "clients.triggers",
    "VersionInfo": "tensorstore.records",
    "function": "executor.functions",
    "metric": "executor.functions",
}


def __getattr__(name: str) -> Any:
    if name == "errors":
        return importlib.import_module("keyside.tensorstore.errors")
    if name == "features":
        return importlib.import_module("keyside.features")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(importlib.import_module(f"keyside.{_HOMES[name]}"), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
