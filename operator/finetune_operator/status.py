"""Builders of a job's status: each takes one and returns the next; none looks at a clock.

Invariant: what is summed (lost steps, running seconds, restarts) is added once, at an event that the status itself
remembers, so that building it again from the same observation changes nothing.
"""

from datetime import datetime

from finetune_api.outcomes import Cause
from finetune_api.status import Attempt, JobStatus, LastCheckpoint, Phase, ProgressReport, TerminationMessage
from finetune_operator.causes import Verdict
from finetune_operator.conditions import SENTENCE_CHARACTERS

KEPT_ATTEMPTS = 20


def latest_attempt(status: JobStatus) -> Attempt | None:
    """The newest attempt; None before the first."""
    return status.attempts[-1] if status.attempts else None


def open_attempt(status: JobStatus) -> Attempt | None:
    """The attempt whose end is not known yet, if there is one."""
    latest = latest_attempt(status)
    return latest if latest is not None and latest.end is None else None


def running_seconds(status: JobStatus, now: datetime, *, is_running: bool) -> float:
    """Seconds that the job ran, all attempts together, the present one included if it runs."""
    current = open_attempt(status)
    since = (now - current.start).total_seconds() if current is not None and is_running else 0.0
    return status.running_seconds + max(0.0, since)


def with_attempt(status: JobStatus, number: int, start: datetime) -> JobStatus:
    """A new attempt has begun. Where it resumes is the newest checkpoint, until its own report says."""
    step = status.last_checkpoint.step if status.last_checkpoint else 0
    attempt = Attempt(number=number, start=start, from_step=step, to_step=step)
    return status.model_copy(
        update={
            "attempts": (*status.attempts, attempt)[-KEPT_ATTEMPTS:],
            "start_time": status.start_time or start,
            "resumed_from_step": None,
        }
    )


def with_start(status: JobStatus, start: datetime) -> JobStatus:
    """The open attempt's clock starts at ``start``: the time that its workers waited before is not its own."""
    return status if status.attempts[-1].start == start else _with_latest(status, {"start": start})


def with_pause(status: JobStatus, now: datetime) -> JobStatus:
    """The open attempt ran until now and was then held back (Kueue preempted it): it starts anew when it is let go."""
    seconds = running_seconds(status, now, is_running=True)
    return _with_latest(status, {"start": now}).model_copy(update={"running_seconds": seconds})


def with_report(status: JobStatus, report: ProgressReport) -> JobStatus:
    """What rank 0 of the open attempt says; anything else's report is not for this function.

    Until training starts a report knows nothing of steps, so what is known from before stays.
    """
    status = _with_checkpoint(status, report.last_checkpoint)
    if report.progress is None:
        return status
    status = _with_resumption(status, report.resumed_from_step, report.lost_steps)
    status = _with_latest(status, {"to_step": report.progress.step})
    return status.model_copy(
        update={
            "progress": report.progress,
            "metrics": report.metrics or status.metrics,
            "tracking_urls": report.tracking_urls or status.tracking_urls,
            "best": report.best or status.best,
            "evaluations": report.evaluations or status.evaluations,
            "early_stopping": report.early_stopping or status.early_stopping,
        }
    )


def with_success(status: JobStatus, end: datetime, message: TerminationMessage | None) -> JobStatus:
    """The open attempt has finished the run."""
    step = max(status.attempts[-1].to_step, message.step if message else 0)
    ended = _with_end(status, end, {"exit_code": 0, "to_step": step})
    return ended.model_copy(update={"completion_time": end, "result": message.result if message else None})


def with_failure(status: JobStatus, end: datetime, verdict: Verdict) -> JobStatus:
    """The open attempt has failed."""
    worker = verdict.worker
    told = worker.message.step if worker.message else 0
    return _with_end(
        status,
        end,
        {
            "cause": verdict.cause,
            "exit_code": worker.exit_code,
            "reason": verdict.sentence[:SENTENCE_CHARACTERS],
            "node": worker.node,
            "to_step": max(status.attempts[-1].to_step, told),
        },
    )


def with_restart(status: JobStatus, cause: Cause) -> JobStatus:
    """One restart more of this cause."""
    return status.model_copy(
        update={
            "restarts": _one_more(status.restarts, cause),
            "restarts_since_progress": _one_more(status.restarts_since_progress, cause),
        }
    )


def milestones(status: JobStatus | None) -> object:
    """What of a status must be written at once; the rest is progress, and is told anew by the next report."""
    if status is None:
        return None
    return (
        status.phase,
        [(condition.status, condition.reason) for condition in status.conditions],
        [(attempt.number, attempt.end) for attempt in status.attempts],
        status.resumed_from_step,
        status.result,
        status.observed_generation,
    )


def tells_only_start(before: JobStatus, after: JobStatus) -> bool:
    """Whether the open attempt's start is all that is new: the first report is soon to come, and tells it as well."""
    return open_attempt(before) is not None and with_start(after, before.attempts[-1].start) == before


def reopened(status: JobStatus) -> JobStatus:
    """A failed job's status, for its user wants another try (local machine): budgets are whole again."""
    return status.model_copy(
        update={"phase": Phase.PENDING, "conditions": (), "completion_time": None, "restarts_since_progress": {}}
    )


def _with_checkpoint(status: JobStatus, checkpoint: LastCheckpoint | None) -> JobStatus:
    """A newer checkpoint gives every budget back.

    An older one is ignored: it means that the newest was found damaged, and a run that damages the same checkpoint
    again and again makes no progress.
    """
    known = status.last_checkpoint
    if checkpoint is None or (known is not None and checkpoint.step < known.step):
        return status
    newer = known is None or checkpoint.step > known.step
    since = {} if newer else status.restarts_since_progress
    return status.model_copy(update={"last_checkpoint": checkpoint, "restarts_since_progress": since})


def _with_resumption(status: JobStatus, step: int, lost: int) -> JobStatus:
    """The open attempt trains from ``step``: once an attempt, what lay beyond it is counted as lost.

    That is what its predecessor was seen to reach, or ``lost``, by its own history: it may have been killed unseen.
    """
    first = status.attempts[-1].number == 1
    if status.resumed_from_step is not None or (first and step == 0):
        return status
    reached = max(status.progress.step if status.progress else 0, *(one.to_step for one in status.attempts[-2:-1]), 0)
    resumed = _with_latest(status, {"from_step": step})
    return resumed.model_copy(
        update={"resumed_from_step": step, "lost_steps": status.lost_steps + max(0, reached - step, lost)}
    )


def _with_end(status: JobStatus, end: datetime, fields: dict[str, object]) -> JobStatus:
    seconds = running_seconds(status, end, is_running=True)
    return _with_latest(status, {"end": end, **fields}).model_copy(update={"running_seconds": seconds})


def _with_latest(status: JobStatus, fields: dict[str, object]) -> JobStatus:
    latest = status.attempts[-1].model_copy(update=fields)
    return status.model_copy(update={"attempts": (*status.attempts[:-1], latest)})


def _one_more(counts: dict[str, int], cause: Cause) -> dict[str, int]:
    return {**counts, cause.value: counts.get(cause.value, 0) + 1}
