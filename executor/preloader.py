"""Which versions to load before anybody asks for them: so that the first request of a model finds it in memory.

Pure but for what it is given: records of the catalog go in, requests to the model cache come out, one at a time, so
that what a job waits for is never behind more than one of them.
"""

import json
from collections.abc import Callable, Collection, Mapping
from typing import Any

import structlog

from keyside.executor.cache import ModelCache, ModelRef, NoRoom
from keyside.executor.model import Model
from keyside.tensorstore.errors import KeysideError, TryAgain, Unreachable

__all__ = ["Preloader", "Version"]

KNOWN_MAX = 100_000


class Version:
    """What the catalog says of one version.

    Attributes:
        key: name of the model, as the cache has it.
        id: `uid-version`.
        device: its queue.
        state: `loading`, `ready` or `failed`.
        last: the highest version, in the record of a bare name; else 0.
    """

    __slots__ = ("device", "id", "key", "last", "state", "version")

    def __init__(self, name: bytes, record: Mapping[str, Any]) -> None:
        self.key = name.decode("utf-8", "surrogateescape")
        self.version = int(record["version"])
        self.id = f"{record['uid']}-{self.version}"
        self.device = str(record["device"])
        self.state = str(record["state"])
        self.last = int(record.get("last") or 0)

    @classmethod
    def read(cls, name: bytes, raw: bytes | memoryview | None) -> "Version | None":
        """Read a record; None if there is none, or none that can be read."""
        if raw is None:
            return None
        try:
            return cls(name, json.loads(bytes(raw).decode("utf-8", "replace")))
        except (ValueError, KeyError, TypeError, AttributeError):
            return None


class Preloader:
    """Decides what to load, and has it loaded.

    Args:
        devices: that this executor serves.
        cache: the models in memory.
        size: returns the bytes of a version's blob, 0 if nobody knows; may raise.
        helpless: whether the node that should load a version that is `loading` has nobody to do so; may raise.
    """

    def __init__(
        self,
        devices: Collection[str],
        cache: ModelCache[Model],
        size: Callable[[Version], int],
        helpless: Callable[[Version], bool],
    ) -> None:
        self._devices = frozenset(devices)
        self._cache = cache
        self._size = size
        self._helpless = helpless
        self._known: dict[str, str] = {}  # id -> state
        self._wanted: dict[str, Version] = {}
        self._loading: dict[str, Version] = {}  # those whose load is first of all another executor's
        self._again: list[Version] = []  # whose home could not be asked
        self._running: Version | None = None
        self._log = structlog.get_logger()

    def consider(self, bare: Version | None, others: Collection[Version], *, first: bool = False) -> None:
        """Look at what the catalog says of a model now.

        Args:
            bare: what its name means.
            others: its versions.
            first: nothing has happened, it is only seen for the first time: then its default alone is wanted.
        """
        for version in others:
            if self._changed(version) and not first:
                self._want(version)
        if bare is not None:
            self._changed(bare)
            self._want(bare)

    def _changed(self, version: Version) -> bool:
        if self._known.get(version.id) == version.state:
            return False
        if len(self._known) >= KNOWN_MAX:
            self._known.clear()
        self._known[version.id] = version.state
        return True

    def _want(self, version: Version) -> None:
        if version.device not in self._devices or self._cache.has(version.id):
            return
        if version.state == "ready":
            self._loading.pop(version.id, None)
            self._wanted[version.id] = version
        elif version.state == "loading":
            self._loading[version.id] = version
        else:
            self._loading.pop(version.id, None)

    def forget(self) -> None:
        """Everything may have changed."""
        self._known.clear()
        self._wanted.clear()
        self._loading.clear()
        self._again.clear()

    def look_after(self) -> None:
        """Want those that are `loading` where nobody serves their device, and those whose homes were away.

        To be called now and then.
        """
        again, self._again = self._again, []
        for version in again:
            self._want(version)
        for version in list(self._loading.values()):
            if self._cache.has(version.id):
                del self._loading[version.id]
                continue
            try:
                helpless = self._helpless(version)
            except KeysideError:
                continue  # it cannot be asked now
            if helpless:
                del self._loading[version.id]
                self._wanted[version.id] = version

    @property
    def idle(self) -> bool:
        """Whether nothing is wanted that is not there."""
        return not self._wanted and not self._running

    def go_on(self) -> None:
        """Have the next one loaded, if none is being loaded for this; never blocks on a load."""
        while self._wanted and not self._running:
            version = self._wanted.pop(next(iter(self._wanted)))
            if self._cache.has(version.id):
                continue
            try:
                size = self._size(version)
            except (TryAgain, Unreachable):
                self._again.append(version)
                continue
            except KeysideError:
                continue  # it has gone
            self._running = version
            ref = ModelRef(version.id, size, version.key, spare=True)
            self._cache.request(ref, self._loaded)

    def _loaded(self, _model: Model | None, error: KeysideError | None) -> None:
        version, self._running = self._running, None
        if error is None or version is None:
            return
        if isinstance(error, Unreachable) or (isinstance(error, TryAgain) and not isinstance(error, NoRoom)):
            self._again.append(version)
        else:
            self._log.info("not loaded ahead", model=version.key, reason=str(error))
