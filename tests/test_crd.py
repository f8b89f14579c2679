"""The generated CRDs: up to date, structural, bounded, and of the same mind as the models."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft4Validator, Draft7Validator

from finetune_api import SpecError, parse_job
from finetune_api.base import ApiModel
from finetune_api.crd import JOB, RESOURCES, RUNTIME, definition, structural_schema
from finetune_api.editor import editor_schema
from finetune_api.generate import ROOT, drifted, generated_files, main, write
from finetune_api.strict_yaml import read_yaml

FILES = generated_files()
SCHEMAS = {resource.kind: structural_schema(resource.model) for resource in RESOURCES}
EXAMPLES = sorted((ROOT / "examples").glob("*.yaml"))
JOB_DOCUMENT: dict[str, Any] = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "demo"},
    "spec": {"task": "causal-lm", "model": {"source": "hf://a/b"}, "data": {"source": "file:///data"}},
}
SMALL = {
    "FineTuneJob": JOB_DOCUMENT,
    "FineTuneRuntime": {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneRuntime",
        "metadata": {"name": "default"},
        "spec": {"image": "trainer:1", "namespaces": {"names": ["a"]}, "ceilings": {"resources": {}}},
    },
}


def walk(schema, path=""):
    """Every schema inside ``schema``, with its path."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}")
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), dict):
        yield from walk(schema["additionalProperties"], f"{path}.*")


# --- up to date


def test_generated_files_are_up_to_date():
    assert drifted(ROOT, FILES) == [], "run python -m finetune_api.generate"


def test_generate_writes_what_is_missing_and_nothing_else(tmp_path, capsys):
    paths = list(FILES)
    assert write(tmp_path, FILES) == paths
    assert write(tmp_path, FILES) == []
    (tmp_path / paths[0]).write_text("edited")
    assert main(["--check", "--root", str(tmp_path)]) == 1
    assert capsys.readouterr().err == f"{paths[0]}: differs from the models; run python -m finetune_api.generate\n"
    assert main(["--root", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"wrote {paths[0]}\n"
    assert main(["--check", "--root", str(tmp_path)]) == 0


def test_generated_files_say_so_at_their_top():
    for path, text in FILES.items():
        assert "Generated from crds/finetune_api" in "".join(text.splitlines(keepends=True)[:3]), path


def test_the_yaml_holds_the_definition():
    for resource in RESOURCES:
        text = FILES[f"crds/{resource.plural}.finetune.dev.yaml"]
        assert yaml.safe_load(text) == definition(resource)


# --- structural: https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/

KEYWORDS = {
    "type",
    "format",
    "description",
    "default",
    "enum",
    "pattern",
    "minLength",
    "maxLength",
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "properties",
    "items",
    "additionalProperties",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
}
ANY_JSON = {"x-kubernetes-preserve-unknown-fields": True}
OBJECTS = {"properties", "additionalProperties", "x-kubernetes-preserve-unknown-fields"}
SCALARS = ("string", "integer", "number", "boolean")


def unstructural(schema) -> list[str]:
    """What the API server would refuse in the schema of a kind."""
    return [f"{path}: {fault}" for path, node in walk(schema) for fault in _node_faults(path, node)]


def _node_faults(path, node):
    yield from (f"unknown keyword {name}" for name in node.keys() - KEYWORDS)
    yield from _type_faults(node)
    if "properties" in node and "additionalProperties" in node:
        yield "both properties and additionalProperties"
    if isinstance(node.get("additionalProperties", {}), bool):
        yield "additionalProperties is not a schema"
    if node.get("type") == "object" and not node.keys() & OBJECTS:
        yield "an object of nothing"
    if set(node.get("required", ())) - node.get("properties", {}).keys():
        yield "requires a field that it does not have"
    for name in ("exclusiveMinimum", "exclusiveMaximum"):
        if not isinstance(node.get(name, True), bool):
            yield f"{name} is not a boolean"
    if path == ".metadata" and node.get("properties", {}).keys() - {"name", "generateName"}:
        yield "restricts more of the metadata than the name"
    yield from _list_faults(node)
    yield from _default_faults(node)


def _type_faults(node):
    if node.get("x-kubernetes-int-or-string"):
        if "type" in node:
            yield "an integer or string with a type"
    elif node != ANY_JSON and node.get("type") not in (*SCALARS, "object", "array"):
        yield f"type {node.get('type')}"


def _default_faults(node):
    if "default" in node and list(Draft4Validator(node).iter_errors(node["default"])):
        yield "default is not valid"
    if "default" in node and node["default"] != pruned(node, node["default"]):
        yield "default has unknown fields"


def _list_faults(node):
    if node.get("type") != "array":
        return
    if "items" not in node:
        yield "a list of nothing"
        return
    items, kind = node["items"], node.get("x-kubernetes-list-type", "atomic")
    if kind == "set" and items["type"] not in SCALARS:
        yield "a set of what is no scalar"
    for key in node.get("x-kubernetes-list-map-keys", [None] if kind == "map" else []):
        if key not in items.get("required", ()):
            yield f"list-map key {key} is not required"


def pruned(schema, value):
    """``value`` without the fields that the schema does not know, as the API server stores it."""
    fields = schema.get("properties")
    if isinstance(value, dict) and fields:
        return {name: pruned(fields[name], item) for name, item in value.items() if name in fields}
    if isinstance(value, list):
        return [pruned(schema["items"], item) for item in value]
    return value


def defaulted(schema, value):
    """``value`` with the schema's defaults, as the API server fills them in."""
    if isinstance(value, dict):
        fields = schema.get("properties", {})
        filled = {name: copy.deepcopy(child["default"]) for name, child in fields.items() if "default" in child} | value
        return {name: defaulted(fields[name], item) if name in fields else item for name, item in filled.items()}
    return [defaulted(schema["items"], item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("kind", SCHEMAS)
def test_the_schema_is_structural(kind):
    assert unstructural(SCHEMAS[kind]) == []


STRING = {"type": "string"}
FAULTY = {
    "a reference": ({"$ref": "#/x"}, [": unknown keyword $ref", ": type None"]),
    "a union": ({"anyOf": [STRING], "type": "string"}, [": unknown keyword anyOf"]),
    "null": ({"type": "null"}, [": type null"]),
    "unknown fields refused": (
        {"type": "object", "additionalProperties": False},
        [": additionalProperties is not a schema"],
    ),
    "an empty object": ({"type": "object"}, [": an object of nothing"]),
    "draft 7's bounds": ({"type": "integer", "exclusiveMinimum": 0}, [": exclusiveMinimum is not a boolean"]),
    "unique items": ({"type": "array", "items": STRING, "uniqueItems": True}, [": unknown keyword uniqueItems"]),
    "a list without items": ({"type": "array"}, [": a list of nothing"]),
    "a wrong default": ({"type": "integer", "default": "x"}, [": default is not valid"]),
    "a default that would be pruned": (
        {"type": "object", "properties": {"a": STRING}, "default": {"b": 1}},
        [": default has unknown fields"],
    ),
    "an unknown required field": (
        {"type": "object", "properties": {"a": STRING}, "required": ["b"]},
        [": requires a field that it does not have"],
    ),
    "a set of objects": (
        {"type": "array", "items": {"type": "object", "properties": {}}, "x-kubernetes-list-type": "set"},
        [": a set of what is no scalar"],
    ),
    "a map without its key": (
        {
            "type": "array",
            "items": {"type": "object", "properties": {"a": STRING}},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["a"],
        },
        [": list-map key a is not required"],
    ),
    "metadata": (
        {"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": STRING}}}},
        [".metadata: restricts more of the metadata than the name"],
    ),
}


@pytest.mark.parametrize(("schema", "faults"), FAULTY.values(), ids=FAULTY.keys())
def test_the_checker_finds_what_is_not_structural(schema, faults):
    assert unstructural(schema) == faults


@pytest.mark.parametrize("kind", SCHEMAS)
def test_every_string_list_and_map_is_bounded(kind):
    unbounded = [path for path, node in walk(SCHEMAS[kind]) if not _is_bounded(node)]
    assert unbounded == [".apiVersion", ".kind"], "which the API server checks itself"


def _is_bounded(node) -> bool:
    match node.get("type"):
        case "string":
            return "maxLength" in node or "enum" in node or node.get("format") == "date-time"
        case "array":
            return "maxItems" in node
        case "object" if "properties" not in node:
            return "maxProperties" in node
        case "integer":
            return node["format"] == "int64"
    return True


def test_every_field_is_described():
    for kind, schema in SCHEMAS.items():
        bare = [path for path, node in walk(schema) if not node.get("description")]
        assert [path for path in bare if not path.endswith(("]", "*"))] == [".metadata"], kind


# --- what is said of particular fields


def field(kind, path) -> dict[str, Any]:
    return next(node for found, node in walk(SCHEMAS[kind]) if found == path)


FIELDS = {
    ".spec.strategy.lora": {"absent": ("default",), "type": "object"},
    ".spec.strategy.learningRate": {"default": {"value": 2e-05}},
    ".spec.training.warmup": {"default": {"ratio": 0.06}},
    ".spec.training.batchSize": {
        "absent": ("type",),
        "x-kubernetes-int-or-string": True,
        "minimum": 1,
        "maximum": 1_048_576,
        "pattern": "^auto$",
    },
    ".spec.data.split.train": {"default": 7, "minimum": 0, "exclusiveMinimum": True, "type": "number"},
    ".spec.model.config": {"x-kubernetes-preserve-unknown-fields": True, "maxProperties": 64},
    ".spec.model.revision": {"absent": ("default", "nullable"), "type": "string"},
    ".spec.data.labels": {"x-kubernetes-list-type": "atomic"},
    ".spec.evaluation.metrics": {"x-kubernetes-list-type": "set"},
    ".status": {"absent": ("default",)},
    ".status.conditions": {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    ".status.startTime": {"type": "string", "format": "date-time"},
    ".status.metrics": {"maxProperties": 64, "additionalProperties": {"type": "number"}},
    ".metadata.name": {"maxLength": 52},
}


@pytest.mark.parametrize("path", FIELDS)
def test_a_field_says(path):
    expected = dict(FIELDS[path])
    node = field("FineTuneJob", path)
    assert not node.keys() & set(expected.pop("absent", ()))
    assert {name: node.get(name) for name in expected} == expected


def test_names_and_columns():
    spec = definition(JOB)["spec"]
    assert spec["names"] == {
        "kind": "FineTuneJob",
        "listKind": "FineTuneJobList",
        "plural": "finetunejobs",
        "singular": "finetunejob",
        "shortNames": ["ftj"],
        "categories": ["all", "finetune"],
    }
    assert spec["scope"] == "Namespaced"
    version = spec["versions"][0]
    assert version["subresources"] == {"status": {}}
    shown = [column["name"] for column in version["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Phase", "Percent", "Step", "Metric", "Best", "Attempt", "Age", "Message"]
    assert definition(RUNTIME)["spec"]["scope"] == "Cluster"
    assert "subresources" not in definition(RUNTIME)["spec"]["versions"][0]


COLUMNS = {f"{one.kind} {column.name}": (one.kind, column) for one in RESOURCES for column in one.columns}


@pytest.mark.parametrize(("kind", "column"), COLUMNS.values(), ids=COLUMNS.keys())
def test_every_column_shows_a_field_of_its_type(kind, column):
    if column.path.startswith(".metadata"):
        return
    path = column.path.replace("[-1:]", "[]").replace('[?(@.message!="")]', "[]")
    assert field(kind, path)["type"] == column.type


# --- of the same mind as the models


def accepts(kind, value) -> bool:
    """Whether types and bounds let ``value`` pass; rules are tested elsewhere."""
    return not list(Draft4Validator(SCHEMAS[kind]).iter_errors(value))


def changed(document, path, value) -> dict[str, Any]:
    made = copy.deepcopy(document)
    place = made
    *parents, last = path.split(".")
    for name in parents:
        place = place.setdefault(name, {})
    place[last] = value
    return made


BEYOND = {
    "a name of 53": ("metadata.name", "a" * 53),
    "a name with a capital": ("metadata.name", "A"),
    "an open bound": ("spec.strategy.learningRate.value", 0),
    "a fraction": ("spec.training.seed", 1.5),
    "a minimum": ("spec.training.batchSize", 0),
    "a word instead of a number": ("spec.training.batchSize", "big"),
    "a maximum": ("spec.distributed.workers", 1025),
    "a word": ("spec.task", "sorting"),
    "a type": ("spec.suspend", "yes"),
    "a pattern": ("spec.data.source", "s3://x"),
    "a list's length": ("spec.data.labels", []),
    "a map's size": ("spec.model.config", {str(number): 1 for number in range(65)}),
    "a required field": ("spec.data", {}),
}


@pytest.mark.parametrize(("path", "value"), BEYOND.values(), ids=BEYOND.keys())
def test_both_refuse(path, value):
    document = changed(JOB_DOCUMENT, path, value)
    assert not accepts("FineTuneJob", document)
    with pytest.raises(SpecError):
        parse_job(document)


MODELS: dict[str, type[ApiModel]] = {resource.kind: resource.model for resource in RESOURCES}
FILLED = {
    "a small job": SMALL["FineTuneJob"],
    "a small runtime": SMALL["FineTuneRuntime"],
    "a job with optional objects": changed(
        JOB_DOCUMENT,
        "spec",
        JOB_DOCUMENT["spec"]
        | {
            "earlyStopping": {},
            "strategy": {"lora": {}},
            "tracking": {"wandb": {"project": "p"}},
            "checkpoint": {"volume": {"size": "1Gi"}},
            "training": {"epochs": 1, "warmup": {"steps": 0}},
        },
    ),
    "a job with a status": JOB_DOCUMENT
    | {"status": {"earlyStopping": {}, "attempts": [{"number": 1, "start": "2026-01-01T00:00:00Z"}]}},
}


@pytest.mark.parametrize("document", FILLED.values(), ids=FILLED.keys())
def test_both_fill_in_the_same_defaults(document):
    kind = document["kind"]
    assert accepts(kind, document)
    read = MODELS[kind].model_validate_json(json.dumps(document)).to_wire()
    filled = defaulted(SCHEMAS[kind], document)
    assert read["spec"] == filled["spec"]
    assert read.get("status") == filled.get("status")
    assert accepts(kind, read)


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_is_valid(path: Path):
    document = read_yaml(path)
    kind = document["kind"]
    MODELS[kind].model_validate_json(json.dumps(document))
    assert accepts(kind, document)
    assert pruned(SCHEMAS[kind], document)["spec"] == document["spec"]
    if kind == "FineTuneJob":
        Draft7Validator(editor_schema("")).validate(document)


# --- the editors' schema


def test_the_editors_schema_refuses_unknown_fields_and_wrong_values():
    schema = editor_schema("notice")
    Draft7Validator.check_schema(schema)
    validator = Draft7Validator(schema)
    assert validator.is_valid(JOB_DOCUMENT)
    assert validator.is_valid(changed(JOB_DOCUMENT, "metadata.labels", {"team": "a"}))
    assert not validator.is_valid(changed(JOB_DOCUMENT, "spec.training.bachSize", 1))
    assert not validator.is_valid(changed(JOB_DOCUMENT, "spec.strategy.learningRate.value", 0))
    assert not validator.is_valid({name: value for name, value in JOB_DOCUMENT.items() if name != "kind"})
    assert "x-kubernetes" not in json.dumps(schema)
