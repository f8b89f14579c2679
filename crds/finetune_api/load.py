"""Reading our kinds from YAML, strictly: what the API server would refuse is refused here, with better words."""

import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from finetune_api.base import API_VERSION
from finetune_api.errors import Fault, SpecError, faults_of, field_model
from finetune_api.experiment import FineTuneExperiment
from finetune_api.job import FineTuneJob
from finetune_api.runtime import FineTuneRuntime
from finetune_api.strict_yaml import parse_yaml, read_yaml

Kind = TypeVar("Kind", FineTuneJob, FineTuneRuntime, FineTuneExperiment)


def read_job(path: Path, overrides: tuple[str, ...] = ()) -> FineTuneJob:
    """The FineTuneJob in a YAML or JSON file.

    Args:
        path: The file.
        overrides: ``spec.training.epochs=1`` each; the value is read as YAML, an empty one unsets the field.

    Raises:
        SpecError: The file cannot be read, is not YAML, or is not a valid FineTuneJob. No fault names the file.
    """
    return parse_job(read_document(path, overrides))


def read_document(path: Path, overrides: tuple[str, ...] = ()) -> Any:
    """What is in a YAML or JSON file, with fields set as ``read_job`` does.

    Raises:
        SpecError: The file cannot be read, or is not YAML.
    """
    document = read_yaml(path)
    for override in overrides:
        document = _with_override(document, override)
    return document


def kind_in(path: Path) -> str:
    """The kind that a file says it holds; empty if it says none, or cannot be read."""
    try:
        document = read_yaml(path)
    except SpecError:
        return ""
    return str(document.get("kind", "")) if isinstance(document, dict) else ""


def read_runtime(path: Path) -> FineTuneRuntime:
    """The FineTuneRuntime in a YAML or JSON file.

    Raises:
        SpecError: As ``read_job``.
    """
    return parse_runtime(read_yaml(path))


def parse_job(document: Any) -> FineTuneJob:
    """The FineTuneJob in plain JSON types; a field that is null counts as unset, as the API server has it.

    Raises:
        SpecError: It is not valid; every fault is listed.
    """
    return _parse(document, FineTuneJob)


def parse_runtime(document: Any) -> FineTuneRuntime:
    """The FineTuneRuntime in plain JSON types; a field that is null counts as unset, as the API server has it.

    Raises:
        SpecError: It is not valid; every fault is listed.
    """
    return _parse(document, FineTuneRuntime)


def parse_experiment_fields(document: Any) -> FineTuneExperiment:
    """The FineTuneExperiment in plain JSON types, each field checked on its own (see ``experiment_checks``).

    Raises:
        SpecError: It is not valid; every fault is listed.
    """
    return _parse(document, FineTuneExperiment)


def _parse(document: Any, model: type[Kind]) -> Kind:
    kind = model.__name__
    if document is None:
        raise SpecError((Fault("", f"is empty; it must hold one {kind}"),))
    if not isinstance(document, dict):
        raise SpecError((Fault("", f"must be one {kind} (a map), got a {type(document).__name__}"),))
    for name, right in (("apiVersion", API_VERSION), ("kind", kind)):
        if document.get(name) != right:
            raise SpecError((Fault(name, _wrong(right, document.get(name))),))
    try:
        # Through JSON, because strict models take a list for a tuple and a string for a time from JSON alone.
        text = json.dumps(_without_nulls(document, model))
        return model.model_validate_json(text, by_alias=True, by_name=False)
    except ValidationError as error:
        raise SpecError(faults_of(error, model)) from error
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError((Fault("", f"holds something that JSON cannot: {error}"),)) from error


def _wrong(right: str, found: Any) -> str:
    return f"must be {right}, got {found!r}" if found is not None else f"is required and missing; it must be {right}"


def _without_nulls(value: Any, model: type[BaseModel] | None) -> Any:
    """``value`` without the null fields of its objects; free maps such as ``spec.model.config`` keep theirs."""
    if model is None:
        return value
    if isinstance(value, list):
        return [_without_nulls(item, model) for item in value]
    if isinstance(value, dict):
        given = {name: item for name, item in value.items() if item is not None}
        return {name: _without_nulls(item, field_model(model, name)) for name, item in given.items()}
    return value


def _with_override(document: Any, override: str) -> Any:
    """``document`` (changed in place) with the field set that ``override`` names."""
    path, separator, text = override.partition("=")
    if not separator or not path.startswith("spec."):
        raise SpecError((Fault(f"--set {override}", "must read spec.field=value"),))
    if not isinstance(document, dict):
        return document
    *parents, last = path.split(".")
    parent = document
    for name in parents:
        if parent.get(name) is None:
            parent[name] = {}
        parent = parent[name]
        if not isinstance(parent, dict):
            raise SpecError((Fault(f"--set {override}", f"{name} is not a map"),))
    try:
        parent[last] = parse_yaml(text)
    except SpecError as error:
        raise SpecError(tuple(Fault(f"--set {override}", fault.message) for fault in error.faults)) from error
    return document
