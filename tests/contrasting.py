"""What the ranks of a group compute in the tests of the contrastive loss."""

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn.functional import normalize

import pairs
import tiny
from finetune_trainer.contrastive import backward_in_passes, contrastive_losses
from finetune_trainer.distributed import gradient_sync
from finetune_trainer.retrieval import Recall

IDS = torch.tensor([[0, 0], [1, 1], [2, 0], [3, 3], [3, 4], [5, 5], [6, 6]])
"""7 pairs: a text that two images share, and an image that two texts share."""


class Towers(nn.Module):
    """Two small towers with dropout and a learned scale."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.drop = nn.Dropout(0.25)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: torch.Tensor, texts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        images, texts = normalize(self.image(self.drop(images))), normalize(self.text(self.drop(texts)))
        return images * self.scale.exp(), texts


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    """Images (7, 6) and texts (7, 5)."""
    chosen = torch.Generator().manual_seed(1)
    return torch.randn(7, 6, generator=chosen), torch.randn(7, 5, generator=chosen)


def step(rank: int, world_size: int, parts: int, dropout: float = 0.0) -> tuple[float, dict[str, torch.Tensor]]:
    """Our sum of losses, and the gradients of the mean over the batch, cut and shared as the loop does it."""
    towers = Towers()
    towers.drop.p = dropout
    images, texts = samples()
    model = nn.parallel.DistributedDataParallel(towers) if world_size > 1 else towers
    passes = [each[rank::world_size] for each in np.array_split(np.arange(len(IDS)), parts)]
    ours = IDS[np.concatenate(passes)]

    def forward(rows: Any) -> tuple[torch.Tensor, ...]:
        if len(rows):
            return model(images[rows], texts[rows])
        return tuple(each[:0] for each in model(images[:1], texts[:1]))  # a stand-in

    losses = []

    def loss_of(rows: tuple[torch.Tensor, ...]) -> torch.Tensor:
        losses.append(contrastive_losses(*rows, ours).sum())
        return losses[0] * (world_size / len(IDS))

    torch.manual_seed(2 + rank)
    backward_in_passes(
        [partial(forward, rows) for rows in passes],
        loss_of,
        torch.Tensor.backward,
        sync=lambda is_last: gradient_sync(model, is_last=is_last),
        device=torch.device("cpu"),
    )
    return losses[0].item(), {name: each.grad.clone() for name, each in towers.named_parameters()}


def judge(rank: int, world_size: int) -> dict[str, float]:
    """Recalls over the pairs of all ranks but the last, which has none."""
    towers = Towers().eval()
    images, texts = samples()
    recall = Recall()
    numbered = torch.cat([IDS, torch.arange(len(IDS))[:, None]], dim=1)
    judges = max(1, world_size - 1)
    with torch.no_grad():
        for row in range(rank, len(IDS), judges) if rank < judges else ():
            rows = slice(row, row + 1)
            given, read = towers(images[rows], texts[rows])
            recall.update({"images": given, "texts": read}, {"pairs": numbered[rows]})
    return recall.compute()


def train_all(rank: int, world_size: int, runs: dict[Path, tuple[str, dict[str, Any]]]) -> None:
    """Train each run: folder → (kind, spec)."""
    for run, (kind, spec) in runs.items():
        wanted = pairs.job(run.parent, kind, spec)
        tiny.trained(tiny.process_of(wanted, run, rank=rank, world_size=world_size))
