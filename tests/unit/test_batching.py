"""Which jobs run together: executor/batching.py and executor/model.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.fakes import job, model

from keyside.executor.batching import Batcher
from keyside.executor.protocol import Job
from keyside.tensorstore.errors import BadDtype, BadInput, BadShape


def rows(count: int, width: int = 4) -> np.ndarray:
    return np.zeros((count, width), np.float32)


def taken(batcher: Batcher, now: float = 0.0) -> list[list[bytes]]:
    """Every batch that can be had at this time."""
    found = []
    while (batch := batcher.take(now)) is not None:
        found.append([one.id for one in batch[1]])
    return found


@given(st.lists(st.tuples(st.integers(0, 12), st.integers(3, 4)), max_size=30), st.integers(1, 10))
def test_every_job_runs_once_in_order_and_no_batch_is_too_large(sizes: list[tuple[int, int]], most: int) -> None:
    served, _ = model(shape=(-1, -1), batchsize=most)
    batcher = Batcher()
    jobs = {}
    for n, (count, width) in enumerate(sizes):
        one = job(n, rows(count, width))
        served.prepare(one)
        batcher.add(served, one)
        jobs[one.id] = one
    assert batcher.size == len(sizes)
    order = []
    while (batch := batcher.take(0.0)) is not None:
        together = batch[1]
        order += together
        assert sum(one.rows for one in together) <= most or len(together) == 1
        assert len({one.arrays[0].shape[1:] for one in together}) == 1
    assert batcher.size == 0
    assert sorted(one.id for one in order) == sorted(jobs)
    for width in (3, 4):
        same = [int(one.id[:-2]) for one in order if one.arrays[0].shape[1] == width and one.group is not None]
        assert same == sorted(same)


def test_what_has_gathered_goes_at_once() -> None:
    served, _ = model()
    batcher = Batcher()
    for n in range(3):
        one = job(n, rows(1))
        served.prepare(one)
        batcher.add(served, one)
    assert taken(batcher) == [[b"0-0", b"1-0", b"2-0"]]


def test_the_oldest_group_goes_first_and_the_rest_of_it_last() -> None:
    served, _ = model(shape=(-1, -1), batchsize=2)
    batcher = Batcher()
    for n, width in enumerate((4, 3, 4, 4, 3)):
        one = job(n, rows(1, width))
        served.prepare(one)
        batcher.add(served, one)
    assert taken(batcher) == [[b"0-0", b"2-0"], [b"1-0", b"4-0"], [b"3-0"]]


@pytest.mark.parametrize("stackable", [True, False])
def test_minbatchsize_waits_for_rows_or_for_the_time(stackable: bool) -> None:
    served, _ = model(batchsize=4, minbatchsize=3, minbatchtimeout=50, stackable=stackable)
    batcher = Batcher()
    for n in range(2):
        one = job(n, rows(1), claimed=10.0)
        served.prepare(one)
        batcher.add(served, one)
    if not stackable:
        assert taken(batcher, 10.0) == [[b"0-0"], [b"1-0"]]
        return
    assert taken(batcher, 10.04) == []
    assert batcher.wait(10.04) == pytest.approx(0.01)
    assert taken(batcher, 10.05) == [[b"0-0", b"1-0"]]
    assert batcher.wait(10.05) is None


def test_minbatchsize_without_a_timeout_has_a_bound() -> None:
    served, _ = model(batchsize=4, minbatchsize=3)
    assert served.min_wait == 0.1


def test_a_job_that_was_delivered_before_is_never_stacked() -> None:
    served, _ = model()
    batcher = Batcher()
    for n in range(3):
        one = job(n, rows(1))
        one.alone = n == 1
        served.prepare(one)
        batcher.add(served, one)
    assert taken(batcher) == [[b"0-0", b"2-0"], [b"1-0"]]


def test_scalars_and_unequal_rows_are_never_stacked() -> None:
    scalar, _ = model(shape=())
    two, _ = model(lambda a, b: a, inputs=2, shape=(-1, 4))
    groups = []
    for served, one in ((scalar, job(0, 1.0)), (two, job(1, rows(1), rows(2))), (two, job(2, rows(2), rows(2)))):
        served.prepare(one)
        groups.append(one.group)
    assert groups[0] is None
    assert groups[1] is None
    assert groups[2] is not None


def test_drop_forgets_jobs() -> None:
    served, _ = model()
    batcher = Batcher()
    jobs: list[Job] = [job(n, rows(1)) for n in range(4)]
    for one in jobs:
        served.prepare(one)
        batcher.add(served, one)
    assert batcher.drop({("CPU", b"1-0"), ("CPU", b"3-0"), ("CPU", b"9-0")}) == 2
    assert taken(batcher) == [[b"0-0", b"2-0"]]


def test_inputs_are_bound_by_name() -> None:
    served, _ = model(lambda a, b: a - b, inputs=2)
    one = job(0, rows(1) + 1, rows(1) + 2, names=(b"x1", b"x0"))
    served.prepare(one)
    assert one.arrays[0][0, 0] == 2
    with pytest.raises(BadInput, match=r"takes 'x0' FLOAT\[-1,4\], 'x1' FLOAT\[-1,4\]; got x1, y"):
        served.prepare(job(1, rows(1), rows(1), names=(b"x1", b"y")))


def test_what_does_not_fit_is_refused_with_both_sides() -> None:
    served, _ = model()
    with pytest.raises(BadShape, match=r"takes shape \[-1, 4\] \(-1: any\), got \[2, 3\]"):
        served.prepare(job(0, rows(2, 3)))
    with pytest.raises(BadInput, match="takes 1 inputs"):
        served.prepare(job(0, rows(1), rows(1)))
    with pytest.raises(BadInput, match="gives 1 outputs, y; got 2 output keys"):
        served.prepare(job(0, rows(1), outputs=(b"a", b"b")))
    wrong = job(0, rows(1), dtype="i8")
    with pytest.raises(BadDtype, match="takes FLOAT, got INT64"):
        served.prepare(wrong)


def ranked(number: int, queue: str, claimed: float) -> Job:
    """A job of a queue."""
    one = job(number, rows(1, 3 + number), claimed=claimed)  # of a form of its own: never stacked
    one.queue = queue
    one.ref = (queue, one.id)
    return one


def test_priorities_go_first_but_not_for_ever() -> None:
    served, _ = model(shape=(-1, -1))
    batcher = Batcher()
    order = [("CPU!L", 0.0), ("CPU", 0.1), ("CPU", 0.16), ("CPU!H", 0.16), ("CPU!H", 0.18), ("CPU!L", 0.18)]
    for n, (queue, claimed) in enumerate(order):
        one = ranked(n, queue, claimed)
        served.prepare(one)
        batcher.add(served, one)
    assert taken(batcher, 1.0) == [[b"1-0"], [b"3-0"], [b"4-0"], [b"0-0"], [b"2-0"], [b"5-0"]]


def test_an_urgent_job_overtakes_what_waits_and_jobs_of_two_queues_never_share_a_run() -> None:
    served, _ = model()
    batcher = Batcher()
    for n, queue in enumerate(("CPU", "CPU", "CPU!H", "CPU!L", "CPU!H")):
        one = job(n, rows(1))
        one.queue = queue
        one.ref = (queue, one.id)
        served.prepare(one)
        batcher.add(served, one)
    assert taken(batcher) == [[b"2-0", b"4-0"], [b"0-0", b"1-0"], [b"3-0"]]
