"""What Prometheus may ask: `/metrics` as histograms of every stage of a request, counts, and how long the queue is.

Of a request:
    queue       in the queue, until a batch was cut         tokenise    text to windows
    compute     batch in to logits out                      total       from submit to the answer
    overhead    all that is the server's own: the request's time in HTTP less `total`
Of a batch, whatever was in it: batch_tokens, batch_sequences, batch_compute.

Of several workers, histograms and counts are sums over all of them, the dead ones included; what waits in the queues is
that of the worker which was asked, whose process the label `worker` names.
"""

import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, multiprocess
from prometheus_client.core import GaugeMetricFamily, Metric

if TYPE_CHECKING:
    from serve.engines import Engine

SECONDS = (
    0.00005, 0.0001, 0.0002, 0.0005, 0.001, 0.0015, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075,
    0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0,
)  # fmt: skip
TOKENS = tuple(float(2**power) for power in range(4, 18))
STAGES = ("queue", "tokenise", "compute", "total")
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One registry of its own, so that two servers in a process do not mix."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._stages = {
            stage: Histogram(f"retort_{stage}_seconds", f"{stage} of a request", ["model"], buckets=SECONDS,
                             registry=self.registry) for stage in (*STAGES, "overhead")
        }  # fmt: skip
        self._sizes = {
            what: Histogram(f"retort_batch_{what}", f"{what} of a batch", ["model"],
                            buckets=TOKENS if what == "tokens" else [float(2**power) for power in range(11)],
                            registry=self.registry) for what in ("tokens", "sequences")
        }  # fmt: skip
        self._compute = Histogram(
            "retort_batch_compute_seconds", "launch of a batch to its logits", ["model"], buckets=SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._requests = Counter(
            "retort_requests", "requests by path, method and status", ["path", "method", "status"],
            registry=self.registry,
        )  # fmt: skip
        self._http = Histogram(
            "retort_http_seconds", "request in to response out", ["path"], buckets=SECONDS, registry=self.registry
        )
        self._queues: dict[str, Any] = {}
        self._together = bool(os.environ.get("PROMETHEUS_MULTIPROC_DIR"))  # set by serve/supervisor.py
        self._shown = CollectorRegistry() if self._together else self.registry
        if self._together:
            multiprocess.MultiProcessCollector(self._shown)
        self._shown.register(self)  # pyright: ignore[reportArgumentType]

    def watch(self, name: str, engine: "Engine | None") -> None:
        """Show this engine's batches and queue under the name, instead of the one's before it; None: no longer."""
        if engine is None:
            self._queues.pop(name, None)
            return
        self._queues[name] = engine.batcher
        engine.batcher.on_batch(lambda report: self._batch(name, report))

    def _batch(self, name: str, report: Any) -> None:
        self._sizes["tokens"].labels(name).observe(report.tokens)
        self._sizes["sequences"].labels(name).observe(report.sequences)
        self._compute.labels(name).observe(report.compute_ms / 1000)

    def served(self, model: str, timing: Any) -> None:
        """The stages of an answered request."""
        for stage in STAGES:
            self._stages[stage].labels(model).observe(getattr(timing, f"{stage}_ms") / 1000)

    def http(self, path: str, method: str, status: int, seconds: float) -> None:
        """A response. `path` is a route's pattern, not what the client sent: there is no end of those."""
        self._requests.labels(path, method, str(status)).inc()
        self._http.labels(path).observe(seconds)

    def overhead(self, model: str, seconds: float) -> None:
        self._stages["overhead"].labels(model).observe(max(seconds, 0.0))

    def text(self) -> bytes:
        return generate_latest(self._shown)

    def collect(self) -> Iterable[Metric]:
        """Numbers of the batchers as they are now."""
        families: dict[str, GaugeMetricFamily] = {}
        labels, worker = (["model", "worker"], [str(os.getpid())]) if self._together else (["model"], [])
        for name, batcher in list(self._queues.items()):
            for key, value in batcher.stats().items():
                if isinstance(value, int | float):
                    title = f"retort_batcher_{key}"
                    family = families.setdefault(title, GaugeMetricFamily(title, "see Batcher.stats", labels=labels))
                    family.add_metric([name, *worker], float(value))
        return list(families.values())
