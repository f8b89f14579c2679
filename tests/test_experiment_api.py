"""FineTuneExperiment: what is refused and how it is told; its trials; the metrics that tasks have."""

import copy
import re

import celpy
import pytest
import yaml

from finetune_api import SpecError, parse_job
from finetune_api.crd import structural_schema
from finetune_api.experiment import (
    EXPERIMENT_MUTABLE_FIELDS,
    ExperimentConditionType,
    ExperimentPhase,
    ExperimentReason,
    FineTuneExperiment,
    immutable_experiment_changes,
)
from finetune_api.experiment_checks import (
    mode_of,
    parse_experiment,
    proposal_name,
    read_experiment,
    trial_job,
    trial_name,
    with_settings,
)
from finetune_api.generate import ROOT
from finetune_api.load import kind_in
from finetune_api.metrics import TASK_METRICS, watched_metric
from finetune_api.reference import member_docs, reference
from finetune_api.schema import models_in

TEMPLATE = {"task": "text-classification", "model": {"source": "hf://a/b"}, "data": {"source": "file:///d"}}
RATE = {"field": "strategy.learningRate.value", "logUniform": {"low": 1e-5, "high": 1e-3}}


def document(**fields):
    spec = {
        "template": TEMPLATE,
        "variants": [{"name": "a"}, {"name": "b", "set": {"strategy.lora": {"r": 8}}}],
        "seeds": [0, 1],
        "objective": {"metric": "accuracy"},
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneExperiment",
        "metadata": {"name": "e", "labels": {"team": "x"}},
        "spec": {name: value for name, value in (spec | fields).items() if value is not None},
    }


def varied(**settings):
    return {
        "variants": [
            {"name": "a"},
            {"name": "b", "set": {name.replace("__", "."): settings[name] for name in settings}},
        ]
    }


def searched(*parameters, **fields):
    return {"variants": None, "search": {"parameters": list(parameters), **fields}}


FAULTS = {
    "a value": (varied(strategy__lora__r=0), "spec.variants[1].set.strategy.lora.r: must be ≥ 1, got 0"),
    "a value inside a map": (
        varied(strategy__lora={"r": 0}),
        "spec.variants[1].set.strategy.lora.r: must be ≥ 1, got 0",
    ),
    "a field that is not there": (
        varied(strategy__lora__rnk=1),
        "spec.variants[1].set.strategy.lora.rnk: is not a field; did you mean r?",
    ),
    "a part that is not there": (
        varied(straegy__lora__r=1),
        "spec.variants[1].set.straegy.lora.r: spec.straegy is not a field; did you mean strategy?",
    ),
    "inside a number": (varied(training__seed__a=1), "spec.variants[1].set.training.seed.a: seed is not a map"),
    "a rule of the whole job": (
        varied(strategy__trainable="lastLayers"),
        "spec.variants[1].set: spec.strategy.lastLayers must be given with trainable: lastLayers, and only with it",
    ),
    "the seed": (varied(training__seed=1), "spec.variants[1].set.training.seed: is given by spec.seeds"),
    "suspend": (varied(suspend=True), "spec.variants[1].set.suspend: belongs to the experiment: use spec.suspend"),
    "a path from the top": (
        varied(spec__training__epochs=1),
        "spec.variants[1].set.spec.training.epochs: begins below the spec: training.epochs",
    ),
    "one field inside another": (
        {"variants": [{"name": "a"}, {"name": "b", "set": {"strategy.lora": {}, "strategy.lora.r": 4}}]},
        "spec.variants[1].set.strategy.lora.r: lies inside strategy.lora, which is set as well; set it there",
    ),
    "a name twice": (
        {"variants": [{"name": "a"}, {"name": "a"}]},
        "spec.variants: must not repeat a name, got 'a' twice",
    ),
    "one variant": ({"variants": [{"name": "a"}]}, "spec.variants: must have at least 2 items, got [{'name': 'a'}]"),
    "no seeds": ({"seeds": []}, "spec.seeds: must have at least 1 items, got []"),
    "a seed twice": ({"seeds": [1, 1]}, "spec.seeds: must not repeat an item, got '1' twice"),
    "neither variants nor search": ({"variants": None}, "spec: must have exactly one of variants or search"),
    "another task's metric": (
        {"objective": {"metric": "mse"}},
        (
            "spec.objective.metric: text-classification has the metrics loss, accuracy, f1, f1Micro, f1Weighted, auroc,"
            " got mse"
        ),
    ),
    "a metric the wrong way": (
        {"objective": {"metric": "accuracy", "mode": "min"}},
        "spec.objective.mode: must be max for accuracy, got min; leave it out",
    ),
    "a template that is no job": (
        {"template": TEMPLATE | {"training": {"epochs": 0}}},
        "spec.template.training.epochs: must be > 0, got 0",
    ),
    "a template that is suspended": (
        {"template": TEMPLATE | {"suspend": True}},
        "spec.template.suspend: belongs to the experiment: use spec.suspend",
    ),
    "a long name": (
        {"variants": [{"name": "a"}, {"name": "b" * 50}]},
        (
            f"metadata.name: makes a trial e-{'b' * 50}-1 of 54 characters; 52 at most: shorten it, a variant's name or"
            " the seeds"
        ),
    ),
    "too many trials": (searched(RATE, proposals=300), "spec.seeds: make 600 trials of all variants; 500 at most"),
    "a range upside down": (
        searched({"field": "model.dropout", "uniform": {"low": 0.5, "high": 0.1}}),
        "spec.search.parameters[0].uniform.high: must be above low",
    ),
    "a range beyond the field's": (
        searched(RATE, {"field": "model.dropout", "uniform": {"low": 0.5, "high": 1.5}}),
        "spec.search.parameters[1].field: model.dropout = 1.5: must be ≤ 1, got 1.5",
    ),
    "a choice that is none": (
        searched({"field": "training.scheduler", "categorical": {"choices": ["cosine", "cosign"]}}),
        (
            "spec.search.parameters[0].field: training.scheduler = 'cosign': must be one of 'linear', 'cosine',"
            " 'constant', got 'cosign'; did you mean cosine?"
        ),
    ),
    "a choice that is a map": (
        searched({"field": "strategy.lora", "categorical": {"choices": [{"r": 1}]}}),
        "spec.search.parameters[0].categorical.choices: must be numbers, strings, true or false, got {'r': 1}",
    ),
    "two distributions": (
        searched({**RATE, "uniform": {"low": 0, "high": 1}}),
        "spec.search.parameters[0]: must have exactly one of uniform or logUniform or intRange or categorical",
    ),
    "a search by what is not watched": (
        searched(RATE) | {"objective": {"metric": "f1"}},
        (
            "spec.objective.metric: a search goes by the metric that its trials watch, which is accuracy, got f1; set"
            " spec.template.earlyStopping.metric to it"
        ),
    ),
}


@pytest.mark.parametrize(("fields", "fault"), FAULTS.values(), ids=FAULTS)
def test_what_is_wrong_is_told_at_its_field(fields, fault):
    with pytest.raises(SpecError) as refused:
        parse_experiment(document(**fields))
    assert str(refused.value) == fault


def test_every_fault_is_told():
    with pytest.raises(SpecError) as refused:
        parse_experiment(document(**varied(training__epochs="x", model__dropout=2), objective={"metric": "mse"}))
    assert len(refused.value.faults) == 3


# --- trials


def test_a_trial_is_its_template_with_its_variant_and_seed():
    experiment = parse_experiment(document())
    plain, other = experiment.spec.variants
    first, second = trial_job(experiment, plain, 0), trial_job(experiment, other, 1)
    assert (
        first.spec
        == parse_job(
            {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "x"}, "spec": TEMPLATE}
        ).spec
    )
    assert (second.metadata.name, second.metadata.namespace) == ("e-b-1", "default")
    assert second.metadata.model_extra == {"labels": {"finetune.dev/experiment": "e", "finetune.dev/variant": "b"}}
    assert (second.spec.strategy.lora.r, second.spec.training.seed) == (8, 1)
    assert (
        second.spec.model_copy(update={"strategy": first.spec.strategy, "training": first.spec.training}) == first.spec
    )


def test_names_are_told_apart():
    names = [trial_name("e", variant, seed) for variant in ("a", "a-1", proposal_name(0)) for seed in (0, 1, 11)]
    assert len(set(names)) == 9


SETTINGS = {
    "a value": ({"a": {"b": 1}}, {"a.b": 2}, {"a": {"b": 2}}),
    "a map in place of another": ({"a": {"b": 1}}, {"a": {"c": 2}}, {"a": {"c": 2}}),
    "what was not there": ({}, {"a.b.c": 1}, {"a": {"b": {"c": 1}}}),
    "null unsets": ({"a": {"b": 1, "c": 2}}, {"a.b": None}, {"a": {"c": 2}}),
    "null of what is not there": ({}, {"a.b": None}, {"a": {}}),
}


@pytest.mark.parametrize(("spec", "settings", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_settings(spec, settings, expected):
    before = copy.deepcopy(spec)
    assert with_settings(spec, settings) == expected
    assert spec == before


METRICS = {
    "among the usual": ({}, "f1", None),
    "the loss": ({}, "loss", None),
    "not among the usual": ({}, "f1Micro", ("accuracy", "f1", "auroc", "f1Micro")),
    "not among those asked for": ({"evaluation": {"metrics": ["auroc"]}}, "accuracy", ("auroc", "accuracy")),
    "asked for": ({"evaluation": {"metrics": ["accuracy"]}}, "accuracy", ("accuracy",)),
}


@pytest.mark.parametrize(("template", "metric", "expected"), METRICS.values(), ids=METRICS)
def test_a_trial_measures_the_objective(template, metric, expected):
    experiment = parse_experiment(document(template=TEMPLATE | template, objective={"metric": metric}))
    assert trial_job(experiment, experiment.spec.variants[0], 0).spec.evaluation.metrics == expected


@pytest.mark.parametrize(("metric", "mode"), [("accuracy", "max"), ("loss", "min")])
def test_which_way_is_better(metric, mode):
    assert mode_of(parse_experiment(document(objective={"metric": metric}))) == mode


def test_what_may_change():
    old = parse_experiment(document()).spec
    mutable = {"parallelism": 2, "maxFailedTrials": 0, "promote": "keepBest", "suspend": True}
    new = parse_experiment(document(**mutable, ttlSecondsAfterFinished=1)).spec
    assert sorted([*mutable, "ttlSecondsAfterFinished"]) == sorted(EXPERIMENT_MUTABLE_FIELDS)
    assert immutable_experiment_changes(old, new) == []
    other = parse_experiment(document(seeds=[5], template=TEMPLATE | {"training": {"epochs": 1}})).spec
    assert immutable_experiment_changes(old, other) == ["spec.seeds", "spec.template"]


def test_a_file_is_read_with_its_overrides(tmp_path):
    path = tmp_path / "e.yaml"
    path.write_text(yaml.safe_dump(document()))
    assert kind_in(path) == "FineTuneExperiment"
    read = read_experiment(path, ("spec.parallelism=4", "spec.template.training.epochs=2"))
    assert (read.spec.parallelism, read.spec.template.training.epochs) == (4, 2)


def test_an_experiment_reads_back_from_what_it_is_written_as():
    made = parse_experiment(document(**varied(strategy__lora=None)))
    assert parse_experiment(made.to_wire()) == made
    assert made.spec.variants[1].set == {"strategy.lora": None}


# --- the metrics of tasks


def test_the_metrics_of_tasks_are_the_trainers():
    from finetune_trainer.metrics import METRICS as KNOWN
    from finetune_trainer.tasks import TASKS

    assert TASK_METRICS.keys() == TASKS.keys()
    for name, build in TASKS.items():
        spec = parse_job(job_of(name)).spec
        task, told = build(spec), TASK_METRICS[name]
        assert dict(told.modes) == {metric: one.mode for metric, one in KNOWN.items() if task.target in one.targets}, (
            name
        )
        assert (told.usual, told.watched) == (task.metrics, task.monitor), name


def job_of(task, **data):
    spec = TEMPLATE | {"task": task, "data": TEMPLATE["data"] | data}
    return {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "x"}, "spec": spec}


def test_the_watched_metric_is_the_trainers():
    from finetune_trainer.tasks import task_of

    several = parse_job(job_of("text-classification", multiLabel=True)).spec
    assert watched_metric(several) == task_of(several).monitor
    asked = parse_job(job_of("causal-lm")).spec
    assert watched_metric(asked) == "loss"


# --- the CRD and the page


SCHEMA = structural_schema(FineTuneExperiment)["properties"]["spec"]
CEL = celpy.Environment()


def breaks(new, old):
    """Fields whose rule of immutability refuses the update."""
    rules = [one for one in SCHEMA["x-kubernetes-validations"] if "oldSelf" in one["rule"]]
    given = {"self": celpy.json_to_cel(new), "oldSelf": celpy.json_to_cel(old)}
    return [one["fieldPath"][1:] for one in rules if not CEL.program(CEL.compile(one["rule"])).evaluate(given)]


def test_the_crd_keeps_what_is_fixed():
    spec = parse_experiment(document()).to_wire()["spec"]
    assert breaks(spec, spec) == []
    assert breaks(spec | {"parallelism": 7, "promote": "keepBest", "suspend": True}, spec) == []
    assert breaks(spec | {"seeds": [1, 0]}, spec) == ["seeds"]
    assert breaks(spec | {"variants": spec["variants"][::-1]}, spec) == ["variants"]
    assert breaks({name: spec[name] for name in spec if name != "variants"}, spec) == ["variants"]


def test_no_field_has_a_name_that_yaml_takes_for_something_else():
    # The API server reads y, n, on and off as true or false where they are not quoted; nobody quotes field names.
    names = {field for model in models_in(FineTuneExperiment).values() for field in model.model_fields}
    assert not names & {"y", "n", "yes", "no", "on", "off", "true", "false", "null"}


def test_every_rule_and_member_is_on_the_page():
    page = reference("")
    for model in models_in(FineTuneExperiment).values():
        assert model.__doc__
        assert all(info.description for info in model.model_fields.values())
        assert all(rule.message in page for rule in model.rules)
    for enumeration in (ExperimentPhase, ExperimentConditionType, ExperimentReason):
        docs = member_docs(enumeration)
        assert all(f"| `{member.value}` | {docs[member.name]} |" in page for member in enumeration)


def test_the_guides_experiments_are_valid():
    page = (ROOT / "docs/experiments.md").read_text("utf-8")
    whole, search = (
        yaml.safe_load(block) for block in re.findall(r"^```yaml\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    made = parse_experiment(whole)
    assert [variant.name for variant in made.spec.variants] == ["full", "lora", "frozen"]
    template = {**whole["spec"]["template"], "strategy": {"lora": {}}}
    spec = {
        "template": template,
        "search": search["search"],
        "seeds": search["seeds"],
        "objective": search["objective"],
    }
    assert parse_experiment({**whole, "spec": spec}).spec.search.proposals == 30


def test_the_example_is_valid():
    assert read_experiment(ROOT / "examples/digits-experiment.yaml").metadata.name == "digits-schemes"
