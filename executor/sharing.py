"""Versions that are equal, loaded once: the same model stored under many names takes its memory once."""

import json
import threading
import weakref
from collections.abc import Callable

from keyside.executor.backends.base import LoadedModel
from keyside.tensorstore.records import VersionInfo

__all__ = ["Sharing", "fingerprint"]


class Sharing:
    """Loads models that are equal only once: to be used within a cache's `load`."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loaded: weakref.WeakValueDictionary[str, LoadedModel] = weakref.WeakValueDictionary()
        self._loading: dict[str, threading.Lock] = {}

    def get(self, key: str, make: Callable[[], LoadedModel]) -> LoadedModel:
        """Return the model that is already in memory under this key (see `fingerprint`), or make it.

        With an empty key it is made, and not shared.
        """
        if not key:
            return make()
        with self._lock:
            loading = self._loading.setdefault(key, threading.Lock())
        try:
            with loading:
                model = self._loaded.get(key)
                if model is None:
                    model = self._loaded[key] = make()
                return model
        finally:
            with self._lock:
                if self._loading.get(key) is loading:
                    del self._loading[key]


def fingerprint(version: VersionInfo, digest: str = "") -> str:
    """Return a text that is equal for versions that would be the same model in memory.

    Args:
        version: what is to be loaded.
        digest: the digest of its blob, if the version does not tell it yet; with neither the text is empty.
    """
    digest = version.digest or digest
    if not digest:
        return ""
    parts = (
        digest,
        version.backend.upper(),
        version.device,
        version.inputs,
        version.outputs,
        version.options,
    )
    return json.dumps(parts, sort_keys=True)
