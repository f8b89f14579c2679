"""Which trials have no hope: the percentile rule, as Optuna's PercentilePruner has it; the median rule at 50.

It is D. Golovin et al., Google Vizier: a service for black-box optimization, KDD 2017, section 3.5.1, with the best
value so far and a percentile in place of the median.
"""

from collections.abc import Sequence

from finetune_api.experiment import Pruner
from finetune_api.metrics import Mode
from finetune_api.status import EvaluationPoint

Course = Sequence[EvaluationPoint]


def is_hopeless(course: Course, finished: Sequence[Course], rule: Pruner, mode: Mode) -> bool:
    """Whether a trial is worse at its latest evaluation than others were at the same step.

    Args:
        course: The trial's evaluations, oldest first.
        finished: Those of the trials that ran to their end.
        rule: When to end a trial.
        mode: Whether more or less is better.
    """
    if len(finished) < rule.startup_trials or len(course) <= rule.warmup_evaluations:
        return False
    sign = 1.0 if mode == "max" else -1.0
    step = course[-1].step
    others = [sign * point.value for one in finished for point in one if point.step == step]
    best = max(sign * point.value for point in course)
    return bool(others) and best < percentile(others, 100 - rule.percentile)


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which a share of the values lies, in a line between the two nearest (numpy's default)."""
    ordered = sorted(values)
    place = (len(ordered) - 1) * percent / 100
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)
