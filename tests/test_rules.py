"""Every rule says in CEL, which the API server evaluates, what it says in Python."""

import copy
import json
from contextlib import contextmanager
from typing import Any

import celpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from finetune_api.base import ApiModel, Rule
from finetune_api.crd import structural_schema
from finetune_api.job import MUTABLE_FIELDS, FineTuneJob
from finetune_api.runtime import FineTuneRuntime
from finetune_api.schema import json_schema, models_in

MODELS = {
    name: model for kind in (FineTuneJob, FineTuneRuntime) for name, model in models_in(kind).items() if model.rules
}
RULES = {f"{name}: {rule.field} {rule.message}": (name, rule) for name, model in MODELS.items() for rule in model.rules}
CEL = celpy.Environment()
PROGRAMS: dict[str, Any] = {}


def cel(expression: str, **variables) -> bool:
    """What the expression says of plain JSON values."""
    if expression not in PROGRAMS:
        PROGRAMS[expression] = CEL.program(CEL.compile(expression))
    return bool(PROGRAMS[expression].evaluate({name: celpy.json_to_cel(value) for name, value in variables.items()}))


@contextmanager
def without_rules():
    """The models without their rules, so that an object that breaks one can be made, and the rule be asked."""
    kept = {model: model.rules for model in MODELS.values()}
    try:
        for model in kept:
            model.rules = ()
        yield
    finally:
        for model, rules in kept.items():
            model.rules = rules


def parsed(model: type[ApiModel], wire: dict[str, Any]) -> Any:
    return model.model_validate_json(json.dumps(wire))


def verdicts(rule: Rule, model: type[ApiModel], wire: dict[str, Any]) -> tuple[bool, bool]:
    """CEL's and Python's; CEL sees the object with its defaults, as it does in the API server."""
    with without_rules():
        made = parsed(model, wire)
    return cel(rule.cel, self=made.to_wire()), rule.check(made)


SOURCE = "hf://a/b"
HEAD = {"strategy": {"trainable": "head"}}
ANSWERS = {"prompt": "a", "completion": "b"}
DATA: dict[str, Any] = {"source": SOURCE}
JOB: dict[str, Any] = {"task": "text-classification", "model": {"source": SOURCE}, "data": DATA}
MODELS_OF_TWO = {"forward": SOURCE, "backward": SOURCE}


MULTI_LABEL = JOB | {"data": DATA | {"multiLabel": True}}
AUGMENTED: dict[str, Any] = {"data": DATA | {"augmentation": {"text": {"swap": 1}}}}


def losing(task: str, **loss: Any) -> dict[str, Any]:
    """A job's spec with ``spec.training.loss``."""
    return JOB | {"task": task, "training": {"loss": loss}}


def taught(task: str, **more: Any) -> dict[str, Any]:
    """A job's spec with a teacher."""
    return JOB | {"task": task, "strategy": {"distillation": {"teacher": SOURCE, **more}}}


def augmented(task: str, augmentation: dict[str, Any]) -> dict[str, Any]:
    """A job's spec with ``spec.data.augmentation``."""
    return JOB | {"task": task, "data": DATA | {"augmentation": augmentation}}


def noisy(task: str, noise: dict[str, Any], **data: Any) -> dict[str, Any]:
    """A job's spec with ``spec.data.cleaning.labelNoise``."""
    return JOB | {"task": task, "data": DATA | {"cleaning": {"labelNoise": noise}} | data}


# model, field and start of the message → objects that keep the rule, objects that break it
TABLE: dict[tuple[str, str, str], tuple[list[dict[str, Any]], list[dict[str, Any]]]] = {
    ("ModelSpec", "", "must have source, or config"): (
        [{"source": SOURCE}, {"config": {"a": 1}}, {"config": {}}],
        [{}],
    ),
    ("ModelSpec", "revision", "needs source"): (
        [{"source": SOURCE, "revision": "main"}, {"config": {}}],
        [{"config": {}, "revision": "main"}],
    ),
    ("LearningRate", "", "must have exactly one of value or top"): (
        [{"value": 1}, {"top": 1, "bottom": 1}],
        [{}, {"value": 1, "top": 1}],
    ),
    ("LearningRate", "bottom", "needs top"): ([{"bottom": 1, "top": 1}, {"value": 1}], [{"value": 1, "bottom": 1}]),
    ("LearningRate", "top", "needs bottom"): ([{"bottom": 1, "top": 1}, {"value": 1}], [{"top": 1}]),
    ("LearningRate", "layerDecay", "needs value"): (
        [{"value": 1, "layerDecay": 1}, {"value": 1}],
        [{"top": 1, "bottom": 1, "layerDecay": 1}],
    ),
    ("Strategy", "lastLayers", "must be given with"): (
        [{}, {"trainable": "lastLayers", "lastLayers": 1}],
        [{"lastLayers": 1}, {"trainable": "lastLayers"}, {"trainable": "head", "lastLayers": 1}],
    ),
    ("Strategy", "freeze", "goes with"): (
        [{"freeze": {}}, {"trainable": "head"}],
        [{"freeze": {}, "trainable": "head"}],
    ),
    ("Strategy", "lora", "trains the adapter"): (
        [{"lora": {}}, {"freeze": {}}],
        [{"lora": {}, "freeze": {}}, {"lora": {}, "trainable": "head"}],
    ),
    ("Strategy", "lora", "takes one"): (
        [{"lora": {}}, {"lora": {}, "learningRate": {"value": 1}}, {"learningRate": {"bottom": 1, "top": 1}}],
        [
            {"lora": {}, "learningRate": {"bottom": 1, "top": 1}},
            {"lora": {}, "learningRate": {"value": 1, "layerDecay": 1}},
        ],
    ),
    ("Every", "", "must have exactly one"): ([{"epochs": 1}, {"steps": 1}], [{}, {"epochs": 1, "steps": 1}]),
    ("Warmup", "", "must have exactly one"): ([{"ratio": 0}, {"steps": 0}], [{}, {"ratio": 0, "steps": 0}]),
    ("Training", "", "must have at most one of epochs"): (
        [{}, {"epochs": 1}, {"maxSteps": 1}],
        [{"epochs": 1, "maxSteps": 1}],
    ),
    ("Training", "effectiveBatchSize", "goes with batchSize: auto only"): (
        [{"batchSize": "auto"}, {"batchSize": "auto", "effectiveBatchSize": 8}],
        [{"effectiveBatchSize": 8}, {"batchSize": 8, "effectiveBatchSize": 8}],
    ),
    ("Training", "", "must have at most one of batchSize"): (
        [{}, {"batchSize": 1}, {"batchSize": "auto"}, {"tokensPerBatch": 16}],
        [{"batchSize": 1, "tokensPerBatch": 16}],
    ),
    ("Volume", "", "must have exactly one"): (
        [{"size": "1Gi"}, {"claimName": "a"}],
        [{}, {"size": "1Gi", "claimName": "a"}],
    ),
    ("Volume", "storageClassName", "needs size"): (
        [{"size": "1Gi", "storageClassName": "a"}, {"claimName": "a"}],
        [{"claimName": "a", "storageClassName": "a"}],
    ),
    ("Distributed", "processesPerWorker", "must equal"): (
        [
            {},
            {"processesPerWorker": 2},
            {"processesPerWorker": 2, "resources": {"gpus": 2}},
            {"resources": {"gpus": 2}},
        ],
        [{"processesPerWorker": 1, "resources": {"gpus": 2}}],
    ),
    ("JobSpec", "data.multiLabel", "goes with"): (
        [JOB, JOB | {"data": DATA | {"multiLabel": True}}, JOB | {"task": "causal-lm"}],
        [JOB | {"task": "causal-lm", "data": DATA | {"multiLabel": True}}],
    ),
    ("JobSpec", "training.tokensPerBatch", "counts text"): (
        [JOB | {"training": {"tokensPerBatch": 16}}, JOB | {"task": "image-classification"}],
        [JOB | {"task": "image-classification", "training": {"tokensPerBatch": 16}}],
    ),
    ("JobSpec", "data.labels", "must name two"): (
        [
            JOB | {"data": DATA | {"labels": ["a", "b"]}},
            JOB | {"task": "object-detection", "data": DATA | {"labels": ["a"]}},
        ],
        [JOB | {"data": DATA | {"labels": ["a"]}}],
    ),
    ("JobSpec", "data.columns", "messages and prompt"): (
        [JOB | {"task": "causal-lm", "data": DATA | {"columns": columns}} for columns in ({"messages": "a"}, ANSWERS)],
        [JOB | {"data": DATA | {"columns": columns}} for columns in ({"messages": "a"}, ANSWERS)],
    ),
    ("JobSpec", "strategy.trainable", "must not be head"): (
        [JOB | HEAD, JOB | {"task": "sequence-to-sequence"}],
        [JOB | HEAD | {"task": "sequence-to-sequence"}],
    ),
    ("Columns", "prompt", "needs completion"): ([{}, ANSWERS], [{"prompt": "a"}]),
    ("Columns", "completion", "needs prompt"): ([{}, ANSWERS], [{"completion": "a"}]),
    ("Columns", "messages", "goes without"): ([{"messages": "a"}, ANSWERS], [{"messages": "a", **ANSWERS}]),
    ("TextAugmentation", "", "must have synonyms"): (
        [{"swap": 0}, {"deletion": 1}, {"synonyms": {"source": SOURCE}}, {"backTranslation": MODELS_OF_TWO}],
        [{}, {"variants": 2}],
    ),
    ("JobSpec", "data.augmentation.image", "goes with"): (
        [augmented("image-classification", {"image": {}}), augmented("text-classification", {})],
        [augmented("text-classification", {"image": {}})],
    ),
    ("JobSpec", "data.augmentation.text", "goes with"): (
        [augmented(task, {"text": {"swap": 1}}) for task in ("text-classification", "text-regression")],
        [augmented(task, {"text": {"swap": 1}}) for task in ("causal-lm", "image-classification")],
    ),
    ("JobSpec", "data.cleaning.labelNoise", "goes with"): (
        [
            noisy("text-classification", {}),
            noisy("image-classification", {}),
            JOB | {"task": "causal-lm", "data": DATA | {"cleaning": {"duplicates": "drop"}}},
            MULTI_LABEL,
        ],
        [noisy("causal-lm", {}), noisy("text-regression", {}), noisy("text-classification", {}, multiLabel=True)],
    ),
    ("JobSpec", "data.cleaning.labelNoise.action", "does not go with"): (
        [
            noisy("image-classification", {"action": "downWeight"}, augmentation={"image": {}}),
            noisy("image-classification", {"action": "drop"}, augmentation={"image": {"mixup": 1}}),
            noisy("image-classification", {"action": "downWeight"}, augmentation={}),
        ],
        [
            noisy("image-classification", {"action": "downWeight"}, augmentation={"image": {field: 1}})
            for field in ("mixup", "cutmix")
        ],
    ),
    **{
        ("JobSpec", f"data.augmentation.image.{field}", "goes with"): (
            [augmented("image-classification", {"image": {field: 1}}), augmented("text-classification", {"image": {}})],
            [augmented("text-classification", {"image": {field: 1}})],
        )
        for field in ("mixup", "cutmix")
    },
    **{
        ("Loss", field, "goes with"): (
            [{"name": fit, field: value}, {"name": "mse"}],
            [{"name": other, field: value} for other in others],
        )
        for field, value, fit, others in (
            ("labelSmoothing", 0.1, "crossEntropy", ("focal", "mse")),
            ("balanced", True, "focal", ("mse", "huber")),
            ("classWeights", {"a": 2.0}, "bce", ("mae",)),
            ("focalGamma", 1.5, "focal", ("crossEntropy",)),
            ("huberDelta", 1.5, "huber", ("mse",)),
        )
    },
    ("Loss", "classWeights", "must not stand"): (
        [{"name": "focal", "classWeights": {"a": 2.0}, "balanced": False}, {"name": "focal", "balanced": True}],
        [{"name": "focal", "classWeights": {"a": 2.0}, "balanced": True}],
    ),
    ("JobSpec", "training.matching", "goes with"): (
        [JOB, JOB | {"task": "image-text-matching", "training": {"matching": {"labels": True}}}],
        [JOB | {"training": {"matching": {}}}],
    ),
    ("JobSpec", "training.loss.name", "does not go with this task"): (
        [losing("text-regression", name="huber"), losing("causal-lm", name="crossEntropy"), JOB],
        [losing("text-regression", name="crossEntropy"), losing("causal-lm", name="focal")],
    ),
    ("JobSpec", "training.loss.name", "must be bce or focal"): (
        [losing("text-classification", name="focal"), MULTI_LABEL | {"training": {"loss": {"name": "bce"}}}],
        [losing("text-classification", name="bce"), MULTI_LABEL | {"training": {"loss": {"name": "crossEntropy"}}}],
    ),
    ("JobSpec", "training.loss", "weighs classes"): (
        [losing("causal-lm", name="crossEntropy"), losing("text-classification", name="focal", balanced=True)],
        [losing("causal-lm", name="crossEntropy", balanced=True)],
    ),
    ("JobSpec", "strategy.distillation", "goes with"): (
        [taught("causal-lm"), taught("image-classification"), JOB],
        [taught("text-regression")],
    ),
    ("JobSpec", "strategy.distillation.cacheTeacher", "keeps outputs"): (
        [taught("text-classification", cacheTeacher=True), taught("text-classification") | AUGMENTED],
        [taught("text-classification", cacheTeacher=True) | AUGMENTED],
    ),
    ("NamespaceRule", "", "must have exactly one"): (
        [{"names": ["a"]}, {"matchLabels": {"a": "b"}}],
        [{}, {"names": ["a"], "matchLabels": {"a": "b"}}],
    ),
}


def row_of(name: str, rule: Rule) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rule's row in the table; every rule has exactly one."""
    rows = [
        row
        for (model, field, start), row in TABLE.items()
        if (model, field) == (name, rule.field) and rule.message.startswith(start)
    ]
    assert len(rows) == 1, f"the table has {len(rows)} rows for {name}: {rule.message}"
    return rows[0]


@pytest.mark.parametrize(("name", "rule"), RULES.values(), ids=RULES.keys())
def test_a_rule_tells_right_from_wrong(name, rule):
    right, wrong = row_of(name, rule)
    assert [verdicts(rule, MODELS[name], wire) for wire in right] == [(True, True)] * len(right)
    assert [verdicts(rule, MODELS[name], wire) for wire in wrong] == [(False, False)] * len(wrong)


def test_the_table_has_no_row_too_many():
    assert len(TABLE) == len(RULES)


# --- any object


def objects(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    """Values that the schema's types and bounds let pass; the fields that rules speak of come and go."""
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    if schema["type"] == "object":
        return _maps(schema)
    if schema["type"] in ("integer", "number"):
        least = schema.get("minimum", schema.get("exclusiveMinimum", 0))
        most = schema.get("maximum", least + 2)
        return st.sampled_from([number for number in (least + 1, least + 2) if number <= most] or [most])
    pattern = schema.get("pattern", "")
    # Every list beside a rule is one of words, and every other pattern takes a digit.
    word = SOURCE if "hf:" in pattern else "http://a" if "http" in pattern else "1"
    return {"array": st.just(["1", "2"]), "boolean": st.booleans(), "string": st.just(word)}[schema["type"]]


def _maps(schema: dict[str, Any]) -> st.SearchStrategy[Any]:
    fields = schema.get("properties")
    if not fields:
        inside = schema.get("additionalProperties")
        return st.just({"a": 1.0 if isinstance(inside, dict) and inside.get("type") == "number" else "b"})
    required = schema.get("required", ())
    inner = {name: objects(child) for name, child in fields.items()}
    return st.fixed_dictionaries(
        {name: inner[name] for name in required},
        optional={name: inner[name] for name in fields if name not in required},
    )


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_cel_and_python_agree_on_any_object(name, data):
    model = MODELS[name]
    wire = data.draw(objects(json_schema(model)))
    for rule in model.rules:
        in_cel, in_python = verdicts(rule, model, wire)
        assert in_cel == in_python, (rule.cel, wire)


# --- what the CRD adds: immutability, and the keys of maps


def spec_node() -> dict[str, Any]:
    return structural_schema(FineTuneJob)["properties"]["spec"]


VALIDATIONS = spec_node()["x-kubernetes-validations"]
TRANSITIONS = {rule["fieldPath"][1:]: rule for rule in VALIDATIONS if "oldSelf" in rule["rule"]}
SPEC = parsed(FineTuneJob, {"metadata": {"name": "a"}, "spec": JOB}).to_wire()["spec"]
CHANGES: dict[str, Any] = {
    "runtime": "other",
    "task": "causal-lm",
    "model": {"source": "hf://a/c"},
    "data": DATA | {"labels": ["a", "b"]},
    "hub": {"secretRef": {"name": "a", "key": "b"}},
    "strategy": SPEC["strategy"] | {"lora": {"r": 1}},
    "training": SPEC["training"] | {"seed": 1},
    "evaluation": {"every": {"steps": 1}},
    "earlyStopping": {"patience": 1},
    "checkpoint": SPEC["checkpoint"] | {"keepLast": 3},
    "distributed": SPEC["distributed"] | {"workers": 2},
    "recovery": SPEC["recovery"] | {"stallTimeoutSeconds": 5},
    "tracking": {"tensorboard": True},
}


def refused(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """The fields whose transition rule refuses the update."""
    return [name for name, rule in TRANSITIONS.items() if not cel(rule["rule"], self=new, oldSelf=old)]


def test_every_field_is_mutable_or_guarded():
    assert sorted([*TRANSITIONS, *MUTABLE_FIELDS]) == sorted(spec_node()["properties"])
    assert {rule["reason"] for rule in TRANSITIONS.values()} == {"FieldValueForbidden"}


def test_an_update_that_changes_nothing_passes():
    assert refused(SPEC, copy.deepcopy(SPEC)) == []


@pytest.mark.parametrize("name", TRANSITIONS)
def test_an_immutable_field_may_not_change(name):
    assert refused(SPEC, SPEC | {name: CHANGES[name]}) == [name]
    assert refused(SPEC | {name: CHANGES[name]}, SPEC) == [name]


MUTATIONS = {
    "suspend": True,
    "stop": True,
    "queue": "q",
    "priorityClass": "p",
    "activeDeadlineSeconds": 1,
    "ttlSecondsAfterFinished": 0,
}


@pytest.mark.parametrize("name", MUTABLE_FIELDS)
def test_a_mutable_field_may_change(name):
    assert refused(SPEC, SPEC | {name: MUTATIONS[name]}) == []
    assert refused(SPEC | {name: MUTATIONS[name]}, SPEC) == []


def test_what_lies_deep_in_a_field_may_not_change():
    old = SPEC | {"model": {"config": {"a": {"b": [1, 2]}}}}
    assert refused(old, SPEC | {"model": {"config": {"a": {"b": [1, 3]}}}}) == ["model"]


@pytest.mark.parametrize(
    ("keys", "right"),
    [(["loss"], True), ([], True), (["k" * 256], True), (["k" * 257], False), (["ok", ""], False)],
    ids=["short", "none", "longest", "too long", "empty"],
)
def test_the_keys_of_a_map_are_bounded(keys, right):
    metrics = structural_schema(FineTuneJob)["properties"]["status"]["properties"]["metrics"]
    (rule,) = metrics["x-kubernetes-validations"]
    assert cel(rule["rule"], self=dict.fromkeys(keys, 1.0)) is right
