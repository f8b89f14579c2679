"""An attempt from what is known of its Job and pods, and why it waits.

Invariant: a worker counts as ended only on evidence: its pod says so, or its Job says that no pod is alive any more. A
pod that merely vanished is no evidence while its Job goes on: whoever suspends a Job has its pods deleted as well.
"""

from collections.abc import Iterable
from dataclasses import replace
from datetime import datetime

from finetune_operator.observed import ObservedAttempt, ObservedWorker, PlatformReason, WorkerPhase
from finetune_operator.records import AttemptRecord, PodRecord
from finetune_operator.store import Children

PATIENCE_SECONDS = 5.0
"""What takes no longer than this to start is not worth a word."""
OVERDUE_SECONDS = 30.0
"""A pod that is still there so long after its grace has a node that does not answer."""


def is_in_doubt(job: AttemptRecord | None, pods: Iterable[PodRecord]) -> bool:
    """The Job says that all is over, and the pods do not (yet): they come by another watch, which may lag behind."""
    if job is None or job.ended is None:
        return False
    newest = newest_pods(pods)
    return any(index not in newest or newest[index].worker.is_alive for index in range(job.workers))


def observe_attempt(
    number: int, job: AttemptRecord | None, pods: Iterable[PodRecord], now: datetime, refused_pods: str | None = None
) -> ObservedAttempt:
    """The attempt as decisions see it.

    Args:
        number: Of the attempt.
        job: Its Job; None if that is gone.
        pods: Its pods, also those that are gone.
        now: The present time.
        refused_pods: Why the Job's pods cannot be made, if they cannot.
    """
    newest = newest_pods(pods)
    if job is None:
        return ObservedAttempt(number, tuple(pod.worker for _, pod in sorted(newest.items())))
    workers = tuple(_worker(index, newest.get(index), job) for index in range(job.workers))
    attempt = ObservedAttempt(number, workers, stopping=job.is_stopping, held=job.is_suspended)
    return replace(attempt, waiting=_waiting(attempt, newest, job, now, refused_pods))


def numbers_of(children: Children, owner: str) -> set[int]:
    """Numbers of the attempts of which anything of this job (by its uid) is left."""
    jobs = {job.number for job in children.attempts.values() if job.owner == owner}
    pods = {pod.attempt for pod in children.pods.values() if pod.owner == owner}
    return {number for number in jobs | pods if number > 0}


def newest_pods(pods: Iterable[PodRecord]) -> dict[int, PodRecord]:
    """The newest pod of each worker: a Job that was suspended and let go makes new ones."""
    ordered = sorted(pods, key=lambda pod: (not pod.is_gone, pod.created, pod.version))
    return {pod.worker.index: pod for pod in ordered}


def _worker(index: int, pod: PodRecord | None, job: AttemptRecord) -> ObservedWorker:
    if pod is not None and not (pod.is_gone and job.ended is None):
        return pod.worker
    if job.ended is None:
        return ObservedWorker(index, WorkerPhase.PENDING)
    if job.succeeded:
        return ObservedWorker(index, WorkerPhase.SUCCEEDED, ended=job.ended, exit_code=0)
    return ObservedWorker(index, WorkerPhase.FAILED, ended=job.ended, platform_reason=PlatformReason.DELETED)


def _waiting(
    attempt: ObservedAttempt,
    pods: dict[int, PodRecord],
    job: AttemptRecord,
    now: datetime,
    refused_pods: str | None,
) -> str | None:
    """In order: pods that will not go, pods that cannot be made, pods that cannot start."""
    overdue = [pod for pod in pods.values() if _overdue_seconds(pod, now) > OVERDUE_SECONDS]
    if overdue:
        node = overdue[0].worker.node
        told = f"worker {overdue[0].worker.index} was asked to leave, but its node {node} does not answer"
        return f"{told}; nothing starts beside it until the node is back, or deleted, or tainted out-of-service"
    if attempt.held or job.ended is not None or attempt.running_since is not None:
        return None
    if refused_pods is not None:
        return f"its pods cannot be made: {refused_pods}"
    told_of = [(index, pod.waiting) for index, pod in sorted(pods.items()) if pod.waiting and _is_late(pod, now)]
    if not told_of:
        return None
    running = sum(worker.phase is WorkerPhase.RUNNING for worker in attempt.workers)
    several = f"{running} of {job.workers} workers run; worker {told_of[0][0]} waits: " if job.workers > 1 else ""
    return several + str(told_of[0][1])


def _is_late(pod: PodRecord, now: datetime) -> bool:
    return (now - pod.created).total_seconds() >= PATIENCE_SECONDS


def _overdue_seconds(pod: PodRecord, now: datetime) -> float:
    if pod.leave_by is None or not pod.worker.is_alive:
        return 0.0
    return (now - pod.leave_by).total_seconds()
