"""The order of samples: every one once an epoch, whatever the number of processes, and where it changes."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.course import RunState, advance
from finetune_trainer.data.order import BatchSize, epoch_batches, ordered_batches
from finetune_trainer.data.passes import CPU_COST, Passes, Share

sizes = st.one_of(
    st.builds(BatchSize, samples=st.integers(1, 40), tokens=st.none()),
    st.builds(BatchSize, samples=st.none(), tokens=st.integers(1, 400)),
)
lengths = st.lists(st.integers(1, 120), min_size=1, max_size=300).map(lambda found: np.array(found, np.int64))
shares = st.tuples(st.integers(1, 5), st.integers(1, 4))
seeds = st.integers(0, 2**31 - 1)


def counted(by_rank: list[list[list[tuple[int, int]]]]) -> Counter[tuple[int, int]]:
    """How often each (epoch, index) was taken; a stand-in (index below 0) counts for nothing."""
    return Counter(key for parts in by_rank for part in parts for key in part if key[1] >= 0)


def once(count: int, *epochs: int) -> Counter[tuple[int, int]]:
    """Each sample once an epoch."""
    return Counter((epoch, index) for epoch in epochs for index in range(count))


def taken(batches, lengths, size, world_size: int, parts: int, epoch: int = 0) -> list[list[list[tuple[int, int]]]]:
    """Rank → its passes, of all batches."""
    shares = [Share(rank, world_size, parts, CPU_COST) for rank in range(world_size)]
    return [[one for passes in Passes(batches, lengths, size, share, epoch) for one in passes] for share in shares]


@given(lengths=lengths, size=sizes, share=shares, seed=seeds, epoch=st.integers(0, 5))
def test_every_sample_is_taken_once_an_epoch(lengths, size, share, seed, epoch):
    batches = epoch_batches(len(lengths), lengths, size, seed=seed, epoch=epoch)
    by_rank = taken(batches, lengths, size, *share, epoch)
    assert counted(by_rank) == once(len(lengths), epoch)
    assert len({len(passes) for passes in by_rank}) == 1, "every rank has as many forward passes"
    assert all(one and {key[0] for key in one} == {epoch} for passes in by_rank for one in passes)


@given(count=st.integers(1, 300), samples=st.integers(1, 40), share=shares, seed=seeds)
def test_every_image_is_taken_once_an_epoch(count, samples, share, seed):
    size = BatchSize(samples, None)
    batches = epoch_batches(count, None, size, seed=seed, epoch=0)
    assert counted(taken(batches, None, size, *share)) == once(count, 0)
    assert [len(batch) for batch in batches[:-1]] == [samples] * (len(batches) - 1)


@given(lengths=lengths, size=sizes)
def test_every_sample_is_judged_once_longest_first(lengths, size):
    batches = ordered_batches(len(lengths), lengths, size)
    order = np.concatenate(batches)
    assert sorted(order.tolist()) == list(range(len(lengths)))
    assert (np.diff(lengths[order]) <= 0).all()


@given(lengths=lengths, tokens=st.integers(1, 400), seed=seeds)
def test_the_token_budget_is_kept(lengths, tokens, seed):
    """Padding counted; a sample that is longer than the budget is alone."""
    size = BatchSize(None, tokens)
    for batches in (
        epoch_batches(len(lengths), lengths, size, seed=seed, epoch=0),
        ordered_batches(len(lengths), lengths, size),
    ):
        padded = [int(lengths[batch].max()) * len(batch) for batch in batches]
        assert all(len(batch) for batch in batches)
        assert all(amount <= tokens or len(batch) == 1 for amount, batch in zip(padded, batches, strict=True))


@given(lengths=lengths, samples=st.integers(1, 40), seed=seeds)
def test_batches_have_the_size_that_was_asked_for(lengths, samples, seed):
    batches = epoch_batches(len(lengths), lengths, BatchSize(samples, None), seed=seed, epoch=0)
    sizes = sorted(len(batch) for batch in batches)
    pool = 128 * samples
    assert sizes[-1] <= samples
    assert sum(size < samples for size in sizes) <= -(-len(lengths) // pool), "one short batch a pool"


def test_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).integers(1, 60, 500)

    def order(seed, epoch):
        return np.concatenate(epoch_batches(500, lengths, BatchSize(None, 300), seed=seed, epoch=epoch)).tolist()

    assert order(1, 2) == order(1, 2)
    different = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1, 2)]
    assert len({tuple(each) for each in different}) == len(different)


def test_long_and_short_batches_are_mixed():
    """The batches of a pool are not left in the order of their lengths."""
    lengths = np.random.default_rng(0).integers(1, 200, 4000)
    batches = epoch_batches(4000, lengths, BatchSize(20, None), seed=0, epoch=0)
    longest = np.array([lengths[batch].max() for batch in batches])
    assert abs(np.corrcoef(longest, np.arange(len(longest)))[0, 1]) < 0.2


@settings(max_examples=50)
@given(lengths=lengths, size=sizes, seed=seeds, data=st.data())
def test_processes_may_change_in_the_middle_of_an_epoch(lengths, size, seed, data):
    """1 → 2 → 1 processes (or any others), stopped between any two steps, over two epochs."""
    batches = [epoch_batches(len(lengths), lengths, size, seed=seed, epoch=epoch) for epoch in (0, 1)]
    steps = sum(map(len, batches))
    first, second = sorted(data.draw(st.tuples(st.integers(0, steps), st.integers(0, steps))))
    worlds = data.draw(st.sampled_from([(1, 2, 1), (2, 1, 2), (3, 1, 2), (1, 4, 3)]))
    state, seen = RunState(), Counter()
    for world_size, until in zip(worlds, (first, second, steps), strict=True):
        while state.step < until:
            batch = batches[state.epoch][state.batch]
            seen += counted(taken([batch], lengths, size, world_size, 2, state.epoch))
            state = advance(state, len(batch), len(batches[state.epoch]))
    assert seen == once(len(lengths), 0, 1)
    assert state.epoch == 2


PADDED = {
    "by samples": (BatchSize(32, None), 0.16, 0.06),
    "by tokens": (BatchSize(None, 32 * 64), 0.13, 0.06),
    "by few tokens": (BatchSize(None, 512), 0.12, 0.12),
}


@pytest.mark.parametrize(("size", "most", "most_in_passes"), PADDED.values(), ids=PADDED)
def test_little_is_padded(size, most, most_in_passes):
    """Lengths as those of real texts: log-normal, cut at 128. What is computed is padded by passes, not by batches."""
    lengths = np.random.default_rng(0).lognormal(3.5, 0.8, 20_000).astype(np.int64).clip(3, 128)
    batches = epoch_batches(len(lengths), lengths, size, seed=0, epoch=0)
    passes = [one for batch in batches for one in Share(0, 1, 1, CPU_COST).of(batch, lengths, size)]
    assert padding(lengths, batches) < most
    assert padding(lengths, passes) < most_in_passes


def padding(lengths, groups) -> float:
    """Share of what is computed."""
    return 1 - lengths.sum() / sum(int(lengths[one].max()) * len(one) for one in groups)
