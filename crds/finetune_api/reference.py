"""docs/reference.md, made from the models: every field, rule, condition, reason, exit code and variable.

Invariant: nothing is told here that the models do not say; words come from their docstrings.
"""

import ast
import inspect
import json
import textwrap
from collections.abc import Iterable, Sequence
from enum import Enum
from typing import Any

from finetune_api.base import API_VERSION, DATA_KEY, DNS_LABEL, DNS_SUBDOMAIN, QUANTITY, SOURCE, WEB_ADDRESS, ApiModel
from finetune_api.errors import FORMATS
from finetune_api.experiment import (
    EXPERIMENT_MUTABLE_FIELDS,
    ExperimentConditionType,
    ExperimentPhase,
    ExperimentReason,
    FineTuneExperiment,
)
from finetune_api.job import MUTABLE_FIELDS, FineTuneJob
from finetune_api.outcomes import Cause, ExitCode, cause_of
from finetune_api.runtime import FineTuneRuntime
from finetune_api.schema import json_schema, models_in
from finetune_api.status import ConditionType, Phase, Reason
from finetune_api.wiring import Variable

_INTRODUCTION = f"""# Reference

API version `{API_VERSION}`. A field that is not required may be left out; `unset` means that it then has no value.
Unknown fields are errors in `finetune validate` and for `kubectl apply` (which validates strictly). Some strings have a
form of their own:"""
_FORMS = {
    DNS_LABEL: "name",
    DNS_SUBDOMAIN: "object name",
    QUANTITY: "quantity",
    DATA_KEY: "key of a Secret",
    SOURCE: "source",
    WEB_ADDRESS: "web address",
}
"""What a string of a pattern is called in the tables."""

_LOCALLY = (
    "For a run that is not finished, `finetune run` takes another `spec.distributed` and `spec.recovery` as well."
)


def reference(notice: str) -> str:
    """The whole page, in Markdown.

    Args:
        notice: What generated it, for those who open the file.
    """
    mutable = ", ".join(f"`spec.{name}`" for name in MUTABLE_FIELDS)
    parts = [
        f"<!-- {notice} -->",
        _INTRODUCTION,
        _forms(),
        "## FineTuneJob",
        f"{_documentation(FineTuneJob)} Short name `ftj`. Once it is made, only {mutable} may change. {_LOCALLY}",
        *_objects(FineTuneJob, ("metadata", "spec", "status")),
        "## FineTuneRuntime",
        f"{_documentation(FineTuneRuntime)} Short name `ftr`.",
        *_objects(FineTuneRuntime, ("metadata", "spec")),
        *_experiment(),
        "## Phases",
        _member_table("Phase", Phase),
        "## Conditions",
        _member_table("Condition", ConditionType),
        "### Reasons",
        _member_table("Reason", Reason),
        "## Exit codes",
        _documentation(ExitCode),
        _exit_codes(),
        "## Causes",
        _documentation(Cause),
        _member_table("Cause", Cause),
        "## Variables of a worker",
        _documentation(Variable),
        _member_table("Variable", Variable),
    ]
    return "\n\n".join(parts) + "\n"


def _experiment() -> list[str]:
    mutable = ", ".join(f"`spec.{name}`" for name in EXPERIMENT_MUTABLE_FIELDS)
    what = f"{_documentation(FineTuneExperiment)} Short name `fte`. Once it is made, only {mutable} may change."
    return [
        "## FineTuneExperiment",
        f"{what} Its `template` has the fields of a job's [`spec`](#spec).",
        *_objects(FineTuneExperiment, ("spec", "status"), prefix="experiment.", without=("experiment.spec.template",)),
        "### Phases of an experiment",
        _member_table("Phase", ExperimentPhase),
        "### Conditions of an experiment",
        _member_table("Condition", ExperimentConditionType),
        "### Reasons of an experiment",
        _member_table("Reason", ExperimentReason),
    ]


def _forms() -> str:
    rows = [(form, FORMATS[pattern].removeprefix("must be ")) for pattern, form in _FORMS.items()]
    return _table(("Type", "What it must be"), rows)


def member_docs(enumeration: type[Enum]) -> dict[str, str]:
    """What stands below each member of an enumeration, by the member's name. Python itself throws it away."""
    body = ast.parse(textwrap.dedent(inspect.getsource(enumeration))).body[0]
    assert isinstance(body, ast.ClassDef)
    docs: dict[str, str] = {}
    for statement, following in zip(body.body, body.body[1:], strict=False):
        match statement, following:
            case ast.Assign(targets=[ast.Name(id=name)]), ast.Expr(value=ast.Constant(value=str(text))):
                docs[name] = " ".join(text.split())
    return docs


def _documentation(described: type) -> str:
    return " ".join((inspect.getdoc(described) or "").split())


def _objects(
    kind: type[ApiModel], names: tuple[str, ...], *, prefix: str = "", without: tuple[str, ...] = ()
) -> list[str]:
    """A section for each object inside the fields ``names`` of ``kind``, but for those at the paths ``without``."""
    models, properties = models_in(kind), json_schema(kind)["properties"]
    return [part for name in names for part in _sections(prefix + name, properties[name], models, without)]


def _sections(
    path: str, schema: dict[str, Any], models: dict[str, type[ApiModel]], without: tuple[str, ...]
) -> list[str]:
    """The section of the object ``schema`` at ``path``, and those of the objects inside it."""
    model, fields = models[schema["title"]], schema["properties"]
    required = schema.get("required", ())
    rows = [_row(path, name, field, required=name in required, without=without) for name, field in fields.items()]
    parts = [
        f"### `{path}`",
        _documentation(model),
        _table(("Field", "Type", "Default", "Range", "What it is"), rows),
        *_rules(model),
    ]
    for name, field in fields.items():
        inner, suffix = _inner_object(field)
        if inner and f"{path}.{name}{suffix}" not in without:
            parts += _sections(f"{path}.{name}{suffix}", inner, models, without)
    return parts


def _rules(model: type[ApiModel]) -> list[str]:
    if not model.rules:
        return []
    lines = [f"- {f'`{rule.field}` ' if rule.field else ''}{rule.message}" for rule in model.rules]
    return ["Rules:", "\n".join(lines)]


def _row(path: str, name: str, field: dict[str, Any], *, required: bool, without: tuple[str, ...]) -> tuple[str, ...]:
    inner, suffix = _inner_object(field)
    place = f"{path}.{name}{suffix}"
    is_linked = inner is not None and place not in without
    shown = f"[`{name}`](#{_anchor(place)})" if is_linked else f"`{name}`"
    return shown, _type(field), "**required**" if required else _default(field), _range(field), field["description"]


def _inner_object(field: dict[str, Any]) -> tuple[dict[str, Any] | None, str]:
    """The object that the field holds (itself, as items or as values), and what that adds to its path."""
    if "properties" in field:
        return field, ""
    for name, suffix in (("items", "[]"), ("additionalProperties", ".*")):
        inner = field.get(name)
        if isinstance(inner, dict) and "properties" in inner:
            return inner, suffix
    return None, ""


def _anchor(heading: str) -> str:
    """GitHub's anchor of a heading: letters and digits in lower case."""
    return "".join(letter for letter in heading.lower() if letter.isalnum() or letter in "-_")


def _type(field: dict[str, Any]) -> str:
    if "enum" in field:
        return ", ".join(f"`{value}`" for value in field["enum"])
    if "items" in field:
        return f"list of {_type(field['items'])}"
    free = field.get("additionalProperties")
    if isinstance(free, dict):
        return f"map of {_type(free)}"
    if free is True and "properties" not in field:
        return "free map"
    if "x-kubernetes-int-or-string" in field:
        return f"integer or `{field['pattern'].strip('^$')}`"
    form = _FORMS.get(field.get("pattern", ""), str(field.get("type", "any value")))
    return "time" if field.get("format") == "date-time" else form


def _default(field: dict[str, Any]) -> str:
    if "default" not in field:
        return "unset"
    default = field["default"]
    text = json.dumps(_beyond_fields(default, field), ensure_ascii=False)
    return "its fields' defaults" if text == "{}" and "properties" in field else f"`{text}`"


def _beyond_fields(default: Any, field: dict[str, Any]) -> Any:
    """An object's default without what its fields' own defaults say."""
    fields = field.get("properties")
    if not fields:
        return default
    return {name: value for name, value in default.items() if fields[name].get("default") != value}


def _range(field: dict[str, Any]) -> str:
    """The bounds of a field, and of its items or keys, in words; empty if there are none."""
    limits = [_interval(field), _amount(field)]
    if field.get("pattern", SOURCE) not in _FORMS:
        limits.append(f"`{field['pattern']}`")
    for part, schema in (("items", field.get("items")), ("keys", field.get("propertyNames"))):
        if schema and "enum" not in schema and "properties" not in schema and _range(schema):
            limits.append(f"{part}: {_range(schema)}")
    return "; ".join(filter(None, limits))


def _interval(field: dict[str, Any]) -> str:
    if "minimum" in field and "maximum" in field:
        return f"{_number(field['minimum'])} to {_number(field['maximum'])}"
    words = (("minimum", "≥"), ("exclusiveMinimum", ">"), ("maximum", "≤"), ("exclusiveMaximum", "<"))
    return ", ".join(f"{sign} {_number(field[name])}" for name, sign in words if name in field)


def _amount(field: dict[str, Any]) -> str:
    """How many characters, items or keys it may have."""
    for unit, suffix in (("characters", "Length"), ("items", "Items"), ("keys", "Properties")):
        least, most = field.get(f"min{suffix}"), field.get(f"max{suffix}")
        if most is not None:
            return f"{_number(least)} to {_number(most)} {unit}" if least else f"≤ {_number(most)} {unit}"
    return ""


def _number(value: float) -> str:
    return f"{int(value):,}" if value == int(value) else f"{value:g}"


def _exit_codes() -> str:
    docs = member_docs(ExitCode)
    rows = [(f"`{code.value}`", _cause(code), docs[code.name]) for code in ExitCode]
    return _table(("Code", "Cause", "What it means"), rows)


def _cause(code: ExitCode) -> str:
    return "" if code is ExitCode.DONE else f"`{cause_of(code)}`"


def _member_table(title: str, enumeration: type[Enum]) -> str:
    docs = member_docs(enumeration)
    return _table((title, "What it means"), [(f"`{member.value}`", docs[member.name]) for member in enumeration])


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
