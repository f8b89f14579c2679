"""Faults of a user's file, each with the field's path, what was found and what is allowed.

SpecError: one or more Faults; exit code 64
"""

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ValidationError

from finetune_api.base import DATA_KEY, DNS_LABEL, DNS_SUBDOMAIN, QUANTITY, SOURCE, WEB_ADDRESS


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong with a file."""

    path: str
    """The field, for example ``spec.strategy.lora.r``; empty for the file as a whole."""
    message: str
    """What was found and what is allowed."""

    def __str__(self) -> str:
        return f"{self.path}: {self.message}" if self.path else self.message


class SpecError(ValueError):
    """A FineTuneJob or FineTuneRuntime that is not valid."""

    def __init__(self, faults: tuple[Fault, ...]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = faults


_REFUSED = {
    (
        "strategy",
        "deepspeed",
    ): "DeepSpeed is not supported; fsdp shards weights, gradients and optimizer just as ZeRO-3 does",
}
"""Values that people bring from elsewhere: (field, value) → what to use instead."""


_ELSEWHERE = {
    "rank": "r",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lr": "learningRate",
    "learning_rate": "learningRate",
    "num_train_epochs": "epochs",
    "per_device_train_batch_size": "batchSize",
    "warmup_ratio": "warmup",
    "warmup_steps": "warmup",
    "bf16": "precision",
    "fp16": "precision",
    "max_seq_length": "maxLength",
    "replicas": "workers",
}
"""Names that the same thing has in other tools, too far from ours to be found by their letters."""


def faults_of(error: ValidationError, model: type[BaseModel]) -> tuple[Fault, ...]:
    """Pydantic's errors in our own words, a fault for each error and each broken rule, in the file's order."""
    return tuple(fault for details in error.errors(include_url=False) for fault in _faults(details, model))


def _faults(details: Any, model: type[BaseModel]) -> Iterator[Fault]:
    if details["type"] == "rules":
        for rule in details["ctx"]["broken"]:
            yield Fault(_join((*details["loc"], *([rule.field] if rule.field else []))), rule.message)
    elif not _is_echo(details):
        yield _fault(details, model)


def _is_echo(details: Any) -> bool:
    """A list that is too short only because pydantic does not count its wrong items, which are faults of their own."""
    return details["type"] == "too_short" and bool(len(details["input"]) >= details["ctx"]["min_length"])


def _fault(details: Any, model: type[BaseModel]) -> Fault:
    location, kind, found = details["loc"], details["type"], details["input"]
    context = details.get("ctx", {})
    if kind == "extra_forbidden":
        return Fault(_join(location), _unknown(location, model))
    if kind == "missing":
        return Fault(_join(location), "is required and missing")
    if kind == "json_invalid":
        return Fault(_join(location), f"holds text that is not Unicode: {context['error'].partition(' at ')[0]}")
    refused = _REFUSED.get((str(location[-1]), str(found).lower())) if location else None
    return Fault(_join(location), refused or _describe(kind, found, context, details["msg"]))


def _unknown(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    allowed = field_names(model, location[:-1])
    known = _ELSEWHERE.get(str(location[-1]))
    if known in allowed:
        return f"is not a field; it is called {known} here"
    near = difflib.get_close_matches(str(location[-1]), allowed, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(sorted(allowed))}"
    return f"is not a field; {hint}"


def field_names(model: type[BaseModel], location: tuple[int | str, ...]) -> list[str]:
    """Names (on the wire) of the fields of the object that lies at ``location`` in ``model``."""
    current: type[BaseModel] | None = model
    for part in location:
        if isinstance(part, str) and current is not None:
            current = field_model(current, part)
    return [info.alias or name for name, info in current.model_fields.items()] if current else []


def field_model(model: type[BaseModel], name: str) -> type[BaseModel] | None:
    """The model of the objects in the field that is called ``name`` on the wire; None if it holds no such objects."""
    field = next((info for name_here, info in model.model_fields.items() if name in (name_here, info.alias)), None)
    return nested_model(field.annotation) if field else None


def nested_model(annotation: Any) -> type[BaseModel] | None:
    """The pydantic model inside an annotation such as ``X | None`` or ``tuple[X, ...]``; None if there is none."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = nested_model(argument)
        if found:
            return found
    return None


_TYPES = {
    "int_type": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "string_type": "must be a string",
    "bool_type": "must be true or false",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "dict_type": "must be a map",
    "model_type": "must be a map",
    "model_attributes_type": "must be a map",
    "finite_number": "must be a finite number",
}
_BOUNDS = {
    "greater_than": ("must be > {}", "gt"),
    "greater_than_equal": ("must be ≥ {}", "ge"),
    "less_than": ("must be < {}", "lt"),
    "less_than_equal": ("must be ≤ {}", "le"),
    "too_long": ("must have at most {} items", "max_length"),
    "too_short": ("must have at least {} items", "min_length"),
    "string_too_long": ("must have at most {} characters", "max_length"),
    "string_too_short": ("must have at least {} characters", "min_length"),
}


_NAME = "must be lower-case letters, digits and dashes, starting and ending with a letter or digit"
FORMATS = {
    DNS_LABEL: _NAME,
    DNS_SUBDOMAIN: _NAME + ", in parts divided by dots",
    QUANTITY: "must be a quantity such as 500m or 16Gi",
    DATA_KEY: "must be letters, digits, dashes, underscores and dots",
    WEB_ADDRESS: "must be http://… or https://…, without name and password",
    SOURCE: "must be hf://owner/name, pvc://claim/path or file:///absolute/path",
}
"""What a pattern asks for, in words."""


def _describe(kind: str, found: Any, context: dict[str, Any], message: str) -> str:
    got = f", got {_show(found)}"
    if kind in _TYPES:
        return _TYPES[kind] + got
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{words.format(_plain(context[bound]))}{got}"
    if kind in ("literal_error", "enum"):
        near = difflib.get_close_matches(str(found), _options(context["expected"]), n=1)
        return f"must be one of {context['expected'].replace(' or ', ', ')}{got}" + (
            f"; did you mean {near[0]}?" if near else ""
        )
    if kind == "string_pattern_mismatch":
        return f"{FORMATS.get(context['pattern'], 'must match ' + context['pattern'])}{got}"
    if kind == "not_unique":
        return str(context["message"])
    return message[:1].lower() + message[1:] + got


def _plain(bound: Any) -> Any:
    """A whole number without a fraction, as the user would write it."""
    return int(bound) if isinstance(bound, float) and bound.is_integer() else bound


def _options(expected: str) -> list[str]:
    return [option.strip().strip("'") for option in expected.replace(" or ", ",").split(",")]


def _show(found: Any) -> str:
    text = repr(found)
    return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - what fits beside a path on a line


def _join(location: tuple[int | str, ...]) -> str:
    path = ""
    for part in location:
        path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
    return path
