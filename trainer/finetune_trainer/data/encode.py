"""Texts to token ids: once for all runs, in parallel, cached as flat arrays that processes map into memory."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.dataset import Encoded
from finetune_trainer.task import IGNORED

_CHUNK = 4096
_FORMAT = 4

Row = tuple[list[int], list[int], bool]
"""Token ids of a text, the target of each, and whether the text was cut."""


def encode_texts(
    table: pa.Table,
    tokenizer: Any,
    *,
    max_length: int,
    end_id: int | None,
    key: Mapping[str, Any],
    cache: Path,
    beat: Beat,
    role: str = "text",
) -> Encoded:
    """Token ids of every row of ``table`` (columns ``text`` and perhaps ``text_pair``, or ``target``).

    Args:
        table: The texts, (N,) rows.
        tokenizer: A tokenizer of transformers; a fast one uses every core.
        max_length: Longest sequence in tokens, special tokens counted; of a pair the longer text is truncated first.
        end_id: Token to end every text with that is not cut (causal-lm); None to leave that to the tokenizer.
        key: What identifies the texts.
        cache: Folder of prepared data.
        beat: Called for every chunk.
        role: ``text``, or ``target`` for texts to write, which some tokenizers (Marian's) cut otherwise.
    """
    identity = {
        "format": _FORMAT,
        "texts": dict(key),
        "role": role,
        "tokenizer": fingerprint(tokenizer),
        "maxLength": max_length,
        "end": end_id,
    }
    return cached(
        cache,
        "tokens",
        identity,
        build=lambda folder: _build(folder, _chunks(table, role), tokenizer, max_length, end_id, beat),
        load=load_encoded,
        beat=beat,
    )


def fingerprint(tokenizer: Any) -> str:
    """What identifies a tokenizer: its whole content, not its name."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        content = json.dumps(tokenizer.get_vocab(), sort_keys=True)
    else:
        backend.no_truncation()  # as the latest call has left it: not what the tokenizer is, and set at every call
        backend.no_padding()
        content = backend.to_str()
    settings = [type(tokenizer).__name__, tokenizer.special_tokens_map, tokenizer.model_input_names]
    return hashlib.sha256((content + json.dumps(settings, default=str, sort_keys=True)).encode()).hexdigest()


def write_targets(folder: Path, chunks: Iterable[Iterable[Row]], beat: Beat, *, first: int = 0) -> int:
    """Write an entry of texts whose tokens have targets; returns how many have one, from place ``first`` on."""
    lengths: list[int] = []
    cut: list[bool] = []
    count = 0
    with (folder / "ids.bin").open("wb") as ids_file, (folder / "targets.bin").open("wb") as targets_file:
        for rows in chunks:
            for ids, targets, was_cut in rows:
                np.array(ids, np.int32).tofile(ids_file)
                np.array(targets, np.int32).tofile(targets_file)
                lengths.append(len(ids))
                cut.append(was_cut)
                count += sum(target != IGNORED for target in targets[first:])
            beat()
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))
    np.save(folder / "truncated.npy", np.array(cut, bool))
    return count


def _build(
    folder: Path,
    chunks: Iterable[dict[str, list[str]]],
    tokenizer: Any,
    max_length: int,
    end_id: int | None,
    beat: Beat,
) -> None:
    lengths: list[np.ndarray[Any, Any]] = []
    seconds: list[np.ndarray[Any, Any]] = []
    truncated: list[bool] = []
    with (folder / "ids.bin").open("wb") as file:
        for chunk in chunks:
            rows, second, cut = _encode_chunk(tokenizer, chunk, max_length, end_id)
            lengths.append(np.fromiter(map(len, rows), np.int64, len(rows)))
            seconds.append(second)
            truncated += cut
            np.concatenate([np.asarray(row, np.int32) for row in rows]).tofile(file)
            beat()
    np.save(folder / "offsets.npy", np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64))
    np.save(folder / "truncated.npy", np.array(truncated, bool))
    if "token_type_ids" in tokenizer.model_input_names:
        np.save(folder / "second.npy", np.concatenate(seconds))


def _chunks(table: pa.Table, role: str) -> Iterator[dict[str, list[str]]]:
    """Texts, by the tokenizer's own names for them."""
    names = {"target": "text_target"} if role == "target" else {"text": "text", "text_pair": "text_pair"}
    columns = [name for name in names if name in table.column_names]
    for batch in table.select(columns).to_batches(max_chunksize=_CHUNK):
        yield {names[name]: texts for name, texts in batch.to_pydict().items()}


def _encode_chunk(
    tokenizer: Any, chunk: dict[str, list[str]], max_length: int, end_id: int | None
) -> tuple[list[list[int]], "np.ndarray[Any, np.dtype[np.int32]]", list[bool]]:
    """Ids of each text, where its second text starts (its length if there is none), and whether it was cut."""
    limit = max_length - (end_id is not None)
    encoded = tokenizer(
        **chunk,
        truncation=True,
        max_length=limit,
        return_attention_mask=False,
        return_token_type_ids="text_pair" in chunk and "token_type_ids" in tokenizer.model_input_names,
    )
    ids = encoded["input_ids"]
    cut = _truncated(ids, encoded.encodings, limit)
    if end_id is not None:
        # Not after a text that was cut: a model must not learn to stop in the middle of a sentence.
        has_end = [was_cut or (bool(row) and row[-1] == end_id) for row, was_cut in zip(ids, cut, strict=True)]
        ids = [row if ended else [*row, end_id] for row, ended in zip(ids, has_end, strict=True)]
    types = encoded.get("token_type_ids")
    second = [row.index(1) if 1 in row else len(row) for row in types] if types else list(map(len, ids))
    return ids, np.asarray(second, np.int32), cut


def _truncated(ids: list[list[int]], encodings: list[Any] | None, limit: int) -> list[bool]:
    """Whether each text was cut. A fast tokenizer tells; of a slow one every text that fills the limit counts."""
    is_full = [len(row) >= limit for row in ids]
    if encodings is None:
        return is_full
    return [full and bool(one.overflowing) for full, one in zip(is_full, encodings, strict=True)]


def load_encoded(folder: Path) -> Encoded:
    """What a cache's entry holds: its ids, and perhaps where second texts begin and targets of tokens."""
    offsets = np.load(folder / "offsets.npy")
    ids = np.memmap(folder / "ids.bin", np.int32, "r", shape=(int(offsets[-1]),))
    second, file = folder / "second.npy", folder / "targets.bin"
    targets = np.memmap(file, np.int32, "r", shape=ids.shape) if file.exists() else None
    starts = np.load(second) if second.exists() else None
    return Encoded(ids, offsets, starts, np.load(folder / "truncated.npy"), targets)
