"""Texts as arrays of hashes of their words: thousands of texts at once, no Python per word.

Invariant: a hash is a function of the text alone, the same in every process and version of Python.
"""

import unicodedata
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Indices = NDArray[np.int64]

_LAST_LETTER = 0x33480
"""No code point from here on is a letter (Unicode 17)."""
_WITHOUT_BLANKS = (
    (0x0E00, 0x0EFF),
    (0x1000, 0x109F),
    (0x1780, 0x17FF),
    (0x3040, 0x30FF),
    (0x3400, 0x9FFF),
    (0xF900, 0xFAFF),
)
"""Scripts that put no blanks between words (Thai, Lao, Burmese, Khmer, kana, Han): each letter counts as a word."""
_FROM_HERE_HAN = 0x20000


def normal(text: str) -> str:
    """The text as duplicates are told by: compatibility forms, letter case and runs of blanks made alike."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def word_hashes(texts: Sequence[str]) -> tuple[Hashes, Indices]:
    """Hashes of all words, text after text, (W,) uint64; and where each text's begin, (n + 1,) int64.

    A word is a run of letters, digits and their marks; punctuation is none. ``texts`` are as ``normal`` makes them.
    """
    points = np.frombuffer("\n".join((*texts, "")).encode("utf-32-le", "surrogatepass"), np.uint32)
    kinds = _kinds()[np.minimum(points, _LAST_LETTER)]
    before = np.concatenate([[0], kinds[:-1]])
    begins = (kinds == 2) | ((kinds == 1) & (before != 1))  # noqa: PLR2004 - 2: a word by itself
    starts = np.flatnonzero(begins)
    text_starts = np.concatenate([[0], np.cumsum([len(text) + 1 for text in texts])])
    offsets = np.searchsorted(starts, text_starts).astype(np.int64)
    if not len(starts):
        return np.zeros(0, np.uint64), offsets
    word = np.cumsum(begins) - 1
    position = np.arange(len(points)) - starts[np.maximum(word, 0)]
    letters = mixed(points.astype(np.uint64) + (position.astype(np.uint64) << np.uint64(32)))
    letters[kinds == 0] = 0
    return np.add.reduceat(letters, starts), offsets


def pairs_of_words(words: Hashes, offsets: Indices) -> tuple[Hashes, Indices]:
    """Hashes of every two words that follow each other in a text, and their offsets; of a single word its own."""
    counts = np.diff(offsets)
    joined = mixed(words * np.uint64(3) + np.append(words[1:], np.uint64(0)))
    is_kept = np.ones(len(words), bool)
    lasts = offsets[1:][counts > 0] - 1
    is_kept[lasts[counts[counts > 0] > 1]] = False
    joined[lasts[counts[counts > 0] == 1]] = words[lasts[counts[counts > 0] == 1]]
    kept = np.maximum(counts - 1, np.minimum(counts, 1))
    return joined[is_kept], np.concatenate([[0], np.cumsum(kept)])


def mixed(values: Hashes) -> Hashes:
    """Every bit of the result depends on every bit of the value (splitmix64's finalizer, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixture: Hashes = values ^ (values >> np.uint64(31))
    return mixture


@cache
def _kinds() -> NDArray[Any]:
    """By code point: 0 is no part of a word, 1 is, 2 is a word by itself."""
    kinds = np.array([unicodedata.category(chr(point))[0] in "LNM" for point in range(_LAST_LETTER)], np.int8)
    for first, last in _WITHOUT_BLANKS:
        kinds[first : last + 1] *= 2
    kinds[_FROM_HERE_HAN:] *= 2
    return np.append(kinds, np.int8(0))
