"""What the server counts, by Prometheus' rules: its own registry, seconds, bytes and joules, totals that only grow."""

import platform
from collections.abc import Iterable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, disable_created_metrics, generate_latest

from perwatt import __version__

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
# From half a millisecond to half a minute, about three to a decade and finer where limits are usually set.
SECONDS = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5),
    *(1.0, 2.0, 5.0, 10.0, 30.0),
)
BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
# Predictions err to both sides; positive: slower than predicted.
ERRORS = (-0.1, -0.03, -0.01, -0.003, -0.001, 0.0, 0.001, 0.003, 0.01, 0.03, 0.1)


class Metrics:
    """Every figure of one server, in a registry of its own so that several servers may live in one process."""

    def __init__(self) -> None:
        # Without this every figure has a second series, of when it began, that nobody reads.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "perwatt_requests", "Requests answered, by HTTP status.", ("model", "route", "code"), registry=registry
        )
        self.refused = Counter(
            "perwatt_refused", "Requests refused, by reason.", ("model", "reason"), registry=registry
        )
        self.images = Counter("perwatt_images", "Images answered.", ("model",), registry=registry)
        self.duration = Histogram(
            "perwatt_request_duration_seconds",
            "From the whole request received to its answer handed over, answered requests only.",
            ("model", "route"),
            registry=registry,
            buckets=SECONDS,
        )
        self.stage = Histogram(
            "perwatt_stage_duration_seconds",
            "Where time goes: receive, decode, queue, infer.",
            ("model", "stage"),
            registry=registry,
            buckets=SECONDS,
        )
        self.batch = Histogram(
            "perwatt_batch_images", "Images of a batch that ran.", ("model",), registry=registry, buckets=BATCHES
        )
        self.prediction_error = Histogram(
            "perwatt_predicted_latency_error_seconds",
            "Duration of a batch less what the latency table predicted.",
            ("model",),
            registry=registry,
            buckets=ERRORS,
        )
        self.joules = Counter(
            "perwatt_energy_joules",
            "Joules of the meter's scope while this package ran; package '' is the rest of the time.",
            ("model", "meter", "scope"),
            registry=registry,
        )
        self.queue = Gauge("perwatt_queue_images", "Images waiting for the engine.", ("model",), registry=registry)
        self.decoding = Gauge(
            "perwatt_decode_queue_photographs", "Photographs being decoded or waiting for it.", registry=registry
        )
        self.in_flight = Gauge("perwatt_in_flight_requests", "Inference requests being worked on.", registry=registry)
        self.held = Gauge("perwatt_held_bytes", "Bodies received and not yet answered.", registry=registry)
        self.connections = Gauge("perwatt_open_connections", "Open HTTP connections.", registry=registry)
        self.ready = Gauge(
            "perwatt_model_ready", "1 when the package answers.", ("model", "version"), registry=registry
        )
        self.build = Gauge("perwatt_build_info", "What is running.", ("version", "python"), registry=registry)
        self.build.labels(__version__, platform.python_version()).set(1)

    def page(self) -> bytes:
        """Return the figures as Prometheus reads them."""
        return generate_latest(self.registry)

    def set_ready(self, states: Iterable[tuple[str, str, bool]]) -> None:
        """Set which packages answer: (name, version, ready); those not named are gone."""
        self.ready.clear()
        for name, version, ready in states:
            self.ready.labels(name, version).set(ready)


class ModelMetrics:
    """The figures of one package, with their labels looked up once: requests must not pay for the look-up."""

    def __init__(self, metrics: Metrics, model: str) -> None:
        self._metrics, self._model = metrics, model
        self.images = metrics.images.labels(model)
        self.stages = {stage: metrics.stage.labels(model, stage) for stage in ("receive", "decode", "queue", "infer")}
        self.batch = metrics.batch.labels(model)
        self.prediction_error = metrics.prediction_error.labels(model)
        self.queue = metrics.queue.labels(model)
        self._answered: dict[tuple[str, int], Counter] = {}
        self._refused: dict[str, Counter] = {}
        self._durations: dict[str, Histogram] = {}

    def answered(self, route: str, code: int) -> None:
        """Count an answered request."""
        counter = self._answered.get((route, code))
        if counter is None:
            counter = self._answered[route, code] = self._metrics.requests.labels(self._model, route, str(code))
        counter.inc()

    def took(self, route: str, seconds: float) -> None:
        """Keep the duration of a request that got what it asked for."""
        histogram = self._durations.get(route)
        if histogram is None:
            histogram = self._durations[route] = self._metrics.duration.labels(self._model, route)
        histogram.observe(seconds)

    def refused(self, reason: str) -> None:
        """Count a refusal."""
        counter = self._refused.get(reason)
        if counter is None:
            counter = self._refused[reason] = self._metrics.refused.labels(self._model, reason)
        counter.inc()
