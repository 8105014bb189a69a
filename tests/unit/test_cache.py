"""The model cache: single flight, eviction, and many threads at once."""

import contextlib
import gc
import random
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import pytest

from keyside.executor.cache import ModelCache, ModelRef
from keyside.executor.sharing import Sharing, fingerprint
from keyside.tensorstore.errors import BadModel, KeysideError, ModelFailed, NoModel, TryAgain
from keyside.tensorstore.records import Signature, VersionInfo

WAIT_S = 10


class Fake:
    """A model of some size."""

    signature = Signature((), ())
    stackable = False

    def __init__(self, name: str, nbytes: int = 100) -> None:
        self.name = name
        self.nbytes = nbytes
        self.closed = False

    def run(self, inputs: Any) -> list[Any]:
        return []

    def close(self) -> None:
        assert not self.closed, "closed twice"
        self.closed = True


class Loader:
    """Loads fakes; its loads can be held, and made to fail."""

    def __init__(self) -> None:
        self.loads: list[str] = []
        self.sizes: dict[str, int] = {}
        self.errors: dict[str, Exception] = {}
        self.begun = threading.Semaphore(0)
        self.go = threading.Event()
        self.go.set()

    def __call__(self, ref: ModelRef) -> Fake:
        self.loads.append(ref.id)
        self.begun.release()
        assert self.go.wait(WAIT_S)
        if ref.id in self.errors:
            raise self.errors[ref.id]
        return Fake(ref.id, self.sizes.get(ref.id, 100))


@pytest.fixture
def loader() -> Loader:
    return Loader()


NewCache = Callable[..., ModelCache[Fake]]


@pytest.fixture
def new_cache(loader: Loader) -> Iterator[NewCache]:
    made = []

    def new(budget: int = 350, **options: Any) -> ModelCache[Fake]:
        cache = ModelCache(budget, loader, **options)
        made.append(cache)
        return cache

    yield new
    loader.go.set()
    for cache in made:
        cache.close()


def ask(cache: ModelCache[Fake], model_id: str, **more: Any) -> "Future[Fake]":
    future: Future[Fake] = Future()

    def done(model: Fake | None, error: KeysideError | None) -> None:
        if model is not None:
            future.set_result(model)
        else:
            future.set_exception(error or AssertionError("neither model nor error"))

    cache.request(ModelRef(model_id, **more), done)
    return future


def get(cache: ModelCache[Fake], model_id: str, **more: Any) -> Fake:
    return ask(cache, model_id, **more).result(WAIT_S)


def test_a_model_is_loaded_once_and_found(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache()
    assert cache.get_ready("a-1") is None

    model = get(cache, "a-1")

    assert cache.get_ready("a-1") is model
    assert get(cache, "a-1") is model
    assert loader.loads == ["a-1"]
    assert cache.ids() == ["a-1"]
    stats = cache.stats()
    assert (stats.hits, stats.misses, stats.loads, stats.models, stats.nbytes) == (1, 1, 1, 1, 100)


def test_one_load_serves_all_who_wait(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache(threads=4)
    loader.go.clear()

    futures = [ask(cache, "a-1") for _ in range(20)]
    loader.go.set()

    assert len({id(future.result(WAIT_S)) for future in futures}) == 1
    assert loader.loads == ["a-1"]


def test_loads_of_other_models_go_on(loader: Loader) -> None:
    held = threading.Event()

    def first_is_slow(ref: ModelRef) -> Fake:
        if ref.id == "slow-1":
            assert held.wait(WAIT_S)
        return loader(ref)

    cache = ModelCache(350, first_is_slow, threads=2)
    slow = ask(cache, "slow-1")
    assert get(cache, "fast-1").name == "fast-1"
    assert not slow.done()
    held.set()
    assert slow.result(WAIT_S).name == "slow-1"
    cache.close()


def test_the_least_recently_used_goes_first(new_cache: NewCache) -> None:
    cache = new_cache(350)
    for name in ("a-1", "b-1", "c-1"):
        get(cache, name)
    cache.get_ready("a-1")

    get(cache, "d-1")

    assert cache.ids() == ["a-1", "c-1", "d-1"]
    assert cache.stats().evictions == 1


def test_room_is_made_before_the_load_where_the_size_is_known(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache(350)
    for name in ("a-1", "b-1", "c-1"):
        get(cache, name)
    loader.go.clear()

    future = ask(cache, "d-1", size=100)
    for _ in range(4):
        assert loader.begun.acquire(timeout=WAIT_S)

    assert cache.ids() == ["b-1", "c-1"]
    loader.go.set()
    future.result(WAIT_S)


def test_acquired_models_stay(new_cache: NewCache) -> None:
    cache = new_cache(250)
    get(cache, "a-1")
    get(cache, "b-1")
    first = cache.acquire("a-1")
    assert cache.acquire("a-1") is first
    with cache.using("b-1"):
        get(cache, "c-1")  # nothing can go: over the budget for now
        assert cache.ids() == ["a-1", "b-1", "c-1"]

    assert cache.ids() == ["a-1", "c-1"]
    cache.release("a-1")
    get(cache, "d-1")
    assert cache.ids() == ["a-1", "d-1"]
    cache.release("a-1")
    with pytest.raises(ValueError, match="not acquired"):
        cache.release("a-1")


def test_an_evicted_model_lives_as_long_as_someone_has_it(new_cache: NewCache) -> None:
    cache = new_cache(150)
    model = get(cache, "a-1")
    alive = weakref.ref(model)

    get(cache, "b-1")
    gc.collect()
    assert not model.closed
    del model
    gc.collect()

    assert alive() is None


def test_a_model_larger_than_the_budget_is_refused(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache(350)
    loader.sizes["big-1"] = 1_000
    get(cache, "a-1")

    with pytest.raises(BadModel, match=r"1,000 bytes of memory, more than this executor's budget of 350"):
        get(cache, "big-1")
    with pytest.raises(BadModel, match="2,000 bytes"):
        get(cache, "big-2", size=2_000)

    assert cache.ids() == ["a-1"]
    assert loader.loads == ["a-1", "big-1"]


def test_failures_reach_all_who_wait_and_are_forgotten(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache()
    loader.errors = {"a-1": NoModel("gone"), "b-1": ZeroDivisionError("what\nnow")}
    loader.go.clear()
    futures = [ask(cache, "a-1"), ask(cache, "a-1"), ask(cache, "b-1")]
    loader.go.set()

    for future in futures[:2]:
        with pytest.raises(NoModel, match="gone"):
            future.result(WAIT_S)
    with pytest.raises(ModelFailed, match="ZeroDivisionError: what now"):
        futures[2].result(WAIT_S)

    loader.errors.clear()
    assert get(cache, "a-1").name == "a-1"
    assert cache.stats().failures == 2


def test_a_callback_that_fails_harms_no_other(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache()
    loader.go.clear()
    cache.request(ModelRef("a-1"), lambda model, error: 1 / 0)  # type: ignore[arg-type]
    future = ask(cache, "a-1")
    loader.go.set()

    assert future.result(WAIT_S).name == "a-1"
    assert get(cache, "b-1").name == "b-1"


def test_dropped_models_are_forgotten(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache()
    get(cache, "a-1")
    cache.drop("a-1")
    cache.drop("a-1")
    cache.release("a-1")  # whoever had acquired it

    assert cache.get_ready("a-1") is None
    assert cache.stats().nbytes == 0
    get(cache, "a-1")
    assert loader.loads == ["a-1", "a-1"]


def test_close_tells_those_who_wait(new_cache: NewCache, loader: Loader) -> None:
    cache = new_cache()
    model = get(cache, "a-1")
    loader.go.clear()
    loading, queued = ask(cache, "b-1"), ask(cache, "c-1")

    cache.close(timeout_s=0.01)

    for future in (loading, queued, ask(cache, "d-1")):
        with pytest.raises(TryAgain, match="stopping"):
            future.result(WAIT_S)
    assert model.closed


def test_equal_models_are_one_in_memory() -> None:
    body = Fake("body", 200)

    class Around(Fake):
        loaded = body

    cache = ModelCache(250, lambda ref: Around(ref.id, 200), body=lambda model: model.loaded)
    for name in ("a-1", "b-1", "c-1"):
        done = threading.Event()
        cache.request(ModelRef(name), lambda *_, done=done: done.set())
        assert done.wait(WAIT_S)

    assert cache.ids() == ["a-1", "b-1", "c-1"]
    assert cache.stats().nbytes == 200
    cache.drop("a-1")
    cache.drop("b-1")
    assert cache.stats().nbytes == 200
    cache.drop("c-1")
    assert cache.stats().nbytes == 0
    cache.close()


def test_sharing_loads_once_for_each_key() -> None:
    sharing = Sharing()
    made: list[str] = []
    barrier = threading.Barrier(4)
    got: list[Any] = []

    def make(name: str) -> Fake:
        made.append(name)
        return Fake(name)

    def work() -> None:
        barrier.wait(WAIT_S)
        got.append(sharing.get("x", lambda: make("x")))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT_S)

    assert len({id(model) for model in got}) == 1
    assert made == ["x"]
    assert sharing.get("", lambda: make("y")) is not sharing.get("", lambda: make("y"))
    got.clear()
    gc.collect()
    sharing.get("x", lambda: make("again"))
    assert made == ["x", "y", "y", "again"]


def test_fingerprints() -> None:
    version = VersionInfo(version=1, state="ready", backend="onnx", device="CPU", digest="d", options={"b": 1, "a": 2})
    same = VersionInfo(version=2, state="ready", backend="ONNX", device="CPU", digest="d", options={"a": 2, "b": 1})
    other = VersionInfo(version=2, state="ready", backend="ONNX", device="GPU", digest="d")
    unknown = VersionInfo(version=1, state="loading", backend="ONNX", device="CPU")

    assert fingerprint(version) == fingerprint(same) != ""
    assert fingerprint(version) != fingerprint(other)
    assert fingerprint(unknown) == ""
    assert fingerprint(unknown, "d") != ""


@pytest.mark.parametrize("dropping", [False, True])
def test_many_threads_at_once(loader: Loader, dropping: bool) -> None:
    """Whatever happens, an acquired model is the right one and stays, and the numbers add up in the end."""
    cache = ModelCache(450, loader, threads=3)
    names = [f"m{i}-1" for i in range(8)]
    loader.errors = {"m7-1": NoModel("gone")}
    problems: list[str] = []

    def work(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(150):
            name = rng.choice(names)
            model = cache.acquire(name)
            if model is None:
                with contextlib.suppress(NoModel):
                    if get(cache, name).name != name:
                        problems.append(f"{name}: loaded as another")
                continue
            if model.name != name or model.closed:
                problems.append(f"{name}: got {model.name}, closed {model.closed}")
            if not dropping and name not in cache.ids():
                problems.append(f"{name}: acquired, but gone")
            if dropping and rng.random() < 0.1:
                cache.drop(name)
            else:
                with contextlib.suppress(ValueError):  # dropped by another, loaded again and not acquired since
                    cache.release(name)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    stats = cache.stats()
    cache.close()

    assert not any(thread.is_alive() for thread in threads)
    assert problems == []
    if not dropping:
        assert stats.nbytes <= 450
        assert stats.evictions > 0
    assert stats.nbytes == 100 * stats.models
    assert stats.loads + stats.failures == len(loader.loads)
