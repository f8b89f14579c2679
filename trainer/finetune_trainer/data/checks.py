"""What every sample must have, whatever format it was read from.

Invariant: after these checks no text is empty, no label is missing, every word has a tag and every image is there; the
first sample that is otherwise is named by file and line.
"""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from finetune_trainer.data.columns import FIELDS, TEXT_ROLES
from finetune_trainer.errors import DataError, NotFoundError


def checked(batch: pa.RecordBatch, path: Path, name: str) -> pa.RecordBatch:
    """``batch`` of the file at ``path``, its images' paths made absolute. Raises DataError or NotFoundError."""
    for role in set(batch.schema.names) & (TEXT_ROLES | {"image", "messages"}):
        _check_filled(batch, role, name)
    for index, role, reason in tag_faults(batch):
        raise DataError(f"{_place(batch, index, name)}: {FIELDS[role]}: {reason}; mend or remove the row")
    if "label" in batch.schema.names:
        _check_labels(batch, name)
    if "image" in batch.schema.names:
        images = _image_paths(batch, path, name)
        return batch.set_column(batch.schema.names.index("image"), "image", images)
    return batch


def _check_filled(batch: pa.RecordBatch, role: str, name: str) -> None:
    column = batch[role]
    empty = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(column), ""), fill_value=True)
    index = pc.index(empty, value=True).as_py()
    if index >= 0:
        found = "is empty" if column[index].is_valid else "is null"
        raise DataError(f"{_place(batch, index, name)}: {FIELDS[role]}: {found}; fill it in or remove the row")


def tag_faults(batch: pa.RecordBatch) -> Iterator[tuple[int, str, str]]:
    """Index, role and what is wrong of each sample whose words do not all have a tag."""
    if "tags" not in batch.schema.names:
        return
    for index, both in enumerate(zip(batch["tokens"].to_pylist(), batch["tags"].to_pylist(), strict=True)):
        for role, names in zip(("tokens", "tags"), both, strict=True):
            empty = next((number for number, name in enumerate(names or ()) if not (name or "").strip()), None)
            if not names:
                yield index, role, "is null" if names is None else "is empty"
            elif empty is not None:
                yield index, role, f"is empty at {empty}, counted from 0"
        words, tags = both
        if words and tags and len(words) != len(tags):
            yield index, "tags", f"has {len(tags)} for {len(words)} words"


def _check_labels(batch: pa.RecordBatch, name: str) -> None:
    """No null. An empty string is for ``find_labels`` to judge, for it may say "none of the classes"."""
    column = batch["label"]
    missing = column.is_null()
    if pa.types.is_list(column.type) and column.values.null_count:
        holed = pc.is_in(
            pa.array(range(len(column))), pc.list_parent_indices(column).filter(column.flatten().is_null())
        )
        missing = pc.or_(missing, holed)
    index = pc.index(missing, value=True).as_py()
    if index >= 0:
        found = "has null in its list" if column[index].is_valid else "is null"
        raise DataError(f"{_place(batch, index, name)}: {FIELDS['label']}: {found}; label the sample or remove it")


def check_label_type(batch: pa.RecordBatch, expected: pa.DataType, name: str) -> None:
    """Labels are of the type of those before."""
    if batch["label"].type != expected:
        found, before = (
            ("is a list", "are not") if pa.types.is_list(batch["label"].type) else ("is no list", "are lists")
        )
        raise DataError(f"{_place(batch, 0, name)}: {FIELDS['label']}: {found}, where the labels before {before}")


def _image_paths(batch: pa.RecordBatch, path: Path, name: str) -> pa.Array:
    """Absolute paths: those in ``batch`` are relative to the folder of the file at ``path``."""
    paths = [path.parent / relative for relative in batch["image"].to_pylist()]
    for index, image in enumerate(paths):
        if not image.is_file():
            raise NotFoundError(f"{_place(batch, index, name)}: {FIELDS['image']}: {image} is not there")
    return pa.array([str(image) for image in paths], pa.string())


def _place(batch: pa.RecordBatch, index: int, name: str) -> str:
    return f"{name}:{batch['row'][index].as_py()}"
