"""Any source to one Arrow table, made once in the cache and mapped into memory from there.

Invariant: every sample of the table is complete (no empty text, no missing label, no image that is not there) and knows
the file and line it was read from. Memory does not grow with the data: a batch is read, checked and written at a time.
"""

import json
import os
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune_trainer.cleaning.empty import LeftOut
from finetune_trainer.data.cache import Beat, cached, no_beat
from finetune_trainer.data.checks import check_label_type, checked
from finetune_trainer.data.columns import Roles
from finetune_trainer.data.files import Source, find_files
from finetune_trainer.data.image_folders import read_image_folder
from finetune_trainer.data.parquet_files import read_parquet
from finetune_trainer.data.text_files import read_csv, read_jsonl
from finetune_trainer.errors import DataError, Denied, NotFoundError

_FORMAT = 1
"""Version of the cache's entries; raise it when what is written changes."""
_DATA = "samples.arrow"
_LEFT_OUT = "left-out.jsonl"
_READERS: Mapping[str, Callable[[Path, str, Roles], Generator[pa.RecordBatch]]] = {
    "csv": read_csv,
    "jsonl": read_jsonl,
    "parquet": read_parquet,
}


@dataclass(frozen=True)
class Samples:
    """All samples of one source."""

    table: pa.Table
    """Mapped into memory. For each role a column: ``text``, ``text_pair`` and ``image`` (absolute path) are string,
    ``label`` is string or list<string>, ``tokens`` and ``tags`` are list<string> (see ``label_values``). Also ``file``
    (int32, index into ``files``) and ``row`` (int64, from 1: line of a text file, a CSV's header counted, or row of a
    Parquet file; 0 where a file is a sample).
    """
    files: tuple[str, ...]
    """Names of the files, relative to the source; none for a folder of images."""
    key: Mapping[str, Any]
    """What identifies the samples, as JSON: for the keys of what is prepared from them."""
    left_out: Path | None = None
    """JSON Lines file of the rows that were left out because they lack something; None if that was an error."""

    def origin(self, index: int) -> str:
        """Where the sample was read: ``reviews.csv:17``, or ``cat/7.png`` in a folder of images."""
        row = self.table["row"][index].as_py()
        if not row:
            return "/".join(Path(self.table["image"][index].as_py()).parts[-2:])
        return f"{self.files[self.table['file'][index].as_py()]}:{row}"


def read_samples(
    path: Path,
    *,
    format: str | None,  # noqa: A002 - the spec's word
    roles: Roles,
    cache: Path,
    field: str,
    beat: Beat = no_beat,
    drop_empty: bool = False,
    needs_label: bool = True,
) -> Samples:
    """The samples under ``path``, a file or a folder of files.

    Args:
        path: The file or folder.
        format: csv, jsonl, parquet or imagefolder; None to tell it from the suffixes.
        roles: Role → name of the column, for example ``{"text": "body", "label": "stars"}``.
        cache: Folder of prepared data; the table is kept there under the files' names, sizes and times.
        field: Field of the spec that names the source, for messages.
        beat: Called for every batch, and while another process prepares the same.
        drop_empty: Leave out rows that lack something (an empty text, a label, an image's file); else it is an error.
        needs_label: Whether an empty label is one that is missing.

    Raises DataError, with file and line, for what is wrong with the data.
    """
    source = find_files(path, format=format, field=field)
    key = {
        "version": _FORMAT,
        "path": str(source.root),
        "format": source.format,
        "roles": dict(roles),
        "files": _fingerprint(source),
        **({"complete": {"label": needs_label}} if drop_empty else {}),
    }

    def build(folder: Path) -> None:
        if not drop_empty:
            return _write(folder / _DATA, source, roles, field, beat)
        with (folder / _LEFT_OUT).open("w", encoding="utf-8") as file:
            return _write(folder / _DATA, source, roles, field, beat, LeftOut(file, needs_label=needs_label))

    return cached(
        cache,
        "samples",
        key,
        build=build,
        load=lambda folder: load_samples(folder / _DATA, key, folder / _LEFT_OUT if drop_empty else None),
        beat=beat,
    )


def _fingerprint(source: Source) -> list[Any]:
    """What changes when the table would: name, size and time of each file; of images, which are not in it, the name."""
    if source.format == "imagefolder":
        return list(source.names)
    return [_file_fingerprint(source.path(name), name) for name in source.names]


def _file_fingerprint(path: Path, name: str) -> tuple[str, int, int]:
    try:
        status = path.stat()
    except FileNotFoundError as error:
        raise NotFoundError(f"{name}: {path} is a link to a file that is not there") from error
    if not os.access(path, os.R_OK):
        raise Denied(f"{name}: {path} may not be read; give this user access to it")
    return name, status.st_size, status.st_mtime_ns


def load_samples(path: Path, key: Mapping[str, Any], left_out: Path | None = None) -> Samples:
    """Samples that were written to an Arrow file, mapped into memory; ``key`` and ``left_out`` as in ``Samples``."""
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    table.validate()
    return Samples(table, tuple(json.loads(table.schema.metadata[b"files"])), key, left_out)


def _write(path: Path, source: Source, roles: Roles, field: str, beat: Beat, left_out: LeftOut | None = None) -> None:
    with closing(_batches(source, roles, field, left_out)) as batches:
        first = next(batches, None)
        if first is None:
            found = "no sample that is complete" if left_out else "no samples; the data set is empty"
            raise DataError(f"{field}: {source.root} has {found}")
        names = [] if source.format == "imagefolder" else source.names
        schema = first.schema.with_metadata({"files": json.dumps(names)})
        with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
            writer.write_batch(first)
            for batch in batches:
                writer.write_batch(batch)
                beat()


def _batches(source: Source, roles: Roles, field: str, left_out: LeftOut | None) -> Generator[pa.RecordBatch]:
    """Checked batches of all files, with the columns of ``Samples.table``; labels are of one type throughout."""
    if source.format == "imagefolder":
        yield from (_with_file(batch, 0) for batch in read_image_folder(source, roles, field))
        return
    label_type: pa.DataType | None = None
    for index, name in enumerate(source.names):
        with closing(_READERS[source.format](source.path(name), name, roles)) as batches:
            for batch in batches:
                sifted = left_out.sift(batch, source.path(name), name) if left_out else batch
                if not len(sifted):
                    continue
                whole = checked(sifted, source.path(name), name)
                if "label" in roles:
                    label_type = label_type or whole["label"].type
                    check_label_type(whole, label_type, name)
                yield _with_file(whole, index)


def _with_file(batch: pa.RecordBatch, index: int) -> pa.RecordBatch:
    return batch.append_column("file", pa.array([index] * len(batch), pa.int32()))
