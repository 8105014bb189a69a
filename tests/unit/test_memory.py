"""How much memory there is, and what has too much of it."""

import mmap
from pathlib import Path

import pytest
from tests.unit.fakes import job, model

from keyside.executor import memory
from keyside.executor.cache import ModelRef
from keyside.executor.limits import Limits, OverRun
from keyside.executor.runner import Runner
from keyside.tensorstore import keys

MIB = 1 << 20


def test_what_this_process_has() -> None:
    before = memory.resident()
    assert before > MIB
    with mmap.mmap(-1, 50 * MIB) as area:  # an array may lie where another was before
        for at in range(0, len(area), mmap.PAGESIZE):
            area[at] = 1
        assert 40 * MIB < memory.resident() - before < 80 * MIB


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({}, 0),
        ({"memory.max": "max\n"}, 0),
        ({"memory.max": "1000\n"}, 1000),
        ({"memory/memory.limit_in_bytes": "2000\n"}, 2000),
        ({"a/memory.max": "3000\n", "a/b/memory.max": "max\n"}, 3000),
        ({"a/memory.max": "max\n", "a/b/memory.max": "4000\n", "memory.max": "9000"}, 4000),
    ],
)
def test_what_there_is(tmp_path: Path, files: dict[str, str], found: int) -> None:
    own = tmp_path / "own"
    own.write_text("0::/a/b\n")
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    machine = memory.total(tmp_path / "nothing", tmp_path / "nothing")
    assert machine > MIB
    assert memory.total(tmp_path, own) == (found or machine)


class Work:
    """A runner, loads, and a process of which a test says how large it is."""

    def __init__(self) -> None:
        self.runner = Runner(keys.NodeKeys(), "r")
        self.loads: list[tuple[ModelRef]] = []
        self.size = 100 * MIB
        self.limits = Limits([self.runner], lambda: self.loads, 0.0, 10 * MIB, lambda: self.size)
        self.now = 1.0
        self.look(0)

    def look(self, mib: int) -> list[OverRun]:
        """What is found after the process has grown by so many MiB."""
        self.size += mib * MIB
        self.now += 0.05
        found = self.limits.look(self.now)
        assert all(isinstance(one, OverRun) for one in found)
        return found  # type: ignore[return-value]

    def run(self) -> None:
        served, _ = model()
        self.runner.running = (served, (job(1, [[1] * 4]),))


def test_a_run_that_grows() -> None:
    work = Work()
    work.run()
    assert work.look(6) == [], "what it grew by before the first look counts too"
    assert work.look(4) == []
    (over,) = work.look(1)
    assert (over.model, over.jobs) == work.runner.running
    assert over.grown == 11 * MIB


def test_each_run_begins_with_nothing() -> None:
    work = Work()
    for _ in range(5):
        work.run()
        assert work.look(9) == []
    work.runner.running = None
    assert work.look(50) == []


def test_what_is_given_back_counts() -> None:
    work = Work()
    work.run()
    for _ in range(10):
        assert work.look(9) == []
        assert work.look(-9) == []


def test_growth_while_something_loads_is_nobodys() -> None:
    work = Work()
    work.run()
    work.loads = [(ModelRef("u-1"),)]
    assert work.look(500) == []
    work.loads = []
    assert work.look(500) == [], "it may have loaded in between"
    assert work.look(11) != []


def test_where_nobody_knows() -> None:
    work = Work()
    work.size = 0
    work.run()
    assert work.look(0) == []
    assert work.look(0) == []


def test_without_a_bound() -> None:
    work = Work()
    work.limits = Limits([work.runner], list, 0.0, 0, lambda: work.size)
    work.run()
    assert work.look(500) == []
    assert work.look(500) == []
