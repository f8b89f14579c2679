"""The contrastive loss and its gradient do not depend on how the batch is divided; retrieval as counted by hand."""

import math

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

import contrasting
from finetune_trainer.contrastive import contrastive_losses
from finetune_trainer.retrieval import RECALLS, ranks, recalls

TOLERANCE = 1e-5
DIVISIONS = {"1 process": (1, 1), "3 passes": (1, 3), "2 processes": (2, 1), "2 processes, 4 passes": (2, 4)}
"""Processes and passes; 7 pairs in 4 passes leave one process a stand-in."""


def by_hand(images, texts, ids):
    """The mean loss, pair by pair."""
    losses = []
    for queries, candidates in ((images, texts), (texts, images)):
        for query, (image, text) in zip(queries, ids.tolist(), strict=True):
            logs = (candidates @ query).double().log_softmax(0)
            right = [log for log, (i, t) in zip(logs, ids.tolist(), strict=True) if i == image or t == text]
            losses.append(-sum(right) / len(right))
    return sum(losses) / len(losses)


def whole():
    towers = contrasting.Towers().eval()
    loss = by_hand(*towers(*contrasting.samples()), contrasting.IDS)
    loss.backward()
    return loss.item(), {name: each.grad for name, each in towers.named_parameters()}


@pytest.mark.parametrize(("world_size", "parts"), DIVISIONS.values(), ids=DIVISIONS)
def test_loss_and_gradients_are_those_of_the_whole_batch(group, world_size, parts):
    expected_loss, expected = whole()
    answers = group.run(contrasting.step, world_size, parts)
    assert sum(loss for loss, _ in answers) / len(contrasting.IDS) == pytest.approx(expected_loss, rel=TOLERANCE)
    for _, gradients in answers:
        torch.testing.assert_close(gradients, expected, atol=TOLERANCE, rtol=TOLERANCE)


def test_passes_are_computed_again_with_the_same_dropout():
    """The gradient of cached passes is that of the very loss that was computed, though dropout is drawn twice."""
    towers = contrasting.Towers()
    images, texts = contrasting.samples()
    torch.manual_seed(2)
    parts = [towers(images[rows], texts[rows]) for rows in np.array_split(np.arange(7), 3)]
    plain = contrastive_losses(*(torch.cat(each) for each in zip(*parts, strict=True)), contrasting.IDS).sum()
    (plain / 7).backward()
    loss, gradients = contrasting.step(0, 1, 3, dropout=0.25)
    assert loss == pytest.approx(plain.item(), rel=1e-6)
    expected = {name: each.grad for name, each in towers.named_parameters()}
    torch.testing.assert_close(gradients, expected, atol=1e-6, rtol=1e-5)


def test_without_duplicates_it_is_the_loss_of_clip():
    images, texts = contrasting.Towers().eval()(*contrasting.samples())
    ids = torch.arange(7)[:, None].expand(7, 2)
    logits, right = images @ texts.T, torch.arange(7)
    expected = (cross_entropy(logits, right) + cross_entropy(logits.T, right)) / 2
    torch.testing.assert_close(contrastive_losses(images, texts, ids).mean(), expected)


def test_recall_of_all_ranks_is_that_of_one(group):
    alone = contrasting.judge(0, 1)
    assert list(alone) == list(RECALLS)
    assert group.run(contrasting.judge, 3) == [alone] * 3


def test_recall_by_hand():
    """12 images on a circle, with their texts; but the first text lies by the second image, the last two are one."""
    angles = torch.arange(12) * (2 * math.pi / 12)
    images = torch.stack([angles.cos(), angles.sin()], dim=1)
    texts = images.clone()
    texts[0], texts[11] = images[1] * 0.99, texts[10]
    ids = torch.stack([torch.arange(12), torch.tensor([*range(11), 10])], dim=1)
    one = {"recallAt1": (11 / 12 + 10 / 11) / 2, "textRecallAt1": 11 / 12, "imageRecallAt1": 10 / 11}
    assert recalls(images, texts, ids) == dict.fromkeys(RECALLS, 1.0) | {name: pytest.approx(one[name]) for name in one}


RANKS = {
    "the nearest is right": ([[1.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[0, 0]], [0]),
    "one is nearer": ([[1.0, 0.0]], [[1.0, 0.0], [0.5, 0.0]], [[0, 1]], [1]),
    "equally near counts against it": ([[1.0, 0.0]], [[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]], [[0, 1]], [2]),
    "the best of two right ones": ([[1.0, 0.0]], [[0.1, 0.0], [0.5, 0.0], [0.9, 0.0]], [[0, 0], [0, 2]], [0]),
    "not a number finds nothing": ([[math.nan, 0.0]], [[1.0, 0.0], [0.0, 1.0]], [[0, 0]], [1]),
}


@pytest.mark.parametrize(("queries", "candidates", "pairs", "expected"), RANKS.values(), ids=RANKS)
@pytest.mark.parametrize("block", [1, 1 << 24], ids=["in blocks", "at once"])
def test_ranks(monkeypatch, queries, candidates, pairs, expected, block):
    monkeypatch.setattr("finetune_trainer.retrieval._BLOCK", block)
    queries = queries * 3
    pairs = [[query, candidate] for query in range(3) for _, candidate in pairs]
    found = ranks(torch.tensor(queries), torch.tensor(candidates), torch.tensor(pairs))
    assert found.tolist() == expected * 3


def test_guessing_recalls_by_chance():
    chosen = torch.Generator().manual_seed(0)
    images, texts = torch.randn(2, 1000, 16, generator=chosen).unbind()
    values = recalls(images, texts, torch.arange(1000)[:, None].expand(1000, 2))
    assert {name: values[name] < 0.02 for name in RECALLS} == dict.fromkeys(RECALLS, True)
