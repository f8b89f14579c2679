"""A teacher's outputs of the training set, computed once by all processes and mapped into memory from then on.

Invariant: what is kept does not depend on how many processes computed it: batches are cut from the samples in one way,
and each is computed whole by one process. Every process takes part in the same exchanges, whatever it finds in its own
cache, which it may share with all, some or none of the others.
"""

import hashlib
import logging
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_trainer.context import Context
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.dataset import Batch, Part, TextPart
from finetune_trainer.data.order import BatchSize, Indices, ordered_batches
from finetune_trainer.distributed import Group
from finetune_trainer.errors import PlatformError

log = logging.getLogger(__name__)

FIELD = "spec.strategy.distillation.cacheTeacher"
_FORMAT = 1
_FILE = "outputs.npy"
_SAMPLES, _TOKENS = 64, 2048
"""What one process computes at a time."""
_GIB = 2**30


class _AbsentError(Exception):
    """The cache has no such entry."""


@dataclass(frozen=True)
class Kept:
    """Outputs of every sample of a part."""

    rows: "np.ndarray[Any, Any]"
    """(n, C) float32; of a language model (all tokens, V) float16."""
    offsets: Indices | None
    """(n + 1,) where the tokens of each sample start; None where a sample is one row."""

    def __call__(self, batch: Batch) -> Tensor:
        """Logits of the batch's samples: (n, C), or (n, T, V) with zeros at the padding."""
        if self.offsets is None:
            device = next(iter(batch.inputs.values())).device
            return torch.from_numpy(self.rows[batch.indices]).to(device)
        ids = batch.inputs["input_ids"]
        logits = torch.zeros(*ids.shape, self.rows.shape[1])
        for place, index in enumerate(batch.indices.tolist()):
            found = self.rows[self.offsets[index] : self.offsets[index + 1]]
            logits[place, : len(found)] = torch.from_numpy(np.asarray(found, np.float32))
        return logits.to(ids.device)


def digest_of(folders: Iterable[Path]) -> str:
    """What identifies a teacher: the content of its weights and configuration."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*.json")]):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def identity_of(part: Part, samples: Mapping[str, Any], companion: Any) -> dict[str, Any]:
    """What identifies the inputs of a part that is the same in every epoch: its token ids, or its images.

    Args:
        part: The part.
        samples: What identifies the source that it was read from.
        companion: Tokenizer or image processor.
    """
    digest = hashlib.sha256(np.ascontiguousarray(part.rows).tobytes())
    if not isinstance(part, TextPart):
        return {"rows": digest.hexdigest(), "samples": dict(samples), "processor": companion.to_json_string()}
    for row in part.rows.tolist():
        digest.update(part.encoded.ids[part.encoded.offsets[row] : part.encoded.offsets[row + 1]].tobytes())
    digest.update(part.lengths.tobytes())
    if part.encoded.second is not None:
        digest.update(part.encoded.second[part.rows].tobytes())
    return {"texts": digest.hexdigest()}


@dataclass(frozen=True)
class Plan:
    """What is to be kept of which samples."""

    part: Part
    width: int
    """Logits a row."""
    is_tokens: bool
    """A row a token, not a sample."""
    key: Mapping[str, Any]
    """What identifies teacher and samples."""

    @property
    def offsets(self) -> Indices | None:
        """(n + 1,) first row of each sample; None where that is its index."""
        if not self.is_tokens:
            return None
        assert self.part.lengths is not None
        return np.concatenate([[0], np.cumsum(self.part.lengths)])

    @property
    def rows(self) -> int:
        """Rows in all."""
        offsets = self.offsets
        return len(self.part) if offsets is None else int(offsets[-1])

    @property
    def dtype(self) -> type[Any]:
        """Of what is kept."""
        return np.float16 if self.is_tokens else np.float32


def kept_outputs(
    plan: Plan,
    teach: Callable[[], Callable[[Batch], Tensor]],
    group: Group,
    context: Context,
    beat: Beat,
    device: torch.device,
) -> Kept:
    """The teacher's outputs from the cache; computed by all processes together unless every one finds them there.

    Args:
        plan: What to keep.
        teach: Loads the teacher, if it is needed.
        group: All processes.
        context: This one.
        beat: Called for every batch.
        device: Where the teacher computes.

    Raises:
        PlatformError: There is not enough space.
    """
    kept = _read(plan, context, beat)
    if group.sum([float(kept is not None)])[0] < group.size:
        _make(plan, teach(), group, context, beat, device)
        group.wait()
        kept = _read(plan, context, beat)
    assert kept is not None
    return kept


def _read(plan: Plan, context: Context, beat: Beat) -> Kept | None:
    def build(_folder: Path) -> None:
        raise _AbsentError

    try:
        return _entry(plan, context, beat, build)
    except _AbsentError:
        return None


def _entry(plan: Plan, context: Context, beat: Beat, build: Callable[[Path], None]) -> Kept:
    key = {"format": _FORMAT, "width": plan.width, "rows": plan.rows, **plan.key}
    return cached(context.cache, "teacher", key, build=build, load=lambda folder: _load(folder, plan), beat=beat)


def _load(folder: Path, plan: Plan) -> Kept:
    rows = np.load(folder / _FILE, mmap_mode="r")
    if rows.shape != (plan.rows, plan.width):
        raise ValueError(f"{_FILE} has the shape {rows.shape} instead of {(plan.rows, plan.width)}")
    return Kept(rows, plan.offsets)


def _make(
    plan: Plan, teach: Callable[[Batch], Tensor], group: Group, context: Context, beat: Beat, device: torch.device
) -> None:
    writes = context.local_rank == 0
    path = context.scratch / f"teacher-{context.rank}.npy"
    if writes:
        _check_space(plan, context)
    file = _open(path, plan) if writes else None
    size = BatchSize(None, _TOKENS) if plan.part.padded_lengths is not None else BatchSize(_SAMPLES, None)
    batches, offsets = ordered_batches(len(plan.part), plan.part.padded_lengths, size), plan.offsets
    log.info("the teacher is asked once for %d samples, %.2g GiB", len(plan.part), _bytes(plan) / _GIB)
    for start in range(0, len(batches), group.size):
        mine = batches[start + group.rank] if start + group.rank < len(batches) else None
        answers = group.gather(None if mine is None else _answer(plan, teach, mine, device))
        for indices, answer in zip(batches[start:], answers, strict=False):
            if file is not None and answer is not None:
                file[_places(indices, offsets)] = answer
        beat()
    if file is not None:
        file.flush()
        _entry(plan, context, beat, partial(_bring, path))
        path.unlink(missing_ok=True)  # another process that shares the cache was first


def _bring(path: Path, folder: Path) -> None:
    shutil.move(path, folder / _FILE)


def _open(path: Path, plan: Plan) -> "np.memmap[Any, Any]":
    return np.lib.format.open_memmap(path, "w+", plan.dtype, (plan.rows, plan.width))


def _answer(plan: Plan, teach: Callable[[Batch], Tensor], indices: Indices, device: torch.device) -> Any:
    """Rows of these samples, one after the other: (rows, width)."""
    batch = plan.part.batch(0, indices, is_counted=True)
    logits = teach(batch.to(device)).cpu()[..., : plan.width]
    if not plan.is_tokens:
        return logits.numpy().astype(plan.dtype)
    assert plan.part.lengths is not None
    lengths = plan.part.lengths[indices].tolist()
    return torch.cat([each[:length] for each, length in zip(logits, lengths, strict=True)]).numpy().astype(plan.dtype)


def _places(indices: Indices, offsets: Indices | None) -> Indices:
    if offsets is None:
        return indices
    return np.concatenate([np.arange(offsets[index], offsets[index + 1]) for index in indices])


def _bytes(plan: Plan) -> int:
    return plan.rows * plan.width * np.dtype(plan.dtype).itemsize


def _check_space(plan: Plan, context: Context) -> None:
    for folder in (context.scratch, context.cache):
        free = shutil.disk_usage(folder).free
        if _bytes(plan) > free:
            raise PlatformError(
                f"{FIELD}: the teacher's outputs take {_bytes(plan) / _GIB:.3g} GiB, and {folder} has"
                f" {free / _GIB:.3g} GiB free; set it to false, or enlarge the volume"
            )
