"""What an experiment's trials are, and what is wrong with it that no field can say of itself.

Invariant: every trial is a function of the experiment, its variant's settings and its seed; each is checked as a whole
job would be, before the first one runs.
"""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_api.base import API_VERSION
from finetune_api.errors import Fault, SpecError
from finetune_api.experiment import MAX_TRIALS, FineTuneExperiment, Parameter, Search, Variant
from finetune_api.job import FineTuneJob
from finetune_api.load import parse_experiment_fields, parse_job, read_document
from finetune_api.metrics import TASK_METRICS, Mode, watched_metric

MAX_NAME = 52
"""Characters of a job's name."""
LABEL_EXPERIMENT = "finetune.dev/experiment"
"""On trials: name of the experiment."""
LABEL_VARIANT = "finetune.dev/variant"
"""On trials: name of the variant."""
_SEED = "training.seed"
_OF_EXPERIMENT = {
    "task": "is the template's, for what cannot be compared is no experiment",
    _SEED: "is given by spec.seeds",
    "suspend": "belongs to the experiment: use spec.suspend",
    "stop": "would end the trial",
    "ttlSecondsAfterFinished": "belongs to the experiment: use spec.ttlSecondsAfterFinished",
}


def parse_experiment(document: Any) -> FineTuneExperiment:
    """The FineTuneExperiment in plain JSON types.

    Raises:
        SpecError: It, or one of its trials, is not valid; every fault is listed.
    """
    experiment = parse_experiment_fields(document)
    faults = experiment_faults(experiment)
    if faults:
        raise SpecError(faults)
    return experiment


def read_experiment(path: Path, overrides: tuple[str, ...] = ()) -> FineTuneExperiment:
    """The FineTuneExperiment in a YAML or JSON file.

    Args:
        path: The file.
        overrides: ``spec.parallelism=2`` each, as ``read_job`` has them.

    Raises:
        SpecError: The file cannot be read, or is not a valid FineTuneExperiment. No fault names the file.
    """
    return parse_experiment(read_document(path, overrides))


def experiment_faults(experiment: FineTuneExperiment) -> tuple[Fault, ...]:
    """Everything that is wrong with an experiment whose fields are valid, each on its own."""
    return (
        *_objective_faults(experiment),
        *_amount_faults(experiment),
        *_name_faults(experiment),
        *_variant_faults(experiment),
        *_search_faults(experiment),
    )


def variants_of(experiment: FineTuneExperiment) -> tuple[Variant, ...]:
    """The variants that the user has written; none for a search."""
    return experiment.spec.variants or ()


def trial_name(experiment: str, variant: str, seed: int) -> str:
    """Name of a trial's job."""
    return f"{experiment}-{variant}-{seed}"


def proposal_name(number: int) -> str:
    """Name of the variant that is a search's proposal ``number``, from 0."""
    return f"p{number}"


def trial_job(experiment: FineTuneExperiment, variant: Variant, seed: int) -> FineTuneJob:
    """The job of a trial.

    Raises:
        SpecError: The variant does not make a valid job; the faults name fields of the experiment.
    """
    spec = with_settings(experiment.spec.template.to_wire(), {**variant.set, _SEED: seed})
    metadata: dict[str, Any] = {
        "name": trial_name(experiment.metadata.name, variant.name, seed),
        "namespace": experiment.metadata.namespace,
        "labels": {LABEL_EXPERIMENT: experiment.metadata.name, LABEL_VARIANT: variant.name},
    }
    _have_measured(spec, experiment.spec.objective.metric)
    return parse_job({"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec})


def mode_of(experiment: FineTuneExperiment) -> Mode:
    """Whether more or less of the objective is better."""
    objective = experiment.spec.objective
    known = TASK_METRICS.get(experiment.spec.template.task)
    return objective.mode or (known.modes.get(objective.metric, "max") if known else "max")


def with_settings(spec: dict[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a job's spec on the wire with fields (``strategy.lora.r``) set to values, or unset by None.

    Raises:
        SpecError: A field lies inside something that is no map.
    """
    made = copy.deepcopy(spec)
    for field, value in settings.items():
        *parents, last = field.split(".")
        place = made
        for name in parents:
            if place.get(name) is None:
                place[name] = {}
            place = place[name]
            if not isinstance(place, dict):
                raise SpecError((Fault(f"spec.{field}", f"{name} is not a map"),))
        if value is None:
            place.pop(last, None)
        else:
            place[last] = copy.deepcopy(value)
    return made


def _have_measured(spec: dict[str, Any], metric: str) -> None:
    """Add the objective to the metrics that the trial computes, if it is not among them."""
    known = TASK_METRICS.get(spec.get("task", ""))
    evaluation = spec.setdefault("evaluation", {})
    asked = evaluation.get("metrics") or (known.usual if known else (metric,))
    if metric not in (*asked, "loss"):
        evaluation["metrics"] = [*asked, metric]


def _objective_faults(experiment: FineTuneExperiment) -> Iterator[Fault]:
    template, metric = experiment.spec.template, experiment.spec.objective.metric
    known = TASK_METRICS.get(template.task)
    if known is None:
        return
    if metric not in known.modes:
        allowed = ", ".join(known.modes)
        yield Fault("spec.objective.metric", f"{template.task} has the metrics {allowed}, got {metric}")
        return
    mode = experiment.spec.objective.mode
    if mode is not None and mode != known.modes[metric]:
        yield Fault("spec.objective.mode", f"must be {known.modes[metric]} for {metric}, got {mode}; leave it out")
    watched = watched_metric(template)
    if experiment.spec.search is not None and watched != metric:
        told = f"a search goes by the metric that its trials watch, which is {watched}, got {metric}"
        yield Fault("spec.objective.metric", f"{told}; set spec.template.earlyStopping.metric to it")


def _amount_faults(experiment: FineTuneExperiment) -> Iterator[Fault]:
    spec = experiment.spec
    trials = len(spec.seeds) * (spec.search.proposals if spec.search else len(spec.variants or ()))
    if trials > MAX_TRIALS:
        yield Fault("spec.seeds", f"make {trials} trials of all variants; {MAX_TRIALS} at most")


def _name_faults(experiment: FineTuneExperiment) -> Iterator[Fault]:
    spec = experiment.spec
    longest = [variant.name for variant in variants_of(experiment)]
    longest += [proposal_name(spec.search.proposals - 1)] if spec.search else []
    name = trial_name(experiment.metadata.name, max(longest, key=len), max(spec.seeds))
    if len(name) > MAX_NAME:
        told = f"makes a trial {name} of {len(name)} characters; {MAX_NAME} at most"
        yield Fault("metadata.name", f"{told}: shorten it, a variant's name or the seeds")


def _variant_faults(experiment: FineTuneExperiment) -> Iterator[Fault]:
    seed = experiment.spec.seeds[0]
    for index, variant in enumerate(variants_of(experiment)):
        place = f"spec.variants[{index}].set"
        yield from _settings_faults(experiment, variant, seed, place)


def _settings_faults(experiment: FineTuneExperiment, variant: Variant, seed: int, place: str) -> Iterator[Fault]:
    """What is wrong with a variant as a job, told at its own fields."""
    mine = [Fault(f"{place}.{field}", why) for field, why in _OF_EXPERIMENT.items() if field in variant.set]
    if mine:
        yield from mine
        return
    odd = [field for field in variant.set if field.startswith("spec.")]
    if odd:
        yield Fault(f"{place}.{odd[0]}", f"begins below the spec: {odd[0].removeprefix('spec.')}")
        return
    double = [(one, other) for one in variant.set for other in variant.set if other.startswith(f"{one}.")]
    if double:
        yield Fault(f"{place}.{double[0][1]}", f"lies inside {double[0][0]}, which is set as well; set it there")
        return
    try:
        # The name is checked elsewhere: with all seeds.
        bare = experiment.metadata.model_copy(update={"name": "x"})
        trial_job(experiment.model_copy(update={"metadata": bare}), Variant(name="v", set=variant.set), seed)
    except SpecError as error:
        yield from (_at(fault, variant.set, place) for fault in error.faults)


def _at(fault: Fault, settings: Mapping[str, Any], place: str) -> Fault:
    """A job's fault at the setting that brought it, if one did."""
    field = fault.path.removeprefix("spec.")
    near = [name for name in settings if f"{field}.".startswith(f"{name}.") or f"{name}.".startswith(f"{field}.")]
    exact = any(f"{field}.".startswith(f"{name}.") for name in near)
    if exact:
        return Fault(f"{place}.{field}", fault.message)
    if len(near) == 1:
        return Fault(f"{place}.{near[0]}", f"{fault.path} {fault.message}")
    return Fault(place, f"{fault.path} {fault.message}")


def _search_faults(experiment: FineTuneExperiment) -> Iterator[Fault]:
    search = experiment.spec.search
    if search is None:
        return
    for index, parameter in enumerate(search.parameters):
        place = f"spec.search.parameters[{index}]"
        yield from _parameter_faults(experiment, search, parameter, place)


def _parameter_faults(
    experiment: FineTuneExperiment, search: Search, parameter: Parameter, place: str
) -> Iterator[Fault]:
    """Each parameter's ends and choices make a valid job, the other parameters being in the middle of theirs."""
    choices = parameter.categorical.choices if parameter.categorical else ()
    wrong = [value for value in choices if not isinstance(value, (str, int, float, bool))]
    if wrong:
        yield Fault(f"{place}.categorical.choices", f"must be numbers, strings, true or false, got {wrong[0]!r}")
        return
    others = {one.field: _ends(one)[0] for one in search.parameters if one is not parameter}
    for value in _ends(parameter):
        settings = {**others, parameter.field: value}
        variant = Variant(name="v", set=settings)
        faults = tuple(_settings_faults(experiment, variant, experiment.spec.seeds[0], "set"))
        own = [one for one in faults if parameter.field in one.path] or [one for one in faults if one.path == "set"]
        if own:
            yield Fault(f"{place}.field", f"{parameter.field} = {value!r}: {own[0].message}")
            return


def _ends(parameter: Parameter) -> tuple[Any, ...]:
    """Values that a parameter may take: all choices, or the ends of its range."""
    if parameter.categorical is not None:
        return parameter.categorical.choices
    bounds = parameter.uniform or parameter.log_uniform or parameter.int_range
    assert bounds is not None
    return bounds.low, bounds.high
