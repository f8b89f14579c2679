"""Samples that lack something: told apart while they are read, so that none of them is ever counted as one."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from finetune_trainer.data.checks import tag_faults
from finetune_trainer.data.columns import TEXT_ROLES


class LeftOut:
    """Writes a JSON line for each row that is left out."""

    def __init__(self, file: IO[str], *, needs_label: bool) -> None:
        """``needs_label``: whether an empty label is none (it may say "none of the classes")."""
        self._file, self._needs_label = file, needs_label

    def sift(self, batch: pa.RecordBatch, path: Path, name: str) -> pa.RecordBatch:
        """The complete rows of ``batch`` (columns by role, and ``row``), read from the file at ``path``."""
        reasons = dict[int, str]()
        for index, reason in _faults(batch, path, needs_label=self._needs_label):
            reasons.setdefault(index, reason)
        for index in sorted(reasons):
            origin = f"{name}:{batch['row'][index].as_py()}"
            line = {"kind": "empty", "outcome": "dropped", "origin": origin, "why": reasons[index]}
            self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        if not reasons:
            return batch
        mask = np.ones(len(batch), bool)
        mask[list(reasons)] = False
        return batch.filter(pa.array(mask))


def _faults(batch: pa.RecordBatch, path: Path, *, needs_label: bool) -> Iterator[tuple[int, str]]:
    yield from ((index, f"{role} {reason}") for index, role, reason in tag_faults(batch))
    for role in batch.schema.names:
        column = batch[role]
        yield from ((index, f"{role} is null") for index in _where(column.is_null()))
        if pa.types.is_string(column.type) and (role in TEXT_ROLES or (role == "label" and needs_label)):
            blank = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), fill_value=False)
            yield from ((index, f"{role} is empty") for index in _where(blank))
        if role == "label" and pa.types.is_list(column.type):
            yield from (
                (index, "label has null in its list")
                for index, values in enumerate(column.to_pylist())
                if values is not None and None in values
            )
        if role == "image":
            yield from _absent(column, path)


def _absent(column: pa.Array, path: Path) -> Iterator[tuple[int, str]]:
    for index, image in enumerate(column.to_pylist()):
        if image is not None and not (path.parent / image).is_file():
            yield index, f"image {image} is not there"


def _where(mask: pa.Array) -> Any:
    found: NDArray[np.int64] = np.flatnonzero(mask.to_numpy(zero_copy_only=False))
    return found.tolist()
