"""A FineTuneJob file → the job, or exactly these faults."""

import copy
import json
from typing import Any

import pytest
import yaml

from finetune_api import SpecError, immutable_changes, parse_job, read_job
from finetune_api.base import ApiModel
from finetune_api.job import MUTABLE_FIELDS, FineTuneJob, JobSpec
from finetune_api.runtime import FineTuneRuntime
from finetune_api.schema import json_schema, models_in
from finetune_api.status import Condition, JobStatus
from finetune_api.strict_yaml import MAX_FILE_BYTES, parse_yaml

HEAD = "apiVersion: finetune.dev/v1alpha1\nkind: FineTuneJob\nmetadata: {name: demo}\n"
MINIMAL = HEAD + "spec:\n  task: causal-lm\n  model: {source: hf://a/b}\n  data: {source: file:///data}\n"


def document(**spec) -> dict[str, Any]:
    """A valid job with these fields of the spec replaced."""
    made = yaml.safe_load(MINIMAL)
    made["spec"] |= copy.deepcopy(spec)
    return made


def faults_of(read, *arguments) -> list[str]:
    with pytest.raises(SpecError) as caught:
        read(*arguments)
    assert str(caught.value) == "\n".join(str(fault) for fault in caught.value.faults)
    return [str(fault) for fault in caught.value.faults]


VALUES = {
    "below its minimum": ({"training": {"batchSize": 0}}, ["spec.training.batchSize: must be ≥ 1, got 0"]),
    "above its maximum": ({"distributed": {"workers": 1025}}, ["spec.distributed.workers: must be ≤ 1024, got 1025"]),
    "at an open bound": (
        {"strategy": {"learningRate": {"value": 0}}},
        ["spec.strategy.learningRate.value: must be > 0, got 0"],
    ),
    "a whole number as a float": ({"training": {"seed": 1.0}}, ["spec.training.seed: must be a whole number, got 1.0"]),
    "a number as a string": ({"training": {"seed": "1"}}, ["spec.training.seed: must be a whole number, got '1'"]),
    "a number as a boolean": ({"training": {"epochs": True}}, ["spec.training.epochs: must be a number, got True"]),
    "a boolean as a string": ({"suspend": "yes"}, ["spec.suspend: must be true or false, got 'yes'"]),
    "a string as a number": ({"queue": 3}, ["spec.queue: must be a string, got 3"]),
    "a list as a string": ({"evaluation": {"metrics": "f1"}}, ["spec.evaluation.metrics: must be a list, got 'f1'"]),
    "a map as a list": ({"training": []}, ["spec.training: must be a map, got []"]),
    "NaN": ({"training": {"epochs": float("nan")}}, ["spec.training.epochs: must be a finite number, got nan"]),
    "infinity": ({"training": {"epochs": float("inf")}}, ["spec.training.epochs: must be a finite number, got inf"]),
    "an integer beyond 64 bits": (
        {"training": {"seed": 2**70}},
        ["spec.training.seed: must be ≤ 2147483647, got 1180591620717411303424"],
    ),
    "a word with a typing error": (
        {"task": "text-clasification"},
        [
            (
                "spec.task: must be one of 'text-classification', 'text-regression', 'causal-lm', "
                "'image-classification', 'image-text-matching', 'object-detection', 'image-captioning', "
                "'token-classification', 'sequence-to-sequence', "
                "got 'text-clasification'; did you mean text-classification?"
            )
        ],
    ),
    "a word from elsewhere": (
        {"distributed": {"strategy": "DeepSpeed"}},
        [
            (
                "spec.distributed.strategy: DeepSpeed is not supported; "
                "fsdp shards weights, gradients and optimizer just as ZeRO-3 does"
            )
        ],
    ),
    "no name": (
        {"queue": "A_b"},
        [
            (
                "spec.queue: must be lower-case letters, digits and dashes, "
                "starting and ending with a letter or digit, got 'A_b'"
            )
        ],
    ),
    "no source": (
        {"data": {"source": "s3://bucket"}},
        ["spec.data.source: must be hf://owner/name, pvc://claim/path or file:///absolute/path, got 's3://bucket'"],
    ),
    "no quantity": (
        {"distributed": {"resources": {"memory": "16 GB"}}},
        ["spec.distributed.resources.memory: must be a quantity such as 500m or 16Gi, got '16 GB'"],
    ),
    "too long a string is not repeated whole": (
        {"runtime": "x" * 300},
        ["spec.runtime: must have at most 253 characters, got '" + "x" * 76 + "..."],
    ),
    "an item twice": (
        {"data": {"source": "hf://a/b", "labels": ["a", "b", "a"]}},
        ["spec.data.labels: must not repeat an item, got 'a' twice"],
    ),
    "an item of another type": (
        {"data": {"source": "hf://a/b", "labels": ["a", 1]}},
        ["spec.data.labels[1]: must be a string, got 1"],
    ),
    "too few for the task": (
        {"data": {"source": "hf://a/b", "labels": ["a"]}},
        ["spec.data.labels: must name two classes at least"],
    ),
    "a missing field": ({"data": {}}, ["spec.data.source: is required and missing"]),
    "a rule about the object": (
        {"training": {"epochs": 1, "maxSteps": 1}},
        ["spec.training: must have at most one of epochs or maxSteps"],
    ),
    "a rule about a field": (
        {"strategy": {"lastLayers": 2}},
        ["spec.strategy.lastLayers: must be given with trainable: lastLayers, and only with it"],
    ),
    "half a surrogate pair": (
        {"queue": "\ud800"},
        ["holds text that is not Unicode: unexpected end of hex escape"],
    ),
    "every fault, in the order of the models": (
        {"training": {"batchSize": 0, "seed": -1}, "suspend": 1, "sspend": True},
        [
            "spec.training.batchSize: must be ≥ 1, got 0",
            "spec.training.seed: must be ≥ 0, got -1",
            "spec.suspend: must be true or false, got 1",
            "spec.sspend: is not a field; did you mean suspend?",
        ],
    ),
}


@pytest.mark.parametrize(("spec", "faults"), VALUES.values(), ids=VALUES.keys())
def test_a_wrong_value_is_a_fault(spec, faults):
    assert faults_of(parse_job, document(**spec)) == faults


def _objects(model: type[ApiModel]) -> list[tuple[str, type[ApiModel]]]:
    """Path and model of every object of ``spec`` in ``model``."""
    models = models_in(model)

    def walk(path, schema):
        if "properties" in schema:
            yield path, models[schema["title"]]
            for name, child in schema["properties"].items():
                yield from walk(f"{path}.{name}", child)

    return list(walk("spec", json_schema(model)["properties"]["spec"]))


@pytest.mark.parametrize(
    ("path", "model"), _objects(FineTuneJob), ids=lambda value: value if type(value) is str else ""
)
def test_an_unknown_field_is_a_fault_at_every_level(path, model):
    name = next(info.alias for info in model.model_fields.values())
    made = document()
    place = made
    for part in path.split("."):
        place = place.setdefault(part, {})
    place[name + "x"] = 1
    lines = faults_of(parse_job, made)
    assert [line for line in lines if line.startswith(f"{path}.{name}x: is not a field; ")] != []


UNKNOWN = {
    "a typing error": (
        {"training": {"bachSize": 1}},
        "spec.training.bachSize: is not a field; did you mean batchSize?",
    ),
    "another case": (
        {"training": {"batch_size": 1}},
        "spec.training.batch_size: is not a field; did you mean batchSize?",
    ),
    "another tool's name": (
        {"strategy": {"lora": {"rank": 8}}},
        "spec.strategy.lora.rank: is not a field; it is called r here",
    ),
    "nothing like it": (
        {"tracking": {"zzz": 1}},
        "spec.tracking.zzz: is not a field; allowed are mlflow, tensorboard, wandb",
    ),
}


@pytest.mark.parametrize(("spec", "fault"), UNKNOWN.values(), ids=UNKNOWN.keys())
def test_an_unknown_field_says_what_was_meant(spec, fault):
    assert faults_of(parse_job, document(**spec)) == [fault]


def test_all_rules_that_are_broken_are_told_at_once():
    spec = {"training": {"loss": {"name": "focal"}}, "data": {"augmentation": {"image": {"rotateDegrees": 5}}}}
    spec["data"]["source"] = "hf://a/b"
    paths = [line.partition(": ")[0] for line in faults_of(parse_job, document(task="causal-lm", **spec))]
    assert sorted(paths) == ["spec.data.augmentation.image", "spec.training.loss.name"]


TEXTS = {
    "empty": ("", ["is empty; it must hold one FineTuneJob"]),
    "only a comment": ("# nothing\n", ["is empty; it must hold one FineTuneJob"]),
    "a list": ("- 1\n", ["must be one FineTuneJob (a map), got a list"]),
    "a string": ("hello\n", ["must be one FineTuneJob (a map), got a str"]),
    "another kind": (MINIMAL.replace("FineTuneJob", "Job"), ["kind: must be FineTuneJob, got 'Job'"]),
    "no kind": (MINIMAL.replace("kind: FineTuneJob\n", ""), ["kind: is required and missing; it must be FineTuneJob"]),
    "another version": (
        MINIMAL.replace("v1alpha1", "v2"),
        ["apiVersion: must be finetune.dev/v1alpha1, got 'finetune.dev/v2'"],
    ),
    "several documents": (
        MINIMAL + "---\n" + MINIMAL,
        ["holds several documents, the second from line 9; give each FineTuneJob its own file"],
    ),
    "a key twice": (MINIMAL + "  task: causal-lm\n", ["spec.task: is given twice, again on line 8; remove one"]),
    "a key twice in JSON": ('{"a": [{"b": 1,\n"b": 2}]}', ["a[0].b: is given twice, again on line 2; remove one"]),
    "a key twice as number and string": ('1: a\n"1": b', ["1: is given twice, again on line 2; remove one"]),
    "no YAML": ("a: [", ["is not YAML: line 1, column 5: expected the node content, but found '<stream end>'"]),
    "a control character": ("a: \x01", ["is not YAML: character 4 is not allowed: special characters are not allowed"]),
    "a list as a key": ("? [a]\n: 1", ["line 1: a key must be a string"]),
    "a Python object": (
        "a: !!python/object/apply:os.system [ls]",
        ["a: line 1: tag:yaml.org,2002:python/object/apply:os.system is not a type of JSON; remove the tag"],
    ),
    "a wrong tag": (
        "a: !!int x",
        ["is not YAML: a value is not what its tag says: invalid literal for int() with base 10: 'x'"],
    ),
    "an alias inside itself": ("a: &x [*x]", ["a[0]: line 1: an alias stands inside what it stands for"]),
    "an alias bomb": (
        "a0: &a0 [x, x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)),
        ["must hold at most 100,000 values, aliases expanded"],
    ),
    "a deep nest": ("[" * 5000, ["is nested too deeply"]),
}


@pytest.mark.parametrize(("text", "faults"), TEXTS.values(), ids=TEXTS.keys())
def test_a_wrong_file_is_a_fault(tmp_path, text, faults):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert faults_of(read_job, path) == faults


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path):
    assert faults_of(read_job, tmp_path / "none.yaml") == ["cannot be read: No such file or directory"]
    assert faults_of(read_job, tmp_path) == ["cannot be read: Is a directory"]


def test_a_huge_file_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    assert faults_of(read_job, path) == ["must be at most 1,572,864 bytes, got 1,572,865"]


def test_a_file_that_is_no_text_is_a_fault(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_bytes(b"a: \xff")
    assert faults_of(read_job, path) == ["is not UTF-8 text: byte 3 is 0xff"]


SAME = {
    "JSON": json.dumps(document()),
    "leading and trailing document marks": f"---\n{MINIMAL}---\n",
    "null fields": MINIMAL + "  training:\n  queue: null\n  strategy: {learningRate: }\n",
    "defaults spelt out": MINIMAL + "  training: {seed: 0}\n  strategy: {learningRate: {value: 2e-5}}\n",
    "a comment": "# a job\n" + MINIMAL,
}


@pytest.mark.parametrize("text", SAME.values(), ids=SAME.keys())
def test_ways_to_write_the_same_job(tmp_path, text):
    path = tmp_path / "job.yaml"
    path.write_text(text)
    assert read_job(path) == parse_job(document())


SCALARS = {
    "2e-5": 2e-5,
    "1e3": 1000.0,
    ".5e1": 5.0,
    "-1.5E+3": -1500.0,
    "1.5": 1.5,
    "010": 8,
    "2026-01-01": "2026-01-01",
    "1e": "1e",
    "yes": True,
}


@pytest.mark.parametrize(("text", "value"), SCALARS.items(), ids=SCALARS.keys())
def test_scalars_are_read_as_kubernetes_reads_them(text, value):
    read = parse_yaml(f"a: {text}")["a"]
    assert (read, type(read)) == (value, type(value))


def test_aliases_and_merges_are_expanded():
    assert parse_yaml("a: &x {k: 1}\nb: {<<: *x, l: 2}\nc: *x\ntrue: 1") == {
        "a": {"k": 1},
        "b": {"k": 1, "l": 2},
        "c": {"k": 1},
        "true": 1,
    }


def test_a_free_map_keeps_its_nulls():
    config = {"model_type": "gpt2", "pad_token_id": None}
    assert parse_job(document(model={"config": config})).spec.model.config == config


OVERRIDES = {
    "a number": ("spec.training.epochs=0.5", {"training": {"epochs": 0.5}}),
    "a small number": ("spec.strategy.learningRate.value=1e-4", {"strategy": {"learningRate": {"value": 1e-4}}}),
    "a map": ("spec.strategy.lora={r: 4}", {"strategy": {"lora": {"r": 4}}}),
    "a list": ("spec.evaluation.metrics=[f1]", {"evaluation": {"metrics": ["f1"]}}),
    "a value with =": ("spec.data.source=file:///a=b", {"data": {"source": "file:///a=b"}}),
    "inside a free map": (
        "spec.model.config.n_layer=2",
        {"model": {"source": "hf://a/b", "config": {"n_layer": 2}}},
    ),
    "nothing": ("spec.queue=", {}),
}


@pytest.mark.parametrize(("override", "spec"), OVERRIDES.values(), ids=OVERRIDES.keys())
def test_an_override_sets_a_field(tmp_path, override, spec):
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL + "  queue:\n")
    assert read_job(path, (override,)) == parse_job(document(**spec))


def test_later_overrides_win(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    assert read_job(path, ("spec.training.seed=1", "spec.training.seed=2")).spec.training.seed == 2


WRONG_OVERRIDES = {
    "no value": ("spec.suspend", "--set spec.suspend: must read spec.field=value"),
    "not of the spec": ("metadata.name=x", "--set metadata.name=x: must read spec.field=value"),
    "below a scalar": ("spec.task.x=1", "--set spec.task.x=1: task is not a map"),
    "no YAML": (
        "spec.queue=[",
        "--set spec.queue=[: is not YAML: line 1, column 2: expected the node content, but found '<stream end>'",
    ),
    "unknown": ("spec.training.epoch=1", "spec.training.epoch: is not a field; did you mean epochs?"),
    "out of range": ("spec.training.epochs=0", "spec.training.epochs: must be > 0, got 0"),
}


@pytest.mark.parametrize(("override", "fault"), WRONG_OVERRIDES.values(), ids=WRONG_OVERRIDES.keys())
def test_a_wrong_override_is_a_fault(tmp_path, override, fault):
    path = tmp_path / "job.yaml"
    path.write_text(MINIMAL)
    assert faults_of(read_job, path, (override,)) == [fault]


def test_an_override_of_a_file_that_is_no_map_blames_the_file(tmp_path):
    path = tmp_path / "job.yaml"
    path.write_text("- 1")
    assert faults_of(read_job, path, ("spec.suspend=true",)) == ["must be one FineTuneJob (a map), got a list"]


CHANGED: dict[str, Any] = {
    "runtime": "other",
    "task": "text-classification",
    "model": {"source": "hf://a/c"},
    "data": {"source": "hf://a/c"},
    "hub": {"secretRef": {"name": "a", "key": "b"}},
    "strategy": {"trainable": "head"},
    "training": {"seed": 1},
    "evaluation": {"batchSize": 1},
    "earlyStopping": {},
    "checkpoint": {"keepLast": 3},
    "distributed": {"workers": 2},
    "recovery": {"stallTimeoutSeconds": 5},
    "tracking": {"tensorboard": True},
    "suspend": True,
    "stop": True,
    "queue": "q",
    "priorityClass": "p",
    "activeDeadlineSeconds": 1,
    "ttlSecondsAfterFinished": 1,
}


@pytest.mark.parametrize("name", json_schema(JobSpec)["properties"])
def test_only_mutable_fields_may_change(name):
    old, new = parse_job(document()).spec, parse_job(document(**{name: CHANGED[name]})).spec
    assert old != new
    changes = [] if name in MUTABLE_FIELDS else [f"spec.{name}"]
    assert immutable_changes(old, new) == changes
    assert immutable_changes(new, old) == changes
    assert immutable_changes(new, new) == []


@pytest.mark.parametrize("model", [FineTuneJob, FineTuneRuntime, JobStatus], ids=lambda model: model.__name__)
def test_every_object_is_strict_and_frozen(model):
    for inner in models_in(model).values():
        assert {name: inner.model_config[name] for name in ("strict", "frozen", "allow_inf_nan")} == {
            "strict": True,
            "frozen": True,
            "allow_inf_nan": False,
        }
        assert inner.model_config["extra"] == ("allow" if inner.__name__.endswith("Metadata") else "forbid")


def test_a_condition_is_there_once():
    condition = {
        "type": "Failed",
        "status": "True",
        "reason": "Configuration",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    }
    status = JobStatus.model_validate_json(json.dumps({"conditions": [condition]}))
    assert status.conditions[0].to_wire() == condition | {"message": "", "observedGeneration": 0}
    assert isinstance(status.conditions[0], Condition)
    with pytest.raises(ValueError, match="must not repeat a type, got 'Failed' twice"):
        JobStatus.model_validate_json(json.dumps({"conditions": [condition, condition]}))


def test_what_is_written_is_read_again():
    job = parse_job(document(strategy={"lora": {}}, earlyStopping={}))
    assert parse_job(job.to_wire()) == job
