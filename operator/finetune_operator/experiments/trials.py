"""What an experiment's trials are at the moment: a row each, from their jobs' statuses.

Invariant: a row that has ended stays as it is when its job is gone, so that an answer outlives what it came from.
"""

from dataclasses import dataclass

from finetune_api.experiment import TrialStatus, Variant
from finetune_api.job import FineTuneJob
from finetune_api.status import EvaluationPoint, JobStatus, Phase, Reason

ENDED = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(frozen=True)
class Trial:
    """A variant with a seed."""

    variant: Variant
    seed: int
    name: str
    job: FineTuneJob | None
    """As it stands; None if it is not there."""
    row: TrialStatus | None
    """What is known of it; None if it was never made."""

    @property
    def is_ended(self) -> bool:
        """It has a value, was pruned, or has failed."""
        return self.row is not None and self.row.phase in ENDED

    @property
    def is_active(self) -> bool:
        """Its job is there and has not ended."""
        return self.job is not None and not self.is_ended

    @property
    def is_failed(self) -> bool:
        """It ended without a value, of itself."""
        return self.row is not None and self.row.phase is Phase.FAILED

    @property
    def is_pruned(self) -> bool:
        """It was ended early, or is asked to end."""
        asked = self.job is not None and self.job.spec.stop
        return asked or (self.row is not None and self.row.pruned)

    @property
    def value(self) -> float | None:
        """The objective, once it is known."""
        return self.row.value if self.row else None

    @property
    def points(self) -> tuple[EvaluationPoint, ...]:
        """Its evaluations so far."""
        return self.job.status.evaluations if self.job and self.job.status else ()


def row_of(job: FineTuneJob, variant: str, seed: int, metric: str, *, is_search: bool) -> TrialStatus:
    """The row of a trial.

    A search chooses by the validation set, so the test set stays unseen; variants are written beforehand, and are
    compared on the test set.
    """
    status = job.status or JobStatus()
    progress, workers = status.progress, job.spec.distributed.workers
    pruned = any(one.reason is Reason.PRUNED and one.status == "True" for one in status.conditions)
    best = status.best.value if status.best and status.best.metric == metric else None
    tested = status.result.metrics.get(metric) if status.result else None
    is_complete = status.phase is Phase.SUCCEEDED and not pruned
    seconds = status.running_seconds * workers
    return TrialStatus(
        name=job.metadata.name,
        variant=variant,
        seed=seed,
        phase=status.phase,
        pruned=pruned,
        value=(best if is_search else tested) if is_complete else None,
        best=best,
        step=progress.step if progress else 0,
        total_steps=progress.total_steps if progress else 0,
        worker_seconds=seconds,
        gpu_seconds=seconds * (job.spec.distributed.resources.gpus or 0),
        model=status.result.model if status.result and is_complete else None,
    )


def unmade_row(name: str, variant: str, seed: int) -> TrialStatus:
    """The row of a trial that cannot be made: what a search proposed is no valid job."""
    return TrialStatus(name=name, variant=variant, seed=seed, phase=Phase.FAILED)
