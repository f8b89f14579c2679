"""Words with tags to token ids: the first token of a word has its tag as the target, the others have none.

Invariant: a word counts once, however many tokens it is cut into; one that is cut off, or has no token, does not count.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.dataset import Encoded
from finetune_trainer.data.encode import Row, fingerprint, load_encoded, write_targets
from finetune_trainer.data.labels import IdLists
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.task import IGNORED

_CHUNK = 1024
_FORMAT = 1


def encode_words(
    table: pa.Table,
    tags: IdLists,
    tokenizer: Any,
    *,
    max_length: int,
    key: Mapping[str, Any],
    cache: Path,
    beat: Beat,
) -> Encoded:
    """Token ids of every row of ``table`` (column ``tokens``), and the tag of each word at its first token.

    Args:
        table: The words, (N,) rows.
        tags: The tag of each word.
        tokenizer: A fast tokenizer of transformers.
        max_length: Longest sequence in tokens, special tokens counted.
        key: What identifies words and tags.
        cache: Folder of prepared data.
        beat: Called for every chunk.

    Raises:
        SpecFault: The tokenizer does not tell which word a token is of.
        DataError: No word is left within ``max_length``.
    """
    if not tokenizer.is_fast:
        raise SpecFault("spec.model.tokenizer: must be a fast one, which tells which word each token is of")
    identity = {"format": _FORMAT, "words": dict(key), "tokenizer": fingerprint(tokenizer), "maxLength": max_length}

    def encoded(start: int) -> list[Row]:
        words = table["tokens"].slice(start, _CHUNK).to_pylist()
        return _encode(
            words, [tags.ids_of(row).tolist() for row in range(start, start + len(words))], tokenizer, max_length
        )

    def build(folder: Path) -> None:
        if not write_targets(folder, map(encoded, range(0, len(table), _CHUNK)), beat):
            raise DataError(f"spec.data: no word is left within spec.data.maxLength ({max_length} tokens); raise it")

    return cached(cache, "words", identity, build=build, load=load_encoded, beat=beat)


def _encode(words: list[list[str]], tags: list[list[int]], tokenizer: Any, max_length: int) -> list[Row]:
    encoded = tokenizer(
        words, is_split_into_words=True, truncation=True, max_length=max_length, return_attention_mask=False
    )
    return [
        (ids, first_token_targets(one.word_ids, own), bool(one.overflowing))
        for ids, own, one in zip(encoded["input_ids"], tags, encoded.encodings, strict=True)
    ]


def first_token_targets(word_ids: Sequence[int | None], tags: Sequence[int]) -> list[int]:
    """The target of each token. ``word_ids``: the word that each is of, None for a special token."""
    return [
        tags[word] if word is not None and word != before else IGNORED
        for word, before in zip(word_ids, (None, *word_ids), strict=False)
    ]


def counted_words(words: list[str], tokenizer: Any) -> list[int]:
    """Places of the words that have a token, those that are cut off included."""
    return list(dict.fromkeys(tokenizer([words], is_split_into_words=True, add_special_tokens=False).word_ids(0)))
