"""The normal form of labels: what every format's own types become.

Invariant: a label column is ``string``, or ``list<string>`` if every label is a list; words and their tags are
``list<string>``, which a format without lists (CSV) holds as JSON. What a format has types for
becomes text by one rule: 3 and 3.0 are "3", 0.5 is "0.5" (the shortest text that reads back the same), true is "true".
A CSV file has only text, so its "3.0" stays "3.0". Text is kept as found; nulls stay null for the reader to refuse.
"""

import json
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.columns import show

STRINGS = pa.list_(pa.string())
"""Arrow type of a label that is a list."""
_EXACT = 2**53
"""Up to here every whole number is exact as a float64."""


def label_text(value: object) -> str | None:
    """Normal form of one JSON scalar, None for null; TypeError, with what was found, for anything else."""
    if value is None or isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        return str(int(value))
    if isinstance(value, int | float):
        return repr(value)
    raise TypeError(f"is {show(value)}; must be a string, a number, true or false; or all labels lists of these")


def label_array(values: Sequence[object]) -> pa.Array:
    """Normal form of a column of JSON values; TypeError if one does not fit with those before it."""
    try:
        return pa.array(values, pa.string())
    except pa.ArrowTypeError:
        pass
    first = next(value for value in values if value is not None)
    if isinstance(first, list):
        return pa.array([_label_list(value) for value in values], STRINGS)
    return pa.array([label_text(value) for value in values], pa.string())


def _label_list(value: object) -> list[str | None] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise TypeError(f"is {show(value)}, where the labels before are lists")
    if None in value:
        raise TypeError("is a list with null in it")
    return [label_text(item) for item in value]


def list_array(values: Sequence[object]) -> pa.Array:
    """Normal form of a column of lists, or of lists as JSON; TypeError if one is none."""
    return pa.array([_list(value) for value in values], STRINGS)


def _list(value: object) -> list[str | None] | None:
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise TypeError(f"is no list as JSON: {error}") from error
    if value is not None and not isinstance(value, list):
        raise TypeError(f"is {show(value)}, must be a list")
    return value if value is None else [label_text(item) for item in value]


def list_column(column: pa.Array) -> pa.Array:
    """Normal form of an Arrow column (Parquet) of lists. TypeError for any other type."""
    normal = label_column(column)
    if not pa.types.is_list(normal.type):
        raise TypeError(f"is of type {column.type}, must be a list")
    return normal


def label_column(column: pa.Array) -> pa.Array:
    """Normal form of an Arrow column (Parquet); NaN counts as null. TypeError for a type that is no label's."""
    kind = column.type
    if pa.types.is_dictionary(kind):
        return label_column(column.cast(kind.value_type))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        lists = column.cast(pa.list_(kind.value_type))
        return pa.ListArray.from_arrays(lists.offsets, label_column(lists.values), mask=lists.is_null())
    if pa.types.is_floating(kind):
        return _float_text(column)
    if is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    raise TypeError(f"is of type {kind}; a label is a string, a number, a boolean or a list of these")


def is_text(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def _float_text(column: pa.Array) -> pa.Array:
    wide = column.cast(pa.float64())
    whole = pc.and_(pc.equal(pc.floor(wide), wide), pc.less(pc.abs(wide), float(_EXACT)))
    integers = pc.if_else(whole, wide, 0.0).cast(pa.int64()).cast(pa.string())
    text = pc.if_else(whole, integers, column.cast(pa.string()))
    return pc.if_else(pc.is_nan(wide), None, text)
