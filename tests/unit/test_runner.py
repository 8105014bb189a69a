"""Running a batch: executor/runner.py."""

import numpy as np
import pytest
from tests.unit.fakes import job, model

from keyside.executor.protocol import Finished, Job
from keyside.executor.runner import Runner
from keyside.tensorstore import keys, npy
from keyside.tensorstore.errors import RunFailed
from keyside.tensorstore.records import decode_reply

NODE = keys.NodeKeys()


def run(served: object, *jobs: Job) -> list[Finished]:
    for one in jobs:
        served.prepare(one)  # type: ignore[attr-defined]
    return Runner(NODE, "r").run(served, jobs).ended  # type: ignore[arg-type]


def result(ended: Finished) -> np.ndarray:
    value = decode_reply(ended.reply).outputs["y"]
    assert isinstance(value, bytes)
    return npy.decode(value)


def test_each_job_gets_its_own_rows() -> None:
    served, loaded = model()
    ended = run(served, *(job(n, np.full((n + 1, 4), n)) for n in range(3)))
    assert loaded.calls == [[(6, 4)]]
    for n, one in enumerate(ended):
        np.testing.assert_array_equal(result(one), np.full((n + 1, 4), 2 * n))
    assert decode_reply(ended[0].reply).target == "m@1"


def test_one_bad_request_does_not_fail_its_neighbours() -> None:
    def picky(x: np.ndarray) -> np.ndarray:
        if (x < 0).any():
            raise RunFailed("negative")
        return x

    served, loaded = model(picky)
    ended = run(served, job(0, [[1] * 4]), job(1, [[-1] * 4]), job(2, [[3] * 4]))
    assert [one.error is None for one in ended] == [True, False, True]
    assert ended[1].reply == b"RUNFAILED negative"
    assert result(ended[2])[0, 0] == 3
    assert len(loaded.calls) == 4


def test_an_output_without_the_rows_of_the_batch_is_run_again_one_by_one() -> None:
    served, loaded = model(lambda x: x.sum(axis=0, keepdims=True))
    ended = run(served, job(0, [[1] * 4, [2] * 4]), job(1, [[5] * 4]))
    assert result(ended[0])[0, 0] == 3
    assert result(ended[1])[0, 0] == 5
    assert [call[0][0] for call in loaded.calls] == [3, 2, 1]


def test_any_exception_of_a_backend_is_the_jobs_error() -> None:
    def broken(_: np.ndarray) -> np.ndarray:
        raise ZeroDivisionError("oops")

    served, _ = model(broken)
    ended = run(served, job(0, [[1] * 4]))
    assert ended[0].reply == b"RUNFAILED model 'm@1': ZeroDivisionError: oops"


def test_a_result_that_is_no_tensor_is_the_jobs_error() -> None:
    served, _ = model(lambda x: np.array([object()]))
    ended = run(served, job(0, [[1] * 4]))
    assert ended[0].reply.startswith(b"RUNFAILED model 'm@1': BADDTYPE")


@pytest.mark.parametrize("together", [1, 2])
def test_zero_rows_give_zero_rows(together: int) -> None:
    def strict(x: np.ndarray) -> np.ndarray:
        assert x.shape[0] > 0
        return x

    served, _ = model(strict)
    for one in run(served, *(job(n, np.zeros((0, 4))) for n in range(together))):
        assert result(one).shape == (0, 4)


def test_zero_rows_beside_others() -> None:
    served, _ = model()
    ended = run(served, job(0, np.zeros((0, 4))), job(1, np.ones((2, 4))))
    assert result(ended[0]).shape == (0, 4)
    assert result(ended[1]).shape == (2, 4)


def test_small_outputs_ride_along_and_large_ones_are_staged_beside_their_key() -> None:
    served, _ = model(shape=(-1, -1))
    small, large = job(0, np.ones((1, 4)), outputs=(b"{t}y",)), job(1, np.ones((1, 10_000)), outputs=(b"{t}z",))
    ended = run(served, small)[0]
    assert ended.reply == b"OK"
    key, how, value = ended.outputs[0]
    assert (key, how) == (b"{t}y", b"V")
    np.testing.assert_array_equal(npy.decode(value), np.full((1, 4), 2))
    ended = run(served, large)[0]
    key, how, value = ended.outputs[0]
    assert (key, how) == (b"{t}z", b"S")
    assert value.startswith(b"ks:{t}:out:")
    assert ended.staged[0][0] == value


def test_a_large_output_of_a_prediction_is_named_in_the_reply() -> None:
    served, _ = model(shape=(-1, -1))
    ended = run(served, job(0, np.ones((1, 10_000))))[0]
    name = decode_reply(ended.reply).outputs["y"]
    assert isinstance(name, str)
    assert ended.outputs == [(b"", b"K", name.encode())]
    assert name.startswith("ks:{0}:out:")
