"""RedisAI's semantics as far as they are kept: one test per rule, against a real executor, over the bare protocol.

Many rules are about what happens between two moments. Commands of one transaction leave no time between them, and
the jobs that it submits are claimed together, so that nothing here depends on speed.
"""

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from typing import Any, Self

import numpy as np
import pytest
from onnx import TensorProto
from tests import models, more_models
from tests.executors import Executor
from tests.raw import (
    Reply,
    add,
    answer,
    at_once,
    call,
    execute,
    get,
    modelstore,
    paused,
    predict,
    private_keys,
    put,
    refused,
    run,
    state,
    store,
    warm,
)
from tests.servers import Server, wait_until

from keyside.tensorstore import npy
from keyside.tensorstore.errors import KeysideError, ModelFailed, RunFailed, TimedOut, WrongType

Array = np.ndarray[Any, Any]

SMALL, LARGE = 3, 20_000  # floats: within the entry of a job, and too many for that (32 KiB)
NEVER = "60000"  # a MINBATCHTIMEOUT in ms that no test waits for


@pytest.fixture(scope="module")
def _spare(served: Server, lasting: set[int]) -> Iterator[Executor]:
    with Executor(served, devices="SPARE,CPU:1") as executor:
        lasting.add(executor.pid)
        yield executor
        lasting.discard(executor.pid)


@pytest.fixture
def spare(_spare: Executor, db: Any) -> Iterator[Executor]:
    """A second executor with queues of its own, so that what is slow there leaves the first as it is."""
    wait_until(_spare.registered, "the executor registers again")
    yield _spare
    print(_spare.output[-3000:])  # shown when the test fails


def floats(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def rows_of(db: Any, tickets: list[bytes]) -> list[list[int]]:
    """What `more_models.batch_size` said to each of these jobs."""
    return [answer(db, ticket).outputs["rows"].tolist() for ticket in tickets]


def pending(db: Any, count: int, device: str = "CPU") -> bool:
    """Whether so many jobs have been claimed and have not ended."""
    return bool(db.xpending(f"ks:{{0}}:jobs:{device}", "ks")["pending"] == count)


def info(db: Any, name: str, *options: Any) -> dict[bytes, Any]:
    flat = call(db, "FCALL", "AI_INFO", 1, name, *options)
    return dict(zip(flat[::2], flat[1::2], strict=True))


# --- snapshot at enqueue


@pytest.mark.parametrize("width", [SMALL, LARGE])
@pytest.mark.parametrize("meanwhile", [("SET", "x", b"something else"), ("DEL", "x"), ("RENAME", "x", "z")])
def test_inputs_are_taken_as_of_submit(executor: Executor, db: Any, width: int, meanwhile: tuple[Any, ...]) -> None:
    """Snapshot at enqueue: what happens to an input key after the submit does not matter."""
    store(db, "m", models.affine(width=width))
    x = floats(2, width)
    put(db, "x", x)
    ticket, _ = at_once(db, execute("m", ["x"], ["y"]), meanwhile)
    answer(db, ticket)
    np.testing.assert_array_equal(get(db, "y"), 2 * x + 1)
    assert private_keys(db) == set()


@pytest.mark.parametrize("width", [SMALL, LARGE])
def test_an_input_may_expire_after_submit(executor: Executor, db: Any, width: int) -> None:
    """Snapshot at enqueue: nor does it matter when an input key expires."""
    store(db, "m", models.affine(width=width))
    x = floats(2, width)
    with paused(executor):
        _, ticket = at_once(db, ("SET", "x", npy.to_bytes(x), "PX", 50), execute("m", ["x"], ["y"]))
        wait_until(lambda: not db.exists("x"), "x expires")
    answer(db, ticket)
    np.testing.assert_array_equal(get(db, "y"), 2 * x + 1)
    assert db.ttl("y") == -1


def test_a_tensor_set_in_place_after_submit_does_not_count(executor: Executor, db: Any) -> None:
    """Snapshot at enqueue: later TENSORSETs are for later jobs."""
    store(db, "m", models.affine(width=1))
    one = ("FCALL", "AI_TENSORSET", 1, "x", "FLOAT", 1, 1, "VALUES", 1)
    two = ("FCALL", "AI_TENSORSET", 1, "x", "FLOAT", 1, 1, "VALUES", 2)
    replies = at_once(db, one, execute("m", ["x"], ["y"]), two, execute("m", ["x"], ["z"]))
    answer(db, replies[1])
    answer(db, replies[3])
    assert get(db, "y") == 3
    assert get(db, "z") == 5


def test_a_model_deleted_after_submit_still_runs(executor: Executor, db: Any) -> None:
    """Snapshot at enqueue: MODELDEL does not affect queued work."""
    store(db, "m", models.affine())
    x = floats(1, 4)
    ticket, _ = at_once(db, predict("m", x), ("FCALL", "AI_MODELDEL", 1, "m"))
    np.testing.assert_array_equal(answer(db, ticket).outputs["y"], 2 * x + 1)
    refused("NOMODEL", db, *predict("m", x))


def test_a_model_deleted_after_submit_runs_where_it_was_never_loaded(db: Any, server: Server) -> None:
    """Snapshot at enqueue: nor does it affect work that waits for an executor yet to be started."""
    x = floats(1, 4)
    with Executor(server, devices="LATER"):
        store(db, "m", models.affine(), device="LATER")
    ticket, _ = at_once(db, predict("m", x), ("FCALL", "AI_MODELDEL", 1, "m"))
    with Executor(server, devices="LATER"):
        np.testing.assert_array_equal(answer(db, ticket).outputs["y"], 2 * x + 1)


def test_a_model_replaced_after_submit_runs_as_it_was(executor: Executor, db: Any) -> None:
    """Snapshot at enqueue: a job runs the version that its target meant when it was submitted."""
    store(db, "m", models.affine(2, 1))
    x = floats(1, 4)
    delete = ("FCALL", "AI_MODELDEL", 1, "m")
    ticket, *_ = at_once(db, predict("m", x), delete, modelstore("m", models.affine(3, 5)))
    np.testing.assert_array_equal(answer(db, ticket).outputs["y"], 2 * x + 1)
    np.testing.assert_allclose(run(db, predict("m", x)).outputs["y"], 3 * x + 5, rtol=1e-6)


def test_missing_inputs_fail_at_submit(executor: Executor, db: Any) -> None:
    """Missing inputs fail at enqueue: the call itself is refused, nothing is queued."""
    store(db, "m", models.affine())
    error = refused("NOTENSOR", db, *execute("m", ["nothing"], ["y"]))
    assert "'nothing' does not exist" in error.text
    assert db.xlen("ks:{0}:jobs:CPU") == 0


def test_inputs_of_another_type_fail_at_submit(executor: Executor, db: Any) -> None:
    """Wrong-type inputs fail at enqueue."""
    store(db, "m", models.affine())
    db.rpush("list", 1)
    db.set("text", "no tensor")
    refused("WRONGTYPE", db, *execute("m", ["list"], ["y"]))
    refused("NOTENSOR", db, *execute("m", ["text"], ["y"]))
    refused("WRONGTYPE", db, *execute("m", ["m"], ["y"]))
    assert db.xlen("ks:{0}:jobs:CPU") == 0


# --- outputs


@pytest.mark.parametrize("width", [SMALL, LARGE])
def test_outputs_appear_with_the_reply_and_not_before(executor: Executor, db: Any, width: int) -> None:
    """Outputs are written at reply time: until then a key holds what it held, with its TTL."""
    store(db, "m", models.affine(width=width))
    x, before = floats(1, width), floats(2, 2, seed=1)
    put(db, "x", x)
    put(db, "y", before, ex=1000)
    with paused(executor):
        ticket = call(db, *execute("m", ["x"], ["y"]))
        assert db.llen(ticket) == 0
        np.testing.assert_array_equal(get(db, "y"), before)
    answer(db, ticket)
    np.testing.assert_array_equal(get(db, "y"), 2 * x + 1)
    assert db.ttl("y") == -1


@pytest.mark.parametrize("value", ["hash", "text"])
def test_an_output_of_another_type_is_refused_at_submit(executor: Executor, db: Any, value: str) -> None:
    """An output key that holds anything but a tensor is refused; RedisAI found out only after the run."""
    store(db, "m", models.affine())
    put(db, "x", floats(1, 4))
    db.hset("hash", "a", "b")
    db.set("text", "no tensor")
    error = refused("WRONGTYPE", db, *execute("m", ["x"], [value]))
    assert f"'{value}'" in error.text
    assert db.xlen("ks:{0}:jobs:CPU") == 0


@pytest.mark.parametrize("width", [SMALL, LARGE])
@pytest.mark.parametrize("meanwhile", [("SET", "y", "mine"), ("RPUSH", "y", "mine")])
def test_an_output_of_another_type_is_refused_again_at_completion(
    executor: Executor, db: Any, width: int, meanwhile: tuple[str, ...]
) -> None:
    """Outputs are written at reply time, when a key of another type fails: one reply, and the key stays as it is."""
    store(db, "m", models.affine(width=width))
    put(db, "x", floats(1, width))
    ticket, _ = at_once(db, execute("m", ["x"], ["y"]), meanwhile)
    with pytest.raises(WrongType, match="'y'"):
        answer(db, ticket)
    assert db.type("y") == (b"string" if meanwhile[0] == "SET" else b"list")
    assert db.llen(ticket) == 0
    assert private_keys(db) == set()


def test_no_output_is_written_when_one_of_them_cannot_be(executor: Executor, db: Any) -> None:
    """All outputs of a job or none, whichever of them is in the way."""
    store(db, "m", models.two_outputs())
    put(db, "x", floats(1, 2))
    ticket, _ = at_once(db, execute("m", ["x", "x"], ["sum", "diff"]), ("SET", "diff", "mine"))
    with pytest.raises(WrongType):
        answer(db, ticket)
    assert db.get("diff") == b"mine"
    assert not db.exists("sum")


def test_outputs_that_are_no_tensors_are_left_out(executor: Executor, db: Any) -> None:
    """Non-tensor ONNX outputs are skipped: neither counted nor returned."""
    store(db, "m", models.non_tensor_output())
    x = floats(2, 2)
    assert list(run(db, predict("m", x)).outputs) == ["y"]
    put(db, "x", x)
    run(db, execute("m", ["x"], ["y"]))
    np.testing.assert_array_equal(get(db, "y"), x)
    refused("BADINPUT", db, *execute("m", ["x"], ["y", "z"]))


# --- queues


def endings(db: Any, count: int) -> list[bytes]:
    """The words that came before the replies on the list `ks:{0}:t:order`, in their order."""
    words = []
    for _ in range(count):
        popped = db.blpop(["ks:{0}:t:order"], timeout=10)
        assert popped is not None
        words.append(popped[1].split(b" ")[0])
    return words


def named(target: str, x: Array, word: str) -> tuple[Any, ...]:
    return predict(target, x, options=("TICKET", "ks:{0}:t:order", word))


@pytest.mark.parametrize("fast", [False, True])
def test_a_queue_is_first_in_first_out(executor: Executor, db: Any, fast: bool) -> None:
    """Queues: one FIFO per device string; jobs that cannot be stacked end in the order of their submits."""
    store(db, "m", models.fixed_batch(2))
    x = floats(2, 3)
    if fast:
        warm(db, "m", x)
    at_once(db, *(named("m", x, f"{n}") for n in range(8)))
    assert endings(db, 8) == [b"%d" % n for n in range(8)]


def test_a_queue_is_first_in_first_out_across_models(spare: Executor, db: Any) -> None:
    """Queues: what was submitted first runs first, whatever its model and however many fit in a batch."""
    for name in "ab":
        # With a MINBATCHSIZE they are not run by the thread that claims, however fast they are.
        store(db, name, more_models.slow(), "BATCHSIZE", 2, "MINBATCHSIZE", 1, device="SPARE")
        warm(db, name, more_models.turns_for(0))
    x = more_models.turns_for(0)
    call(db, *named("a", more_models.turns_for(0.15), "head"))
    wait_until(lambda: db.llen("ks:{0}:t:order") or pending(db, 1, "SPARE"), "the head is claimed")
    at_once(db, *(named(word[0], x, word) for word in ("a1", "a2", "a3", "b1")))
    assert endings(db, 5) == [b"head", b"a1", b"a2", b"a3", b"b1"]


def test_a_model_that_got_faster_does_not_overtake_itself(spare: Executor, db: Any) -> None:
    """Queues: jobs of one model end in order, also when it is found fast enough to run at once meanwhile."""
    store(db, "m", more_models.slow(), "BATCHSIZE", 1, device="SPARE")
    at_once(db, *(named("m", more_models.turns_for(0.004 * (n < 3)), f"{n}") for n in range(5)))
    for n in range(5, 60):
        call(db, *named("m", more_models.turns_for(0), f"{n}"))
    assert endings(db, 60) == [b"%d" % n for n in range(60)]


def test_a_queue_with_a_number_is_another_queue(spare: Executor, db: Any) -> None:
    """Queues: `CPU:1` is separate: a model stored for it runs there, and is not held up by CPU."""
    store(db, "slow", more_models.slow(), device="SPARE")
    store(db, "m", models.affine(), device="CPU:1")
    assert info(db, "m")[b"device"] == b"CPU:1"

    def attempt(seconds: float) -> long_run:
        with long_run(db, "slow", seconds) as busy:
            run(db, predict("m", floats(1, 4)))
        return busy

    whatever_is_busy(attempt)


def test_a_queue_that_nobody_serves_holds_up_no_other(executor: Executor, db: Any) -> None:
    """Queues are created on first store: what waits there for an executor is no matter for the others."""
    call(db, *modelstore("waits", models.affine(), device="NOBODY"))
    ticket = call(db, *predict("waits", floats(1, 4)))
    store(db, "m", models.affine())
    run(db, predict("m", floats(1, 4)))
    assert state(db, "waits") == "loading"
    assert call(db, "FCALL", "AI_CANCEL", 0, ticket) == 1
    call(db, "FCALL", "AI_MODELDEL", 1, "waits")
    db.delete("ks:{0}:jobs:NOBODY")


# --- batching


def test_jobs_of_one_model_are_run_together(executor: Executor, db: Any) -> None:
    """Batching: requests for the same model object are stacked; each caller gets its own rows."""
    store(db, "m", more_models.batch_size(), "OPTIONS", '{"warmup": false}')
    warm(db, "m", floats(1, 3))
    tickets = at_once(db, *(predict("m", floats(rows, 3)) for rows in (1, 2, 1)))
    assert rows_of(db, tickets) == [[4], [4, 4], [4]]


def test_a_batch_gives_each_caller_its_own_rows(executor: Executor, db: Any) -> None:
    """Batching: stacked or alone, small or large, from values or keys, the results are the same."""
    store(db, "m", models.mlp())
    transactions = [floats(rows, 30, seed=rows) for rows in (1, 3, 2, 40, 1)]
    references = [floats(len(t), 256, seed=len(t) + 100) for t in transactions]
    put(db, "r", references[3])  # above 32 KiB
    commands = [predict("m", t, r) for t, r in zip(transactions, references, strict=True) if len(t) < 20]
    commands.insert(3, predict("m", transactions[3], ("KEY", "r")))
    for ticket, t, r in zip(at_once(db, *commands), transactions, references, strict=True):
        got = answer(db, ticket).outputs["probabilities"]
        np.testing.assert_allclose(got, models.mlp_reference(t, r), rtol=1e-5, atol=1e-6)


def test_jobs_of_different_models_are_not_stacked(executor: Executor, db: Any) -> None:
    """Batching: the same model object, and no other, be it of the same blob or another version."""
    blob = more_models.batch_size()
    store(db, "a", blob, "OPTIONS", '{"warmup": false}')
    store(db, "b", blob, "OPTIONS", '{"warmup": false}')
    store(db, "b", blob, "TAG", "two", "OPTIONS", '{"warmup": false}')
    for target in ("a", "b@1", "b@2"):
        warm(db, target, floats(1, 3))
    targets = ("a", "b@1", "b@2", "a", "b@2", "b")
    tickets = at_once(db, *(predict(target, floats(1, 3)) for target in targets))
    assert rows_of(db, tickets) == [[2], [1], [3], [2], [3], [3]]


def test_jobs_of_different_dims_are_not_stacked(executor: Executor, db: Any) -> None:
    """Batching: the same dims[1:]."""
    store(db, "m", more_models.batch_size(), "OPTIONS", '{"warmup": false}')
    warm(db, "m", floats(1, 3))
    tickets = at_once(db, *(predict("m", floats(1, width)) for width in (3, 5, 3, 5, 5)))
    assert rows_of(db, tickets) == [[2], [3], [2], [3], [3]]


def test_jobs_of_different_rank_are_not_stacked(executor: Executor, db: Any) -> None:
    """Batching: the same rank."""
    store(db, "m", more_models.batch_size(dims=None), "OPTIONS", '{"warmup": false}')
    warm(db, "m", floats(1, 3))
    shapes = ((1, 3), (1,), (1, 3, 1), (1,), (1, 3))
    tickets = at_once(db, *(predict("m", floats(*shape)) for shape in shapes))
    assert rows_of(db, tickets) == [[2], [2], [1], [2], [2]]


def test_jobs_of_different_dtype_are_not_stacked(executor: Executor, db: Any) -> None:
    """Batching: the same dtype, which RedisAI did not check; strings of another width are of another."""
    store(db, "m", more_models.batch_size(("N",), TensorProto.STRING), "OPTIONS", '{"warmup": false}')
    warm(db, "m", np.array([b"abc"]))
    tickets = at_once(db, *(predict("m", np.array([text])) for text in (b"abc", b"defgh", b"ijk")))
    assert rows_of(db, tickets) == [[2], [1], [2]]


def test_a_batch_never_exceeds_batchsize(executor: Executor, db: Any) -> None:
    """Batching: BATCHSIZE is a limit on the rows of a batch; RedisAI could overshoot it."""
    store(db, "m", more_models.batch_size(), "BATCHSIZE", 4, "OPTIONS", '{"warmup": false}')
    warm(db, "m", floats(1, 3))
    tickets = at_once(db, *(predict("m", floats(rows, 3)) for rows in (3, 3, 1, 2, 2, 1)))
    assert [rows[0] for rows in rows_of(db, tickets)] == [3, 4, 4, 4, 4, 1]


def test_a_request_larger_than_batchsize_runs_alone(executor: Executor, db: Any) -> None:
    """Batching: a request of BATCHSIZE rows or more is run as it is, alone."""
    store(db, "m", more_models.batch_size(), "BATCHSIZE", 4, "OPTIONS", '{"warmup": false}')
    warm(db, "m", floats(1, 3))
    tickets = at_once(db, *(predict("m", floats(rows, 3)) for rows in (1, 9, 4, 1)))
    assert [rows[0] for rows in rows_of(db, tickets)] == [1, 9, 4, 1]


def test_inputs_of_unequal_rows_run_alone(executor: Executor, db: Any) -> None:
    """Batching: a request whose inputs have unequal dim 0 runs alone, the others together."""
    store(db, "m", more_models.batch_size_of_two(), "OPTIONS", '{"warmup": false}')
    warm(db, "m", floats(1, 2), floats(1, 2))
    pairs = ((1, 1), (2, 3), (2, 2), (1, 5), (1, 1))
    tickets = at_once(db, *(predict("m", floats(a, 2), floats(b, 2)) for a, b in pairs))
    assert [rows[0] for rows in rows_of(db, tickets)] == [4, 2, 4, 1, 4]


def test_minbatchsize_waits_for_more(executor: Executor, db: Any) -> None:
    """Batching: below MINBATCHSIZE a request waits for others, and then runs with them."""
    store(
        db, "m", more_models.batch_size(),
        "BATCHSIZE", 8, "MINBATCHSIZE", 4, "MINBATCHTIMEOUT", NEVER, "OPTIONS", '{"warmup": false}',
    )  # fmt: skip
    tickets = []
    for n in range(3):
        tickets.append(call(db, *predict("m", floats(1, 3))))
        wait_until(partial(pending, db, n + 1), "it is claimed")
    tickets.append(call(db, *predict("m", floats(1, 3))))
    assert rows_of(db, tickets) == [[4]] * 4


def test_minbatchtimeout_ends_the_wait(executor: Executor, db: Any) -> None:
    """Batching: MINBATCHTIMEOUT after the head request, what is there runs."""
    store(
        db, "m", more_models.batch_size(),
        "BATCHSIZE", 8, "MINBATCHSIZE", 4, "MINBATCHTIMEOUT", 150, "OPTIONS", '{"warmup": false}',
    )  # fmt: skip
    began = time.monotonic()
    tickets = at_once(db, predict("m", floats(1, 3)), predict("m", floats(1, 3)))
    assert rows_of(db, tickets) == [[2]] * 2
    assert 0.15 <= time.monotonic() - began < 2


def test_minbatchsize_without_a_timeout_does_not_hang(executor: Executor, db: Any) -> None:
    """Batching: without MINBATCHTIMEOUT a default bound (100 ms) ends the wait; RedisAI waited for ever."""
    store(db, "m", more_models.batch_size(), "BATCHSIZE", 8, "MINBATCHSIZE", 4, "OPTIONS", '{"warmup": false}')
    began = time.monotonic()
    assert run(db, predict("m", floats(1, 3))).outputs["rows"] == [1]
    assert 0.1 <= time.monotonic() - began < 2


def test_what_cannot_be_stacked_does_not_wait_for_minbatchsize(executor: Executor, db: Any) -> None:
    """Batching: a request that runs alone anyway waits for nobody."""
    options = ("BATCHSIZE", 8, "MINBATCHSIZE", 4, "MINBATCHTIMEOUT", NEVER, "OPTIONS", '{"warmup": false}')
    store(db, "m", more_models.batch_size_of_two(), *options)
    assert run(db, predict("m", floats(1, 2), floats(5, 2))).outputs["rows"] == [1]
    store(db, "fixed", models.fixed_batch(2), *options)
    run(db, predict("fixed", floats(2, 3)))


def test_a_deadline_ends_the_wait_for_minbatchsize(executor: Executor, db: Any) -> None:
    """Batching: waiting for more does not outlast TIMEOUT."""
    store(db, "m", models.affine(), "BATCHSIZE", 8, "MINBATCHSIZE", 4, "MINBATCHTIMEOUT", NEVER)
    with pytest.raises(TimedOut):
        run(db, predict("m", floats(1, 4), options=("TIMEOUT", 100)))


@pytest.mark.parametrize("warmup", ["true", "false"])
def test_a_batch_of_another_size_is_run_again_one_by_one(executor: Executor, db: Any, warmup: str) -> None:
    """Batching: output dim 0 != batch fails nobody: every request is run alone, and each gets its result."""
    store(db, "m", models.reduces_batch(), "OPTIONS", f'{{"warmup": {warmup}}}')
    warm(db, "m", floats(1, 3))
    inputs = [floats(rows, 3, seed=rows) for rows in (1, 2, 3)]
    tickets = at_once(db, *(predict("m", x) for x in inputs))
    for ticket, x in zip(tickets, inputs, strict=True):
        got = answer(db, ticket).outputs["total"]
        np.testing.assert_allclose(got, x.sum(axis=0, keepdims=True), rtol=1e-5)


def test_rows_that_a_model_mixes_are_kept_apart(executor: Executor, db: Any) -> None:
    """Batching: where a model's rows depend on each other, no request sees those of its neighbours."""
    store(db, "m", models.mixes_rows())
    inputs = [floats(3, 3, seed=seed) for seed in range(4)]
    for ticket, x in zip(at_once(db, *(predict("m", x) for x in inputs)), inputs, strict=True):
        np.testing.assert_allclose(answer(db, ticket).outputs["y"], x - x.mean(axis=0), rtol=1e-4, atol=1e-6)


def test_an_error_hits_only_its_own_request(executor: Executor, db: Any) -> None:
    """Batching: RedisAI failed every member of a batch; here the one bad request fails, alone."""
    store(db, "m", models.fails_out_of_range(rows=5))
    warm(db, "m", np.array([0]))
    tickets = at_once(db, *(predict("m", np.array([index])) for index in (0, 1, 99, 3, 4)))
    for ticket, index in zip(tickets, (0, 1, 99, 3, 4), strict=True):
        if index == 99:
            with pytest.raises(RunFailed, match="out of"):
                answer(db, ticket)
        else:
            np.testing.assert_array_equal(answer(db, ticket).outputs["row"], [[2 * index, 2 * index + 1]])


# --- TIMEOUT


class long_run:  # noqa: N801  # used as a function
    """A job that keeps its queue busy during a `with`.

    A busy machine may hold up what is done meanwhile until the run has ended, which shows nothing. So
    `whatever_is_busy` tries that again with a longer run: who waits for its end does so however long it takes.
    """

    def __init__(self, db: Any, target: str, seconds: float) -> None:
        self.db = db
        self.command = predict(target, more_models.turns_for(seconds))
        self.outlasted = False

    def __enter__(self) -> Self:
        self.ticket = call(self.db, *self.command)
        wait_until(lambda: self.db.llen(self.ticket) or pending(self.db, 1, "SPARE"), "the long run is claimed")
        return self

    def __exit__(self, *_: object) -> None:
        self.outlasted = self.db.llen(self.ticket) == 0
        answer(self.db, self.ticket, 30)


def whatever_is_busy(attempt: Callable[[float], long_run]) -> None:
    """Make an attempt that must have ended before its long run, with longer ones if need be."""
    assert any(attempt(seconds).outlasted for seconds in (0.5, 2.0, 8.0)), "it waits for the end of the run"


@pytest.mark.parametrize("where", ["lane", "claiming thread"])
@pytest.mark.parametrize("other", [False, True])
def test_a_queued_job_is_answered_at_its_deadline_while_a_model_runs(
    spare: Executor, db: Any, where: str, other: bool
) -> None:
    """TIMEOUT holds for queued jobs at their time; RedisAI looked at it only when the queue moved on."""
    store(db, "slow", more_models.slow(), device="SPARE")
    store(db, "m", models.affine(), device="SPARE")

    def attempt(seconds: float) -> long_run:
        if where == "claiming thread":
            warm(db, "slow", more_models.turns_for(0))  # found fast, and then it is not
        with long_run(db, "slow", seconds) as busy:
            began = time.monotonic()
            command = predict("m", floats(1, 4)) if other else predict("slow", more_models.turns_for(0))
            ticket = call(db, *command, "TIMEOUT", 150)
            reply = db.blpop([ticket], timeout=10)
            took = time.monotonic() - began
        if busy.outlasted:
            assert reply is not None
            assert reply[1].startswith(b"TIMEDOUT ")
            assert (b"m@1" if other else b"slow@1") in reply[1]
            assert took >= 0.14
        return busy

    whatever_is_busy(attempt)
    assert info(db, "m" if other else "slow")[b"errors"] == 0


def test_a_running_job_is_answered_at_its_deadline(spare: Executor, db: Any) -> None:
    """TIMEOUT holds for running jobs too, and what they come to is written nowhere."""
    store(db, "slow", more_models.slow(), device="SPARE")

    def in_time(seconds: float) -> bool:
        put(db, "x", more_models.turns_for(seconds))
        began = time.monotonic()
        with pytest.raises(TimedOut):
            run(db, execute("slow", ["x"], ["y"], "TIMEOUT", 150))
        took = time.monotonic() - began
        run(db, predict("slow", more_models.turns_for(0)), 60)  # the other has ended by now
        assert not db.exists("y")
        assert took >= 0.14
        return took < seconds * 0.75

    assert any(in_time(seconds) for seconds in (0.8, 2.0, 8.0)), "it waits for the end of the run"


def test_a_job_past_its_deadline_never_runs(executor: Executor, db: Any) -> None:
    """TIMEOUT: with no executor at hand nobody answers, and the job does not run afterwards."""
    store(db, "m", models.affine())
    put(db, "x", floats(1, 4))
    with paused(executor):
        ticket = call(db, *execute("m", ["x"], ["y"], "TIMEOUT", 30))
        assert db.blpop([ticket], timeout=0.1) is None
    with pytest.raises(TimedOut):
        answer(db, ticket)
    assert not db.exists("y")
    assert info(db, "m")[b"calls"] == 0


# --- versions


def test_the_same_model_stored_again_is_the_same_version(executor: Executor, db: Any) -> None:
    """MODELSTORE of the same blob and settings gives the version that is there; RedisAI compiled it again."""
    blob = models.affine()
    options = ("TAG", "t", "BATCHSIZE", 4, "MINBATCHSIZE", 2, "MINBATCHTIMEOUT", 10)
    assert store(db, "m", blob, *options) == 1
    run(db, predict("m", floats(1, 4)))
    assert store(db, "m", blob, *options) == 1
    assert info(db, "m")[b"calls"] == 1
    others = [
        modelstore("m", models.affine(7), *options),
        modelstore("m", blob, "TAG", "u", *options[2:]),
        modelstore("m", blob, *options[:2]),
        modelstore("m", blob, *options, "INPUTS", 1, "x", "OUTPUTS", 1, "y"),
        modelstore("m", blob, *options, "OPTIONS", '{"intra_op_num_threads": 1}'),
    ]
    assert [call(db, *other) for other in others] == [2, 3, 4, 5, 6]
    assert [call(db, *other) for other in others] == [2, 3, 4, 5, 6]
    wait_until(lambda: state(db, "m", 6) == "ready", "all of them are loaded")


def test_the_old_version_serves_until_the_new_one_is_ready(spare: Executor, db: Any) -> None:
    """MODELSTORE does not replace at once: the old version serves while the new one loads, and then no longer."""
    store(db, "m", more_models.slow(offset=1), device="SPARE")
    zero = more_models.turns_for(0)
    turns = int(more_models.turns_for(1.0)[0, 0]) // 1000
    options = ("OPTIONS", '{"warmup": {"shapes": [[1001, 1]]}}')
    version = call(db, *modelstore("m", more_models.slow(0, turns), *options, device="SPARE"))
    served: list[tuple[bytes, Reply]] = []
    while not served or served[-1][0] == b"loading":
        was, ticket = at_once(db, ("HGET", "m", f"{version}:state"), predict("m", zero))
        served.append((was, answer(db, ticket)))
    assert [was for was, _ in served[-2:]] == [b"loading", b"ready"]
    for was, reply in served:
        assert reply.target == ("m@1" if was == b"loading" else "m@2")
        assert reply.outputs["y"] == (1 if was == b"loading" else 0)
    assert run(db, predict("m@1", zero)).target == "m@1"


def test_a_job_waits_for_the_version_that_it_names(executor: Executor, db: Any) -> None:
    """Jobs for a version that is still loading wait for it, and are checked then as they would be at submit."""
    x = floats(1, 4)
    put(db, "x", x)
    _, good, keys, bad = at_once(
        db,
        modelstore("m", models.affine()),
        predict("m", x),
        execute("m@1", ["x"], ["y"]),
        predict("m", floats(1, 5)),
    )
    np.testing.assert_array_equal(answer(db, good).outputs["y"], 2 * x + 1)
    answer(db, keys)
    np.testing.assert_array_equal(get(db, "y"), 2 * x + 1)
    with pytest.raises(KeysideError, match="BADSHAPE"):
        answer(db, bad)


def test_a_version_that_fails_leaves_the_old_one_serving(executor: Executor, db: Any) -> None:
    """A failed version is marked with the backend's reason, and the version before it goes on serving."""
    store(db, "m", models.affine())
    assert add(db, "m", models.garbage()) == 2
    assert state(db, "m", 2) == "failed"
    assert run(db, predict("m", floats(1, 4))).target == "m@1"
    error = refused("MODELFAILED", db, *predict("m@2", floats(1, 4)))
    assert "m@2" in error.text
    assert "not an ONNX" in error.text


def test_a_version_that_failed_is_not_given_again(executor: Executor, db: Any) -> None:
    """Storing what has failed tries it again, as a new version."""
    assert add(db, "m", models.garbage()) == 1
    assert add(db, "m", models.garbage()) == 2
    refused("MODELFAILED", db, *predict("m", floats(1, 4)))
    assert store(db, "m", models.affine()) == 3
    assert run(db, predict("m", floats(1, 4))).target == "m@3"


def test_jobs_that_wait_for_a_version_that_fails_are_told(executor: Executor, db: Any) -> None:
    """Jobs that were queued for a version which then fails get the answer that later ones get at submit."""
    _, ticket = at_once(db, modelstore("m", models.garbage()), predict("m", floats(1, 4)))
    with pytest.raises(ModelFailed) as caught:
        answer(db, ticket)
    wait_until(lambda: state(db, "m") == "failed", "the version is marked")
    assert caught.value.text == refused("MODELFAILED", db, *predict("m", floats(1, 4))).text


def test_an_executor_that_stops_while_it_loads_fails_no_version(redis: Server, db_redis: Any) -> None:
    """Loading is not given up with the executor that does it: the next one does it again."""
    settings = {"devices": "LATER", "drain_s": 0, "lease_ms": 300, "beat_ms": 100}
    with Executor(redis, **settings):
        options = ("OPTIONS", '{"warmup": {"shapes": [[1001, 1]]}}')
        turns = int(more_models.turns_for(1.5)[0, 0]) // 1000
        call(db_redis, *modelstore("m", more_models.slow(0, turns), *options, device="LATER"))
        wait_until(partial(pending, db_redis, 1, "LATER"), "the load is claimed")
    assert state(db_redis, "m") == "loading"
    with Executor(redis, **settings):
        wait_until(lambda: state(db_redis, "m") != "loading", "it is loaded")
        assert state(db_redis, "m") == "ready"


def test_deleting_the_newest_version_brings_the_one_before_back(executor: Executor, db: Any) -> None:
    """MODELDEL of a version: the newest ready one that is left is the default."""
    store(db, "m", models.affine(2))
    store(db, "m", models.affine(3))
    call(db, "FCALL", "AI_MODELDEL", 1, "m", "VERSION", 2)
    assert run(db, predict("m", floats(1, 4))).target == "m@1"
    refused("NOMODEL", db, *predict("m@2", floats(1, 4)))


# --- statistics


def test_stats_count_calls_rows_and_errors(executor: Executor, db: Any) -> None:
    """Stats: calls are requests, samples rows that ran, errors count as calls too; duration is microseconds."""
    store(db, "m", models.fails_out_of_range())
    for index in ([0], [1, 2], [3, 3, 3]):
        run(db, predict("m", np.array(index)))
    with pytest.raises(RunFailed):
        run(db, predict("m", np.array([99, 99])))
    counted = info(db, "m")
    assert 0 < counted.pop(b"duration") < 1_000_000
    assert counted == {
        b"key": b"m", b"type": b"MODEL", b"backend": b"ONNX", b"device": b"CPU", b"tag": b"",
        b"samples": 6, b"calls": 4, b"errors": 1,
    }  # fmt: skip


def test_stats_count_each_member_of_a_batch(executor: Executor, db: Any) -> None:
    """Stats: a batch counts as its members, those that fail in it included, and its time once."""
    store(db, "m", models.fails_out_of_range())
    warm(db, "m", np.array([0]))
    call(db, "FCALL", "AI_INFO", 1, "m", "RESETSTAT")
    tickets = at_once(db, *(predict("m", np.array([index])) for index in (0, 1, 99, 3)))
    for ticket in tickets:
        with suppress(RunFailed):
            answer(db, ticket)
    counted = info(db, "m")
    assert (counted[b"calls"], counted[b"samples"], counted[b"errors"]) == (4, 3, 1)


def test_stats_can_be_reset(executor: Executor, db: Any) -> None:
    """Stats: RESETSTAT sets all of them to zero."""
    store(db, "m", models.affine())
    run(db, predict("m", floats(3, 4)))
    assert info(db, "m")[b"samples"] == 3
    assert call(db, "FCALL", "AI_INFO", 1, "m", "RESETSTAT") == b"OK"
    counted = info(db, "m")
    assert [counted[name] for name in (b"duration", b"samples", b"calls", b"errors")] == [0, 0, 0, 0]


def test_stats_are_those_of_one_version(executor: Executor, db: Any) -> None:
    """Stats: a new version starts at zero, and the old one keeps its own; a deleted model takes them with it."""
    store(db, "m", models.affine(2))
    run(db, predict("m", floats(1, 4)))
    store(db, "m", models.affine(3))
    assert info(db, "m")[b"calls"] == 0
    assert info(db, "m", "VERSION", 1)[b"calls"] == 1
    call(db, "FCALL", "AI_MODELDEL", 1, "m")
    assert not list(db.scan_iter("ks:{*}:stats:*"))


# --- transactions


def test_submitting_in_a_transaction_works(executor: Executor, db: Any) -> None:
    """MULTI: RedisAI refused; here the submit only enqueues, and sees what the transaction wrote before it."""
    store(db, "m", models.affine(width=2))
    one = ("FCALL", "AI_TENSORSET", 1, "x", "FLOAT", 1, 2, "VALUES", 1, 2)
    _, ticket, pending = at_once(db, one, execute("m", ["x"], ["y"]), ("EXISTS", "y"))
    assert pending == 0
    answer(db, ticket)
    np.testing.assert_array_equal(get(db, "y"), [[3, 5]])


def test_a_discarded_transaction_submits_nothing(executor: Executor, db: Any) -> None:
    """MULTI: what WATCH or DISCARD prevents has not been submitted."""
    store(db, "m", models.affine())
    put(db, "x", floats(1, 4))
    with db.pipeline(transaction=True) as pipe:
        pipe.watch("x")
        db.touch("x")
        put(db, "x", floats(2, 4))
        pipe.multi()
        pipe.execute_command(*execute("m", ["x"], ["y"]))
        with pytest.raises(Exception, match="Watched variable changed"):
            pipe.execute()
    assert db.xlen("ks:{0}:jobs:CPU") == 0
    assert info(db, "m")[b"calls"] == 0


# --- values


def test_negative_integers_in_values(db: Any) -> None:
    """TENSORSET: negative integers in VALUES work; RedisAI refused them all."""
    call(db, "FCALL", "AI_TENSORSET", 1, "x", "INT8", 2, "VALUES", -1, -128)
    assert get(db, "x").tolist() == [-1, -128]
    assert call(db, "FCALL_RO", "AI_TENSORGET", 1, "x", "VALUES") == [-1, -128]
    refused("BADVALUE", db, "FCALL", "AI_TENSORSET", 1, "x", "INT8", 1, "VALUES", -129)


def test_no_rows_give_no_rows(executor: Executor, db: Any) -> None:
    """Zero rows give zero rows where dim 0 is free, alone and among others; from values and from keys."""
    store(db, "m", models.two_outputs())
    empty, full = floats(0, 2), floats(3, 2)
    tickets = at_once(db, *(predict("m", x, x) for x in (empty, full, empty)))
    for ticket, x in zip(tickets, (empty, full, empty), strict=True):
        reply = answer(db, ticket)
        np.testing.assert_array_equal(reply.outputs["sum"], x + x)
        assert reply.outputs["difference"].shape == x.shape
        assert reply.outputs["difference"].dtype == np.float32
    put(db, "x", empty)
    run(db, execute("m", ["x", "x"], ["y", "z"]))
    assert get(db, "y").shape == (0, 2)


def test_no_rows_are_refused_where_the_model_wants_some(executor: Executor, db: Any) -> None:
    """Zero rows where dim 0 is not free are another shape."""
    store(db, "m", models.fixed_batch(2))
    refused("BADSHAPE", db, *predict("m", floats(0, 3)))


def test_0d_inputs_are_never_stacked(executor: Executor, db: Any) -> None:
    """0-d inputs run alone and give 0-d outputs."""
    store(db, "m", models.scalar())
    warm(db, "m", np.array(0, np.float32))
    tickets = at_once(db, *(predict("m", np.array(n, np.float32)) for n in range(4)))
    for n, ticket in enumerate(tickets):
        y = answer(db, ticket).outputs["y"]
        assert y.shape == ()
        assert y == 2 * n


def test_a_0d_input_beside_others_keeps_them_apart(executor: Executor, db: Any) -> None:
    """A request with a 0-d input among its inputs is never stacked: there is no row to stack it on."""
    store(db, "m", models.unknown_rank())
    pairs = [(floats(2, 3, seed=n), np.array(n, np.float32)) for n in range(4)]
    for ticket, (x, s) in zip(at_once(db, *(predict("m", *pair) for pair in pairs)), pairs, strict=True):
        reply = answer(db, ticket)
        np.testing.assert_array_equal(reply.outputs["y"], x)
        np.testing.assert_array_equal(reply.outputs["t"], s)


@pytest.mark.parametrize(("kind", "dtype"), [("FLOAT16", "<f2"), ("FLOAT", "<f4"), ("DOUBLE", "<f8")])
def test_nan_and_infinity_pass_unchanged(executor: Executor, db: Any, kind: str, dtype: str) -> None:
    """NaN (with its bits), both infinities, both zeros and subnormal numbers go in and out as they are."""
    x = np.array([[np.nan, -np.nan, np.inf, -np.inf, -0.0, np.finfo(dtype).smallest_subnormal]], dtype)
    x.view(f"<u{x.itemsize}")[0, 0] |= 5  # a NaN that carries something
    store(db, "m", more_models.identity(TensorProto.DataType.Value(kind)))
    assert run(db, predict("m", x)).outputs["y"].tobytes() == x.tobytes()
    put(db, "x", x)
    run(db, execute("m", ["x"], ["y"]))
    assert db.get("y") == db.get("x")


# --- the whole


def test_many_callers_get_their_own_results(executor: Executor, db: Any, server: Server) -> None:
    """Threads with a connection each, mixed shapes and models: everybody gets what belongs to him."""
    store(db, "echo", models.echo_int64())
    store(db, "m", models.affine(), "BATCHSIZE", 8)
    store(db, "fixed", models.fixed_batch(2), "BATCHSIZE", 8)
    wrong: list[str] = []

    def caller(number: int) -> None:
        calls: Iterator[Callable[[Any, int], bool]] = itertools.cycle((_echoes, _affine, _negates))
        with server.client() as own:
            for n, check in zip(range(30), calls, strict=False):
                if not check(own, number * 1000 + n):
                    wrong.append(f"{number}, {n}")

    threads = [threading.Thread(target=caller, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert [info(db, name)[b"calls"] for name in ("echo", "m", "fixed")] == [40, 40, 40]
    assert private_keys(db) == set()


def _echoes(db: Any, number: int) -> bool:
    return bool(run(db, predict("echo", np.array([[number]]))).outputs["y"] == number)


def _affine(db: Any, number: int) -> bool:
    x = floats(1 + number % 3, 4, seed=number)
    put(db, f"x{number}", x)
    run(db, execute("m", [f"x{number}"], [f"y{number}"]))
    return np.array_equal(get(db, f"y{number}"), 2 * x + 1)


def _negates(db: Any, number: int) -> bool:
    x = floats(2, 3, seed=number)
    return np.array_equal(run(db, predict("fixed", x)).outputs["y"], -x)
