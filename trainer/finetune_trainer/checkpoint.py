"""Checkpoints on disk: how one is written so that it is there whole or not at all, and how it is proved whole.

A checkpoint is a folder ``step-<12 digits>``. It is written as ``.tmp-<step>``: every process writes its tensors as one
safetensors file (``shard-<rank>``) and, once that is synced, a note of it; when all notes are there, rank 0 writes
``manifest.json`` (sizes, SHA-256, where each tensor's rows lie, the state of the run, and its own SHA-256), syncs it,
renames the folder and syncs its parent. Only then are older checkpoints pruned.

Invariant: a folder with its final name was complete when it got that name; whatever happened to it later (truncated,
a bit flipped, a file gone) fails ``verify``. Nothing is ever unpickled.

Format of a shard: https://huggingface.co/docs/safetensors (8 bytes of header length, a JSON header, raw rows).
"""

import datetime as dt
import hashlib
import json
import logging
import os
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune_trainer.durable import sync

log = logging.getLogger(__name__)

FORMAT = 1
_NAME = re.compile(r"^step-(\d{12})$")
_HASH_CHUNK = 1 << 22
_POLL_SECONDS = 0.02


class Damaged(Exception):  # noqa: N818 - what is said of a checkpoint
    """A checkpoint that is not what its manifest says; the message names the file and what is wrong with it."""


@dataclass(frozen=True)
class Rows:
    """One process's part of a tensor: the rows from ``offset`` on, of a tensor of shape ``shape``.

    ``data`` holds the bytes, contiguous (n_bytes,) uint8; ``rows`` of a 0-dimensional tensor is 1.
    """

    data: np.ndarray[Any, np.dtype[np.uint8]]
    dtype: str
    shape: tuple[int, ...]
    offset: int
    rows: int

    @property
    def local_shape(self) -> tuple[int, ...]:
        """Shape of this part."""
        return (self.rows, *self.shape[1:]) if self.shape else ()


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: its folder, step, the run's state, and where each tensor's rows lie."""

    folder: Path
    step: int
    state: Mapping[str, Any]
    tensors: Mapping[str, Mapping[str, Any]]
    """name → {dtype, shape, parts: [[file, offset, rows], …]}"""


def name_of(step: int) -> str:
    """The folder's name of a checkpoint."""
    return f"step-{step:012d}"


def steps_in(folder: Path) -> list[int]:
    """Steps of the complete checkpoints in ``folder``, newest first."""
    if not folder.is_dir():
        return []
    found = (_NAME.match(entry.name) for entry in folder.iterdir())
    return sorted((int(match.group(1)) for match in found if match), reverse=True)


def time_of(saved: Saved) -> dt.datetime:
    """When a checkpoint became complete."""
    return dt.datetime.fromtimestamp((saved.folder / "manifest.json").stat().st_mtime, dt.UTC)


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────


def write_shard(folder: Path, step: int, rank: int, tensors: Mapping[str, Rows]) -> None:
    """Write this process's tensors, and the note that they are safe. Frees the interpreter's lock while it writes."""
    temporary = folder / f".tmp-{step}"
    temporary.mkdir(parents=True, exist_ok=True)
    name = f"shard-{rank:05d}.safetensors"
    size, digest = _write_tensors(temporary / name, tensors)
    note = {
        "file": name,
        "size": size,
        "sha256": digest,
        "tensors": {
            key: {"dtype": rows.dtype, "shape": rows.shape, "parts": [[name, rows.offset, rows.rows]]}
            for key, rows in tensors.items()
        },
    }
    sync(temporary)
    # The last act: once every note is there, rank 0 renames the folder.
    _write_synced(temporary / f"note-{rank:05d}.json", json.dumps(note).encode())


def publish(
    folder: Path, step: int, *, world_size: int, state: Mapping[str, Any], is_wanted: Callable[[], bool] = lambda: True
) -> Path:
    """Wait for every process's note, write the manifest, and give the checkpoint its name. Rank 0 only.

    Raises:
        TimeoutError: ``is_wanted`` turned false before all notes were there.
    """
    temporary, final = folder / f".tmp-{step}", folder / name_of(step)
    notes = [_await_note(temporary / f"note-{rank:05d}.json", is_wanted) for rank in range(world_size)]
    manifest = {
        "format": FORMAT,
        "step": step,
        "worldSize": world_size,
        "files": {note["file"]: {"size": note["size"], "sha256": note["sha256"]} for note in notes},
        "tensors": _merge(note["tensors"] for note in notes),
        "state": dict(state),
    }
    _write_synced(temporary / "manifest.json", _seal(manifest))
    for note_file in temporary.glob("note-*.json"):
        note_file.unlink()
    sync(temporary)
    temporary.rename(final)
    sync(folder)
    return final


def prune(folder: Path, *, keep_last: int, best_step: int | None) -> None:
    """Delete what is no longer needed: all but the newest ``keep_last`` and the best; failed and damaged ones."""
    keep = {*steps_in(folder)[:keep_last], best_step}
    for step in steps_in(folder):
        if step not in keep:
            discard(folder, step)
            (folder / name_of(step)).rename(folder / f".tmp-{step}")  # none is half there under its final name
            discard(folder, step)
    newest = max(steps_in(folder), default=0)
    for leftover in (*folder.glob(".tmp-*"), *folder.glob("damaged-*")):
        if int(leftover.name.rpartition("-")[2]) <= newest:
            shutil.rmtree(leftover, ignore_errors=True)


def clear_leftovers(folder: Path) -> None:
    """Delete what an attempt left that was killed while it wrote: its notes must not be taken for new ones."""
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".tmp-*"):
        shutil.rmtree(leftover)


def discard(folder: Path, step: int) -> None:
    """Delete what a failed write left behind."""
    shutil.rmtree(folder / f".tmp-{step}", ignore_errors=True)


def _write_tensors(path: Path, tensors: Mapping[str, Rows]) -> tuple[int, str]:
    header: dict[str, Any] = {}
    position = 0
    for name, rows in tensors.items():
        header[name] = {
            "dtype": rows.dtype,
            "shape": rows.local_shape,
            "data_offsets": [position, position + rows.data.nbytes],
        }
        position += rows.data.nbytes
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for block in (
            memoryview(len(head).to_bytes(8, "little") + head),
            *(rows.data.data for rows in tensors.values()),
        ):
            for chunk in _chunks(block):
                digest.update(chunk)
                _write_all(file.fileno(), chunk)
        os.fsync(file.fileno())
    return 8 + len(head) + position, digest.hexdigest()


def _chunks(view: memoryview) -> Iterable[memoryview]:
    return (view[start : start + _HASH_CHUNK] for start in range(0, len(view), _HASH_CHUNK))


def _write_all(descriptor: int, view: memoryview) -> None:
    while view:
        view = view[os.write(descriptor, view) :]


def _await_note(path: Path, is_wanted: Callable[[], bool]) -> dict[str, Any]:
    while not path.exists():
        if not is_wanted():
            raise TimeoutError(f"{path.name} was not written")
        time.sleep(_POLL_SECONDS)
    while True:
        try:
            note: dict[str, Any] = json.loads(path.read_bytes())
        except json.JSONDecodeError:
            time.sleep(_POLL_SECONDS)  # a network file system may show the name before the content
        else:
            return note


def _merge(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for tensors in parts:
        for name, tensor in tensors.items():
            known = merged.setdefault(name, {**tensor, "parts": []})
            known["parts"] = [*known["parts"], *tensor["parts"]]
    return merged


def _seal(manifest: Mapping[str, Any]) -> bytes:
    digest = hashlib.sha256(_canonical(manifest)).hexdigest()
    return _canonical({**manifest, "sha256": digest})


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def _write_synced(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────


def newest_verified(folder: Path) -> Saved | None:
    """The newest checkpoint that verifies; damaged newer ones are told of and set aside as ``damaged-<step>``."""
    for step in steps_in(folder):
        try:
            return verify(folder / name_of(step))
        except Damaged as damage:
            log.warning("checkpoint %s is damaged (%s); trying the one before it", name_of(step), damage)
            set_aside(folder, step)
    return None


def set_aside(folder: Path, step: int) -> None:
    """Take a damaged checkpoint out of the way, so that its step can be saved again."""
    aside = folder / f"damaged-{step}"
    shutil.rmtree(aside, ignore_errors=True)
    (folder / name_of(step)).rename(aside)


def verify(folder: Path) -> Saved:
    """The checkpoint in ``folder``, proved to be what was written.

    Raises:
        Damaged: A file is missing, has another size or another SHA-256.
    """
    manifest = _read_manifest(folder)
    for name, expected in manifest["files"].items():
        _verify_file(folder / name, expected)
    return Saved(folder, manifest["step"], manifest["state"], manifest["tensors"])


def _read_manifest(folder: Path) -> dict[str, Any]:
    try:
        content = (folder / "manifest.json").read_bytes()
        manifest: dict[str, Any] = json.loads(content)
        body = {key: value for key, value in manifest.items() if key != "sha256"}
        is_sealed = _seal(body) == content
    except OSError as error:
        raise Damaged(f"manifest.json: {error.strerror}") from error
    except (ValueError, AttributeError) as error:
        raise Damaged("manifest.json: is not what was written") from error
    if not is_sealed:
        raise Damaged("manifest.json: SHA-256 differs")
    if manifest["format"] != FORMAT:
        raise Damaged(f"manifest.json: format {manifest['format']} is unknown to this version, which reads {FORMAT}")
    return manifest


def _verify_file(path: Path, expected: Mapping[str, Any]) -> None:
    try:
        size = path.stat().st_size
        if size != expected["size"]:
            raise Damaged(f"{path.name}: has {size:,} bytes, {expected['size']:,} were written")
        digest = hashlib.sha256()
        with path.open("rb", buffering=0) as file:
            while chunk := file.read(_HASH_CHUNK):
                digest.update(chunk)
    except OSError as error:
        raise Damaged(f"{path.name}: {error.strerror}") from error
    if digest.hexdigest() != expected["sha256"]:
        raise Damaged(f"{path.name}: SHA-256 differs")
