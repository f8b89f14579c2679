"""What the Helm chart has of the models: its CRD templates, and the schema of its values.

Invariant: a template renders to the same definition as crds/ holds, with the release's labels and the order to keep it.
"""

import copy
from typing import Any

from finetune_api.editor import plain
from finetune_api.runtime import RuntimeSpec
from finetune_api.schema import json_schema

_LABELS = '{{- include "finetune-operator.labels" . | nindent 4 }}'


def crd_template(definition: str, notice: str) -> str:
    """A Helm template of the CustomResourceDefinition whose YAML is ``definition``.

    Helm installs a chart's ``crds/`` folder once and never upgrades it, so they are templates; and it would delete what
    it installed, with all jobs, if they did not say that they are kept.
    """
    head, _, rest = definition.replace("{{", '{{ "{{" }}').partition("metadata:\n")
    metadata = f"metadata:\n  annotations:\n    helm.sh/resource-policy: keep\n  labels:\n    {_LABELS}\n"
    return f"{{{{- /* {notice} */ -}}}}\n{{{{- if .Values.crds.enabled }}}}\n{head}{metadata}{rest}{{{{- end }}}}\n"


def values_schema(own: dict[str, Any], notice: str) -> dict[str, Any]:
    """The schema of the chart's values: what people wrote (``own``), with the fields of a FineTuneRuntime filled in.

    The image may be left out there, because the chart fills it in.
    """
    runtime = plain(json_schema(RuntimeSpec))
    runtime["required"] = [name for name in runtime["required"] if name != "image"]
    schema = copy.deepcopy(own)
    schema["properties"]["defaultRuntime"]["properties"]["spec"] = _without_empty(runtime)
    return {"$comment": notice, **schema}


def _without_empty(schema: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in schema.items() if value != []}
