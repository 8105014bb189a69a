"""An executor in trouble: what it must not hold on to, lose, or wait for."""

import time
from typing import Any

import numpy as np
from tests import models, more_models, raw
from tests.executors import Executor
from tests.faults import halt_in_claim
from tests.servers import Server, wait_until

ROW = np.array([[1, 2, 3, 4]], np.float32)


def pending(db: Any, device: str) -> int:
    found: int = db.xpending(f"ks:{{0}}:jobs:{device}", "ks")["pending"]
    return found


def test_sigterm_ends_it_though_the_server_is_gone(redis_own: Server) -> None:
    redis_own.load_library()
    executor = Executor(redis_own, drain_s=1).start()
    with redis_own.client() as db:
        raw.store(db, "slow", more_models.slow())
        halt_in_claim(db, executor)  # so that it cannot have ended the job before anybody looks
        raw.call(db, *raw.predict("slow", more_models.turns_for(0.5)))
        wait_until(lambda: pending(db, "CPU"), "the job is claimed")
        executor.resume()
    redis_own.kill()
    began = time.monotonic()
    assert executor.stop() == 0
    assert time.monotonic() - began < 14


def test_a_free_queue_does_not_wait_for_a_full_one(redis: Server, db_redis: Any) -> None:
    with Executor(redis, devices="A,B,C"):
        for device in ("A", "B"):
            raw.store(db_redis, f"slow-{device}", more_models.slow(), device=device)
        long = [raw.call(db_redis, *raw.predict("slow-B", more_models.turns_for(1.5))) for _ in range(3)]
        wait_until(lambda: pending(db_redis, "B"), "the first of B is claimed")
        quick = [raw.call(db_redis, *raw.predict("slow-A", more_models.turns_for(0.05))) for _ in range(8)]
        for ticket in quick:
            raw.answer(db_redis, ticket)
        assert db_redis.llen(long[-1]) == 0, "A has ended while B still runs"
        for ticket in long:
            raw.answer(db_redis, ticket)
        for device in ("A", "B"):
            db_redis.fcall("AI_MODELDEL", 1, f"slow-{device}")


def test_a_model_is_loaded_although_the_loaders_connection_was_lost(redis: Server, db_redis: Any) -> None:
    names = [f"m{n}" for n in range(12)]
    with Executor(redis, memory_budget="1mb"):  # room for a few of them: each load evicts another
        for n, name in enumerate(names):
            raw.store(db_redis, name, models.affine(scale=float(n)))
        for n, name in enumerate(names):
            for client in db_redis.client_list():
                if client["name"] == "keyside-loader":
                    db_redis.client_kill_filter(_id=client["id"])
            outputs = raw.run(db_redis, raw.predict(name, ROW)).outputs
            np.testing.assert_allclose(outputs["y"], ROW * n + 1)
        for name in names:
            db_redis.fcall("AI_MODELDEL", 1, name)


def test_a_refusal_for_a_while_does_not_lose_what_was_computed(redis_own: Server) -> None:
    redis_own.load_library()
    with Executor(redis_own) as executor, redis_own.client() as db:
        raw.store(db, "slow", more_models.slow())
        halt_in_claim(db, executor)
        ticket = raw.call(db, *raw.predict("slow", more_models.turns_for(0.3)))
        wait_until(lambda: pending(db, "CPU"), "the job is claimed")
        db.config_set("min-replicas-to-write", 1)  # writes answer NOREPLICAS
        executor.resume()
        began = time.monotonic()
        wait_until(lambda: time.monotonic() - began > 0.8, "the run has ended meanwhile")
        db.config_set("min-replicas-to-write", 0)
        raw.answer(db, ticket, seconds=4)
        assert raw.call(db, "FCALL", "AI_INFO", 1, "slow")[13] == 1, "it ran once"


def test_a_refusal_for_a_while_does_not_lose_what_ran_on_the_claim_thread(redis_own: Server) -> None:
    redis_own.load_library()
    with Executor(redis_own) as executor, redis_own.client() as db:
        raw.store(db, "m", models.affine())
        raw.warm(db, "m", ROW)  # found quick, so that it runs where it is claimed
        before = raw.call(db, "FCALL", "AI_INFO", 1, "m")[13]
        with raw.paused(executor):
            ticket = raw.call(db, *raw.predict("m", ROW))  # goes to the claim that waits
            db.config_set("min-replicas-to-write", 1)
        wait_until(lambda: "server unreachable" in executor.output, "the completion is refused")
        db.config_set("min-replicas-to-write", 0)
        outputs = raw.answer(db, ticket, seconds=4).outputs  # its lease would end later
        np.testing.assert_allclose(outputs["y"], ROW * 2 + 1)
        assert raw.call(db, "FCALL", "AI_INFO", 1, "m")[13] == before + 1, "it ran once"
