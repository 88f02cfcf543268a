"""What a server counts, for Prometheus (`/metrics`)."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30)
REFUSALS = ("sessions", "episodes", "batch", "state", "goal", "message", "idle", "token", "origin", "connections")
"""Names of the limits, and of reasons to refuse a connection."""


class Metrics:
    """Counters of one server, in a registry of its own. `refused` counts refusals by the name of the limit."""

    def __init__(self):
        self.registry = CollectorRegistry()
        self.steps = self._of(Counter, "steps", "Environment steps taken")
        self.requests = self._of(Counter, "requests", "Requests answered", "op")
        self.errors = self._of(Counter, "errors", "Requests answered with an error", "type")
        self.refused = self._of(Counter, "refused", "What a limit refused", "limit")
        self.resumed = self._of(Counter, "resumed", "Sessions that a client came back to")
        self.taken_over = self._of(Counter, "taken_over", "Sessions of another server that this one went on with")
        self.bytes = self._of(Counter, "bytes", "Bytes of messages", "direction")
        self.batch = self._of(Histogram, "batch_episodes", "Episodes in a batch", buckets=(1, 2, 4, 8, 16, 32, 64, 128))
        self.seconds = self._of(Histogram, "step_seconds", "Seconds of a step, by part", "part", buckets=SECONDS)
        for limit in REFUSALS:
            self.refused.labels(limit)

    def watch(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Add a gauge whose value is read whenever the metrics are.

        Args:
            name: without the prefix "sanawm_".
            about: the help text.
            value: returns the number.
        """
        self._of(Gauge, name, about).set_function(value)

    def text(self) -> bytes:
        """The metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def _of(self, kind, name: str, about: str, *labels: str, **more):
        return kind(f"sanawm_{name}", about, labels, registry=self.registry, **more)
