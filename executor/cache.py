"""Models in memory: loaded once each, and evicted when they take too much.

Loading happens on loader threads. The least recently used model goes first, and none that is acquired. To
evict is to let go: whoever still runs a model has it until he is done; its memory goes with the last reference.
"""

import dataclasses
import itertools
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from keyside.executor.backends.base import one_line
from keyside.tensorstore.errors import BadModel, KeysideError, ModelFailed, TryAgain

__all__ = ["CacheStats", "Cacheable", "ModelCache", "ModelRef", "NoRoom"]

_logger = logging.getLogger(__name__)


class Cacheable(Protocol):
    """What can be kept in the cache: a `LoadedModel`, or something around one."""

    @property
    def nbytes(self) -> int:
        """An estimate of the memory that it holds."""
        ...

    def close(self) -> None:
        """Give its memory back."""
        ...


T = TypeVar("T", bound=Cacheable)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """One version of a model, as a load needs it.

    Attributes:
        id: `uid-version`.
        size: bytes of its blob, as far as known: room for it is made before the load.
        context: whatever the load function wants to know besides.
        spare: load it only if it fits beside what is there, unless somebody comes who needs it.
    """

    id: str
    size: int = 0
    context: Any = field(default=None, compare=False, repr=False)
    spare: bool = False


@dataclass(frozen=True, slots=True)
class CacheStats:
    """What the cache holds and has done.

    Attributes:
        hits: lookups that found their model.
        misses: requests that had to wait for a load.
        loads: models loaded.
        failures: loads that failed.
        evictions: models evicted.
        models: models in memory.
        nbytes: memory that they take, as estimated by their backends.
        budget: what they may take.
    """

    hits: int
    misses: int
    loads: int
    failures: int
    evictions: int
    models: int
    nbytes: int
    budget: int


class NoRoom(TryAgain):
    """A model that nobody needs yet does not fit beside others."""


class _Entry(Generic[T]):
    """A model in memory."""

    __slots__ = ("body", "hits", "id", "model", "nbytes", "stamp", "users")

    def __init__(self, model_id: str, model: T, body: int, stamp: int) -> None:
        self.id = model_id
        self.model = model
        self.nbytes = model.nbytes
        self.body = body
        self.hits = 0
        self.stamp = stamp
        self.users = 0


class ModelCache(Generic[T]):
    """Loads models and keeps them.

    Args:
        budget: bytes that models may take together. Acquired ones may exceed it until they are released.
        load: makes a model ready; called on loader threads.
        threads: loads that may go on at the same time.
        body: returns what holds a model's memory: models that share one count once.
        changed: called on a loader thread when a model has been loaded, before those who wait are told.
        clock: monotonic seconds; for what loads took, in the log.
    """

    def __init__(
        self,
        budget: int,
        load: Callable[[ModelRef], T],
        *,
        threads: int = 1,
        body: Callable[[T], object] | None = None,
        changed: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._budget = budget
        self._load = load
        self._body = body
        self._changed = changed
        self._clock = clock
        self._lock = threading.Lock()
        self._ready: dict[str, _Entry[T]] = {}
        self._bodies: dict[int, int] = {}  # id() of a body -> models that have it
        self._waiting: dict[str, list[Callable[[T | None, KeysideError | None], None]]] = {}
        self._stamps = itertools.count(1)
        self._nbytes = 0
        self._hits = self._misses = self._loads = self._failures = self._evictions = 0
        self._closed = False
        self._queue: queue.SimpleQueue[ModelRef | None] = queue.SimpleQueue()
        self._threads = [
            threading.Thread(target=self._work, name=f"keyside-load-{i}", daemon=True) for i in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def get_ready(self, model_id: str) -> T | None:
        """Return a model if it is in memory. Takes no lock.

        It may be evicted from the cache meanwhile, but not from under whoever holds it.
        """
        entry = self._ready.get(model_id)
        if entry is None:
            return None
        entry.stamp = next(self._stamps)
        entry.hits += 1
        return entry.model

    def has(self, model_id: str) -> bool:
        """Whether a model is in memory; that it was asked counts as no use of it."""
        return model_id in self._ready

    def acquire(self, model_id: str) -> T | None:
        """Return a model if it is in memory, and keep it in the cache until it is released."""
        with self._lock:
            entry = self._ready.get(model_id)
            if entry is None:
                return None
            entry.users += 1
            entry.stamp = next(self._stamps)
            entry.hits += 1
            return entry.model

    def release(self, model_id: str) -> None:
        """End one `acquire`."""
        with self._lock:
            entry = self._ready.get(model_id)
            if entry is None:
                return  # it has been dropped, which users cannot prevent
            if entry.users == 0:
                raise ValueError(f"release of {model_id}, which is not acquired")
            entry.users -= 1
            gone = [] if entry.users else self._make_room(0)
        del gone

    @contextmanager
    def using(self, model_id: str) -> Iterator[T | None]:
        """Acquire a model for the length of a `with`."""
        model = self.acquire(model_id)
        try:
            yield model
        finally:
            if model is not None:
                self.release(model_id)

    def request(self, ref: ModelRef, callback: Callable[[T | None, KeysideError | None], None]) -> None:
        """Have a model loaded, and be told: `callback(model, None)`, or `callback(None, error)`.

        The callback runs on a loader thread, or at once on this one if the model is in memory. A failure is
        told to all who wait, and not remembered.
        """
        with self._lock:
            entry = self._ready.get(ref.id)
            if entry is None and not self._closed:
                self._misses += 1
                waiting = self._waiting.setdefault(ref.id, [])
                waiting.append(callback)
                if len(waiting) == 1:
                    self._queue.put(ref)
                return
        if entry is None:
            _call(callback, None, _stopping())
        else:
            _call(callback, entry.model, None)

    def drop(self, model_id: str) -> None:
        """Forget a model, one that has been deleted."""
        with self._lock:
            entry = self._ready.get(model_id)
            if entry is not None:
                self._remove(entry)

    def ids(self) -> list[str]:
        """Return the models in memory."""
        return sorted(self._ready.copy())

    def latest(self, most: int) -> list[str]:
        """Return the models in memory, those used last, at most so many."""
        entries = sorted(self._ready.copy().values(), key=_stamp)
        return [entry.id for entry in entries[-most:]]

    def stats(self) -> CacheStats:
        """Return what it holds and has done."""
        with self._lock:
            return CacheStats(
                hits=self._hits + sum(entry.hits for entry in self._ready.values()),
                misses=self._misses,
                loads=self._loads,
                failures=self._failures,
                evictions=self._evictions,
                models=len(self._ready),
                nbytes=self._nbytes,
                budget=self._budget,
            )

    def close(self, timeout_s: float = 5.0) -> None:
        """Stop loading, tell all who wait, and close every model: nothing may run any more."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            waiting, self._waiting = self._waiting, {}
        for _ in self._threads:
            self._queue.put(None)
        for callbacks in waiting.values():
            for callback in callbacks:
                _call(callback, None, _stopping())
        deadline = time.monotonic() + timeout_s
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join(max(0.0, deadline - time.monotonic()))
        with self._lock:
            models = [entry.model for entry in self._ready.values()]
            for entry in list(self._ready.values()):
                self._remove(entry)
        for model in models:
            _close(model)

    def _work(self) -> None:
        while (ref := self._queue.get()) is not None:
            try:
                self._serve(ref)
            except Exception:
                _logger.exception("loading %s", ref.id)

    def _serve(self, ref: ModelRef) -> None:
        """Load one model, and tell those who wait for it."""
        if self._closed:
            return
        model, error = self._try_load(ref)
        gone: list[T] = []
        with self._lock:
            if isinstance(error, NoRoom) and len(self._waiting.get(ref.id, ())) > 1:
                # Somebody has come meanwhile who needs it.
                self._queue.put(dataclasses.replace(ref, spare=False))
                return
            if model is None:
                self._failures += not isinstance(error, NoRoom)
            elif not self._closed:
                entry = _Entry(ref.id, model, self._body_of(model), next(self._stamps))
                self._loads += 1
                self._add(entry)
                # Whoever waits for this model must find it: it is the last to go.
                entry.users = 1
                gone = self._make_room(0)
                entry.users = 0
            waiting = self._waiting.pop(ref.id, [])
        if model is not None:
            self._changed()
        del gone  # not under the lock: freeing a large model takes a while
        for callback in waiting:
            _call(callback, model, error)

    def _try_load(self, ref: ModelRef) -> tuple[T | None, KeysideError | None]:
        if ref.size > self._budget:
            return None, self._too_large(ref.size)
        with self._lock:
            if ref.spare and self._nbytes + ref.size > self._budget:
                return None, NoRoom(f"{ref.size:,} bytes do not fit beside the {self._nbytes:,} that are there")
            gone = self._make_room(ref.size)
        del gone
        began = self._clock()
        try:
            model = self._load(ref)
        except KeysideError as error:
            return None, error
        except Exception as error:
            _logger.exception("loading %s", ref.id)
            return None, ModelFailed(f"{type(error).__name__}: {one_line(error)}")
        if model.nbytes > self._budget:
            _close(model)
            return None, self._too_large(model.nbytes)
        _logger.info("loaded %s: %d bytes, %.3f s", ref.id, model.nbytes, self._clock() - began)
        return model, None

    def _too_large(self, size: int) -> BadModel:
        return BadModel(
            f"the model takes {size:,} bytes of memory, more than this executor's budget of {self._budget:,} "
            "(KEYSIDE_MEMORY_BUDGET)"
        )

    def _body_of(self, model: T) -> int:
        return id(model if self._body is None else self._body(model))

    # The rest runs with the lock held.

    def _add(self, entry: _Entry[T]) -> None:
        self._ready[entry.id] = entry
        owners = self._bodies.get(entry.body, 0)
        self._bodies[entry.body] = owners + 1
        if not owners:
            self._nbytes += entry.nbytes

    def _remove(self, entry: _Entry[T]) -> None:
        del self._ready[entry.id]
        self._hits += entry.hits
        owners = self._bodies.pop(entry.body) - 1
        if owners:
            self._bodies[entry.body] = owners
        else:
            self._nbytes -= entry.nbytes

    def _make_room(self, size: int) -> list[T]:
        """Evict until `size` more bytes fit, as far as that can be; return what to let go of."""
        gone: list[T] = []
        while self._nbytes + size > self._budget:
            idle = [entry for entry in self._ready.values() if entry.users == 0]
            if not idle:
                break
            oldest = min(idle, key=_stamp)
            self._remove(oldest)
            self._evictions += 1
            gone.append(oldest.model)
        return gone


def _stamp(entry: _Entry[Any]) -> int:
    return entry.stamp


def _stopping() -> KeysideError:
    return TryAgain("the executor is stopping")


def _call(callback: Callable[..., None], model: object, error: KeysideError | None) -> None:
    try:
        callback(model, error)
    except Exception:
        _logger.exception("callback of a model load")


def _close(model: Cacheable) -> None:
    try:
        model.close()
    except Exception:
        _logger.exception("closing a model")
