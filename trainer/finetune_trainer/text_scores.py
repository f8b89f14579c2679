"""BLEU and ROUGE of texts that a model wrote, as functions of sums over the samples: streamed, and to be resampled.

BLEU (Papineni et al., 2002): n-grams up to 4, words divided by spaces, of the whole set, not smoothed. ROUGE (Lin,
2004): the mean over the samples of F1 of words, of pairs of words, and of the longest common subsequence; words are
lower case, of letters and digits.
"""

import re
from collections import Counter
from collections.abc import Sequence

import torch
from torch import Tensor

from finetune_trainer.bootstrap import Cells, Family
from finetune_trainer.streamed import SummedScores

_GRAMS = 4
_WORD = re.compile(r"[^\W_]+")
CELLS = 4 + 2 + 2 * _GRAMS
"""Sums: samples, three ROUGEs, words written and expected; of each n, n-grams that are right and that were written."""


def text_sums(written: Sequence[str], expected: Sequence[str]) -> Tensor:
    """What each sample adds: (n, CELLS) float64."""
    rows = [[*_rouge(one, other), *_bleu(one, other)] for one, other in zip(written, expected, strict=True)]
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), CELLS)


def _rouge(written: str, expected: str) -> list[float]:
    ours, theirs = (_WORD.findall(text.lower()) for text in (written, expected))
    overlaps = [(_grams(ours, size) & _grams(theirs, size)).total() for size in (1, 2)]
    totals = [(len(ours), len(theirs)), (max(0, len(ours) - 1), max(0, len(theirs) - 1)), (len(ours), len(theirs))]
    common = [*overlaps, _longest_common(ours, theirs)]
    return [1.0, *(2 * same / sum(total) if same else 0.0 for same, total in zip(common, totals, strict=True))]


def _bleu(written: str, expected: str) -> list[float]:
    ours, theirs = written.split(), expected.split()
    right = [(_grams(ours, size) & _grams(theirs, size)).total() for size in range(1, _GRAMS + 1)]
    made = [max(0, len(ours) - size + 1) for size in range(1, _GRAMS + 1)]
    return [float(count) for count in (len(ours), len(theirs), *right, *made)]


def _grams(words: Sequence[str], size: int) -> Counter[tuple[str, ...]]:
    return Counter(tuple(words[start : start + size]) for start in range(len(words) - size + 1))


def _longest_common(one: Sequence[str], other: Sequence[str]) -> int:
    """Length of the longest common subsequence, in len(one) × len(other) steps."""
    lengths = [0] * (len(other) + 1)
    for word in one:
        above = 0
        for place, wanted in enumerate(other, 1):
            before = lengths[place]
            lengths[place] = above + 1 if word == wanted else max(before, lengths[place - 1])
            above = before
    return lengths[-1]


def bleu(sums: Tensor) -> Tensor:
    """Of sums (CELLS, B): (B,). 0 where no n-gram of some length is right."""
    written, expected, grams = sums[4], sums[5], sums[6:]
    right, made = grams[:_GRAMS], grams[_GRAMS:]
    precision = (right / made.clamp(min=1)).clamp(min=1e-300).log().mean(0).exp()
    brevity = torch.where(written > expected, 1.0, (1 - expected / written.clamp(min=1e-9)).exp())
    return torch.where((right > 0).all(0), precision * brevity, 0.0)


TEXT_FAMILY = Family(
    CELLS,
    lambda written, expected: _cells(text_sums(written, expected)),
    {
        "bleu": bleu,
        "rouge1": lambda sums: sums[1] / sums[0],
        "rouge2": lambda sums: sums[2] / sums[0],
        "rougeL": lambda sums: sums[3] / sums[0],
    },
)
"""It takes the texts that were written and those that were expected."""


def _cells(sums: Tensor) -> Cells:
    samples, cells = torch.ones_like(sums).nonzero().unbind(1)
    return Cells(samples, cells, sums.flatten())


class TextScores(SummedScores):
    """All of ``metrics.TEXT_SCORES``; 0 for no text at all."""

    def __init__(self) -> None:
        super().__init__(CELLS)

    def update(self, written: Sequence[str], expected: Sequence[str]) -> None:
        """Take in texts (n) that the model wrote, and those that were expected."""
        self.sums += text_sums(written, expected).sum(0).to(self.sums.device)

    def compute(self) -> dict[str, float]:
        """By name."""
        column = self.sums.unsqueeze(1)
        return {name: value(column).nan_to_num(0.0).item() for name, value in TEXT_FAMILY.values.items()}
