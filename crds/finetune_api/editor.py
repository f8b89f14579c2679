"""The JSON schemas of our files, for editors (yaml-language-server): completion, help, unknown fields."""

from typing import Any

from finetune_api.base import ApiModel
from finetune_api.job import FineTuneJob
from finetune_api.schema import json_schema


def editor_schema(notice: str, kind: type[ApiModel] = FineTuneJob) -> dict[str, Any]:
    """JSON Schema (draft 7) of a kind; cross-field rules are left to ``finetune validate``.

    Args:
        notice: What generated it, for those who open the file.
        kind: FineTuneJob or FineTuneExperiment.
    """
    schema = plain(json_schema(kind))
    # The models know these two by heart; a file must say them.
    schema["required"] = ["apiVersion", "kind", *schema["required"]]
    return {"$schema": "http://json-schema.org/draft-07/schema#", "$comment": notice, **schema}


def plain(schema: Any) -> Any:
    """``schema`` without Kubernetes' own words."""
    if isinstance(schema, dict):
        if "x-kubernetes-int-or-string" in schema:
            schema = schema | {"type": ["integer", "string"]}
        return {name: plain(value) for name, value in schema.items() if not name.startswith("x-kubernetes-")}
    return [plain(item) for item in schema] if isinstance(schema, list) else schema
