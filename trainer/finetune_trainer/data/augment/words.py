"""Random changes of the words of a text: synonyms, swaps, deletions (https://arxiv.org/abs/1901.11196)."""

import re
from dataclasses import dataclass, field

import numpy as np

from finetune_trainer.data.augment.synonyms import Synonyms

_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_PIECE = re.compile(rf"({_WORD.pattern})")


@dataclass(frozen=True)
class WordChanges:
    """Changes of words, each with its probability."""

    synonyms: Synonyms = field(default_factory=dict)
    synonym_rate: float = 0
    swap_rate: float = 0
    deletion_rate: float = 0

    def __call__(self, text: str, random: np.random.Generator) -> str:
        """The text with some of its words changed; spaces and punctuation stay, but for those of words that go."""
        pieces = _PIECE.split(text)  # what is between words, a word, what is between, …
        words = pieces[1::2]
        if not words:
            return text
        words = [self._synonym(word, random) for word in words]
        _swap(words, self.swap_rate, random)
        gone = random.random(len(words)) < self.deletion_rate
        if gone.all():
            gone[random.integers(len(words))] = False
        kept = [(word, gap) for word, gap, is_gone in zip(words, pieces[2::2], gone, strict=True) if not is_gone]
        return (pieces[0] + "".join(word + gap for word, gap in kept)).strip()

    def _synonym(self, word: str, random: np.random.Generator) -> str:
        use, which = random.random(2)
        found = self.synonyms.get(word.lower(), ())
        if use >= self.synonym_rate or not found:
            return word
        return _cased(found[int(which * len(found))], word)


def _cased(synonym: str, word: str) -> str:
    if word[0].isupper() and not synonym[0].isupper():
        return synonym[0].upper() + synonym[1:]
    return synonym


def _swap(words: list[str], rate: float, random: np.random.Generator) -> None:
    for at in np.flatnonzero(random.random(len(words)) < rate).tolist():
        other = int(random.integers(len(words)))
        words[at], words[other] = words[other], words[at]


def words_in(text: str) -> list[str]:
    """The words of a text in lower case."""
    return [word.lower() for word in _WORD.findall(text)]
