"""Which fields of a search mattered: PED-ANOVA, as Optuna has it, beside what chance alone would give.

PED-ANOVA compares how a field's values are spread over the best proposals with how they are spread over all of them (S.
Watanabe et al., PED-ANOVA: Efficiently quantifying hyperparameter importance in arbitrary subspaces, IJCAI 2023,
https://arxiv.org/abs/2304.10255): it is 0 where the two are alike. With few proposals no field is at 0, so each comes
with the 95th percentile of its importance when the results are shuffled among the proposals (a permutation test): what
does not exceed it is not told from chance.
"""

import random
import statistics
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from finetune_api.experiment import Search
from finetune_api.metrics import Mode
from finetune_operator.experiments.search import Proposal, distribution_of, frozen_trial, optuna_module

LEAST_PROPOSALS = 20
"""With a value; below them the best ones are too few to be compared with the rest."""
_BEST, _LEAST_BEST = 0.1, 5
"""The best are so large a share of the proposals, and at least so many, as Optuna's documentation advises."""
_SHUFFLES = 99
_CHANCE = 95


@dataclass(frozen=True)
class Importance:
    """How much a field mattered for being among the best."""

    field: str
    value: float
    """≥ 0, without a unit: the Pearson divergence of the two spreads, times the best ones' share squared."""
    chance: float
    """What 95 of 100 shuffles stay below."""

    @property
    def is_told(self) -> bool:
        """Whether it is more than chance gives."""
        return self.value > self.chance


def importances(search: Search, mode: Mode, known: Sequence[Proposal]) -> tuple[Importance, ...]:
    """The most important field first; empty with fewer than ``LEAST_PROPOSALS`` proposals that have a value.

    Raises:
        SpecError: Optuna is not installed.
    """
    whole = [one for one in known if one.value is not None]
    if len(whole) < LEAST_PROPOSALS:
        return ()
    found, order = _evaluated(search, mode, whole), random.Random(search.seed)  # noqa: S311 - shuffles
    values = [one.value for one in whole]
    shuffled: dict[str, list[float]] = {name: [] for name in found}
    for _ in range(_SHUFFLES):
        mixed = order.sample(values, len(values))
        by_chance = _evaluated(
            search, mode, [replace(one, value=value) for one, value in zip(whole, mixed, strict=True)]
        )
        for name, value in by_chance.items():
            shuffled[name].append(value)
    return tuple(
        Importance(name, value, statistics.quantiles(shuffled[name], n=100)[_CHANCE - 1])
        for name, value in sorted(found.items(), key=lambda one: -one[1])
    )


def _evaluated(search: Search, mode: Mode, whole: Sequence[Proposal]) -> Mapping[str, float]:
    optuna = optuna_module()
    space = {parameter.field: distribution_of(parameter) for parameter in search.parameters}
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    study.add_trials([frozen_trial(one, space) for one in whole])
    best = max(_BEST, _LEAST_BEST / len(whole))
    evaluator = optuna.importance.PedAnovaImportanceEvaluator(target_quantile=best)
    with warnings.catch_warnings():
        # "normalize" is experimental; shares of a sum could not be compared with those of shuffles.
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        found = optuna.importance.get_param_importances(study, evaluator=evaluator, params=list(space), normalize=False)
    return {name: float(value) for name, value in found.items()}
