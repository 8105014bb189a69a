"""Metrics of an executor for Prometheus.

A batch adds to plain numbers; Prometheus's own objects are made only when somebody looks. Names follow
Triton's (`nv_inference_request_success` is `keyside_inference_request_success_total` here).
"""

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping
from typing import Final

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from keyside.executor import script_metrics
from keyside.executor.cache import CacheStats

__all__ = ["Metrics"]

# Microseconds; the last, unbounded one is implied.
BUCKETS_US: Final = (
    100,
    250,
    500,
    1_000,
    2_500,
    5_000,
    10_000,
    25_000,
    50_000,
    100_000,
    250_000,
    500_000,
    1_000_000,
    2_500_000,
    5_000_000,
    10_000_000,
)

# Names come from users: beyond so many, the rest share one series, for the sake of whoever stores them.
MAX_SERIES: Final = 1_000
OTHER: Final = ("other", "0")


class _Row:
    """The numbers of one version of a model."""

    __slots__ = (
        "compute_buckets",
        "compute_us",
        "executions",
        "failures",
        "queue_buckets",
        "queue_us",
        "request_buckets",
        "request_us",
        "samples",
        "success",
    )

    def __init__(self) -> None:
        self.success = 0
        self.samples = 0
        self.executions = 0
        self.queue_us = 0.0
        self.compute_us = 0.0
        self.request_us = 0.0
        self.failures: dict[str, int] = {}
        self.queue_buckets = [0] * (len(BUCKETS_US) + 1)
        self.compute_buckets = [0] * (len(BUCKETS_US) + 1)
        self.request_buckets = [0] * (len(BUCKETS_US) + 1)

    def copy(self) -> "_Row":
        """Return the numbers as they are now."""
        other = _Row.__new__(_Row)
        for name in _Row.__slots__:
            value = getattr(self, name)
            setattr(other, name, value.copy() if isinstance(value, list | dict) else value)
        return other


class Metrics:
    """Everything that one executor counts, with a registry of its own.

    Args:
        cache: returns what the model cache holds and has done.
        pending: returns the jobs that are claimed and not ended, by device queue.
        info: labels of the constant metric keyside_executor_info, such as name and version.
    """

    def __init__(
        self,
        *,
        cache: Callable[[], CacheStats] | None = None,
        pending: Callable[[], Mapping[str, int]] | None = None,
        info: Mapping[str, str] | None = None,
    ) -> None:
        self._lock = threading.Lock()
        self._rows: dict[tuple[str, str], _Row] = {}
        self._cache = cache
        self._pending = pending
        self._info = dict(info or {})
        self._events: dict[str, int] = {}
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Adapter(self._collect))
        ProcessCollector(registry=self.registry)

    def observe_batch(
        self,
        model: str,
        version: str,
        n: int,
        samples: int,
        queue_us: float,
        compute_us: float,
        errors: int = 0,
    ) -> None:
        """Count one run of a model.

        Args:
            model: its name.
            version: its version.
            n: jobs in the batch, those that failed among them.
            samples: rows in the batch.
            queue_us: microseconds that the jobs waited, all together.
            compute_us: microseconds that the run took.
            errors: jobs of the batch that failed in the run.
        """
        each_us = queue_us / n if n else 0.0
        with self._lock:
            row = self._rows.get((model, version)) or self._row(model, version)
            row.success += n - errors
            row.samples += samples
            row.executions += 1
            row.queue_us += queue_us
            row.compute_us += compute_us
            row.request_us += queue_us + n * compute_us  # every job of a batch lives through the whole run
            row.queue_buckets[bisect_left(BUCKETS_US, each_us)] += n
            row.compute_buckets[bisect_left(BUCKETS_US, compute_us)] += 1
            row.request_buckets[bisect_left(BUCKETS_US, each_us + compute_us)] += n
            if errors:
                row.failures["RUNFAILED"] = row.failures.get("RUNFAILED", 0) + errors

    def observe_failure(self, model: str, version: str, reason: str, n: int = 1) -> None:
        """Count jobs that ended with an error before they ran; `reason` is its code."""
        with self._lock:
            row = self._rows.get((model, version)) or self._row(model, version)
            row.failures[reason] = row.failures.get(reason, 0) + n

    def event(self, name: str, n: int = 1) -> None:
        """Count something of a fixed set that happens to the executor, such as a reconnect or a takeover."""
        with self._lock:
            self._events[name] = self._events.get(name, 0) + n

    def forget(self, model: str, version: str) -> None:
        """Drop the series of a version that has been deleted."""
        with self._lock:
            self._rows.pop((model, version), None)

    def expose(self) -> bytes:
        """Return the text of /metrics."""
        return generate_latest(self.registry)

    def _row(self, model: str, version: str) -> _Row:
        key = (model, version) if len(self._rows) < MAX_SERIES else OTHER
        return self._rows.setdefault(key, _Row())

    def _collect(self) -> Iterator[Metric]:
        yield from self._models()
        if self._pending is not None:
            pending = GaugeMetricFamily(
                "keyside_inference_pending_request_count",
                "Jobs claimed by this executor and not ended.",
                labels=["device"],
            )
            for device, count in self._pending().items():
                pending.add_metric([device], count)
            yield pending
        if self._cache is not None:
            yield from _cache_families(self._cache())
        events = CounterMetricFamily(
            "keyside_executor_events", "Things that happened to this executor.", labels=["event"]
        )
        with self._lock:
            for name, count in sorted(self._events.items()):
                events.add_metric([name], count)
        yield events
        yield from script_metrics.collected()
        if self._info:
            info = GaugeMetricFamily("keyside_executor_info", "Always 1; see its labels.", labels=list(self._info))
            info.add_metric(list(self._info.values()), 1)
            yield info

    def _models(self) -> Iterator[Metric]:
        labels = ["model", "version"]
        counters = {
            name: CounterMetricFamily(f"keyside_inference_{name}", text, labels=labels)
            for name, text in (
                ("request_success", "Jobs that ended with a result."),
                ("count", "Rows that models ran on."),
                ("exec_count", "Runs of models, each on a batch of jobs."),
                ("request_duration_us", "Time that jobs took, waiting and running, in microseconds."),
                ("queue_duration_us", "Time that jobs waited, in microseconds."),
                ("compute_infer_duration_us", "Time that runs of models took, in microseconds."),
            )
        }
        failures = CounterMetricFamily(
            "keyside_inference_request_failure", "Jobs that ended with an error.", labels=[*labels, "reason"]
        )
        histograms = {
            name: HistogramMetricFamily(f"keyside_inference_{name}_seconds", text, labels=labels)
            for name, text in (
                ("request", "Time that jobs took, waiting (as the mean of their batch) and running."),
                ("queue", "Time that jobs waited, as the mean of their batch."),
                ("compute", "Time that runs of models took."),
            )
        }
        with self._lock:
            rows = [(key, row.copy()) for key, row in self._rows.items()]
        for (model, version), row in sorted(rows, key=_key):
            key = [model, version]
            for name, value in (
                ("request_success", row.success),
                ("count", row.samples),
                ("exec_count", row.executions),
                ("request_duration_us", row.request_us),
                ("queue_duration_us", row.queue_us),
                ("compute_infer_duration_us", row.compute_us),
            ):
                counters[name].add_metric(key, value)
            for reason, count in sorted(row.failures.items()):
                failures.add_metric([*key, reason], count)
            for name, buckets, total in (
                ("request", row.request_buckets, row.request_us),
                ("queue", row.queue_buckets, row.queue_us),
                ("compute", row.compute_buckets, row.compute_us),
            ):
                histograms[name].add_metric(key, _cumulative(buckets), total / 1e6)
        yield from counters.values()
        yield failures
        yield from histograms.values()


class _Adapter(Collector):
    """Lets the registry ask for metrics; it must not ask at registration, when nothing is set up."""

    def __init__(self, collect: Callable[[], Iterator[Metric]]) -> None:
        self._collect = collect

    def collect(self) -> Iterator[Metric]:
        return self._collect()

    def describe(self) -> list[Metric]:
        return []


def _key(item: tuple[tuple[str, str], _Row]) -> tuple[str, str]:
    return item[0]


def _cumulative(buckets: list[int]) -> list[tuple[str, float]]:
    pairs: list[tuple[str, float]] = []
    total = 0
    for bound, count in zip((*(us / 1e6 for us in BUCKETS_US), float("inf")), buckets, strict=True):
        total += count
        pairs.append(("+Inf" if bound == float("inf") else repr(bound), total))
    return pairs


def _cache_families(stats: CacheStats) -> Iterator[Metric]:
    for name, text, value in (
        ("hits", "Batches that found their model in memory.", stats.hits),
        ("misses", "Batches that did not.", stats.misses),
        ("loads", "Models loaded.", stats.loads),
        ("load_failures", "Models that failed to load.", stats.failures),
        ("evictions", "Models evicted from memory.", stats.evictions),
    ):
        yield CounterMetricFamily(f"keyside_model_cache_{name}", text, value=value)
    for name, text, value in (
        ("models_loaded", "Models in memory.", stats.models),
        ("models_memory_bytes", "Memory that loaded models take, as estimated.", stats.nbytes),
        ("models_memory_budget_bytes", "Memory that loaded models may take.", stats.budget),
    ):
        yield GaugeMetricFamily(f"keyside_{name}", text, value=value)
