"""The order of samples: which sample is in which batch, as a function of (seed, epoch) and nothing else.

Invariant: every sample is in exactly one batch of an epoch, whatever the number of processes, each of which takes its
share of a batch (see passes.py). So a run can be resumed in the middle of an epoch, on another number of processes,
without repeating or missing a sample.

Lengths are counted in tokens, with the padding that a sample has by itself. Samples of like length share a batch: an
epoch is shuffled, cut into pools, each pool is sorted by length and cut into batches, and the batches are shuffled.
Within a length the order is random.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

Indices = np.ndarray[Any, np.dtype[np.int64]]

POOL_BATCHES = 8
"""Batches' worth of samples that are sorted together: more is less padding, fewer is more variety in a batch.

Variety is worth more: texts of one length are often variants of each other. With MiniLM on 5,000 of Debian's package
descriptions (one seed), pools of 128 and of 50 batches gave 54.8 % and 54.3 % on the test set, pools of 8 gave 63.9 %.
Over three seeds pools of 8 gave 66.6 %, batches at random in HF Trainer 67.0 %, the seeds being 14 points apart
(`benchmarks/text_classification.py accuracy --samples 5000`). Most of the padding that is left, passes.py cuts away.
"""


@dataclass(frozen=True)
class BatchSize:
    """How much goes into one optimizer step, over all processes: a number of samples, or of tokens with padding."""

    samples: int | None
    tokens: int | None

    def cut(self, lengths: Indices) -> list[int]:
        """Where batches end among samples of these lengths (in the order given; falling lengths waste nothing)."""
        if self.samples is not None:
            return [*range(self.samples, len(lengths), self.samples), len(lengths)]
        assert self.tokens is not None
        ends, start, longest = [], 0, 0
        for position, length in enumerate(lengths.tolist()):
            longest = max(longest, length)
            if position > start and longest * (position - start + 1) > self.tokens:
                ends.append(position)
                start, longest = position, length
        return [*ends, len(lengths)]

    def typical(self, lengths: Indices | None) -> int:
        """Samples of a batch of middling length."""
        if self.samples is not None:
            return self.samples
        assert self.tokens is not None
        assert lengths is not None
        return max(1, int(self.tokens / max(1.0, float(lengths.mean()))))


def epoch_batches(count: int, lengths: Indices | None, size: BatchSize, *, seed: int, epoch: int) -> list[Indices]:
    """The batches of one epoch, each the indices (n,) of its samples, longest first if ``lengths`` are given.

    Args:
        count: Number of samples.
        lengths: Tokens of each sample (count,), see ``Part.padded_lengths``; None where samples are all alike (images).
        size: What a batch holds.
        seed: The run's seed.
        epoch: Number of the epoch, from 0.
    """
    random = np.random.Generator(np.random.PCG64([seed, epoch]))
    order = random.permutation(count)
    if lengths is None:
        return np.split(order, size.cut(np.ones(count, np.int64))[:-1])
    pool = POOL_BATCHES * size.typical(lengths)
    batches = [
        batch for start in range(0, count, pool) for batch in _batches_of(order[start : start + pool], lengths, size)
    ]
    return [batches[index] for index in random.permutation(len(batches))]


def ordered_batches(count: int, lengths: Indices | None, size: BatchSize) -> list[Indices]:
    """All samples once, longest first, without randomness: the batches of an evaluation."""
    order = np.arange(count)
    if lengths is None:
        return np.split(order, size.cut(np.ones(count, np.int64))[:-1])
    return _batches_of(order, lengths, size)


def _batches_of(indices: Indices, lengths: Indices, size: BatchSize) -> list[Indices]:
    by_length = indices[np.argsort(-lengths[indices], kind="stable")]
    return np.split(by_length, size.cut(lengths[by_length])[:-1])
