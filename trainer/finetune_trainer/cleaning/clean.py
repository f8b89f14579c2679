"""From sources as they were read to sources without what shall not be in them; made once, in the cache.

Invariant: what is left keeps its order and its origins (file and line), so that all that follows knows of no cleaning.
"""

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune_api.cleaning import Cleaning
from finetune_trainer.cleaning.contents import Contents
from finetune_trainer.cleaning.duplicates import MAIN, Finding, Kind, Outcome, find_duplicates, write_lines
from finetune_trainer.context import Context
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.read import Samples, load_samples
from finetune_trainer.errors import DataError

_FORMAT = 1
_FINDINGS = "findings.jsonl"
_FIELDS = {
    Kind.DUPLICATE: "duplicates",
    Kind.NEAR_DUPLICATE: "nearDuplicates.action",
    Kind.LEAK: "leakage",
}
ORDER = ("testSource", "validationSource", MAIN)
"""Where a duplicate lies in several, the first of them keeps it."""


@dataclass(frozen=True)
class Cleaned:
    """The sources after cleaning."""

    sources: Mapping[str, Samples]
    """``source``, and ``validationSource`` and ``testSource`` where they are brought."""
    read: Mapping[str, int]
    """Samples of each source before, the empty ones included."""
    lines: tuple[tuple[str, Path], ...] = field(default=())
    """(source, or empty where a line tells it; JSON Lines file) of what was found."""
    refusals: tuple[str, ...] = ()
    """Why the run shall end, if it shall."""


def clean(sources: Mapping[str, Samples], spec: Cleaning, context: Context, beat: Beat) -> Cleaned:
    """Find duplicates, leaks and broken images, and leave out what shall be dropped.

    Samples that are empty were left out when they were read. Raises DataError for a broken image, unless ``empty`` is
    ``drop``; see ``require_clean`` for what else ends the run.
    """
    read = {name: len(samples.table) + _lines_in(samples.left_out) for name, samples in sources.items()}
    lines = tuple((name, samples.left_out) for name, samples in sources.items() if samples.left_out)
    if not _has_work(sources, spec):
        return Cleaned(sources, read, lines)
    contents = Contents({name: sources[name] for name in ORDER if name in sources})
    key = {
        "version": _FORMAT,
        "cleaning": spec.model_dump(mode="json", exclude={"label_noise"}),
        "sources": {name: dict(samples.key) for name, samples in sources.items()},
        "images": _images_key(contents, beat) if contents.has_images else None,
    }
    return cached(
        context.cache,
        "cleaned",
        key,
        build=partial(_build, contents=contents, spec=spec, beat=beat),
        load=lambda folder: _load(folder, key, Cleaned(sources, read, lines)),
        beat=beat,
    )


def _has_work(sources: Mapping[str, Samples], spec: Cleaning) -> bool:
    has_images = "image" in sources[MAIN].table.column_names
    return bool(spec.duplicates or spec.near_duplicates or (has_images and spec.empty == "drop"))


def _lines_in(path: Path | None) -> int:
    if path is None:
        return 0
    with path.open("rb") as file:
        return sum(1 for _ in file)


def _images_key(contents: Contents, beat: Beat) -> str:
    """Changes when a file does that an image is read from."""
    digest = hashlib.sha256()
    for batch in contents.chunks():
        for path in batch["image"].to_pylist():
            try:
                status = os.stat(path)  # noqa: PTH116 - a million of them
            except OSError:  # whoever reads the image says what is wrong with it
                continue
            digest.update(f"{path} {status.st_size} {status.st_mtime_ns}\n".encode())
        beat()
    return digest.hexdigest()


def _build(folder: Path, contents: Contents, spec: Cleaning, beat: Beat) -> None:
    findings = find_duplicates(contents, spec, folder, beat)
    write_lines(folder / _FINDINGS, contents, findings)
    (folder / "refused.json").write_text(json.dumps(_refusals(contents, findings)), encoding="utf-8")
    dropped = [finding.row for finding in findings if finding.outcome == Outcome.DROPPED]
    for number, (name, samples) in enumerate(contents.sources.items()):
        start, end = contents.starts[number : number + 2]
        mine = np.array([row - start for row in dropped if start <= row < end], np.int64)
        if len(mine):
            _write_without(folder / f"{name}.arrow", samples.table, mine, beat)


def _write_without(path: Path, table: pa.Table, dropped: "np.ndarray[Any, np.dtype[np.int64]]", beat: Beat) -> None:
    kept = np.ones(len(table), bool)
    kept[dropped] = False
    start = 0
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        for batch in table.to_batches():
            writer.write_batch(batch.filter(pa.array(kept[start : start + len(batch)])))
            start += len(batch)
            beat()


def _refusals(contents: Contents, findings: Sequence[Finding]) -> list[str]:
    """One sentence for each kind of finding that ends the run."""
    refusals = []
    for kind, name in _FIELDS.items():
        some = [finding for finding in findings if finding.kind == kind and finding.outcome == Outcome.REFUSED]
        if some:
            first = some[0]
            assert first.twin is not None
            refusals.append(
                f"spec.data.cleaning.{name}: is error, and {len(some):,} were found: {contents.origin(first.row)} has"
                f" {first.why} ({contents.origin(first.twin)})"
            )
    return refusals


def _load(folder: Path, key: Mapping[str, Any], before: Cleaned) -> Cleaned:
    refusals = json.loads((folder / "refused.json").read_text(encoding="utf-8"))
    sources = {name: _kept(folder / f"{name}.arrow", name, key) or samples for name, samples in before.sources.items()}
    after = replace(before, sources=sources, lines=(*before.lines, ("", folder / _FINDINGS)))
    return replace(after, refusals=tuple(refusals)) if refusals else after


def _kept(path: Path, name: str, key: Mapping[str, Any]) -> Samples | None:
    return load_samples(path, {**key, "kept": name}) if path.exists() else None


def require_clean(cleaned: Cleaned) -> None:
    """Raise DataError if something was found that shall end the run."""
    if cleaned.refusals:
        raise DataError("; ".join(cleaned.refusals) + "; all are listed in cleaning.jsonl in the run's folder")
    for name, samples in cleaned.sources.items():
        if not len(samples.table):
            raise DataError(f"spec.data.cleaning: nothing is left of spec.data.{name}")
