"""Numbers as people read them."""

from collections.abc import Mapping

from finetune_api.job import FineTuneJob
from finetune_api.status import Best, EarlyStoppingStatus, JobStatus, Progress, Stage

STAGES = {
    Stage.PREPARING: "preparing data and model",
    Stage.TRAINING: "training",
    Stage.EVALUATING: "evaluating",
    Stage.EXPORTING: "exporting the model",
    Stage.DONE: "finishing",
}
_MINUTE, _HOUR, _DAY = 60, 3600, 86_400


def duration(seconds: float) -> str:
    """``8 s``, ``3:05 min``, ``2:03 h`` or ``1 d 4 h``."""
    whole = round(seconds)
    if whole < _MINUTE:
        return f"{whole} s"
    if whole < _HOUR:
        return f"{whole // _MINUTE}:{whole % _MINUTE:02d} min"
    if whole < _DAY:
        return f"{whole // _HOUR}:{whole % _HOUR // _MINUTE:02d} h"
    return f"{whole // _DAY} d {whole % _DAY // _HOUR} h"


def number(value: float) -> str:
    """Four significant digits."""
    return f"{value:.4g}"


def metrics(values: Mapping[str, float]) -> str:
    """``accuracy 0.975, loss 0.0812``."""
    return ", ".join(f"{name} {number(value)}" for name, value in values.items())


def step(progress: Progress) -> str:
    """``step 120 of 900, epoch 1.33``."""
    return f"step {progress.step} of {progress.total_steps}, epoch {progress.epoch:.2f}"


def pace(progress: Progress) -> str:
    """``310 samples/s, 2:05 min left``; empty before a rate is known."""
    parts = []
    if progress.samples_per_second is not None:
        parts.append(f"{number(progress.samples_per_second)} samples/s")
    if progress.eta_seconds is not None:
        parts.append(f"{duration(progress.eta_seconds)} left")
    return ", ".join(parts)


def best(value: Best) -> str:
    """``accuracy 0.975 at step 120``."""
    return f"{value.metric} {number(value.value)} at step {value.step}"


def early_stopping(value: EarlyStoppingStatus, patience: int) -> str:
    """How near it is to stopping, or where it stopped."""
    if value.stopped_at_step is not None:
        return f"stopped early at step {value.stopped_at_step}"
    count = value.evaluations_without_improvement
    return f"{count} of {patience} evaluations without improvement"


def restarts(status: JobStatus) -> str:
    """``2 (Infrastructure 1, OutOfMemory 1), 12 steps trained again``; empty if there were none."""
    if not status.restarts:
        return ""
    causes = ", ".join(f"{cause} {count}" for cause, count in status.restarts.items())
    return f"{sum(status.restarts.values())} ({causes}), {status.lost_steps} steps trained again"


def facts(job: FineTuneJob, *, runs: bool) -> list[tuple[str, str]]:
    """What is known of a run under way, each with its name; a pace only if it ``runs``."""
    status, rule = job.status or JobStatus(), job.spec.early_stopping
    stopping = early_stopping(status.early_stopping, rule.patience) if status.early_stopping and rule else ""
    known = [
        ("pace", pace(status.progress) if status.progress and runs else ""),
        ("metrics", metrics(status.metrics)),
        ("best", best(status.best) if status.best else ""),
        ("stopping", stopping),
        ("checkpoint", f"step {status.last_checkpoint.step}" if status.last_checkpoint else ""),
        ("restarts", restarts(status)),
    ]
    return [(name, text) for name, text in known if text]
