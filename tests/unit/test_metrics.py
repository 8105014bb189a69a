"""Metrics, the health server and the logs of an executor."""

import http.client
import io
import json
import logging
import socket
import time
from collections.abc import Iterator

import pytest
import structlog
from prometheus_client.parser import text_string_to_metric_families

from keyside.executor import logs
from keyside.executor import metrics as metrics_module
from keyside.executor.cache import CacheStats
from keyside.executor.health import HealthServer
from keyside.executor.metrics import Metrics


def values(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return every sample: (name, its labels as text) -> value."""
    found = {}
    for family in text_string_to_metric_families(metrics.expose().decode()):
        for sample in family.samples:
            found[sample.name, ",".join(f"{k}={v}" for k, v in sorted(sample.labels.items()))] = sample.value
    return found


def test_batches_add_up() -> None:
    metrics = Metrics()
    metrics.observe_batch("fraud", "3", n=4, samples=8, queue_us=4_000, compute_us=2_000)
    metrics.observe_batch("fraud", "3", n=2, samples=2, queue_us=0, compute_us=300, errors=1)
    metrics.observe_failure("fraud", "3", "TIMEDOUT", 2)

    got = values(metrics)
    of = "model=fraud,version=3"
    assert got["keyside_inference_request_success_total", of] == 5
    assert got["keyside_inference_request_failure_total", "model=fraud,reason=RUNFAILED,version=3"] == 1
    assert got["keyside_inference_request_failure_total", "model=fraud,reason=TIMEDOUT,version=3"] == 2
    assert got["keyside_inference_count_total", of] == 10
    assert got["keyside_inference_exec_count_total", of] == 2
    assert got["keyside_inference_queue_duration_us_total", of] == 4_000
    assert got["keyside_inference_compute_infer_duration_us_total", of] == 2_300
    assert got["keyside_inference_request_duration_us_total", of] == 4_000 + 4 * 2_000 + 2 * 300


def test_histograms() -> None:
    metrics = Metrics()
    metrics.observe_batch("m", "1", n=4, samples=4, queue_us=4_000, compute_us=2_000)
    metrics.observe_batch("m", "1", n=1, samples=1, queue_us=0, compute_us=60_000_000)

    got = values(metrics)
    name = "keyside_inference_{}_seconds{}".format
    assert got[name("queue", "_bucket"), "le=0.0005,model=m,version=1"] == 1
    assert got[name("queue", "_bucket"), "le=0.001,model=m,version=1"] == 5
    assert got[name("queue", "_count"), "model=m,version=1"] == 5
    assert got[name("queue", "_sum"), "model=m,version=1"] == pytest.approx(0.004)
    assert got[name("compute", "_bucket"), "le=0.0025,model=m,version=1"] == 1
    assert got[name("compute", "_bucket"), "le=10.0,model=m,version=1"] == 1
    assert got[name("compute", "_bucket"), "le=+Inf,model=m,version=1"] == 2
    assert got[name("request", "_bucket"), "le=0.005,model=m,version=1"] == 4
    assert got[name("request", "_sum"), "model=m,version=1"] == pytest.approx(60.012)


def test_what_is_asked_for_when_somebody_looks() -> None:
    stats = CacheStats(hits=1, misses=2, loads=3, failures=4, evictions=5, models=6, nbytes=7, budget=8)
    metrics = Metrics(cache=lambda: stats, pending=lambda: {"CPU": 9}, info={"name": "one", "version": "0.1"})
    metrics.event("reconnect")
    metrics.event("reconnect", 2)

    got = values(metrics)
    assert got["keyside_model_cache_hits_total", ""] == 1
    assert got["keyside_model_cache_misses_total", ""] == 2
    assert got["keyside_model_cache_loads_total", ""] == 3
    assert got["keyside_model_cache_load_failures_total", ""] == 4
    assert got["keyside_model_cache_evictions_total", ""] == 5
    assert got["keyside_models_loaded", ""] == 6
    assert got["keyside_models_memory_bytes", ""] == 7
    assert got["keyside_models_memory_budget_bytes", ""] == 8
    assert got["keyside_inference_pending_request_count", "device=CPU"] == 9
    assert got["keyside_executor_info", "name=one,version=0.1"] == 1
    assert got["keyside_executor_events_total", "event=reconnect"] == 3
    assert ("process_resident_memory_bytes", "") in got


def test_names_of_models_are_bounded_and_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics_module, "MAX_SERIES", 20)
    metrics = Metrics()
    metrics.observe_batch('a"b\nc\\', "1", 1, 1, 0, 0)
    for number in range(30):
        metrics.observe_batch(f"m{number}", "1", 1, 1, 0, 0)
    metrics.forget("m0", "1")

    got = values(metrics)
    name = "keyside_inference_exec_count_total"
    assert got[name, 'model=a"b\nc\\,version=1'] == 1
    assert got[name, "model=other,version=0"] == 11
    assert (name, "model=m0,version=1") not in got


def test_each_has_a_registry_of_its_own() -> None:
    first, second = Metrics(), Metrics()
    first.observe_batch("m", "1", 1, 1, 0, 0)

    assert ("keyside_inference_count_total", "model=m,version=1") not in values(second)


def test_counting_a_batch_is_cheap() -> None:
    metrics = Metrics()
    best = 1.0
    for _ in range(20):
        began = time.perf_counter()
        for _ in range(500):
            metrics.observe_batch("fraud", "3", 4, 8, 4_000.0, 2_000.0)
        best = min(best, (time.perf_counter() - began) / 500)

    assert best < 10e-6  # 1 us where this was written


class Probe:
    """What the health server is told."""

    live = ""
    ready = ""


@pytest.fixture
def probe() -> Probe:
    return Probe()


@pytest.fixture
def server(probe: Probe) -> Iterator[HealthServer]:
    server = HealthServer(
        "127.0.0.1", 0, metrics=lambda: b"up 1\n", live=lambda: probe.live, ready=lambda: probe.ready
    ).start()
    yield server
    server.close()


def fetch(server: HealthServer, path: str, method: str = "GET") -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection(server.host, server.port, timeout=10)
    try:
        connection.request(method, path)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], answer.read()
    finally:
        connection.close()


def test_health(server: HealthServer, probe: Probe) -> None:
    probe.ready = "no server"

    assert fetch(server, "/metrics?x=1") == (200, "text/plain; version=0.0.4; charset=utf-8", b"up 1\n")
    for path in ("/healthz", "/v2/health/live"):
        status, kind, body = fetch(server, path)
        assert (status, kind, json.loads(body)) == (200, "application/json", {"live": True})
    status, _, body = fetch(server, "/v2/health/ready")
    assert (status, json.loads(body)) == (503, {"ready": False, "error": "no server"})
    probe.ready = ""
    assert fetch(server, "/v2/health/ready")[0] == 200
    probe.live = "stuck"
    assert fetch(server, "/healthz")[0] == 503
    assert fetch(server, "/healthz", "HEAD")[::2] == (503, b"")
    assert fetch(server, "/elsewhere")[0] == 404
    assert fetch(server, "/metrics", "POST")[0] == 501


def test_a_check_that_fails_is_an_answer_too(probe: Probe) -> None:
    server = HealthServer("127.0.0.1", 0, metrics=lambda: b"%d" % (1 // 0), live=str, ready=str).start()
    try:
        assert fetch(server, "/metrics")[::2] == (500, b'{"error": "ZeroDivisionError"}')
    finally:
        server.close()


def test_a_silent_client_keeps_nobody_waiting(server: HealthServer) -> None:
    with socket.create_connection((server.host, server.port)):
        assert fetch(server, "/healthz")[0] == 200


def test_closing_frees_the_port(probe: Probe) -> None:
    server = HealthServer("127.0.0.1", 0, metrics=bytes, live=str, ready=str).start()
    server.close()

    with pytest.raises(ConnectionRefusedError):
        fetch(server, "/healthz")
    HealthServer("127.0.0.1", server.port, metrics=bytes, live=str, ready=str).close()


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


@pytest.mark.usefixtures("logging_restored")
def test_logs_as_json() -> None:
    out = io.StringIO()
    logs.configure("info", "json", stream=out)

    structlog.get_logger("ours").info("loaded", model="fraud@3")
    logging.getLogger("library").warning("took %d ms", 7)
    logging.getLogger("library").debug("not shown")
    try:
        raise ValueError("x\ny")
    except ValueError:
        logging.getLogger("library").exception("failed")

    first, second, third = map(json.loads, out.getvalue().splitlines())
    assert (first["event"], first["model"], first["level"], first["logger"]) == ("loaded", "fraud@3", "info", "ours")
    assert (second["event"], second["level"]) == ("took 7 ms", "warning")
    assert "ValueError: x\ny" in third["exception"]
    assert first["timestamp"].endswith("Z")


@pytest.mark.usefixtures("logging_restored")
def test_logs_as_text() -> None:
    out = io.StringIO()
    logs.configure("warning", "console", stream=out)
    logs.configure("warning", "console", stream=out)

    structlog.get_logger().info("not shown")
    structlog.get_logger().warning("slow", seconds=3)

    assert len(out.getvalue().splitlines()) == 1
    assert "slow" in out.getvalue()
    assert "seconds=3" in out.getvalue()
