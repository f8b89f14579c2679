"""Roles of columns, and what is said when a column or value is not as it must be.

Invariant: a message about one row begins with its place (``reviews.csv:17``), a message about the source with the
field of the spec that names it; names of the user's are in double quotes.
"""

import difflib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa

from finetune_trainer.errors import DataError

Roles = Mapping[str, str]
"""Role (``text``, ``text_pair``, ``label``, ``image``) → name of the column or key that plays it."""

FIELDS = {
    "text": "spec.data.columns.text",
    "text_pair": "spec.data.columns.textPair",
    "label": "spec.data.columns.label",
    "image": "spec.data.columns.image",
    "objects": "spec.data.columns.objects",
    "messages": "spec.data.columns.messages",
    "prompt": "spec.data.columns.prompt",
    "completion": "spec.data.columns.completion",
    "target": "spec.data.columns.target",
    "tokens": "spec.data.columns.tokens",
    "tags": "spec.data.columns.tags",
}
"""Role → field of the spec that names its column."""
JSON_ROLES = frozenset({"objects", "messages"})
"""Roles whose values are nested; the table has them as JSON text."""
LIST_ROLES = frozenset({"tokens", "tags"})
"""Roles whose values are lists of names."""
TEXT_ROLES = frozenset({"text", "text_pair", "prompt", "completion", "target"})
"""Roles whose values are texts, which may not be empty."""

_SHOWN = 12
"""Names that a message lists at most."""
_SHOWN_CHARACTERS = 40
"""Characters of a value that a message shows at most."""


def missing_column(role: str, name: str, available: Iterable[str], place: str, *, what: str = "column") -> DataError:
    """The error that ``place`` has no column (or key) ``name``: lists what it has and the name that is nearest."""
    names = list(available)
    has = f"it has {listing(names)}" if names else "it has none"
    return DataError(f'{FIELDS[role]}: {place} has no {what} "{name}"; {has}{nearest(name, names)}')


def nearest(name: str, among: Iterable[str]) -> str:
    """``; did you mean "x"?`` if one of ``among`` is near to ``name``, else nothing."""
    by_folded = {candidate.casefold().strip(): candidate for candidate in among}
    near = difflib.get_close_matches(name.casefold().strip(), by_folded, n=1)
    return f'; did you mean "{by_folded[near[0]]}"?' if near else ""


def listing(names: Iterable[str]) -> str:
    """``"a", "b"``, the first twelve, and how many there are beyond them."""
    every = list(names)
    shown = ", ".join(f'"{name}"' for name in every[:_SHOWN])
    return shown if len(every) <= _SHOWN else f"{shown} and {len(every) - _SHOWN} more"


def show(value: object) -> str:
    """A JSON value as a message names it: its type, and the value itself where that is short."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"the number {_shortened(str(value))}"
    if isinstance(value, str):
        return f'"{_shortened(value)}"'
    return "a list" if isinstance(value, list) else "an object"


def _shortened(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def json_array(values: Iterable[Any]) -> pa.Array:
    """Nested values as JSON text; what is text already is kept."""
    texts = [value if value is None or isinstance(value, str) else json.dumps(value) for value in values]
    return pa.array(texts, pa.string())


def culprit(build: Callable[[Any], object], values: Any) -> tuple[int, Exception]:
    """Index of the first of ``values`` without which ``build`` would have worked, and what ``build`` raises there.

    For the way of an error only: ``build(values)`` is known to raise TypeError or ValueError, and fails on every longer
    slice of what it fails on.
    """
    good, bad = 0, len(values)
    failure: Exception = ValueError("cannot be read")
    while good < bad:
        middle = (good + bad) // 2
        try:
            build(values[: middle + 1])
        except (TypeError, ValueError) as error:
            bad, failure = middle, error
        else:
            good = middle + 1
    return bad, failure
