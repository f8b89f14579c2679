"""An experiment with its variants and trials, as they stand at the moment."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from finetune_api.experiment import FineTuneExperiment, Search, TrialStatus, Variant
from finetune_api.experiment_checks import LABEL_VARIANT, proposal_name, trial_name
from finetune_api.job import FineTuneJob
from finetune_operator.experiments.observed import ObservedExperiment
from finetune_operator.experiments.trials import Trial, row_of


@dataclass(frozen=True)
class Scene:
    """An experiment with its variants (a search's so far) and their trials, in the order in which they are made."""

    observed: ObservedExperiment
    variants: tuple[Variant, ...]
    trials: tuple[Trial, ...]

    @property
    def experiment(self) -> FineTuneExperiment:
        """The experiment."""
        return self.observed.experiment

    @property
    def search(self) -> Search | None:
        """Its search, if it is one."""
        return self.experiment.spec.search

    def of(self, variant: str) -> tuple[Trial, ...]:
        """A variant's trials."""
        return tuple(one for one in self.trials if one.variant.name == variant)


def see(observed: ObservedExperiment) -> Scene:
    """The experiment's trials, as their jobs stand, or as they were last known."""
    variants = observed.experiment.spec.variants or _proposals(observed)
    return _with_variants(observed, variants, {row.name: row for row in observed.status.trial_table})


def with_variant(scene: Scene, variant: Variant) -> Scene:
    """The scene with one variant more; its other trials stay as they are."""
    rows = {one.name: one.row for one in scene.trials if one.row is not None}
    after = _with_variants(scene.observed, (*scene.variants, variant), rows)
    known = {one.name: one for one in scene.trials}
    return replace(after, trials=tuple(known.get(one.name, one) for one in after.trials))


def _with_variants(
    observed: ObservedExperiment, variants: tuple[Variant, ...], rows: Mapping[str, TrialStatus]
) -> Scene:
    """Seeds come first for variants, so that all of them have an answer early; a proposal has all its seeds at once."""
    seeds, is_search = observed.experiment.spec.seeds, observed.experiment.spec.search is not None
    if is_search:
        pairs = [(variant, seed) for variant in variants for seed in seeds]
    else:
        pairs = [(variant, seed) for seed in seeds for variant in variants]
    return Scene(observed, variants, tuple(_trial(observed, variant, seed, rows) for variant, seed in pairs))


def _trial(observed: ObservedExperiment, variant: Variant, seed: int, rows: Mapping[str, TrialStatus]) -> Trial:
    spec = observed.experiment.spec
    name = trial_name(observed.experiment.metadata.name, variant.name, seed)
    job, row = observed.jobs.get(name), rows.get(name)
    if job is not None:
        row = row_of(job, variant.name, seed, spec.objective.metric, is_search=spec.search is not None)
    return Trial(variant, seed, name, job, row)


def _proposals(observed: ObservedExperiment) -> tuple[Variant, ...]:
    """A search's proposals so far: those in the status, and those that were made but not yet told of there."""
    search = observed.experiment.spec.search
    assert search is not None
    told = {row.name: Variant(name=row.name, set=row.set) for row in observed.status.variants}
    for job in observed.jobs.values():
        name = (job.metadata.model_extra or {}).get("labels", {}).get(LABEL_VARIANT)
        if name is not None and name not in told:
            told[name] = Variant(name=name, set=_settings_of(job, search))
    return tuple(told[name] for name in (proposal_name(number) for number in range(search.proposals)) if name in told)


def _settings_of(job: FineTuneJob, search: Search) -> dict[str, Any]:
    """The values that a trial of a search has of the search's fields."""
    wire = job.spec.to_wire()
    settings = {}
    for parameter in search.parameters:
        value: Any = wire
        for name in parameter.field.split("."):
            value = value[name]
        settings[parameter.field] = value
    return settings
