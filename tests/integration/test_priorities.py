"""PRIORITY with real executors: who goes first, who gets which share, and what else must hold for such jobs."""

import time
from collections import Counter
from typing import Any

import numpy as np
import pytest
import redis as redis_py
from tests import models, more_models, raw
from tests.access import send, world
from tests.executors import Executor
from tests.servers import Server, wait_until

from keyside.tensorstore.errors import DeadLetter, TimedOut

ROW = np.array([[1, 2, 3, 4]], np.float32)
SHORT_S = 0.02
LIST = "ks:{0}:t:order"
BRISK = {"beat_ms": 100, "lease_ms": 300}
SELDOM = {"beat_ms": 60_000, "lease_ms": 180_000}  # a heartbeat that no test waits for


def submit(db: Any, target: str, value: Any, priority: str, *options: Any) -> bytes:
    """Submit a job; its reply comes on a ticket of its own."""
    ticket: bytes = raw.call(db, *raw.predict(target, value, options=("PRIORITY", priority, *options)))
    return ticket


def pile(db: Any, target: str, value: Any, **counts: int) -> None:
    """Submit many jobs whose replies come on one list, with their priorities before them."""
    with db.pipeline(transaction=True) as pipe:
        for priority, count in counts.items():
            options = ("PRIORITY", priority, "TICKET", LIST, priority, "TIMEOUT", 120_000)
            for _ in range(count):
                pipe.execute_command(*raw.predict(target, value, options=options))
        pipe.execute()


def order(db: Any, count: int) -> list[str]:
    """Wait for so many jobs; their priorities as they ended."""
    wait_until(lambda: db.llen(LIST) >= count, f"{count} jobs have ended", 120)
    found = [item.partition(b" ")[0].decode() for item in db.lrange(LIST, 0, -1)]
    db.delete(LIST)
    return found


def overtaken(db: Any, value: Any) -> int:
    """Submit one more urgent job to those of `pile`; how many others end between then and its end."""
    options = ("PRIORITY", "HIGH", "TICKET", LIST, "HIGH", "TIMEOUT", 120_000)
    # As one: while somebody looks and then submits, or reads the reply and then looks, more may end.
    before, _ = raw.at_once(db, ("LLEN", LIST), raw.predict("short", value, options=options))
    ended: list[bytes] = []

    def has_ended() -> bool:
        ended[:] = [item.partition(b" ")[0] for item in db.lrange(LIST, before, -1)]
        return b"HIGH" in ended

    wait_until(has_ended, "the urgent job has ended", 10)
    return ended.index(b"HIGH")


def store_short(db: Any) -> Any:
    """Store a model that runs for some 20 ms on the input returned, alone, and let its executor know."""
    raw.store(db, "short", more_models.slow(), "BATCHSIZE", 1)
    value = more_models.turns_for(SHORT_S)
    for _ in range(6):
        raw.run(db, raw.predict("short", value))
    return value


def use_all(db: Any, value: Any, target: str = "short") -> None:
    """Use all priorities once, so that the executor serves them."""
    for priority in ("HIGH", "LOW"):
        raw.answer(db, submit(db, target, value, priority))


def test_what_waits_everywhere_is_shared(redis: Server, db_redis: Any) -> None:
    with Executor(redis) as executor:
        value = store_short(db_redis)
        use_all(db_redis, value)
        with raw.paused(executor):
            pile(db_redis, "short", value, LOW=40, NORMAL=40, HIGH=40)
        found = order(db_redis, 120)
    first = Counter(found[:48])
    assert 28 <= first["HIGH"] <= 40, found
    assert first["NORMAL"] >= 5, found
    assert first["LOW"] >= 2, found
    assert "HIGH" not in found[70:], found
    after = found[max(n for n, one in enumerate(found) if one == "HIGH") + 1 :]
    normal = after[: len(after) - after[::-1].index("NORMAL")]
    assert "LOW" in normal, "what is left of the rest goes on being shared"
    assert Counter(normal)["LOW"] < Counter(normal)["NORMAL"], found


def test_what_runs_on_the_claiming_thread_is_shared_too(redis: Server, db_redis: Any) -> None:
    with Executor(redis, claim=8) as executor:
        raw.store(db_redis, "quick", models.affine())
        raw.warm(db_redis, "quick", ROW)
        use_all(db_redis, ROW, "quick")
        with raw.paused(executor):
            pile(db_redis, "quick", ROW, LOW=400, NORMAL=400, HIGH=400)
        found = order(db_redis, 1200)
    first = Counter(found[: 16 * 8 * 2 + 24])  # the first claim knew nothing yet, and brought 8 of each
    assert abs(first["HIGH"] - 12 * 16) <= 24, first
    assert abs(first["NORMAL"] - 3 * 16) <= 24, first
    assert 16 <= first["LOW"] <= 40, first


def test_an_urgent_job_overtakes(redis: Server, db_redis: Any) -> None:
    with Executor(redis):
        value = store_short(db_redis)
        use_all(db_redis, value)
        pile(db_redis, "short", value, NORMAL=60)
        for _ in range(5):
            wait_until(lambda: db_redis.llen(LIST) >= 1, "they run")
            assert overtaken(db_redis, value) <= 5, "it waited for no more than what had begun or was just claimed"
        order(db_redis, 65)


@pytest.mark.parametrize("priority", ["HIGH", "LOW"])
def test_the_first_job_of_a_priority_is_not_late(redis: Server, db_redis: Any, priority: str) -> None:
    with Executor(redis, **SELDOM):
        raw.store(db_redis, "m", models.affine())
        raw.run(db_redis, raw.predict("m", ROW))
        began = time.monotonic()
        raw.answer(db_redis, submit(db_redis, "m", ROW, priority))
        assert time.monotonic() - began < 3.5, "no heartbeat was waited for, nor the end of a claim, which is after 5 s"
        for _ in range(20):
            began = time.monotonic()
            raw.answer(db_redis, submit(db_redis, "m", ROW, priority))
            raw.run(db_redis, raw.predict("m", ROW))
            assert time.monotonic() - began < 3.5
        assert db_redis.xlen("ks:{0}:jobs:CPU") == 0, "what woke it is gone"


def test_the_first_urgent_job_while_all_are_busy(redis: Server, db_redis: Any) -> None:
    with Executor(redis, beat_ms=100):
        value = store_short(db_redis)
        pile(db_redis, "short", value, NORMAL=100)
        wait_until(lambda: db_redis.llen(LIST) >= 1, "they run")
        assert overtaken(db_redis, value) < 59, "a heartbeat finds the queue"
        order(db_redis, 101)


def test_an_executor_that_comes_later_serves_what_waits(redis: Server, db_redis: Any) -> None:
    with Executor(redis):
        raw.store(db_redis, "m", models.affine())
    tickets = [submit(db_redis, "m", ROW, priority) for priority in ("LOW", "HIGH", "NORMAL")]
    with Executor(redis):
        for ticket in tickets:
            raw.answer(db_redis, ticket)
        wait_until(lambda: db_redis.xlen("ks:{0}:jobs:CPU") == 0, "what should have woken somebody is gone")


def test_deadlines_hold_in_all_queues_while_a_model_runs(redis: Server, db_redis: Any) -> None:
    with Executor(redis, beat_ms=100):
        value = store_short(db_redis)
        use_all(db_redis, value)
        long = [raw.call(db_redis, *raw.predict("short", more_models.turns_for(3.0))) for _ in range(3)]
        wait_until(lambda: claimed(db_redis, "ks:{0}:jobs:CPU"), "the first runs")
        began = time.monotonic()
        tickets = [submit(db_redis, "short", value, priority, "TIMEOUT", 150) for priority in ("HIGH", "LOW")]
        for ticket in tickets:
            with pytest.raises(TimedOut):
                raw.answer(db_redis, ticket)
        assert time.monotonic() - began < 2.0
        for ticket in long:
            raw.answer(db_redis, ticket, 30)


def die_with(redis: Server, db: Any, priority: str) -> bytes:
    """Let an executor die with a job; gives the ticket."""
    queue = f"ks:{{0}}:jobs:CPU!{priority[0]}"
    with Executor(redis, **BRISK) as executor:
        raw.store(db, "slow", more_models.slow())
        ticket = submit(db, "slow", more_models.turns_for(3.0), priority)
        wait_until(lambda: claimed(db, queue), "it is claimed")
        executor.kill()
    return ticket


def claimed(db: Any, queue: str) -> int:
    """How many jobs of a queue have been claimed."""
    try:
        return int(db.xpending(queue, "ks")["pending"])
    except redis_py.ResponseError:
        return 0  # nobody serves it yet


@pytest.mark.parametrize("priority", ["HIGH", "LOW"])
def test_takeover(redis: Server, db_redis: Any, priority: str) -> None:
    ticket = die_with(redis, db_redis, priority)
    with Executor(redis, **BRISK) as second:
        wait_until(lambda: "job taken over" in second.output, "it is taken over")
        raw.answer(db_redis, ticket, 30)


@pytest.mark.parametrize("priority", ["HIGH", "LOW"])
def test_dead_letters(redis: Server, db_redis: Any, priority: str) -> None:
    ticket = die_with(redis, db_redis, priority)
    with Executor(redis, **BRISK, max_deliveries=1), pytest.raises(DeadLetter):
        raw.answer(db_redis, ticket)
    ((_, letter),) = db_redis.xrange("ks:{0}:dead")
    assert letter[b"id"].startswith(f"CPU!{priority[0]}/".encode())


def test_queues_that_are_lost_are_made_again(redis: Server, db_redis: Any) -> None:
    with Executor(redis, beat_ms=100):
        raw.store(db_redis, "m", models.affine())
        use_all(db_redis, ROW, "m")
        for _ in range(3):
            db_redis.flushall()
            wait_until(lambda: db_redis.exists("ks:{0}:executors"), "it registers again")
            assert not db_redis.exists("ks:{0}:jobs:CPU!H"), "what is not used is not made"
            raw.store(db_redis, "m", models.affine())
            raw.run(db_redis, raw.predict("m", ROW))
            use_all(db_redis, ROW, "m")


def test_lost_connections_lose_no_urgent_job(redis: Server, db_redis: Any) -> None:
    with Executor(redis, beat_ms=100):
        value = store_short(db_redis)
        use_all(db_redis, value)
        for _ in range(4):
            pile(db_redis, "short", value, LOW=3, NORMAL=3, HIGH=3)
            wait_until(lambda: db_redis.llen(LIST) >= 2, "they run")
            for one in db_redis.client_list():
                if one["name"].startswith("keyside-"):
                    db_redis.client_kill_filter(_id=one["id"])
            assert Counter(order(db_redis, 9)) == {"HIGH": 3, "NORMAL": 3, "LOW": 3}


def test_two_executors_and_all_priorities(redis: Server, db_redis: Any) -> None:
    with Executor(redis, claim=4), Executor(redis, claim=4):
        raw.store(db_redis, "m", models.affine())
        raw.warm(db_redis, "m", ROW)
        for _ in range(3):
            pile(db_redis, "m", ROW, LOW=100, NORMAL=100, HIGH=100)
            assert Counter(order(db_redis, 300)) == {"HIGH": 100, "NORMAL": 100, "LOW": 100}
        for queue in ("CPU", "CPU!H", "CPU!L"):
            wait_until(lambda queue=queue: not db_redis.xlen(f"ks:{{0}}:jobs:{queue}"), "what woke them is gone too")  # type: ignore[misc]


def denied(db: Any, *command: Any) -> None:
    """Send what this user may not."""
    with pytest.raises(redis_py.exceptions.NoPermissionError):
        db.execute_command(*command)


def test_who_runs_models_under_a_role_may_say_how_urgent_that_is() -> None:
    with world("redis") as users, users.executor(**SELDOM):
        users.fill()
        send(users.admin, "FCALL", "AI_LIMITSET", 1, "fraud", "JOBS", 5, "USERRATE", 2, "PER", 60_000)
        with users.connect("alice") as alice:
            for _ in range(2):
                options = ("PRIORITY", "HIGH", "USER", "alice", "TICKET", "ks:{0}:t:a")
                raw.call(alice, *raw.predict("fraud", np.ones((1, 4), np.float32), options=options))
                raw.answer(alice, b"ks:{0}:t:a")
            error = raw.refused("BUSY", alice, *raw.predict("fraud", ROW, options=("USER", "alice")))
            assert "user 'alice'" in error.text
            denied(alice, *raw.predict("fraud", ROW, options=("USER", "bob")))
            denied(alice, "FCALL", "AI_LIMITSET", 1, "fraud", "JOBS", 0)
            assert alice.execute_command("FCALL_RO", "AI_LIMITGET", 1, "fraud")[1] == 5
        with users.connect("mary") as mary:
            assert mary.execute_command("FCALL", "AI_LIMITSET", 1, "fraud", "JOBS", 7) == b"OK"
            denied(mary, "FCALL", "AI_LIMITSET", 0, "NODE", "JOBS", 7)
            denied(mary, "FCALL", "AI_LIMITSET", 1, "other", "JOBS", 7)
        with users.connect("ruth") as ruth:
            assert ruth.execute_command("FCALL_RO", "AI_LIMITGET", 1, "fraud")[1] == 7
            assert ruth.execute_command("FCALL_RO", "AI_LIMITGET", 0, "NODE")[1] == 10000
