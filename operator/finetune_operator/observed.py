"""What a cluster (Kubernetes or the local machine) sees of a job: the only input of every decision.

Invariant: a worker is listed for as long as a process of it may be alive, and after its end until the attempt's end is
in the job's status. A worker that is known to be gone for good is listed as Failed, with the platform's reason.
"""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus, ProgressReport, Reason, TerminationMessage

_NEW = JobStatus()
"""Of a job that has no status yet."""


class WorkerPhase(StrEnum):
    """Where a worker stands; the names are those of pods."""

    PENDING = "Pending"
    RUNNING = "Running"
    SUCCEEDED = "Succeeded"
    FAILED = "Failed"


class PlatformReason(StrEnum):
    """What the platform itself knows of a worker's end."""

    OOM_KILLED = "OOMKilled"
    """The kernel killed it for the memory it used."""
    EVICTED = "Evicted"
    """The node or an administrator asked it to leave."""
    PREEMPTED = "Preempted"
    """The scheduler gave its place to something more important."""
    NODE_LOST = "NodeLost"
    """Its node is gone or out of reach."""
    DELETED = "Deleted"
    """Somebody deleted it."""
    SUPERVISOR_LOST = "SupervisorLost"
    """The command that had started it was killed (local machine)."""


@dataclass(frozen=True)
class ObservedWorker:
    """One worker of an attempt."""

    index: int
    phase: WorkerPhase
    started: datetime | None = None
    """When its processes began to run; None while it waits."""
    ended: datetime | None = None
    """When its last process had ended; None while it is alive, or if nobody knows."""
    exit_code: int | None = None
    """0 to 255, 128 + n for signal n; None while it is alive, or if nobody knows."""
    message: TerminationMessage | None = None
    node: str | None = None
    platform_reason: PlatformReason | None = None

    @property
    def is_alive(self) -> bool:
        """Whether a process of it exists or may yet be started."""
        return self.phase in (WorkerPhase.PENDING, WorkerPhase.RUNNING)


@dataclass(frozen=True)
class ObservedAttempt:
    """The attempt that a decision is about: the open one of the status while the cluster knows of it, else the newest.

    The open one comes first even if its successor exists already (the operator was killed between making that and
    saying so): its end, and what that costs, must not be forgotten.
    """

    number: int
    workers: tuple[ObservedWorker, ...] = ()
    stopping: bool = False
    """Its workers were asked to leave (SIGTERM) by us."""
    held: bool = False
    """Somebody else (Kueue, a person) holds it back: nothing of it runs until they let it."""
    waiting: str | None = None
    """Why not every worker runs, or why one cannot be ended; None if there is nothing to say."""

    @property
    def is_over(self) -> bool:
        """No process of it is alive, nor will be."""
        return bool(self.workers) and not self.held and not any(worker.is_alive for worker in self.workers)

    @property
    def running_since(self) -> datetime | None:
        """When its last worker began to run: no time before counts as running. None while one waits."""
        starts = [worker.started for worker in self.workers if worker.started is not None]
        return max(starts) if starts and len(starts) == len(self.workers) else None


@dataclass(frozen=True)
class Refusal:
    """Why a job may not run as it is."""

    reason: Reason
    """Invalid, Forbidden or RuntimeNotFound."""
    message: str


@dataclass(frozen=True)
class Observed:
    """Everything that a decision is made from."""

    job: FineTuneJob
    """As stored, with its status."""
    now: datetime
    attempt: ObservedAttempt | None = None
    report: ProgressReport | None = None
    """The latest progress; None if it could not be had this time."""
    interrupted: bool = False
    """The command that runs the job was asked to stop (local machine)."""
    refusal: Refusal | None = None
    obstacle: str | None = None
    """Why the cluster did not take the objects of the next attempt just now; that is tried again."""

    @property
    def status(self) -> JobStatus:
        """The job's status; that of a new job if it has none."""
        return self.job.status or _NEW

    @property
    def generation(self) -> int:
        """Generation of the spec; 0 where none is counted (local machine)."""
        return int((self.job.metadata.model_extra or {}).get("generation", 0))
