"""What an operator sees of an executor: queues, loading, memory, metrics, health, logs, and a stop in good order."""

import json
import threading
import urllib.error
import urllib.request
from typing import Any

import numpy as np
import pytest
from tests import models, more_models, raw
from tests.executors import Executor
from tests.servers import Server, free_port, wait_until

from keyside.tensorstore import npy
from keyside.tensorstore.errors import RunFailed

ROW = np.array([[1, 2, 3, 4]], np.float32)


def fetch(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def counted(port: int, name: str) -> float:
    """Sum of the samples of one metric."""
    lines = fetch(port, "/metrics")[1].splitlines()
    return sum(float(line.split()[-1]) for line in lines if line.partition("{")[0].split()[0] == name)


def test_metrics_and_health(redis: Server, db_redis: Any) -> None:
    port = free_port()
    with Executor(redis, http_port=port):
        raw.store(db_redis, "m", models.affine())
        for _ in range(3):
            raw.run(db_redis, raw.predict("m", ROW))
        raw.store(db_redis, "bad", models.fails_out_of_range())
        with pytest.raises(RunFailed):
            raw.run(db_redis, raw.predict("bad", np.array([99], np.int64)))
        # A caller may have his reply before that is counted.
        wait_until(lambda: 'reason="RUNFAILED"' in fetch(port, "/metrics")[1], "the failure is counted")
        well = 'keyside_inference_request_success_total{model="m",version="1"} 3.0'
        wait_until(lambda: well in fetch(port, "/metrics")[1], "the others are counted")
        status, text = fetch(port, "/metrics")
        assert status == 200
        assert "keyside_inference_request_duration_us_total" in text
        assert "keyside_models_loaded 2.0" in text
        assert fetch(port, "/v2/health/live")[0] == 200
        assert fetch(port, "/v2/health/ready")[0] == 200
        assert fetch(port, "/nothing")[0] == 404
        db_redis.fcall("AI_MODELDEL", 1, "m")
        db_redis.fcall("AI_MODELDEL", 1, "bad")


def test_readiness_ends_with_the_server(redis_own: Server) -> None:
    port = free_port()
    with Executor(redis_own, http_port=port, beat_ms=50, lease_ms=200):
        redis_own.kill()
        wait_until(lambda: fetch(port, "/v2/health/ready")[0] == 503, "it is not ready any more")
        assert "server" in json.loads(fetch(port, "/v2/health/ready")[1])["error"]
        assert fetch(port, "/v2/health/live")[0] == 200
        redis_own.start()
        wait_until(lambda: fetch(port, "/v2/health/ready")[0] == 200, "it is ready again")


def test_sigterm_drains(redis: Server, db_redis: Any) -> None:
    executor = Executor(redis).start()
    raw.store(db_redis, "slow", more_models.slow())
    tickets = [raw.call(db_redis, *raw.predict("slow", more_models.turns_for(0.6))) for _ in range(3)]
    wait_until(lambda: db_redis.xpending("ks:{0}:jobs:CPU", "ks")["pending"], "the first is claimed")
    assert executor.stop() == 0
    claimed = [db_redis.lpop(ticket) for ticket in tickets]
    assert claimed[0] is not None
    left = db_redis.xpending("ks:{0}:jobs:CPU", "ks")
    assert left["pending"] == 0, "what was claimed has been ended"
    assert db_redis.zcard("ks:{0}:executors") == 0
    with Executor(redis):
        for ticket, reply in zip(tickets, claimed, strict=True):
            if reply is None:
                raw.answer(db_redis, ticket)
    db_redis.fcall("AI_MODELDEL", 1, "slow")


def test_others_are_served_while_one_loads(redis: Server, db_redis: Any) -> None:
    with Executor(redis):
        raw.store(db_redis, "m", models.affine())
        raw.warm(db_redis, "m", ROW)
        blob = models.mlp()
        served = 0
        done = threading.Event()

        def load() -> None:
            with redis.client() as own:
                for n in range(10):
                    raw.store(own, f"other{n}", blob, "TAG", str(n))
            done.set()

        thread = threading.Thread(target=load)
        thread.start()
        while not done.is_set():
            raw.run(db_redis, raw.predict("m", ROW))
            served += 1
        thread.join()
        assert served > 0
        for name in ["m", *(f"other{n}" for n in range(10))]:
            db_redis.fcall("AI_MODELDEL", 1, name)


def test_models_beyond_the_budget_are_evicted_and_loaded_again(redis: Server, db_redis: Any) -> None:
    port = free_port()
    with Executor(redis, memory_budget="1mb", http_port=port):
        names = [f"m{n}" for n in range(20)]
        for n, name in enumerate(names):
            raw.store(db_redis, name, models.affine(scale=float(n)))
        for n, name in enumerate(names):
            outputs = raw.run(db_redis, raw.predict(name, ROW)).outputs
            np.testing.assert_allclose(next(iter(outputs.values())), ROW * n + 1)
        assert counted(port, "keyside_model_cache_evictions_total") > 0
        for name in names:
            db_redis.fcall("AI_MODELDEL", 1, name)


def test_a_model_larger_than_the_budget_is_refused(redis: Server, db_redis: Any) -> None:
    with Executor(redis, memory_budget="1mb"):
        raw.add(db_redis, "large", more_models.wide(1 << 20))
        assert raw.state(db_redis, "large") == "failed"
        assert b"budget" in db_redis.hget("large", "1:reason")
        db_redis.fcall("AI_MODELDEL", 1, "large")


def test_a_device_is_a_queue_of_any_name(redis: Server, db_redis: Any) -> None:
    with Executor(redis, devices="CPU,FAST-lane", drain_s=0.1):
        raw.store(db_redis, "slow", more_models.slow())
        raw.store(db_redis, "quick", models.affine(), device="fast-lane")
        ticket = raw.call(db_redis, *raw.predict("slow", np.array([[10**15]], np.int64)))  # never ends
        wait_until(lambda: db_redis.xpending("ks:{0}:jobs:CPU", "ks")["pending"], "the slow one is claimed")
        raw.run(db_redis, raw.predict("quick", ROW))
        assert db_redis.llen(ticket) == 0, "the queues do not wait for each other"
        assert db_redis.fcall("AI_CANCEL", 0, ticket) == 1
        for name in ("slow", "quick"):
            db_redis.fcall("AI_MODELDEL", 1, name)


def test_what_queues_during_a_run_is_the_next_batch(redis: Server, db_redis: Any) -> None:
    port = free_port()
    with Executor(redis, http_port=port) as executor:
        raw.store(db_redis, "m", models.affine())
        raw.warm(db_redis, "m", ROW)
        runs = counted(port, "keyside_inference_exec_count_total")
        with raw.paused(executor):
            tickets = [raw.call(db_redis, *raw.predict("m", ROW * n)) for n in range(40)]
        for n, ticket in enumerate(tickets):
            np.testing.assert_allclose(raw.answer(db_redis, ticket).outputs["y"], ROW * n * 2 + 1)
        assert counted(port, "keyside_inference_exec_count_total") - runs < 10
        db_redis.fcall("AI_MODELDEL", 1, "m")


def test_large_tensors_go_through_keys(redis: Server, db_redis: Any) -> None:
    large = np.arange(100_000, dtype=np.float32).reshape(2, -1)
    with Executor(redis):
        raw.store(db_redis, "same", more_models.identity())
        raw.put(db_redis, "x", large)
        db_redis.set("y", npy.to_bytes(ROW), ex=1000)
        raw.run(db_redis, raw.execute("same", ["x"], ["y"]))
        np.testing.assert_array_equal(raw.get(db_redis, "y"), large)
        assert db_redis.ttl("y") == -1
        outputs = raw.run(db_redis, raw.predict("same", ("KEY", "x"))).outputs
        np.testing.assert_array_equal(outputs["y"], large)
        assert raw.private_keys(db_redis) == set()
        db_redis.fcall("AI_MODELDEL", 1, "same")


def test_logs_can_be_json(redis: Server, db_redis: Any) -> None:
    with Executor(redis, log_format="json", name="teller") as executor:
        raw.store(db_redis, "m", models.affine())
        wait_until(lambda: '"model ready"' in executor.output, "the load is logged")
        lines = [json.loads(line) for line in executor.output.splitlines()]
        assert any(line["event"] == "executor ready" and line["consumer"].startswith("teller-") for line in lines)
        assert all({"event", "level", "timestamp"} <= line.keys() for line in lines)
        db_redis.fcall("AI_MODELDEL", 1, "m")
