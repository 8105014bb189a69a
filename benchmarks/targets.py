"""The ratios that are to hold, in the order in which they are reported."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["TARGETS", "Target"]


@dataclass(frozen=True, slots=True)
class Target:
    """A ratio and its bound.

    Attributes:
        what: over what.
        limit: the bound.
        least: whether the ratio is to be at least that; else at most.
        unit: of the value, if it is no ratio.
    """

    what: str
    limit: float
    least: bool = False
    unit: str = ""

    @property
    def bound(self) -> str:
        """The bound, for people."""
        return f"{'>=' if self.least else '<='} {self.limit:g}{self.unit}"

    def met(self, values: Sequence[float]) -> bool:
        """Whether the median of the rounds keeps to it."""
        median = statistics.median(values)
        return median >= self.limit if self.least else median <= self.limit

    def row(self, values: Sequence[float]) -> list[str]:
        """Return what, bound and measured values as a row of a table."""
        if not values:
            return [self.what, self.bound, "not measured"]
        shown = f"{statistics.median(values):.2f}{self.unit} [{min(values):.2f}-{max(values):.2f}]"
        return [self.what, self.bound, shown if self.met(values) else f"**{shown}**"]


TARGETS = {
    "fraud.raw_p50": Target("one client, fraud scenario, raw-socket caller: p50 over floor (a)", 1.30),
    "fraud.client_p50": Target("the same by `Client.predict`: p50 over floor (a)", 1.75),
    "fraud.client_p50_peer": Target("the same by `Client.predict`: p50 over the best HTTP peer's", 0.55),
    "fraud.rate_peer": Target("32 clients (raw sockets): throughput over the best HTTP peer's", 4, least=True),
    "fraud.cpu_fastapi": Target("32 clients: server + executor CPU per request over FastAPI's server CPU", 0.25),
    "fraud.async_peer": Target(
        "AsyncClient, 1,000 in flight from one process: throughput over the best HTTP peer's", 3, least=True
    ),
    "batching.share": Target(
        "natural batching, model of about 1 ms: share of onnxruntime's own batch-32 over batch-1 gain that callers see",
        0.8,
        least=True,
    ),
    "batching.p99": Target("the same: p99 over that of the unbatched model at the same load", 1.0),
    "tensors.set_600KB": Target("`set` of a 600 KB tensor over floor (b)", 1.15),
    "tensors.get_600KB": Target("`get` of a 600 KB tensor over floor (b)", 1.15),
    "tensors.set_16MiB": Target("`set` of a 16 MiB tensor over floor (b)", 1.15),
    "tensors.get_16MiB": Target("`get` of a 16 MiB tensor over floor (b)", 1.15),
    "tensors.set_memory": Target("`set` of 16 MiB: peak memory, in copies besides the caller's array", 1),
    "tensors.get_memory": Target("`get` of 16 MiB: peak memory, in copies besides the result", 1),
    "image.p50": Target("image model (600 KB in, about 20 ms of compute) end to end over floor (c)", 1.06),
    "many.time": Target("`predict_many` of 10,000 rows over floor (c) in batches of 256", 1.5),
    "redis.cpu": Target("Redis CPU per request over floor (d)", 1.6),
    "store.p99": Target("a 500 MB model stored while small requests run: p99 of these over their p99 before", 1.5),
    "models.hits": Target(
        "200 models of 5 MB under a budget for 50: p50 of hits while misses load, over p50 without misses", 1.2
    ),
    "graph.calls": Target(
        "conditional graph of a script and 3 models: p50 over that of the 4 calls by themselves", 0.5
    ),
    "start.seconds": Target("cold start: `keyside up` to first answer", 1.5, unit=" s"),
    "flat.100_models": Target("cost per request with 100 models stored over that with 1", 1.10),
    "flat.10000_models": Target("cost per request with 10,000 models stored over that with 1", 1.10),
    "flat.1M_keys": Target("cost per request with 1M keys stored over that with few", 1.10),
    "scaling.cpu": Target("server + executor CPU per request on 3 shards over that on 1, each at the same load", 1.10),
}
