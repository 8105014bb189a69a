"""The short version of the chaos run (`make chaos` is longer, `make soak` half an hour), and of its parts."""

from typing import get_args

import pytest
from tests.chaos import acceptance, triggers
from tests.chaos.__main__ import run
from tests.chaos.faults import CLUSTERED, STANDALONE, schedule
from tests.chaos.report import growth, show
from tests.servers import Kind

SECONDS = {"redis": 35.0, "valkey": 15.0}


@pytest.mark.slow
@pytest.mark.timeout(240)
@pytest.mark.parametrize("kind", get_args(Kind))
def test_every_answer_is_right_whatever_goes_wrong(kind: Kind, lasting: set[int]) -> None:
    found, problems = run(kind, seconds=SECONDS[kind], seed=11, every=2.0)
    print(show(found, problems))
    assert not problems
    assert found["right"] > 500
    assert found["faults"] >= 4


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_nothing_is_lost_on_a_cluster() -> None:
    """`make acceptance` asks ten times as much, of both servers."""
    found, problems = acceptance.run("valkey", requests=2_000, slots=60)
    print(show(found, problems))
    assert not problems


@pytest.mark.slow
@pytest.mark.timeout(120)
@pytest.mark.parametrize("kind", triggers.KINDS)
def test_events_while_an_executor_dies(kind: str) -> None:
    """`python -m tests.chaos.triggers` asks for 10,000 of each kind."""
    found = triggers.run(kind, "redis", count=2000, rate=1000)
    assert not triggers.problems(found), found
    assert found["results"] >= 1000


def test_a_seed_tells_what_goes_wrong() -> None:
    for kinds in (STANDALONE, CLUSTERED):
        one, same, other = (schedule(seed, 120, kinds) for seed in (5, 5, 6))
        assert one == same
        assert one != other
        assert {event.name for event in one} == set(kinds), "each of them comes up in two minutes"
        assert all(event.at < 116 for event in one)


def test_growth_is_what_goes_on() -> None:
    leak = [(float(t), 100_000_000 + 100_000 * t) for t in range(600)]
    step = [(float(t), 60_000_000 if t < 400 else 95_000_000) for t in range(600)]
    start = [(float(t), min(t * 5_000_000, 95_000_000)) for t in range(60)]
    assert (growth(leak) or 0) > 0.1
    assert growth(step) == 0
    assert growth(start) == 0
    assert growth(start[:40]) is None
