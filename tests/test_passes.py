"""How a batch is cut into passes: at the least cost, within its limits, with equal work for every process."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from finetune_trainer.data.order import BatchSize, epoch_batches
from finetune_trainer.data.passes import CPU_COST, GPU_COST, PassCost, Passes, Share

WHOLE = BatchSize(1000, None)
falling = st.lists(st.integers(1, 40), min_size=1, max_size=10).map(lambda found: np.array(sorted(found)[::-1]))
costs = st.builds(PassCost, st.integers(0, 50), st.one_of(st.none(), st.integers(1, 120)))


def divided(lengths, size=WHOLE, *, world_size=1, parts=1, cost=CPU_COST) -> list[list[np.ndarray]]:
    """Rank → its samples of each pass of one batch of all samples."""
    batch = np.arange(len(lengths))
    return [Share(rank, world_size, parts, cost).of(batch, lengths, size) for rank in range(world_size)]


def cost_of(widths, ends, world_size: int, cost: PassCost) -> float:
    """What passes that end there cost; infinite where one is larger than it may be."""
    total = 0.0
    for start, end in zip([0, *ends], ends, strict=False):
        rows = -(-(end - start) // world_size)
        if rows > 1 and cost.most_tokens is not None and rows * widths[start] > cost.most_tokens:
            return float("inf")
        total += rows * widths[start] + cost.overhead_tokens
    return total


@given(lengths=falling, world_size=st.integers(1, 3), cost=costs)
def test_no_way_to_cut_costs_less(lengths, world_size, cost):
    """Beside every way there is; a batch whose padding is not worth a pass is left whole."""
    count = len(lengths)
    ways = ([place for place in range(1, count) if mask >> (place - 1) & 1] for mask in range(2 ** (count - 1)))
    least = min(cost_of(lengths, [*way, count], world_size, cost) for way in ways)
    found = np.cumsum(
        [sum(map(len, one)) for one in zip(*divided(lengths, world_size=world_size, cost=cost), strict=True)]
    )
    assert cost_of(lengths, found.tolist(), world_size, cost) == least


CUTS = {
    "alike": ([10] * 8, {}, [[[0, 1, 2, 3, 4, 5, 6, 7]]]),
    "two kinds": ([100, 100, 10, 10], {}, [[[0, 1], [2, 3]]]),
    "two kinds, GPU": ([100, 100, 10, 10], {"cost": GPU_COST}, [[[0, 1, 2, 3]]]),
    "two kinds, 2 processes": ([100, 100, 10, 10], {"world_size": 2}, [[[0], [2]], [[1], [3]]]),
    "large": ([512] * 4, {}, [[[0, 1], [2, 3]]]),
    "very long": ([4000] * 2, {}, [[[0], [1]]]),
    "parts": ([10] * 8, {"parts": 2, "size": BatchSize(8, None)}, [[[0, 1, 2, 3], [4, 5, 6, 7]]]),
    "parts of a short batch": ([10] * 3, {"parts": 2, "size": BatchSize(8, None)}, [[[0, 1, 2]]]),
    "parts by tokens": ([10] * 8, {"parts": 2, "size": BatchSize(None, 80)}, [[[0, 1, 2, 3], [4, 5, 6, 7]]]),
    "fewer samples than processes": ([9, 9], {"world_size": 3}, [[[0]], [[1]], [[]]]),
}


@pytest.mark.parametrize(("lengths", "how", "expected"), CUTS.values(), ids=CUTS)
def test_cut(lengths, how, expected):
    found = divided(np.array(lengths), **how)
    assert [[one.tolist() for one in passes] for passes in found] == expected


IMAGES = {
    "1 x 1": (1, 1, [[[0, 1, 2, 3, 4]]]),
    "2 x 1": (2, 1, [[[0, 2, 4]], [[1, 3]]]),
    "2 x 2": (2, 2, [[[0, 2], [3]], [[1], [4]]]),
    "4 x 2, stand-ins": (4, 2, [[[0], [3]], [[1], [4]], [[2], [-1]], [[-1], [-1]]]),
}


@pytest.mark.parametrize(("world_size", "parts", "expected"), IMAGES.values(), ids=IMAGES)
def test_images_are_cut_into_equal_parts(world_size, parts, expected):
    shares = [Share(rank, world_size, parts) for rank in range(world_size)]
    found = [list(Passes([np.arange(5)], None, BatchSize(5, None), share, epoch=7)) for share in shares]
    assert found == [[[[(7, index) for index in one] for one in passes]] for passes in expected]


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_get_equal_work(world_size):
    """Tokens with padding, of real lengths and mixed batches: within 2 % over an epoch."""
    lengths, size = np.random.default_rng(0).integers(5, 128, 5000), BatchSize(30, None)
    batches = epoch_batches(5000, lengths, size, seed=0, epoch=0)
    work = [0] * world_size
    for rank in range(world_size):
        for passes in Passes(batches, lengths, size, Share(rank, world_size, 1, CPU_COST), epoch=0):
            work[rank] += sum(len(one) * max(lengths[index] for _, index in one) for one in passes)
    assert max(work) <= 1.02 * min(work)


@given(lengths=falling, tokens=st.integers(16, 200), parts=st.integers(1, 3), world_size=st.integers(1, 3))
def test_a_process_computes_no_more_than_its_part_of_the_budget_at_once(lengths, tokens, parts, world_size):
    size = BatchSize(None, tokens)
    for passes in divided(lengths, size, parts=parts, world_size=world_size):
        padded = [len(one) * int(lengths[one].max()) for one in passes if len(one)]
        assert all(
            amount <= tokens // (parts * world_size) or len(one) == 1
            for amount, one in zip(padded, [one for one in passes if len(one)], strict=True)
        )
