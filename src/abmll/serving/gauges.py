"""What a server tells of itself to Prometheus."""

from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

if TYPE_CHECKING:
    from abmll.serving.service import Service


class Gauges:
    """Counts and times of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "abmll_requests", "Requests, by route and status", ["route", "status"], registry=self.registry
        )
        self.seconds = Histogram(
            "abmll_request_seconds", "Time of a request in seconds, by route", ["route"], registry=self.registry
        )
        self.rows = Histogram(
            "abmll_pass_rows", "Texts of a pass of the model", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.sharing = Histogram(
            "abmll_pass_requests", "Requests that share a pass", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32)
        )
        self.passes = Histogram("abmll_pass_seconds", "Time of a pass in seconds", registry=self.registry)

    def passed(self, rows: int, requests: int, seconds: float) -> None:
        """Note a pass of the model."""
        self.rows.observe(rows)
        self.sharing.observe(requests)
        self.passes.observe(seconds)

    def watch(self, service: "Service") -> None:
        """Tell how much waits, and how much is in memory, whenever it is asked for."""
        own = {
            "abmll_waiting_texts": ("Texts that wait to be read", lambda: service.engine.waiting),
            "abmll_jobs": ("Jobs that are not finished", lambda: len(service.jobs.live)),
            "abmll_tasks": ("Tasks of all tenants", service.store.number),
            "abmll_posteriors_in_memory": ("Learned versions in memory", lambda: len(service.memory.kept)),
            "abmll_posterior_bytes": ("What they take, in bytes", lambda: service.memory.kept.num_bytes),
        }
        for name, (about, value) in own.items():
            Gauge(name, about, registry=self.registry).set_function(value)

    def text(self) -> bytes:
        """All of it, as Prometheus reads it."""
        return generate_latest(self.registry)
