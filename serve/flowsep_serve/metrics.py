"""Figures for Prometheus, in a registry of the server's own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """Counters and gauges of one server."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "flowsep_requests",
            "Answers by method, route and status.",
            ["method", "route", "status"],
            registry=registry,
        )
        self.jobs = Counter("flowsep_jobs", "Separations by outcome.", ["outcome"], registry=registry)
        self.seconds = Histogram(
            "flowsep_separation_seconds",
            "Time in the model.",
            buckets=(0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
            registry=registry,
        )
        self.audio = Counter("flowsep_audio_seconds", "Audio that was separated.", registry=registry)
        self.rows = Histogram(
            "flowsep_rows",
            "Rows of a run on a device that requests share: a text for a mixture each.",
            buckets=(1, 2, 3, 4),
            registry=registry,
        )
        self.waiting = Gauge("flowsep_waiting", "Jobs that wait.", registry=registry)
        self.running = Gauge("flowsep_running", "Jobs that models compute.", registry=registry)
        self.ready = Gauge("flowsep_models", "Models that can compute: 0, 1, or replicas.", registry=registry)
        self.disk = Gauge("flowsep_disk_bytes", "Disk in use or promised.", registry=registry)

    def text(self) -> bytes:
        return generate_latest(self._registry)
