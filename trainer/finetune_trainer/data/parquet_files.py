"""Parquet to record batches, with the number of every row.

Invariant: only the columns that play a role are read, a batch at a time; rows count from 1 within their file.
"""

from collections.abc import Generator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from finetune_trainer.data.columns import (
    FIELDS,
    JSON_ROLES,
    LIST_ROLES,
    Roles,
    culprit,
    json_array,
    missing_column,
)
from finetune_trainer.data.label_values import is_text, label_column, list_column
from finetune_trainer.errors import DataError

_BATCH_ROWS = 4096
_BUFFER_BYTES = 2**20


def read_parquet(path: Path, name: str, roles: Roles) -> Generator[pa.RecordBatch]:
    """Batches with a column a role, and ``row``."""
    first = 1
    try:
        with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
            names = file.schema_arrow.names
            for role, column in roles.items():
                if column not in names:
                    raise missing_column(role, column, names, name)
            for batch in file.iter_batches(_BATCH_ROWS, columns=list(dict.fromkeys(roles.values()))):
                yield _batch(batch, first, name, roles)
                first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{name}: is damaged, or is not Parquet: {error}") from error


def _batch(batch: pa.RecordBatch, first: int, name: str, roles: Roles) -> pa.RecordBatch:
    columns = {role: _column(role, batch.column(column), first, name) for role, column in roles.items()}
    return pa.record_batch({**columns, "row": pa.array(range(first, first + len(batch)), pa.int64())})


def _column(role: str, column: pa.Array, first: int, name: str) -> pa.Array:
    try:
        if role in JSON_ROLES:
            return json_array(column.to_pylist())
        build = label_column if role == "label" else list_column if role in LIST_ROLES else _text_column
        normal = build(column)
    except TypeError as error:
        raise DataError(f"{FIELDS[role]}: column of {name} {error}") from error
    try:
        normal.validate(full=True)  # Parquet's strings are bytes that nobody has checked
    except pa.ArrowInvalid as error:
        index, _ = culprit(lambda values: values.validate(full=True), normal)
        raise DataError(f"{name}:{first + index}: {FIELDS[role]}: is not UTF-8") from error
    return normal


def _text_column(column: pa.Array) -> pa.Array:
    kind = column.type
    if pa.types.is_dictionary(kind):
        return _text_column(column.cast(kind.value_type))
    if is_text(kind) or pa.types.is_null(kind):
        return column.cast(pa.string())
    raise TypeError(f"is of type {kind}, must be a string")
