"""What is wanted of a job's attempt beside training: that it leaves, because of its user, its deadline or its peers.

Invariant: a wish is told from what is, so nothing has to be remembered: why an attempt was stopped is asked again when
it has ended.
"""

from finetune_api.status import JobStatus, Phase, Reason
from finetune_operator.actions import Event
from finetune_operator.conditions import Situation
from finetune_operator.observed import Observed, ObservedAttempt, WorkerPhase
from finetune_operator.status import running_seconds

PEER_GRACE_SECONDS = 10.0
"""Workers whose peer has ended get this long to notice and to say what they saw, before they are asked to leave."""


def wanted_suspension(observed: Observed) -> Situation | None:
    """Where the job shall stand if it shall hold no resources; None if it may run."""
    if observed.interrupted:
        message = "Interrupted; the same command goes on from the last checkpoint"
        return Situation(Phase.SUSPENDED, Reason.INTERRUPTED, message)
    if observed.job.spec.suspend:
        message = "Suspended by spec.suspend; it goes on once that is false"
        return Situation(Phase.SUSPENDED, Reason.SUSPENDED_BY_USER, message)
    return None


def is_end_wanted(observed: Observed) -> bool:
    """Whether the run shall end for good where it is."""
    return observed.job.spec.stop


def wish_to_stop(observed: Observed, status: JobStatus, attempt: ObservedAttempt) -> Event | None:
    """Why the attempt should leave, if it should."""
    suspension, gone = wanted_suspension(observed), peer_gone_seconds(observed, attempt)
    asked = f"Attempt {attempt.number} is asked to save and leave"
    if is_end_wanted(observed):
        return Event("Normal", Reason.PRUNED, asked)
    if suspension is not None:
        return Event("Normal", suspension.reason, asked)
    if is_past_deadline(observed, status):
        return Event("Warning", Reason.DEADLINE_EXCEEDED, f"{asked}: {deadline_text(observed)}")
    if gone is not None and gone >= PEER_GRACE_SECONDS:
        return Event("Warning", Reason.RESTARTING, f"{asked}: a worker of it has ended")
    return None


def peer_gone_seconds(observed: Observed, attempt: ObservedAttempt) -> float | None:
    """Seconds since the first worker ended without which the others are of no use; None if none has."""
    ends = [
        worker.ended
        for worker in attempt.workers
        if worker.ended is not None and (worker.phase is WorkerPhase.FAILED or worker.index == 0)
    ]
    return (observed.now - min(ends)).total_seconds() if ends else None


def is_past_deadline(observed: Observed, status: JobStatus) -> bool:
    """The job has run for as long as it may."""
    left = seconds_to_deadline(observed, status)
    return left is not None and left <= 0


def seconds_to_deadline(observed: Observed, status: JobStatus) -> float | None:
    """Seconds that the job may still run; None for any number. Only time in which every worker runs counts."""
    deadline = observed.job.spec.active_deadline_seconds
    if deadline is None:
        return None
    since = observed.attempt.running_since if observed.attempt else None
    return deadline - running_seconds(status, observed.now, is_running=since is not None)


def deadline_text(observed: Observed) -> str:
    """The deadline in words."""
    return f"the job ran for spec.activeDeadlineSeconds ({observed.job.spec.active_deadline_seconds} s)"
