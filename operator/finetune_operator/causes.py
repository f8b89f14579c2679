"""Why an attempt failed: an ordered chain of checks of each failed worker, then the one that failed on its own account.

Invariant: a check looks at one kind of evidence and says nothing when it has none; the first that speaks is right.
What the platform saw comes first (a process that is killed cannot tell), then what the worker left behind, then its
exit code alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from finetune_api.outcomes import Cause, ExitCode, cause_of
from finetune_operator.observed import ObservedAttempt, ObservedWorker, PlatformReason, WorkerPhase

Finding = tuple[Cause, str]
"""A cause, and what happened in a sentence."""
Check = Callable[[ObservedWorker, bool], Finding | None]
"""(worker, whether it was asked to leave) → what the evidence says, if it says anything."""


@dataclass(frozen=True)
class Verdict:
    """Why an attempt failed."""

    cause: Cause
    sentence: str
    """What happened, with the worker's number where there are several."""
    worker: ObservedWorker
    """The worker that failed first, of itself."""


def root_cause(attempt: ObservedAttempt) -> Verdict:
    """The verdict on the worker that pulled the others along.

    When one worker fails its peers lose it and leave with 75, or are asked to leave and do so with 143: such endings
    are consequences. Of several that failed on their own account the first in time counts.
    """
    failed = [worker for worker in attempt.workers if worker.phase is WorkerPhase.FAILED]
    verdicts = [_judge(worker, stopping=attempt.stopping, alone=len(attempt.workers) == 1) for worker in failed]
    return min(verdicts, key=_precedence)


def _judge(worker: ObservedWorker, *, stopping: bool, alone: bool) -> Verdict:
    findings = (check(worker, stopping) for check in CHECKS)
    cause, sentence = next(finding for finding in findings if finding is not None)
    return Verdict(cause, sentence if alone else f"worker {worker.index}: {sentence}", worker)


def _precedence(verdict: Verdict) -> tuple[int, datetime, int]:
    worker = verdict.worker
    return _rank(verdict), worker.ended or datetime.max.replace(tzinfo=UTC), worker.index


def _rank(verdict: Verdict) -> int:
    """0 for a failure of its own; more, the likelier it is a consequence of another's."""
    if verdict.worker.exit_code == ExitCode.RETRY:
        return 3
    if verdict.cause is not Cause.PREEMPTED:
        return 0
    # All of them save and leave together when one is asked to; which one that was the platform knows.
    return 1 if verdict.worker.platform_reason in _SEEN_BY_PLATFORM else 2


_SEEN_BY_PLATFORM = {
    PlatformReason.OOM_KILLED: (
        Cause.OUT_OF_MEMORY,
        (
            "killed by the kernel: out of memory; raise spec.distributed.resources.memory, or"
            " spec.training.gradientAccumulation (less memory a step)"
        ),
    ),
    PlatformReason.EVICTED: (Cause.PREEMPTED, "evicted from its node"),
    PlatformReason.PREEMPTED: (Cause.PREEMPTED, "preempted by the scheduler"),
    PlatformReason.NODE_LOST: (Cause.INFRASTRUCTURE, "its node was lost"),
}
_VANISHED = {
    PlatformReason.DELETED: (Cause.PREEMPTED, "was deleted"),
    PlatformReason.SUPERVISOR_LOST: (Cause.PREEMPTED, "the command that ran it was killed"),
}


def seen_by_platform(worker: ObservedWorker, _stopping: bool) -> Finding | None:
    """Out of memory, eviction, preemption, node lost."""
    return _SEEN_BY_PLATFORM.get(worker.platform_reason) if worker.platform_reason else None


def asked_to_leave(worker: ObservedWorker, stopping: bool) -> Finding | None:
    """It left because we asked it to, or was killed because it did not within its time."""
    if stopping and worker.exit_code == ExitCode.PREEMPTED:
        return Cause.PREEMPTED, "saved and left as it was asked to"
    if stopping and worker.exit_code == ExitCode.KILLED:
        return Cause.PREEMPTED, "was asked to leave and had to be killed; what it did after its last checkpoint is lost"
    return None


def told_by_worker(worker: ObservedWorker, _stopping: bool) -> Finding | None:
    """The termination message names a cause."""
    if worker.message is None or worker.message.cause is None:
        return None
    return worker.message.cause, worker.message.message or f"exit code {worker.message.exit_code}"


def vanished(worker: ObservedWorker, _stopping: bool) -> Finding | None:
    """It was taken away before it could say anything; nothing went wrong with the run."""
    return _VANISHED.get(worker.platform_reason) if worker.platform_reason else None


def killed(worker: ObservedWorker, _stopping: bool) -> Finding | None:
    """SIGKILL from outside: where memory was the reason, the platform has said so before."""
    if worker.exit_code != ExitCode.KILLED:
        return None
    return Cause.INFRASTRUCTURE, "killed (SIGKILL) from outside; nothing tells of a lack of memory"


def told_by_exit_code(worker: ObservedWorker, _stopping: bool) -> Finding | None:
    """The last resort: the exit code, or that there is none."""
    if worker.exit_code is None:
        return Cause.INFRASTRUCTURE, "ended without leaving a trace"
    return cause_of(worker.exit_code), f"left with exit code {worker.exit_code}"


CHECKS: tuple[Check, ...] = (
    seen_by_platform,
    asked_to_leave,
    told_by_worker,
    vanished,
    killed,
    told_by_exit_code,
)
