"""What samples say and show, apart from their labels: read batch by batch, so that memory does not grow with them."""

import bisect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import pyarrow as pa

from finetune_trainer.cleaning.text_hashes import Indices, normal
from finetune_trainer.data.read import Samples
from finetune_trainer.data.tags import tagged_words

CHUNK = 2048
"""Samples that are looked at together."""
_ANSWERS = ("label", "objects", "tags", "file", "row")
"""Columns that are no content: what is to be predicted, and where a sample was read."""
_BETWEEN = " \u241f "
"""Stands between two texts of a sample: a mark that is no part of a word."""


@dataclass(frozen=True)
class Contents:
    """The samples of several sources, one after the other; a row counts through all of them."""

    sources: Mapping[str, Samples]
    """Name (``testSource``, ``validationSource``, ``source``) → samples; a duplicate is told by the earlier one."""
    starts: tuple[int, ...] = field(init=False)
    """Row at which each source begins, and the number of all rows."""
    _batches: list[pa.RecordBatch] = field(init=False)
    _batch_starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        starts, batches, batch_starts = [0], [], [0]
        for samples in self.sources.values():
            for batch in samples.table.to_batches(max_chunksize=CHUNK):
                batches.append(batch)
                batch_starts.append(batch_starts[-1] + len(batch))
            starts.append(batch_starts[-1])
        object.__setattr__(self, "starts", tuple(starts))
        object.__setattr__(self, "_batches", batches)
        object.__setattr__(self, "_batch_starts", batch_starts)

    def __len__(self) -> int:
        return self.starts[-1]

    @property
    def has_images(self) -> bool:
        """Whether an image is part of a sample."""
        return "image" in self._batches[0].schema.names

    def chunks(self) -> Iterator[pa.RecordBatch]:
        """All rows in order."""
        yield from self._batches

    def source_of(self, row: int) -> tuple[str, int]:
        """Name of the row's source, and its place there."""
        number = bisect.bisect_right(self.starts, row) - 1
        while self.starts[number + 1] == self.starts[number]:
            number += 1
        return list(self.sources)[number], row - self.starts[number]

    def origin(self, row: int) -> str:
        """Where the sample was read."""
        name, place = self.source_of(row)
        return self.sources[name].origin(place)

    def texts(self, rows: Indices) -> list[str]:
        """Normal texts of some rows."""
        return [texts_of(self._one(int(row)))[0] for row in rows]

    def text(self, row: int) -> str:
        """The sample's texts as they are written, one after the other."""
        one = self._one(row)
        names = [name for name in one.schema.names if name not in (*_ANSWERS, "image")]
        return _BETWEEN.join(_strings(one[name])[0] for name in names)

    def label(self, row: int) -> str | None:
        """The label, or the words that are tagged, as text; None where the task has none."""
        one = self._one(row)
        if "tags" in one.schema.names:
            words = map(normal, one["tokens"][0].as_py())
            return " | ".join(tagged_words(words, one["tags"][0].as_py()))
        if "label" not in one.schema.names:
            return None
        value = one["label"][0].as_py()
        return " | ".join(map(str, value)) if isinstance(value, list) else str(value).strip()

    def image(self, row: int) -> str | None:
        """Path of the image."""
        return str(self._one(row)["image"][0].as_py()) if self.has_images else None

    def _one(self, row: int) -> pa.RecordBatch:
        number = bisect.bisect_right(self._batch_starts, row) - 1
        return self._batches[number].slice(row - self._batch_starts[number], 1)


def texts_of(batch: pa.RecordBatch) -> list[str]:
    """Each sample's texts as one, as ``normal`` makes it; empty where samples have none."""
    names = [name for name in batch.schema.names if name not in (*_ANSWERS, "image")]
    columns = [_strings(batch[name]) for name in names]
    return [_BETWEEN.join(map(normal, texts)) for texts in zip(*columns, strict=True)] if columns else [""] * len(batch)


def _strings(column: pa.Array) -> list[str]:
    if pa.types.is_string(column.type):
        return [text or "" for text in column.to_pylist()]
    return [" ".join(words) for words in column.to_pylist()]
