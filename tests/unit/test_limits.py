"""What takes longer than it may: executor/limits.py, and what outlives a process: executor/recycle.py."""

from typing import Any

import pytest
from tests.unit.fakes import job, model

from keyside.executor.cache import ModelRef
from keyside.executor.limits import Limits, OverLoad, OverRun, own_run_limit
from keyside.executor.recycle import VARIABLE, History
from keyside.executor.runner import Runner
from keyside.tensorstore import keys
from keyside.tensorstore.errors import BadModel
from keyside.tensorstore.records import VersionInfo


class Work:
    """A runner, loads, and a clock that looks every 50 ms."""

    def __init__(self, load_limit_s: float = 0.0) -> None:
        self.runner = Runner(keys.NodeKeys(), "r")
        self.loads: list[tuple[ModelRef]] = []
        self.limits = Limits([Runner(keys.NodeKeys(), "idle"), self.runner], lambda: self.loads, load_limit_s)
        self.now = 100.0

    def look(self, seconds: float = 0.0) -> list[OverRun | OverLoad]:
        """What there is to find in so much time."""
        end = self.now + seconds
        found = self.limits.look(self.now)
        while self.now < end and not found:
            self.now += 0.05
            found = self.limits.look(self.now)
        return found


def run(limit: float) -> tuple[Any, Any]:
    served, _ = model()
    served.run_limit_s = limit
    return served, (job(1, [[1] * 4]),)


def test_a_run_beyond_its_limit() -> None:
    work = Work()
    assert work.look(1.0) == []
    work.runner.running = run(0.5)
    assert work.look(0.45) == []
    (over,) = work.look(0.2)
    assert isinstance(over, OverRun)
    assert (over.model, over.jobs) == work.runner.running
    assert 0.5 < over.seconds < 0.65


def test_each_run_has_a_time_of_its_own() -> None:
    work = Work()
    for _ in range(10):
        work.runner.running = run(0.5)
        assert work.look(0.4) == []
    same = run(0.5)
    for _ in range(10):
        work.runner.running = (same[0], same[1])
        assert work.look(0.4) == []
        work.runner.running = None
        assert work.look() == []


def test_without_a_limit() -> None:
    work = Work()
    work.runner.running = run(0.0)
    work.loads = [(ModelRef("u-1"),)]
    assert work.look(100.0) == []


def test_a_halt_is_no_run() -> None:
    work = Work()
    work.runner.running = run(2.0)
    assert work.look(0.2) == []
    work.now += 3600.0
    assert work.look(0.5) == []
    assert work.look(1.0) != []


def test_a_load_beyond_its_limit() -> None:
    work = Work(load_limit_s=1.0)
    first, second = (ModelRef("u-1"),), (ModelRef("u-1"),)
    work.loads = [first]
    assert work.look(0.8) == []
    work.loads = [second]
    assert work.look(0.8) == []
    (over,) = work.look(0.4)
    assert isinstance(over, OverLoad)
    assert over.ref is second[0]


def test_the_limit_of_a_version() -> None:
    plain = VersionInfo(version=1, state="ready", options={"warmup": False})
    assert own_run_limit(plain) == (None, plain)
    limited = VersionInfo(version=1, state="ready", options={"warmup": False, "run_limit_ms": 1500})
    assert own_run_limit(limited) == (1.5, plain)
    for value in (-1, "1", 1.5, True, None, 86_400_001):
        with pytest.raises(BadModel, match="run_limit_ms"):
            own_run_limit(VersionInfo(version=1, state="ready", options={"run_limit_ms": value}))


def test_history_outlives_the_process() -> None:
    history = History.take({})
    assert history == History()
    history.runs = 2
    for when in (1000.0, 1001.0, 1300.0):
        history.strike("u-1", when)
    history.strike("u-2", 1300.0)
    environ = {VARIABLE: history.text()}
    again = History.take(environ)
    assert environ == {}, "children do not get it"
    assert again == history
    assert again.strikes("u-1", 1300.0) == 3
    assert again.strikes("u-1", 1600.5) == 2, "ten minutes"
    again.strike("u-1", 2000.0)
    assert again.strikes("u-1", 2000.0) == 1
    assert len(again.lately) == 1


@pytest.mark.parametrize("text", ["x", "[]", "[1, 2, 3]", '{"a": 1}', '["a", 0, []]', "null"])
def test_a_history_that_cannot_be_read(text: str) -> None:
    assert History.take({VARIABLE: text}) == History()


def test_history_stays_small() -> None:
    history = History()
    for n in range(1000):
        history.strike(f"u-{n}", 1000.0)
    assert len(history.text()) < 4096
    assert history.strikes("u-999", 1000.0) == 1
