"""The operator's own metrics, for Prometheus.

Invariant: labels are bounded: namespace and phase of jobs that exist (counted when asked, so a deleted job's series go
with it), causes, verbs, status codes; never a job's name.
"""

from collections.abc import Callable, Iterable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from finetune_api.status import Attempt, JobStatus
from finetune_operator.status import latest_attempt

_PREFIX = "finetune_operator"
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_START_SECONDS = (5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600)


class _Phases(Collector):
    """Objects by namespace and phase, as they are at the moment."""

    def __init__(self, name: str, documentation: str, phases: Callable[[], dict[tuple[str, str], int]]) -> None:
        self._name, self._documentation, self._phases = name, documentation, phases

    def collect(self) -> Iterable[GaugeMetricFamily]:
        family = GaugeMetricFamily(f"{_PREFIX}_{self._name}", self._documentation, labels=["namespace", "phase"])
        for (namespace, phase), count in sorted(self._phases().items()):
            family.add_metric([namespace, phase], count)
        yield family


class Metrics:
    """All series of one operator."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.transitions = Counter(
            f"{_PREFIX}_transitions", "Changes of a job's phase.", ["phase"], registry=self.registry
        )
        self.reconcile_seconds = Histogram(
            f"{_PREFIX}_reconcile_seconds",
            "How long one look at a job takes.",
            ["result"],
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.wait_seconds = Histogram(
            f"{_PREFIX}_queue_wait_seconds",
            "How long a job waits from being due until it is looked at.",
            buckets=_SECONDS,
            registry=self.registry,
        )
        self.requests = Counter(
            f"{_PREFIX}_api_requests",
            "Requests to the API server, watches apart; code 0 had no answer.",
            ["verb", "code"],
            registry=self.registry,
        )
        self.restarts = Counter(
            f"{_PREFIX}_restarts", "Restarts of attempts by cause.", ["cause"], registry=self.registry
        )
        self.lost_steps = Counter(
            f"{_PREFIX}_lost_steps", "Training steps that had to be taken again.", registry=self.registry
        )
        self.running_seconds = Counter(
            f"{_PREFIX}_running_seconds", "Seconds that ended attempts ran.", registry=self.registry
        )
        self.kept_seconds = Counter(
            f"{_PREFIX}_kept_seconds",
            "Those of the running seconds whose work was kept; by running_seconds it is the goodput.",
            registry=self.registry,
        )
        self.first_step_seconds = Histogram(
            f"{_PREFIX}_first_step_seconds",
            "From the moment that all workers of an attempt run to its first report of training.",
            buckets=_START_SECONDS,
            registry=self.registry,
        )
        self.leading = Gauge(f"{_PREFIX}_leading", "1 if this replica holds the lease.", registry=self.registry)

    def watch_phases(self, name: str, documentation: str, phases: Callable[[], dict[tuple[str, str], int]]) -> None:
        """Tell objects by (namespace, phase) as ``phases`` has them when asked."""
        self.registry.register(_Phases(name, documentation, phases))

    def watch(self, name: str, documentation: str, value: Callable[[], float]) -> None:
        """Tell a value as it is when asked."""
        Gauge(f"{_PREFIX}_{name}", documentation, registry=self.registry).set_function(value)

    def count_request(self, verb: str, status: int) -> None:
        """One request has ended."""
        self.requests.labels(verb, str(status)).inc()

    def count_change(self, before: JobStatus, after: JobStatus, now: datetime) -> None:
        """A status was written."""
        if after.phase != before.phase:
            self.transitions.labels(after.phase.value).inc()
        self.lost_steps.inc(max(0, after.lost_steps - before.lost_steps))
        for cause, count in after.restarts.items():
            self.restarts.labels(cause).inc(max(0, count - before.restarts.get(cause, 0)))
        ran = after.running_seconds - before.running_seconds
        if ran > 0:
            self.running_seconds.inc(ran)
            self.kept_seconds.inc(ran * _kept_share(before, after))
        latest = latest_attempt(after)
        if latest is not None and _first_steps(before, after, latest):
            self.first_step_seconds.observe(max(0.0, (now - latest.start).total_seconds()))


def _kept_share(before: JobStatus, after: JobStatus) -> float:
    """The share of the last ended attempt's steps that a checkpoint (or the result) keeps; 0 to 1."""
    number = before.attempts[-1].number if before.attempts else None
    attempt = next((one for one in after.attempts if one.number == number), None)
    if attempt is None:
        return 0.0
    if attempt.end is not None and attempt.cause is None:
        return 1.0
    saved = after.last_checkpoint.step if after.last_checkpoint else 0
    steps = attempt.to_step - attempt.from_step
    return min(1.0, max(0.0, (saved - attempt.from_step) / steps)) if steps > 0 else 0.0


def _first_steps(before: JobStatus, after: JobStatus, latest: Attempt) -> bool:
    """Whether this is the first report of training of the latest attempt."""
    if after.progress is None or latest.end is not None:
        return False
    if latest.number == 1:
        return before.progress is None
    return after.resumed_from_step is not None and before.resumed_from_step is None
