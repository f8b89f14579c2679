"""The CustomResourceDefinitions, made from the models.

Invariant: the schemas are structural
(https://kubernetes.io/docs/tasks/extend-kubernetes/custom-resources/custom-resource-definitions/#specifying-a-structural-schema)
and refuse what the models refuse: fields by their types and bounds, objects by their rules in CEL, updates by
immutability. Everything that CEL may walk is bounded, or the API server would refuse the CRD for its cost.
"""

from dataclasses import dataclass
from typing import Any

from finetune_api.base import GROUP, VERSION, ApiModel, Rule
from finetune_api.experiment import EXPERIMENT_MUTABLE_FIELDS, FineTuneExperiment
from finetune_api.job import MUTABLE_FIELDS, FineTuneJob
from finetune_api.runtime import FineTuneRuntime
from finetune_api.schema import json_schema, models_in

_KEPT = (
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
    "minItems",
    "maxItems",
    "minProperties",
    "maxProperties",
    "required",
    "x-kubernetes-list-type",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-int-or-string",
)
_BOUNDS = (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum"))


@dataclass(frozen=True)
class Column:
    """What ``kubectl get`` shows of an object."""

    name: str
    path: str
    type: str = "string"
    wide: bool = False
    """Shown with ``-o wide`` only."""
    description: str = ""


@dataclass(frozen=True)
class Resource:
    """A kind, and what the API server calls it."""

    model: type[ApiModel]
    plural: str
    short_name: str
    scope: str
    categories: tuple[str, ...]
    columns: tuple[Column, ...]

    @property
    def kind(self) -> str:
        """The kind, for example ``FineTuneJob``."""
        return self.model.__name__


_AGE = Column("Age", ".metadata.creationTimestamp", "date")

JOB = Resource(
    model=FineTuneJob,
    plural="finetunejobs",
    short_name="ftj",
    scope="Namespaced",
    categories=("all", "finetune"),
    columns=(
        Column("Phase", ".status.phase", description="Where the job stands."),
        Column("Percent", ".status.progress.percent", "number", description="Share of the steps done."),
        Column("Step", ".status.progress.step", "integer", description="Optimizer steps done."),
        Column("Metric", ".status.best.metric", description="The metric that is watched."),
        Column("Best", ".status.best.value", "number", description="Its best value so far."),
        Column("Attempt", ".status.attempts[-1:].number", "integer", description="1 + how often it was restarted."),
        _AGE,
        Column("ETA seconds", ".status.progress.etaSeconds", "number", wide=True),
        Column("Samples/s", ".status.progress.samplesPerSecond", "number", wide=True),
        Column("Task", ".spec.task", wide=True),
        Column("Model", ".spec.model.source", wide=True),
        Column("Workers", ".spec.distributed.workers", "integer", wide=True),
        Column("Runtime", ".spec.runtime", wide=True),
        Column("Message", '.status.conditions[?(@.message!="")].message', description="The phase's reason."),
    ),
)
EXPERIMENT = Resource(
    model=FineTuneExperiment,
    plural="finetuneexperiments",
    short_name="fte",
    scope="Namespaced",
    categories=("finetune",),
    columns=(
        Column("Phase", ".status.phase", description="Where the experiment stands."),
        Column("Trials", ".status.trials.total", "integer", description="Trials that are planned."),
        Column("Running", ".status.trials.running", "integer", description="Trials that have not ended."),
        Column("Done", ".status.trials.succeeded", "integer", description="Trials with a value."),
        Column("Metric", ".spec.objective.metric", description="What the trials are compared by."),
        Column("Best", ".status.best.value", "number", description="Value of the best trial."),
        Column("Variant", ".status.best.variant", description="The variant with the best mean."),
        _AGE,
        Column("Task", ".spec.template.task", wide=True),
        Column("Model", ".spec.template.model.source", wide=True),
        Column("Message", '.status.conditions[?(@.message!="")].message', description="The answer."),
    ),
)
RUNTIME = Resource(
    model=FineTuneRuntime,
    plural="finetuneruntimes",
    short_name="ftr",
    scope="Cluster",
    categories=("finetune",),
    columns=(
        Column("Image", ".spec.image"),
        Column("Max workers", ".spec.ceilings.workers", "integer"),
        Column("Max GPUs", ".spec.ceilings.resources.gpus", "integer", description="Per worker."),
        Column("Queue", ".spec.queue"),
        Column("Egress", ".spec.egress"),
        _AGE,
        Column("Description", ".spec.description", wide=True),
    ),
)
_MUTABLE: dict[type[ApiModel], tuple[str, ...]] = {
    FineTuneJob: MUTABLE_FIELDS,
    FineTuneExperiment: EXPERIMENT_MUTABLE_FIELDS,
}
"""Kinds whose spec is fixed once it is made, but for these fields."""
RESOURCES = (JOB, EXPERIMENT, RUNTIME)


def definition(resource: Resource) -> dict[str, Any]:
    """The CustomResourceDefinition of ``resource``."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{resource.plural}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": resource.kind,
                "listKind": f"{resource.kind}List",
                "plural": resource.plural,
                "singular": resource.kind.lower(),
                "shortNames": [resource.short_name],
                "categories": list(resource.categories),
            },
            "scope": resource.scope,
            "versions": [_version(resource)],
        },
    }


def structural_schema(model: type[ApiModel]) -> dict[str, Any]:
    """The structural schema of a kind, as it stands in its CRD."""
    rules = {name: inner.rules for name, inner in models_in(model).items()}
    schema = json_schema(model)
    kind = _structural(schema, rules)
    _guard(kind, schema, model)
    properties = kind["properties"]
    # The API server checks these itself, and lets a schema restrict no more of the metadata than the name.
    for field in ("apiVersion", "kind"):
        properties[field] = {"type": "string", "description": properties[field]["description"]}
    properties["metadata"] = {"type": "object", "properties": {"name": properties["metadata"]["properties"]["name"]}}
    kind["required"] = ["spec"]
    return kind


def _version(resource: Resource) -> dict[str, Any]:
    has_status = "status" in resource.model.model_fields
    return {
        "name": VERSION,
        "served": True,
        "storage": True,
        **({"subresources": {"status": {}}} if has_status else {}),
        "additionalPrinterColumns": [_column(column) for column in resource.columns],
        "schema": {"openAPIV3Schema": structural_schema(resource.model)},
    }


def _column(column: Column) -> dict[str, Any]:
    described = {"description": column.description} if column.description else {}
    wide = {"priority": 1} if column.wide else {}
    return {"name": column.name, "type": column.type, "jsonPath": column.path, **described, **wide}


def _structural(schema: dict[str, Any], rules: dict[str, tuple[Rule, ...]]) -> dict[str, Any]:
    if "type" not in schema:  # any JSON
        return {"x-kubernetes-preserve-unknown-fields": True}
    node = {name: schema[name] for name in _KEPT if name in schema}
    node |= _bounds(schema)
    if "x-kubernetes-int-or-string" in schema:
        del node["type"]  # as the API server wants it
    elif schema["type"] == "integer":
        node["format"] = "int64"
    free = schema.get("additionalProperties")
    if "properties" in schema:
        node["properties"] = {name: _structural(child, rules) for name, child in schema["properties"].items()}
    elif isinstance(free, dict):
        node["additionalProperties"] = _structural(free, rules)
    elif schema["type"] == "object":
        node["x-kubernetes-preserve-unknown-fields"] = True
    if "items" in schema:
        node["items"] = _structural(schema["items"], rules)
    validations = _validations(schema, rules)
    return node | ({"x-kubernetes-validations": validations} if validations else {})


def _bounds(schema: dict[str, Any]) -> dict[str, Any]:
    """Exclusive bounds as OpenAPI 3.0 has them, whole numbers without a fraction."""
    bounds: dict[str, Any] = {name: schema[name] for _, name in _BOUNDS if name in schema}
    for exclusive, name in _BOUNDS:
        if exclusive in schema:
            bounds |= {name: schema[exclusive], exclusive: True}
    return {name: int(value) if value is not True and value == int(value) else value for name, value in bounds.items()}


def _validations(schema: dict[str, Any], rules: dict[str, tuple[Rule, ...]]) -> list[dict[str, str]]:
    title = schema.get("title", "")
    own = [_validation(rule.cel, rule.message, rule.field) for rule in rules.get(title, ())]
    return own + _key_bounds(schema)


def _validation(cel: str, message: str, field: str) -> dict[str, str]:
    return {"rule": cel, "message": message} | ({"fieldPath": f".{field}"} if field else {})


def _key_bounds(schema: dict[str, Any]) -> list[dict[str, str]]:
    """The lengths of a map's keys, which a structural schema has no word for."""
    bounds = schema.get("propertyNames")
    if not bounds:
        return []
    least, most = bounds["minLength"], bounds["maxLength"]
    rule = f"self.all(key, size(key) >= {least} && size(key) <= {most})"
    return [_validation(rule, f"must have keys of {least} to {most} characters", "")]


def _guard(kind: dict[str, Any], schema: dict[str, Any], model: type[ApiModel]) -> None:
    """Add the rules of immutability to the spec of a kind that has them; a job's spec in a template has none."""
    spec = schema["properties"]["spec"]
    mutable = _MUTABLE.get(model)
    if mutable is not None:
        kind["properties"]["spec"].setdefault("x-kubernetes-validations", []).extend(_immutability(spec, mutable))


def _immutability(schema: dict[str, Any], mutable: tuple[str, ...]) -> list[dict[str, str]]:
    """One transition rule for each field that may not change, be added or be removed.

    They stand on the spec, because a rule on an optional field is not asked when the field comes or goes. Equality
    sees unknown fields too: the API server compares what the schema does not name as plain JSON.
    """
    return [
        _validation(_unchanged(name, always=name in schema["required"] or "default" in child), _FIXED, name)
        | {"reason": "FieldValueForbidden"}
        for name, child in schema["properties"].items()
        if name not in mutable
    ]


_FIXED = "cannot be changed once it is made; delete it and make a new one"


def _unchanged(name: str, *, always: bool) -> str:
    """CEL: the field, which is ``always`` there or may be unset, is as it was."""
    same = f"self.{name} == oldSelf.{name}"
    return same if always else f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || {same})"
