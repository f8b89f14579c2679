"""The answer: the table of variants, the best trial, and the sentence that an experiment ends with."""

from collections.abc import Sequence

from finetune_api.experiment import (
    BestTrial,
    ExperimentPhase,
    ExperimentReason,
    TrialCounts,
    TrialStatus,
    Variant,
    VariantStatus,
)
from finetune_api.metrics import Mode
from finetune_operator.experiments.standing import Standing
from finetune_operator.experiments.statistics import compare, conclude, judge, summarize
from finetune_operator.experiments.trials import Trial


def variant_table(
    variants: Sequence[Variant], trials: Sequence[Trial], mode: Mode, *, is_search: bool
) -> tuple[VariantStatus, ...]:
    """A row for each variant. Proposals of a search have no differences: choosing the best of many is no comparison."""
    rows = [[one.row for one in trials if one.variant.name == variant.name and one.row] for variant in variants]
    values = [{row.seed: row.value for row in own if row.value is not None} for own in rows]
    differences = [None] * len(values) if is_search else [None, *(compare(values[0], other) for other in values[1:])]
    judged = judge(differences, mode)
    return tuple(
        _variant_row(variant, own, is_search=is_search).model_copy(update={"difference": difference})
        for variant, own, difference in zip(variants, rows, judged, strict=True)
    )


def _variant_row(variant: Variant, rows: Sequence[TrialStatus], *, is_search: bool) -> VariantStatus:
    summary = summarize([row.value for row in rows if row.value is not None])
    return VariantStatus(
        name=variant.name,
        set=dict(variant.set) if is_search else {},
        seeds=summary.n,
        mean=summary.mean,
        std=summary.std,
        low=summary.low,
        high=summary.high,
        pruned=sum(row.pruned for row in rows),
        failed=sum(row.phase == "Failed" for row in rows),
        worker_seconds=sum(row.worker_seconds for row in rows),
        gpu_seconds=sum(row.gpu_seconds for row in rows),
    )


def best_trial(table: Sequence[VariantStatus], trials: Sequence[Trial], mode: Mode) -> BestTrial | None:
    """The best trial of the variant with the best mean; None before there is a value.

    A variant of which a seed failed or was ended early has no fair mean, so it comes only after those that are whole.
    """
    sign = 1 if mode == "max" else -1
    known = [(row.failed + row.pruned == 0, sign * row.mean, row.name) for row in table if row.mean is not None]
    if not known:
        return None
    _, _, name = max(known, key=lambda one: one[:2])
    own = [(one, one.value) for one in trials if one.variant.name == name and one.value is not None]
    trial, value = max(own, key=lambda pair: sign * pair[1])
    return BestTrial(variant=name, trial=trial.name, value=value, model=trial.row.model if trial.row else None)


def counts(trials: Sequence[Trial], total: int) -> TrialCounts:
    """How many trials there are of each kind."""
    ended = [one.row for one in trials if one.is_ended and one.row]
    return TrialCounts(
        total=total,
        running=sum(one.is_active for one in trials),
        succeeded=sum(row.phase == "Succeeded" and not row.pruned for row in ended),
        pruned=sum(row.pruned for row in ended),
        failed=sum(row.phase == "Failed" for row in ended),
    )


def conclusion(table: Sequence[VariantStatus], best: BestTrial | None, metric: str, *, is_search: bool) -> Standing:
    """Where an experiment stands of which every trial has ended."""
    if is_search:
        return Standing(ExperimentPhase.SUCCEEDED, ExperimentReason.SEARCHED, _found(table, best, metric))
    others = [(row.name, row.difference) for row in table[1:]]
    sentence = conclude(table[0].name, others, metric)
    told = any(one is not None and one.verdict != "unknown" for _, one in others)
    reason = ExperimentReason.DIFFERENCE if told else ExperimentReason.NO_DIFFERENCE
    return Standing(ExperimentPhase.SUCCEEDED, reason, sentence)


def _found(table: Sequence[VariantStatus], best: BestTrial | None, metric: str) -> str:
    if best is None:
        return f"None of {len(table)} proposals has a value of {metric}"
    row = next(one for one in table if one.name == best.variant)
    settings = ", ".join(f"{field} = {_brief(value)}" for field, value in row.set.items())
    return f"The best of {len(table)} proposals is {row.name} with {metric} {row.mean:.4g} (validation set): {settings}"


def _brief(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
