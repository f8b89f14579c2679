"""How a batch is computed: cut into forward passes, each of them shared by all processes.

Invariants: which samples are in a batch never depends on how it is cut, and every process makes as many passes as the
others. The gradient is that of the whole batch however it is cut, so the cut may follow the hardware.

A pass is padded to its longest text. A batch is cut where the padding that is saved is worth another pass: of all ways
to cut the samples, longest first, into runs, the cheapest is taken (dynamic programming over the places to cut; the
method of Knuth and Plass, "Breaking Paragraphs into Lines", 1981).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from finetune_trainer.data.order import BatchSize, Indices

Key = tuple[int, int]
"""(epoch, index); index -1 - i is a stand-in for sample i that counts for nothing."""


@dataclass(frozen=True)
class PassCost:
    """What a forward and backward pass costs beside its tokens."""

    overhead_tokens: int
    """Tokens that could be computed in the time that a pass takes whatever is in it."""
    most_tokens: int | None = None
    """Larger passes cost more a token, or take more memory than there is; None where they do not."""
    most_samples: int | None = None
    """Samples that one process has memory for at once, however short; None where nobody looked."""


CPU_COST = PassCost(overhead_tokens=64, most_tokens=1024)
"""Measured with MiniLM on one thread (`benchmarks/passes.py`): a step of 2,560 tokens takes as long in one pass as in
two or four, for smaller activations stay in the caches; in 8 passes 1.1 times as long, in 16 passes 1.4 times."""
GPU_COST = PassCost(overhead_tokens=4096)
"""A GPU wants work: starting the kernels of a pass takes as long as some thousand tokens."""


@dataclass(frozen=True)
class Share:
    """What one process does of every batch."""

    rank: int
    world_size: int
    parts: int = 1
    """Passes that a batch of full size is cut into at least, so that less memory is needed at a time."""
    cost: PassCost = GPU_COST

    def of(self, batch: Indices, lengths: Indices | None, size: BatchSize) -> list[Indices]:
        """This process's samples of each pass; empty where a pass has fewer samples than there are processes.

        Every process takes every n-th sample of a pass, so all have texts of like length and as much to do.

        Args:
            batch: Samples (n,) of the batch, longest first.
            lengths: Padded tokens of every sample of the part; None where samples are all alike (images).
            size: What a full batch holds.
        """
        if lengths is None:
            passes = np.array_split(batch, min(self._parts_of(len(batch)), len(batch)))
        else:
            passes = np.split(batch, self._ends(lengths[batch], size)[:-1])
        return [samples[self.rank :: self.world_size] for samples in passes]

    def _parts_of(self, samples: int) -> int:
        """Passes that a batch of so many samples that are all alike is cut into."""
        most = self.cost.most_samples
        return self.parts if most is None else max(self.parts, -(-samples // (most * self.world_size)))

    def _ends(self, widths: Indices, size: BatchSize) -> list[int]:
        """Where the passes end that cost least, among samples of these widths (falling)."""
        count, overhead = len(widths), self.cost.overhead_tokens
        rows = -(-np.arange(1, count + 1) // self.world_size)
        allowed = np.minimum(self._most_rows(widths, size) * self.world_size, count)
        if allowed[0] == count and rows[-1] * widths[0] - widths.sum() / self.world_size <= overhead:
            return [count]
        least, ends = np.zeros(count + 1, np.int64), np.zeros(count, np.int64)
        for start in reversed(range(count)):
            stop = min(start + int(allowed[start]), count)
            costs = rows[: stop - start] * widths[start] + least[start + 1 : stop + 1]
            best = int(costs.argmin())
            least[start], ends[start] = costs[best] + overhead, start + 1 + best
        return list(_path(ends))

    def _most_rows(self, widths: Indices, size: BatchSize) -> Indices:
        """Samples (n,) that one process may take at once, as wide as each of these; one in any case."""
        each = self.world_size * self.parts
        rows = np.full_like(widths, -(-size.samples // each) if size.samples is not None else len(widths))
        for tokens in (size.tokens // each if size.tokens is not None else None, self.cost.most_tokens):
            if tokens is not None:
                rows = np.minimum(rows, tokens // widths)
        if self.cost.most_samples is not None:
            rows = np.minimum(rows, self.cost.most_samples)
        return np.maximum(1, rows)


def _path(ends: Indices) -> Iterator[int]:
    position = 0
    while position < len(ends):
        position = int(ends[position])
        yield position


@dataclass(frozen=True)
class Passes:
    """The passes of these batches that are ours, batch by batch: a DataLoader's batch sampler.

    An empty pass holds one stand-in, (epoch, -1 - index): every process must take part in every forward and backward
    pass, so it computes a sample that counts for nothing.
    """

    batches: Sequence[Indices]
    lengths: Indices | None
    size: BatchSize
    share: Share
    epoch: int

    def __iter__(self) -> Iterator[list[list[Key]]]:
        for batch in self.batches:
            yield [self._keys(samples, batch) for samples in self.share.of(batch, self.lengths, self.size)]

    def _keys(self, samples: Indices, batch: Indices) -> list[Key]:
        return [(self.epoch, index) for index in samples.tolist()] or [(self.epoch, -1 - int(batch[0]))]
