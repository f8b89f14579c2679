"""Variants of texts, made before the run: the order of samples needs to know how long each is.

Invariant: a variant is a function of (seed, index, number of the variant), and which one an epoch sees (``turns``) of
(seed, epoch, index). An epoch's lengths are exact, so a batch never holds more tokens than it may.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from finetune_api.job import JobSpec, TextAugmentation
from finetune_trainer.context import Context
from finetune_trainer.data.augment.draws import Stream, generator
from finetune_trainer.data.augment.synonyms import FIELD as SYNONYMS
from finetune_trainer.data.augment.synonyms import Synonyms, read_synonyms, synonym_file
from finetune_trainer.data.augment.translate import RoundTrip, find_round_trip
from finetune_trainer.data.augment.words import WordChanges, words_in
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.order import Indices
from finetune_trainer.data.sources import resolve_source

_FORMAT = 1
_CHUNK = 1024
"""Texts that are translated, and kept, at a time."""
_COLUMNS = ("text", "text_pair")
_FILE = "variants.arrow"


@dataclass(frozen=True)
class TextChanges:
    """How texts are changed, and by what: everything that lies somewhere has been found."""

    spec: TextAugmentation
    seed: int
    synonyms: Path | None
    """File of synonyms (see ``synonyms.synonym_file``)."""
    round_trip: RoundTrip | None


def find_changes(spec: JobSpec, context: Context, beat: Beat, *, has_gpu: bool) -> TextChanges | None:
    """What ``spec.data.augmentation.text`` asks for; None if it asks for nothing.

    Raises:
        NotFoundError, SpecFault, Denied: Synonyms or models are not where they are said to be, or are something else.
    """
    text = spec.data.augmentation.text if spec.data.augmentation else None
    if text is None:
        return None
    synonyms = round_trip = None
    if text.synonyms is not None:
        field = f"{SYNONYMS}.source"
        synonyms = synonym_file(
            resolve_source(text.synonyms.source, None, field=field, volumes=context.volumes, kind="dataset")
        )
    if text.back_translation is not None:
        device = torch.device("cuda", context.local_rank) if has_gpu else torch.device("cpu")
        round_trip = find_round_trip(text.back_translation, context, device, beat)
    return TextChanges(text, spec.training.seed, synonyms, round_trip)


def vary(
    table: pa.Table, rows: Indices, key: Mapping[str, Any], changes: TextChanges, *, cache: Path, beat: Beat
) -> tuple[pa.Table, Mapping[str, Any]]:
    """The texts in ``rows`` of ``table``, then the first variant of each in the same order, then the second, and so on.

    Args:
        table: The texts: columns ``text`` and perhaps ``text_pair``.
        rows: (n,) the training samples.
        key: What identifies the texts.
        changes: How to change them.
        cache: Folder of prepared data.
        beat: Called for every chunk.

    Returns:
        The table of n × (1 + variants) rows, mapped into memory, and what identifies it.

    Raises:
        DataError, SpecFault, NotFoundError, PlatformError: Synonyms or models are not as they must be.
    """
    identity = {
        "format": _FORMAT,
        "texts": dict(key),
        "rows": hashlib.sha256(rows.tobytes()).hexdigest(),
        "changes": changes.spec.to_wire(),
        "seed": changes.seed,
        "synonyms": _digest(changes.synonyms) if changes.synonyms else None,
        "translation": changes.round_trip.identity if changes.round_trip else None,
    }
    names = [name for name in _COLUMNS if name in table.column_names]
    made = cached(
        cache,
        "variants",
        identity,
        build=lambda folder: _write(folder / _FILE, table.select(names), rows, changes, beat),
        load=lambda folder: _load(folder / _FILE),
        beat=beat,
    )
    return made, identity


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _load(path: Path) -> pa.Table:
    with pa.memory_map(str(path)) as file:
        return pa.ipc.open_file(file).read_all()


def _write(path: Path, table: pa.Table, rows: Indices, changes: TextChanges, beat: Beat) -> None:
    schema = pa.schema([(name, pa.string()) for name in table.column_names])
    change = _word_changes(table, rows, changes, beat)
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, schema) as writer:
        for version in range(changes.spec.variants + 1):
            for start, chunk in _chunks(table, rows):
                columns = [
                    _varied(texts, start, column, version, changes, change) if version else texts
                    for column, texts in enumerate(chunk)
                ]
                writer.write_batch(pa.record_batch([pa.array(texts, pa.string()) for texts in columns], schema=schema))
                beat()


def _chunks(table: pa.Table, rows: Indices) -> Iterator[tuple[int, list[list[str]]]]:
    """Where each chunk starts, and its texts by column."""
    for start in range(0, len(rows), _CHUNK):
        chunk = table.take(rows[start : start + _CHUNK])
        yield start, [chunk[name].to_pylist() for name in table.column_names]


def _varied(
    texts: Sequence[str], start: int, column: int, version: int, changes: TextChanges, change: WordChanges
) -> list[str]:
    if changes.round_trip is not None:
        texts = changes.round_trip(texts, version)
    return [
        change(text, generator(Stream.TEXT, changes.seed, index, version, column))
        for index, text in enumerate(texts, start)
    ]


def _word_changes(table: pa.Table, rows: Indices, changes: TextChanges, beat: Beat) -> WordChanges:
    spec = changes.spec
    synonyms: Synonyms = {}
    if spec.synonyms is not None and changes.synonyms is not None:
        synonyms = read_synonyms(changes.synonyms, _vocabulary(table, rows, changes, beat), spec.synonyms.lexicon)
    rate = spec.synonyms.rate if spec.synonyms else 0.0
    return WordChanges(synonyms, rate, spec.swap or 0.0, spec.deletion or 0.0)


def _vocabulary(table: pa.Table, rows: Indices, changes: TextChanges, beat: Beat) -> set[str]:
    """Every word that may be looked up, in lower case; those that only a translation brings included."""
    words: set[str] = set()
    for _, chunk in _chunks(table, rows):
        for texts in chunk:
            words.update(_words(texts))
            if changes.round_trip is not None:
                for version in range(1, changes.spec.variants + 1):
                    words.update(_words(changes.round_trip(texts, version)))
        beat()
    return words


def _words(texts: Sequence[str]) -> Iterator[str]:
    return (word for text in texts for word in words_in(text))
