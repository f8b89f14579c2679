"""A budget of tokens counts what is computed, padding of every kind included."""

import numpy as np
import pytest

from finetune_trainer.data.dataset import Encoded, TextPart
from finetune_trainer.data.order import BatchSize, epoch_batches, ordered_batches

COUNT, BUDGET = 200, 128
PADDING = {"to the longest": {}, "to multiples of 8": {"multiple": 8}, "to maxLength": {"fixed_length": 40}}


@pytest.mark.parametrize("options", PADDING.values(), ids=PADDING)
def test_no_batch_has_more_tokens_than_the_budget(options):
    lengths = np.random.default_rng(0).integers(1, 33, COUNT)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    part = TextPart(np.arange(COUNT), Encoded(np.ones(offsets[-1], np.int32), offsets, None), None, pad_id=0, **options)
    size = BatchSize(None, BUDGET)
    for batches in (
        epoch_batches(COUNT, part.padded_lengths, size, seed=0, epoch=0),
        ordered_batches(COUNT, part.padded_lengths, size),
    ):
        tokens = [part.batch(0, batch, is_counted=True).inputs["input_ids"].numel() for batch in batches]
        assert max(tokens) <= BUDGET
        assert np.mean(tokens) > 0.85 * BUDGET, "nor much less"
