"""Runs and loads that never end, of models that really hang; and what an executor leaves behind that has to stop."""

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.executors import Executor
from tests.faults import NODE, QUICK, STREAM, X, holders
from tests.integration.test_executor import fetch
from tests.integration.test_up import KEYSIDE, Up, environment
from tests.servers import Server, free_port, wait_until

from keyside.tensorstore.errors import RunFailed, TimedOut

EVER = np.array([[10**15]], np.int64)
"""With so many turns `more_models.slow` takes months."""
ONE = np.array([[1]], np.int64)
LIMIT = ("OPTIONS", json.dumps({"run_limit_ms": 1500}))  # a busy machine may take a while for a short run, too
WAYS = ["lane", "claim thread", "express"]


@pytest.fixture
def db(db_redis: redis_py.Redis) -> redis_py.Redis:
    return db_redis


def lives(db: Any) -> dict[int, bytes]:
    """Consumers of the executors that beat, by process id."""
    found = {}
    for key in db.scan_iter("ks:{0}:executor:*"):
        info = db.get(key)
        if info is not None:
            found[json.loads(info)["pid"]] = key.rpartition(b":")[2]
    return found


def holds(db: Any, pid: int) -> int:
    """How many jobs an executor holds."""
    consumer = lives(db).get(pid)
    return sum(name == consumer for name, _ in holders(db).values())


def serial(entry: bytes) -> tuple[int, ...]:
    """The id of an entry of a stream as numbers, which rise."""
    return tuple(map(int, entry.split(b"-")))


@contextmanager
def begins_anew(db: Any, pid: int) -> Iterator[None]:
    """Something makes an executor begin anew, in its process."""
    before = lives(db)[pid]
    yield
    wait_until(lambda: lives(db).get(pid, before) != before, "the executor begins anew")


def hang(db: Any, way: str, *options: Any) -> bytes:
    """Submit a job of `slow` that never ends and goes the way asked for."""
    ticket: bytes
    if way == "lane":  # where models go whose speed is not known
        ticket = raw.call(db, *raw.predict("slow", EVER, options=options))
    else:
        raw.warm(db, "slow", ONE)
        raw.put(db, "ever", EVER)
        given: Any = EVER if way == "express" else ("REF", "ever")  # what is to be fetched is not for the shortest way
        ticket = raw.call(db, *raw.predict("slow", given, options=options))
    wait_until(lambda: holders(db), "it is claimed")
    return ticket


def busy(pid: int) -> int:
    """The thread of a process that uses the processor; that of its main thread is the pid."""

    def used() -> dict[int, int]:
        stats = {int(task.name): (task / "stat").read_text() for task in Path(f"/proc/{pid}/task").iterdir()}
        return {thread: int(stat.rpartition(")")[2].split()[11]) for thread, stat in stats.items()}

    before = used()
    wait_until(lambda: any(ticks - before.get(thread, ticks) > 5 for thread, ticks in used().items()), "one runs")
    after = used()
    return max(after, key=lambda thread: after[thread] - before.get(thread, after[thread]))


# --- runs


@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_never_ends(redis: Server, db: Any, way: str) -> None:
    # A busy machine must let it run for long enough to be seen before the limit ends it.
    limit = ("OPTIONS", json.dumps({"run_limit_ms": 2000}))
    with Executor(redis) as executor:  # its lease is 10 s: nothing here may wait for that
        raw.store(db, "slow", more_models.slow(), *limit)
        raw.store(db, "m", models.affine())
        with begins_anew(db, executor.pid):
            hung = hang(db, way)
            assert (busy(executor.pid) == executor.pid) == (way != "lane")
            waiting = [raw.call(db, *raw.predict("m", X + n)) for n in range(3)]
            queued = raw.call(db, *raw.predict("slow", ONE))
            with pytest.raises(RunFailed, match=r"'slow@1' ran longer than its limit, 2 s.* run_limit_ms"):
                raw.answer(db, hung, 5)
        for n, ticket in enumerate(waiting):
            np.testing.assert_allclose(raw.answer(db, ticket, 5).outputs["y"], (X + n) * 2 + 1)
        assert raw.answer(db, queued, 5).outputs["y"] == 1
        wait_until(lambda: db.xlen(STREAM) == 0, "nothing is left")
        assert holders(db) == {}
        assert db.xlen(NODE.dead) == 0
        stats = db.fcall("AI_INFO", 1, "slow")
        assert stats[stats.index(b"errors") + 1] == 1
        executor.stop()
        for name in ("slow", "m"):
            db.fcall("AI_MODELDEL", 1, name)


@pytest.mark.parametrize("way", WAYS)
def test_the_caller_is_told_at_its_deadline(redis: Server, db: Any, way: str) -> None:
    port = free_port()
    with Executor(redis, http_port=port, run_limit_s=4) as executor:
        raw.store(db, "slow", more_models.slow())
        with begins_anew(db, executor.pid):
            if way != "lane":
                raw.warm(db, "slow", ONE)
            began = time.monotonic()
            hung = hang(db, way, "TIMEOUT", 1500)
            with pytest.raises(TimedOut):
                raw.answer(db, hung, 5)
            assert time.monotonic() - began < 3.8, "before the limit"
        assert raw.run(db, raw.predict("slow", ONE)).outputs["y"] == 1
        assert db.llen(hung) == 0, "told once"
        assert 'keyside_executor_events_total{event="runs_abandoned"} 1.0' in fetch(port, "/metrics")[1]
        db.fcall("AI_MODELDEL", 1, "slow")


def test_a_model_of_torch_that_never_ends(redis: Server, db: Any) -> None:
    with Executor(redis) as executor:
        raw.store(db, "endless", models.scripted_without_end(), *LIMIT, backend="TORCH")
        np.testing.assert_allclose(raw.run(db, raw.predict("endless", -X)).outputs["output_0"], 1 - X)
        with begins_anew(db, executor.pid), pytest.raises(RunFailed, match="'endless@1' ran longer"):
            raw.run(db, raw.predict("endless", X))
        np.testing.assert_allclose(raw.run(db, raw.predict("endless", -X)).outputs["output_0"], 1 - X)
        db.fcall("AI_MODELDEL", 1, "endless")


def test_another_executor_takes_what_waited(redis: Server, db: Any) -> None:
    with Executor(redis), Executor(redis) as second:
        raw.store(db, "slow", more_models.slow(), "OPTIONS", json.dumps({"run_limit_ms": 1000}))
        raw.store(db, "m", models.affine())
        with raw.paused(second):
            # If it waits for jobs, it is given the first or the second of these, which waits there until it goes on:
            # so the one that hangs is the other.
            waiting = [raw.call(db, *raw.predict("m", X + n)) for n in range(2)]
            hung = raw.call(db, *raw.predict("slow", EVER))
            entry = serial(db.xinfo_stream(STREAM)["last-generated-id"])
            waiting += [raw.call(db, *raw.predict("m", X + n)) for n in range(2, 5)]
            # What it holds may be seen for a second only, until its limit.
            wait_until(
                lambda: serial(db.xinfo_groups(STREAM)[0]["last-delivered-id"]) > entry,
                "the other hangs, and has claimed more",
            )
        with pytest.raises(RunFailed):
            raw.answer(db, hung, 5)
        for n, ticket in enumerate(waiting):
            np.testing.assert_allclose(raw.answer(db, ticket, 5).outputs["y"], (X + n) * 2 + 1)
        wait_until(lambda: db.xlen(STREAM) == 0, "nothing is left")
        for name in ("slow", "m"):
            db.fcall("AI_MODELDEL", 1, name)


def test_of_a_batch_only_the_one_that_hangs_fails(redis: Server, db: Any) -> None:
    with Executor(redis) as executor:
        raw.store(db, "slow", more_models.slow(), *LIMIT)
        with begins_anew(db, executor.pid):
            with raw.paused(executor):
                hung, *mates = raw.at_once(db, *(raw.predict("slow", x) for x in (EVER, ONE, ONE + 1)))
            with pytest.raises(RunFailed, match="longer than its limit"):
                raw.answer(db, hung)
        assert [raw.answer(db, mate).outputs["y"] for mate in mates] == [1, 2]
        assert "jobs=3" in executor.output, "they ran together"
        wait_until(lambda: db.xlen(STREAM) == 0, "nothing is left")
        assert db.xlen(NODE.dead) == 0
        db.fcall("AI_MODELDEL", 1, "slow")


def test_a_version_that_hangs_again_and_again(redis: Server, db: Any) -> None:
    with Executor(redis) as executor:
        raw.store(db, "slow", more_models.slow(), *LIMIT)
        for times in range(3):
            assert "AGAIN AND AGAIN" not in executor.output, times
            with begins_anew(db, executor.pid), pytest.raises(RunFailed):
                raw.run(db, raw.predict("slow", EVER))
        assert "THIS VERSION HANGS ITS EXECUTOR AGAIN AND AGAIN" in executor.output
        began = executor.output.count("begins anew")
        with begins_anew(db, executor.pid):
            with raw.paused(executor):
                batch = raw.at_once(db, raw.predict("slow", EVER), raw.predict("slow", ONE))
            for ticket in batch:  # by now it counts as the model's fault
                with pytest.raises(RunFailed):
                    raw.answer(db, ticket)
        assert executor.output.count("begins anew") == began + 1
        db.fcall("AI_MODELDEL", 1, "slow")


def test_without_a_limit_it_goes_on(redis: Server, db: Any) -> None:
    with Executor(redis, run_limit_s=0.2) as executor:
        raw.store(db, "slow", more_models.slow(), "OPTIONS", json.dumps({"run_limit_ms": 0}))
        before = lives(db)
        ticket = raw.call(db, *raw.predict("slow", more_models.turns_for(1.5)))
        began = time.monotonic()
        raw.answer(db, ticket, 60)
        assert time.monotonic() - began > 0.4, "beyond the limit of others"
        assert lives(db) == before
        assert "begins anew" not in executor.output
        db.fcall("AI_MODELDEL", 1, "slow")


@pytest.mark.parametrize("value", ["1", -1, 1.5, True, 86_400_001])
def test_a_malformed_limit(redis: Server, db: Any, value: Any) -> None:
    with Executor(redis):
        raw.add(db, "m", models.affine(), "OPTIONS", json.dumps({"run_limit_ms": value}))
        assert raw.state(db, "m") == "failed"
        assert b"run_limit_ms must be a whole number" in db.hget("m", "1:reason")
        db.fcall("AI_MODELDEL", 1, "m")


# --- loads


def test_a_load_that_never_ends(redis: Server, db: Any) -> None:
    with Executor(redis, load_limit_s=2, **QUICK) as executor:  # that of m@1 must do with it too
        raw.store(db, "m", models.affine())
        with begins_anew(db, executor.pid):
            raw.call(db, *raw.modelstore("m", more_models.slow(turns=10**15)))
            assert raw.run(db, raw.predict("m", X)).target == "m@1", "what was there serves on"
        wait_until(lambda: raw.state(db, "m", 2) == "failed", "it is given up", 40)
        assert b"3 executors in turn died or stalled while they loaded it" in db.hget("m", "2:reason")
        ((_, dead),) = db.xrange(NODE.dead)
        assert (dead[b"model"], dead[b"deliveries"]) == (b"m@2", b"3")
        assert raw.run(db, raw.predict("m", X)).target == "m@1"
        assert executor.output.count("a load takes too long") == 3
        db.fcall("AI_MODELDEL", 1, "m")


def test_jobs_that_wait_for_a_load_that_never_ends(redis: Server, db: Any) -> None:
    with Executor(redis, load_limit_s=0.5, **QUICK):
        raw.store(db, "other", models.affine())
        raw.call(db, *raw.modelstore("m", more_models.slow(turns=10**15)))
        ticket = raw.call(db, *raw.predict("m", ONE))
        with pytest.raises(Exception, match=r"^(DEADLETTER|MODELFAILED) "):
            raw.answer(db, ticket, 20)
        assert raw.run(db, raw.predict("other", X)).target == "other@1"
        wait_until(lambda: db.xlen(STREAM) == 0, "nothing is left")
        for name in ("m", "other"):
            db.fcall("AI_MODELDEL", 1, name)


# --- however it was started


def test_keyside_executor_goes_on_as_it_was_started(redis: Server, db: Any, tmp_path: Path) -> None:
    log = tmp_path / "log"
    options = ["--run-limit-s", "0.4", "--name", "steady", "--beat-ms", "100"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*KEYSIDE, "executor", "--url", redis.url_unix, *options], env=environment(), stdout=out, stderr=out
        )
    try:
        wait_until(lambda: process.pid in lives(db), "it registers", 30)
        raw.store(db, "slow", more_models.slow())
        for _ in range(2):
            with begins_anew(db, process.pid), pytest.raises(RunFailed):
                raw.run(db, raw.predict("slow", EVER))
        assert lives(db)[process.pid].startswith(b"steady-")
        process.send_signal(signal.SIGTERM)
        assert process.wait(15) == 0, log.read_text()
        assert lives(db) == {}
        db.fcall("AI_MODELDEL", 1, "slow")
    finally:
        process.kill()
        process.wait(10)


def test_keyside_up_keeps_it(redis: Server, db: Any, tmp_path: Path) -> None:
    with Up(tmp_path, "--url", redis.url_unix, "--run-limit-s", "1.5").ready() as up:
        raw.store(db, "slow", more_models.slow())
        pid = up.facts["executor_pid"]
        with begins_anew(db, pid), pytest.raises(RunFailed):
            raw.run(db, raw.predict("slow", EVER))
        assert raw.run(db, raw.predict("slow", ONE)).outputs["y"] == 1
        assert "started again" not in up.said()
        assert up.stop() == 0
        db.fcall("AI_MODELDEL", 1, "slow")


# --- stopping


def test_sigterm_where_the_main_thread_hangs(redis: Server, db: Any) -> None:
    executor = Executor(redis, drain_s=0.5).start()
    try:
        raw.store(db, "slow", more_models.slow())
        hung = hang(db, "express")
        began = time.monotonic()
        assert executor.process is not None
        executor.process.terminate()
        assert executor.process.wait(10) == 0, "it does not begin anew"
        assert time.monotonic() - began < 5
        assert [times for _, times in holders(db).values()] == [0], "given back"
        assert db.fcall("AI_CANCEL", 0, hung) == 1
        db.fcall("AI_MODELDEL", 1, "slow")
    finally:
        executor.kill()
        executor.stop()


def test_sigterm_where_a_lane_hangs(redis: Server, db: Any) -> None:
    executor = Executor(redis, drain_s=0.3).start()
    try:
        raw.store(db, "slow", more_models.slow())
        hung = hang(db, "lane")
        began = time.monotonic()
        assert executor.process is not None
        executor.process.terminate()
        assert executor.process.wait(10) == 0
        assert time.monotonic() - began < 5
        assert [times for _, times in holders(db).values()] == [0], "given back"
        assert db.fcall("AI_CANCEL", 0, hung) == 1
        db.fcall("AI_MODELDEL", 1, "slow")
    finally:
        executor.kill()
        executor.stop()


def test_a_limit_while_it_stops(redis: Server, db: Any) -> None:
    executor = Executor(redis, drain_s=30).start()
    try:
        raw.store(db, "slow", more_models.slow(), "OPTIONS", json.dumps({"run_limit_ms": 1000}))
        hung = hang(db, "lane")
        assert executor.process is not None
        executor.process.terminate()
        with pytest.raises(RunFailed):
            raw.answer(db, hung)
        assert executor.process.wait(10) == 0, "it does not begin anew"
        db.fcall("AI_MODELDEL", 1, "slow")
    finally:
        executor.kill()
        executor.stop()


def test_sigterm_leaves_the_rest_to_others(redis: Server, db: Any) -> None:
    first = Executor(redis, drain_s=0.3).start()  # its lease is 10 s
    try:
        raw.store(db, "slow", more_models.slow(), "BATCHSIZE", 1)
        hung = hang(db, "lane")
        tickets = [raw.call(db, *raw.predict("slow", ONE + n)) for n in range(3)]
        wait_until(lambda: holds(db, first.pid) == 4, "one runs, and more are claimed")
        assert db.fcall("AI_CANCEL", 0, hung) == 1  # or it would hang the other one too
        with Executor(redis) as second:
            assert first.process is not None
            first.process.terminate()
            began = time.monotonic()
            assert [raw.answer(db, ticket).outputs["y"] for ticket in tickets] == [1, 2, 3]
            assert time.monotonic() - began < 5, "not after the lease"
            assert first.process.wait(15) == 0
            taken = [line for line in second.output.splitlines() if "job taken over" in line]
            assert len(taken) == 3
            assert all("delivery=1" in line for line in taken), "nobody died with them"
            wait_until(lambda: db.xlen(STREAM) == 0, "nothing is left")
        db.fcall("AI_MODELDEL", 1, "slow")
    finally:
        first.kill()
        first.stop()
