"""The local cluster: a job's attempts as processes of this machine, driven by the same plan as in Kubernetes.

Invariant: ``reconcile`` observes once, plans once, applies once. An attempt is started before the status that tells of
it is written; status.yaml lags what is known by a few seconds at most, and not at all where it matters: at a start, an
end, a checkpoint, a condition.
"""

import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus, ProgressReport
from finetune_cli.pull import pull_report
from finetune_cli.store import Store
from finetune_cli.workers import RunningAttempt, observe_orphaned, start_attempt
from finetune_operator.actions import Event, Plan, StartAttempt, StopAttempt
from finetune_operator.causes import root_cause
from finetune_operator.observed import Observed, ObservedAttempt, WorkerPhase
from finetune_operator.plan import plan
from finetune_operator.status import open_attempt

TRAINER = (sys.executable, "-m", "finetune_trainer.launch")
GRACE_SECONDS = 60.0
"""How long workers may take to save and leave before they are killed."""
_PULL_INTERVAL = timedelta(seconds=0.5)
_WRITE_INTERVAL = timedelta(seconds=5)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True)
class View:
    """What there is to show at one moment."""

    job: FineTuneJob
    now: datetime
    report: ProgressReport | None
    """The latest report of the present attempt."""
    events: tuple[Event, ...]
    """What has happened since the view before."""

    @property
    def status(self) -> JobStatus:
        """The job's status."""
        return self.job.status or JobStatus()


def utc_now() -> datetime:
    """The present time."""
    return datetime.now(UTC)


class LocalCluster:
    """Runs one job: call ``reconcile`` a few times a second until ``is_at_rest``."""

    def __init__(
        self,
        job: FineTuneJob,
        store: Store,
        *,
        lock: int,
        command: tuple[str, ...] = TRAINER,
        environment: Mapping[str, str] = os.environ,
        clock: Callable[[], datetime] = utc_now,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Take over a job with the status that it has.

        Args:
            job: The job with its last status.
            store: The run's files.
            lock: Descriptor of the run's lock; workers inherit it.
            command: What starts a worker.
            environment: Variables of workers, beside those of the wiring.
            clock: The present time, with a time zone.
            grace_seconds: How long workers may take to leave.
        """
        self.job = job
        self.interrupted = False
        """Set it to have the run save and stop."""
        self.killed = False
        """Set it to end every worker at once."""
        self.is_at_rest = False
        """Nothing runs, and nothing will unless the job changes."""
        self.failed_worker: int | None = None
        """The worker that failed first in the last attempt that failed."""
        self.write_fault: str | None = None
        """Why the last status could not be written: no reason to stop a training that goes well."""
        self._store, self._lock, self._clock = store, lock, clock
        self._command, self._environment = command, environment
        self._grace = timedelta(seconds=grace_seconds)
        self._attempt: RunningAttempt | None = None
        self._report: ProgressReport | None = None
        self._pulled_at = _LONG_AGO
        self._written, self._written_at = job.status, _LONG_AGO

    def reconcile(self) -> View:
        """Look, decide, act; returns what there is to show."""
        observed = self._observe(self._clock())
        self._end_stragglers(observed)
        made = plan(observed)
        self._apply(made, observed)
        self.is_at_rest = made.is_empty and made.look_again_seconds is None
        return View(self.job, observed.now, self._report, made.events)

    def close(self) -> None:
        """Write what is not yet written, and end whatever still runs (after an error of our own): it may save first."""
        if self._attempt is not None:
            self._attempt.end(self._clock(), self._grace.total_seconds())
        self._write(self._clock())

    def _observe(self, now: datetime) -> Observed:
        attempt = self._observe_attempt(now)
        if attempt is not None and attempt.is_over:
            failed = any(worker.phase is WorkerPhase.FAILED for worker in attempt.workers)
            self.failed_worker = root_cause(attempt).worker.index if failed else None
        elif self._attempt is not None and now - self._pulled_at >= _PULL_INTERVAL:
            self._pulled_at = now
            self._report = pull_report(self._store.scratch(self._attempt.number, 0)) or self._report
        return Observed(self.job, now, attempt, self._report, interrupted=self.interrupted)

    def _observe_attempt(self, now: datetime) -> ObservedAttempt | None:
        """Our own attempt; or, in a run whose command was killed, what is left of its last one."""
        if self._attempt is not None:
            return self._attempt.observe(now)
        left = open_attempt(self.job.status) if self.job.status else None
        return observe_orphaned(self._store, left.number) if left else None

    def _end_stragglers(self, observed: Observed) -> None:
        if self._attempt is None:
            return
        asked = self._attempt.asked_to_leave
        if self.killed and asked is None:
            self._attempt.ask_to_leave(observed.now)
        if self.killed or (asked is not None and observed.now - asked >= self._grace):
            self._attempt.kill()

    def _apply(self, made: Plan, observed: Observed) -> None:
        now = observed.now
        if isinstance(made.action, StartAttempt):
            self._start(made.action.number, now)
        elif isinstance(made.action, StopAttempt) and self._attempt is not None:
            self._attempt.ask_to_leave(now)
        if made.status is not None:
            self.job = self.job.model_copy(update={"status": made.status})
        is_milestone = made.status is not None and _milestones(made.status) != _milestones(observed.job.status)
        if is_milestone or now - self._written_at >= _WRITE_INTERVAL:
            self._write(now)
        self._tell(made.events, now)

    def _start(self, number: int, now: datetime) -> None:
        self._report = None
        self._attempt = start_attempt(
            self._store,
            self.job,
            number,
            command=self._command,
            environment=self._environment,
            lock=self._lock,
            now=now,
        )

    def _write(self, now: datetime) -> None:
        self._written_at = now
        if self.job.status == self._written:
            return
        try:
            self._store.write(self.job)
        except OSError as error:
            self.write_fault = str(error)
        else:
            self._written, self.write_fault = self.job.status, None

    def _tell(self, events: tuple[Event, ...], now: datetime) -> None:
        try:
            self._store.append(events, now)
        except OSError as error:
            self.write_fault = str(error)


def _milestones(status: JobStatus | None) -> object:
    """What of a status must never be lost; the rest is progress, and the next attempt tells it anew."""
    if status is None:
        return None
    return (
        status.phase,
        [(condition.status, condition.reason) for condition in status.conditions],
        [(attempt.number, attempt.end) for attempt in status.attempts],
        status.last_checkpoint,
        status.resumed_from_step,
        status.result,
    )
