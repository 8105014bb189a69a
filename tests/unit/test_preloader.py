"""What is loaded before anybody asks for it."""

import json
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.servers import wait_until

from keyside.executor.cache import ModelCache, ModelRef
from keyside.executor.preloader import Preloader, Version
from keyside.tensorstore.errors import NoModel, Unreachable


class Loaded:
    """A model of 100 bytes."""

    nbytes = 100

    def close(self) -> None:
        """There is nothing to give back."""


class Scene:
    """A cache of fakes, with a preloader whose questions are answered from what is set here."""

    def __init__(self, budget: int = 1000) -> None:
        self.loads: list[str] = []
        self.go = threading.Event()
        self.go.set()
        self.size: Any = 100
        self.alone = False
        self.cache: ModelCache[Any] = ModelCache(budget, self._load)
        self.preloader = Preloader(("CPU", "GPU"), self.cache, self._size, lambda _: self.alone)

    def _load(self, ref: ModelRef) -> Any:
        self.loads.append(ref.id)
        assert self.go.wait(10)
        return Loaded()

    def _size(self, version: Version) -> int:
        if isinstance(self.size, Exception):
            raise self.size
        return int(self.size)

    def settle(self) -> None:
        """Until nothing more is wanted."""

        def idle() -> bool:
            self.preloader.go_on()
            return self.preloader.idle

        wait_until(idle, "it has loaded all", 5)


@pytest.fixture
def scene() -> Iterator[Scene]:
    made = Scene()
    yield made
    made.cache.close()


def version(name: str, number: int = 1, state: str = "ready", device: str = "CPU", last: int = 0) -> Version:
    record = {"uid": name, "version": number, "state": state, "device": device}
    found = Version.read(name.encode(), json.dumps({**record, "last": last} if last else record).encode())
    assert found is not None
    return found


def test_defaults_are_loaded_at_first_and_then_what_changes(scene: Scene) -> None:
    scene.preloader.consider(version("m", 2, last=2), [version("m", 1), version("m", 2)], first=True)
    scene.settle()
    assert scene.loads == ["m-2"]
    scene.preloader.consider(version("m", 2, last=3), [version("m", 1), version("m", 2), version("m", 3)])
    scene.settle()
    assert scene.loads == ["m-2", "m-3"]


def test_devices_of_others_and_failed_versions_are_left_alone(scene: Scene) -> None:
    scene.preloader.consider(version("a", device="TPU"), [])
    scene.preloader.consider(version("b", state="failed"), [])
    scene.settle()
    assert scene.loads == []


def test_a_version_that_loads_is_left_to_its_home_unless_nobody_is_there(scene: Scene) -> None:
    scene.preloader.consider(version("m", state="loading"), [])
    scene.preloader.look_after()
    scene.settle()
    assert scene.loads == []
    scene.alone = True
    scene.preloader.look_after()
    scene.settle()
    assert scene.loads == ["m-1"]


def test_what_does_not_fit_is_not_loaded_and_evicts_nothing() -> None:
    scene = Scene(budget=250)
    for name in ("a", "b", "c"):
        scene.preloader.consider(version(name), [])
    scene.settle()
    assert scene.loads == ["a-1", "b-1"]
    assert scene.cache.ids() == ["a-1", "b-1"]
    assert scene.cache.stats().failures == 0
    scene.cache.close()


def test_one_at_a_time(scene: Scene) -> None:
    scene.go.clear()
    for name in ("a", "b"):
        scene.preloader.consider(version(name), [])
    scene.preloader.go_on()
    wait_until(lambda: scene.loads == ["a-1"], "the first is being loaded", 5)
    scene.preloader.go_on()
    assert scene.loads == ["a-1"]
    assert not scene.preloader.idle
    scene.go.set()
    scene.settle()
    assert scene.loads == ["a-1", "b-1"]


def test_a_home_that_is_away_is_asked_again(scene: Scene) -> None:
    scene.size = Unreachable("away")
    scene.preloader.consider(version("m"), [])
    scene.settle()
    assert scene.loads == []
    scene.size = 100
    scene.preloader.look_after()
    scene.settle()
    assert scene.loads == ["m-1"]
    scene.size = NoModel("gone")
    scene.preloader.consider(version("n"), [])
    scene.settle()
    scene.preloader.look_after()
    scene.settle()
    assert scene.loads == ["m-1"]


def test_who_needs_a_model_gets_it_though_it_did_not_fit_ahead() -> None:
    scene = Scene(budget=150)
    done: list[Any] = []
    scene.cache.request(ModelRef("a-1", 100), lambda *found: done.append(found))
    wait_until(lambda: done, "the first is there", 5)
    scene.go.clear()
    scene.cache.request(ModelRef("busy-1", 1), lambda *found: None)
    wait_until(lambda: len(scene.loads) == 2, "the loader is busy", 5)
    scene.cache.request(ModelRef("b-1", 100, spare=True), lambda *found: done.append(found))
    scene.cache.request(ModelRef("b-1", 100), lambda *found: done.append(found))
    scene.go.set()
    wait_until(lambda: len(done) == 3, "both are told", 5)
    assert [error for _, error in done] == [None, None, None]
    scene.cache.close()


@pytest.mark.parametrize(
    "raw", [None, b"", b"7", b"null", b"{}", b'{"uid":"u","version":"x","device":"CPU","state":""}']
)
def test_records_that_somebody_spoilt(raw: bytes | None) -> None:
    assert Version.read(b"m", raw) is None
