"""The course of a run: its state, how long it is, and at which points it is evaluated and saved. Pure.

Invariant: what is due is a function of the state alone, so a resumed run does at each step what the uninterrupted one
does there, an evaluation that was broken off included.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from finetune_api.job import Every, Training
from finetune_trainer.optimizer import rate_factor

DEFAULT_EPOCHS = 3.0
KEPT_EVALUATIONS = 32
"""As many as a status holds."""
_ROUNDING = 1e-9


@dataclass(frozen=True)
class BestSeen:
    """The best evaluation so far."""

    value: float
    step: int
    metrics: Mapping[str, float] = field(default_factory=dict)
    """All that was measured there. Kept here, for its checkpoint may be older than the evaluation (SIGTERM in it)."""


@dataclass(frozen=True)
class RunState:
    """Where a run stands between two steps; all that a checkpoint keeps beside tensors."""

    step: int = 0
    """Optimizer steps done."""
    epoch: int = 0
    """Whole epochs done."""
    batch: int = 0
    """Batches of this epoch that are done."""
    samples_in_epoch: int = 0
    """Samples of this epoch that are done: the position in its order."""
    samples: int = 0
    """Samples done, all in all."""
    position: float = 0.0
    """Epochs done, with a fraction."""
    evaluations: int = 0
    """Points of the evaluation interval that are behind us and done."""
    saves: int = 0
    """Points of the checkpoint interval that are behind us and done."""
    evaluated_step: int = -1
    """Step of the latest evaluation."""
    saved_step: int = -1
    """Step of the latest checkpoint."""
    best: BestSeen | None = None
    without_improvement: int = 0
    """Evaluations since the best one."""
    early_stopped: bool = False
    """Patience ran out while steps were left: at the last one the run is completed."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    """Latest values."""
    evaluated_values: tuple[tuple[int, float], ...] = ()
    """(step, watched metric) of the evaluations, oldest first; when it is full every second one is left out."""
    loss_scaling: Mapping[str, float] = field(default_factory=dict)
    """State of fp16's gradient scaler; empty at other precisions."""

    def to_json(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)

    @staticmethod
    def from_json(values: Mapping[str, Any]) -> "RunState":
        """The inverse of ``to_json``."""
        best = values["best"]
        seen = tuple((step, value) for step, value in values.get("evaluated_values", ()))
        return RunState(**{**values, "best": BestSeen(**best) if best else None, "evaluated_values": seen})


@dataclass(frozen=True)
class Course:
    """How long the run is and what is due when."""

    epochs: float | None
    """Length in epochs; None if it is given in steps."""
    total_steps: int
    """Length in steps; with a token budget and epochs an estimate by the first epoch."""
    warmup: float
    """Share of the run in which the rate rises."""
    scheduler: str
    evaluate: Every
    save: Every

    def done(self, state: RunState) -> float:
        """Share of the run that is done, 0 to 1."""
        if self.epochs is None:
            return min(1.0, state.step / self.total_steps)
        return min(1.0, state.position / self.epochs)

    def is_finished(self, state: RunState) -> bool:
        """Whether no step is left."""
        return state.early_stopped or self.done(state) >= 1 - _ROUNDING

    def factor(self, state: RunState) -> float:
        """Learning rate of the next step, as a factor of its peak."""
        return rate_factor(self.done(state), warmup=self.warmup, scheduler=self.scheduler)

    def is_evaluation_due(self, state: RunState) -> bool:
        """Whether to evaluate before the next step; the end is always evaluated."""
        if state.step in (0, state.evaluated_step):
            return False
        return points(self.evaluate, state) > state.evaluations or self.is_finished(state)

    def is_save_due(self, state: RunState) -> bool:
        """Whether to save before the next step; the best and the end always are."""
        if state.step in (0, state.saved_step):
            return False
        is_best = state.best is not None and state.best.step == state.step
        return points(self.save, state) > state.saves or is_best or self.is_finished(state)


def make_course(training: Training, evaluate: Every, save: Every, steps_per_epoch: int) -> Course:
    """The course of a run whose first epoch has ``steps_per_epoch`` batches."""
    epochs = None if training.max_steps is not None else training.epochs or DEFAULT_EPOCHS
    total = training.max_steps or max(1, math.ceil((epochs or 0) * steps_per_epoch - _ROUNDING))
    steps, ratio = training.warmup.steps, training.warmup.ratio
    warmup = min(1.0, steps / total) if steps is not None else ratio or 0.0
    return Course(epochs, total, warmup, training.scheduler, evaluate, save)


def points(every: Every, state: RunState) -> int:
    """How many points of an interval have been reached."""
    if every.steps is not None:
        return state.step // every.steps
    assert every.epochs is not None
    return math.floor(state.position / every.epochs + _ROUNDING)


def advance(state: RunState, samples: int, batches_in_epoch: int) -> RunState:
    """The state after one more step on ``samples`` samples."""
    epoch, batch, in_epoch = state.epoch, state.batch + 1, state.samples_in_epoch + samples
    if batch == batches_in_epoch:
        epoch, batch, in_epoch = epoch + 1, 0, 0
    return replace(
        state,
        step=state.step + 1,
        epoch=epoch,
        batch=batch,
        samples_in_epoch=in_epoch,
        samples=state.samples + samples,
        position=epoch + batch / batches_in_epoch,
    )


def evaluated(
    state: RunState,
    course: Course,
    metrics: Mapping[str, float],
    *,
    watched: str,
    improves: Callable[[float, float | None], bool],
    patience: int | None,
) -> RunState:
    """The state after an evaluation.

    Args:
        state: Before it.
        course: The run's course.
        metrics: What was measured.
        watched: The metric that decides.
        improves: (value, best so far) → whether it is better.
        patience: Evaluations without improvement after which to stop; None for never.
    """
    value = metrics[watched]
    is_better = improves(value, state.best.value if state.best else None)
    since = 0 if is_better else state.without_improvement + 1
    return replace(
        state,
        metrics=dict(metrics),
        evaluated_values=thinned((*state.evaluated_values, (state.step, value))),
        evaluations=points(course.evaluate, state),
        evaluated_step=state.step,
        best=BestSeen(value, state.step, dict(metrics)) if is_better else state.best,
        without_improvement=since,
        early_stopped=patience is not None and since >= patience and not course.is_finished(state),
    )


def thinned(values: tuple[tuple[int, float], ...]) -> tuple[tuple[int, float], ...]:
    """``values``, or every second one of them (the newest among these) once they are more than are kept.

    Which are kept is a function of their number alone, so that runs of one interval have the same steps to compare.
    """
    return values if len(values) <= KEPT_EVALUATIONS else values[::2]


def saved(state: RunState, course: Course) -> RunState:
    """The state that a checkpoint taken now holds."""
    return replace(state, saves=points(course.save, state), saved_step=state.step)
