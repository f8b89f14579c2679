"""The models as one JSON schema without references: what the CRDs, the editors' schema and the reference are made of.

Invariant: every object of a model has that model's name as its ``title``, by which its rules are found; nothing else
has a title. No schema holds ``$ref``, ``anyOf`` or null: a field that may be unset is one that is not required.
"""

from typing import Any

from finetune_api.base import ApiModel
from finetune_api.errors import nested_model

_UNKNOWN_TO_US = ("$ref", "$defs", "anyOf", "const", "title")


def json_schema(model: type[ApiModel]) -> dict[str, Any]:
    """The schema (JSON Schema, draft 7) of ``model`` on the wire."""
    document = model.model_json_schema()
    return _inlined(document, document.get("$defs", {}))


def models_in(model: type[ApiModel]) -> dict[str, type[ApiModel]]:
    """``model`` and every model inside it, by name."""
    found = {model.__name__: model}
    for field in model.model_fields.values():
        inner = nested_model(field.annotation)
        if inner is not None and issubclass(inner, ApiModel):
            found |= models_in(inner)
    return found


def children(schema: dict[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """The schemas right inside ``schema``, each with what a path adds for it: ``.name``, ``[]`` or ``.*``."""
    inside = [(f".{name}", child) for name, child in schema.get("properties", {}).items()]
    inside += [("[]", schema["items"])] if "items" in schema else []
    free = schema.get("additionalProperties")
    return [*inside, (".*", free)] if isinstance(free, dict) else inside


def _inlined(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    schema = _resolved(schema, definitions)
    result = {name: value for name, value in schema.items() if name not in _UNKNOWN_TO_US}
    if "const" in schema:
        result["enum"] = [schema["const"]]
    if "description" in result:
        result["description"] = " ".join(result["description"].split())
    if "properties" in schema:
        result["title"] = schema["title"]
        result["properties"] = {name: _inlined(child, definitions) for name, child in schema["properties"].items()}
    for name in ("items", "additionalProperties"):
        if isinstance(schema.get(name), dict):
            result[name] = _inlined(schema[name], definitions)
    if schema.get("default", None) is None:
        result.pop("default", None)
    else:
        result["default"] = _wire(schema["default"])
    return result


def _resolved(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """``schema`` with what it refers to in its place; its own description and default come first."""
    for choice in schema.get("anyOf", []):
        if choice != {"type": "null"}:
            return _resolved(choice, definitions) | {name: schema[name] for name in schema if name != "anyOf"}
    if "$ref" not in schema:
        return schema
    target = definitions[schema["$ref"].rpartition("/")[2]]
    return _resolved(target, definitions) | {name: schema[name] for name in schema if name != "$ref"}


def _wire(default: Any) -> Any:
    """A default as it is stored: nothing that is unset, and whole numbers without a fraction."""
    if isinstance(default, dict):
        return {name: _wire(value) for name, value in default.items() if value is not None}
    if isinstance(default, list):
        return [_wire(item) for item in default]
    return int(default) if isinstance(default, float) and default.is_integer() else default
