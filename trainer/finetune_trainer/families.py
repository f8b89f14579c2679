"""Metrics as functions of sums over the samples, which the bootstrap resamples (see ``bootstrap``).

Each is the metric of the same name in ``metrics``; a test compares the two. Imports torchmetrics: at the end of a run.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from finetune_api.intervals import Interval, Intervals
from finetune_trainer.bootstrap import Cells, Family, Resamples
from finetune_trainer.box_resamples import BoxResamples
from finetune_trainer.data.order import Indices
from finetune_trainer.distributed import Group
from finetune_trainer.entities import ENTITY_SCORES, entity_scores
from finetune_trainer.retrieval import DEPTHS, Queries
from finetune_trainer.streamed import auroc_area, auroc_cells
from finetune_trainer.task import IGNORED, Target
from finetune_trainer.text_scores import TEXT_FAMILY

_MOST_CELLS = 16_384
"""Of the area under the curve: its bins are made coarser for many classes."""
_MOST_BINS, _LEAST_BINS = 256, 64
_MOST_LOG = 700.0


def families(target: Target, classes: int) -> tuple[Family, ...]:
    """The families of metrics of a kind of target; ``classes``: number of outputs C."""
    if target == Target.CLASS:
        return _one_of(classes), _area(classes, exclusive=True)
    if target == Target.CLASSES:
        return _any_of(classes), _area(classes, exclusive=False)
    known = {Target.NUMBER: _NUMBERS, Target.TOKENS: _TOKENS, Target.TAGS: _TAGS, Target.PAIRS: _PAIRS}
    return (known[target],) if target in known else ()


def loss_family() -> Family:
    """Mean loss, and perplexity; it takes each sample's loss (n,) and count (n,)."""

    def add(losses: Tensor, counts: Tensor) -> Cells:
        return _columns(losses, counts)

    def mean(sums: Tensor) -> Tensor:
        return sums[0] / sums[1]

    return Family(2, add, {"loss": mean, "perplexity": lambda sums: mean(sums).clamp(max=_MOST_LOG).exp()})


def _columns(*columns: Tensor) -> Cells:
    """Each sample adds one number to every cell: columns (n,) each."""
    values = torch.stack([column.double() for column in columns], dim=1)
    samples, cells = torch.ones_like(values).nonzero().unbind(1)
    return Cells(samples, cells, values.flatten())


# ── classes: three margins of the confusion, right, expected and predicted, C cells each ──────────────────────────


def _one_of(classes: int) -> Family:
    def add(logits: Tensor, target: Tensor) -> Cells:
        guess, samples = logits.argmax(-1), torch.arange(len(target), device=target.device)
        hit = guess == target
        cells = torch.cat([target[hit], target + classes, guess + 2 * classes])
        return Cells(torch.cat([samples[hit], samples, samples]), cells, torch.ones_like(cells))

    def accuracy(sums: Tensor) -> Tensor:
        right, expected, _ = sums.chunk(3)
        return right.sum(0) / expected.sum(0)

    return Family(3 * classes, add, {**_scores(classes), "accuracy": accuracy})


def _any_of(classes: int) -> Family:
    def add(logits: Tensor, target: Tensor) -> Cells:
        guess, wanted = logits > 0, target > 0
        found = [flags.nonzero().unbind(1) for flags in (guess & wanted, wanted, guess)]
        every = torch.arange(len(target), device=target.device)
        cells = [each + part * classes for part, (_, each) in enumerate(found)]
        both = torch.cat([*cells, torch.full_like(every, 3 * classes)])
        return Cells(torch.cat([*(rows for rows, _ in found), every]), both, torch.ones_like(both))

    def accuracy(sums: Tensor) -> Tensor:
        right, expected, predicted = (part.sum(0) for part in sums[:-1].chunk(3))
        return 1 - (expected + predicted - 2 * right) / (sums[-1] * classes)

    def macro(sums: Tensor) -> Tensor:
        return _f1(*sums[:-1].chunk(3)).mean(0)

    return Family(3 * classes + 1, add, {**_scores(classes), "accuracy": accuracy, "f1": macro})


def _scores(classes: int) -> dict[str, Callable[[Tensor], Tensor]]:
    def macro(sums: Tensor) -> Tensor:
        """Over the classes that are expected or predicted somewhere, as torchmetrics has it."""
        right, expected, predicted = sums[: 3 * classes].chunk(3)
        seen = expected + predicted > 0
        return _f1(right, expected, predicted).sum(0) / seen.sum(0)

    def micro(sums: Tensor) -> Tensor:
        return _f1(*(part.sum(0) for part in sums[: 3 * classes].chunk(3)))

    def weighted(sums: Tensor) -> Tensor:
        right, expected, predicted = sums[: 3 * classes].chunk(3)
        return (_f1(right, expected, predicted) * expected).sum(0) / expected.sum(0)

    return {"f1": macro, "f1Micro": micro, "f1Weighted": weighted}


def _f1(right: Tensor, expected: Tensor, predicted: Tensor) -> Tensor:
    both = expected + predicted
    return torch.where(both > 0, 2 * right / both.clamp(min=1e-9), 0.0)


def _area(classes: int, *, exclusive: bool) -> Family:
    bins = min(_MOST_BINS, max(_LEAST_BINS, _MOST_CELLS // (2 * classes)))

    def add(logits: Tensor, target: Tensor) -> Cells:
        cells = auroc_cells(logits, target, bins=bins, exclusive=exclusive)
        samples = torch.arange(len(target), device=cells.device).repeat_interleave(classes)
        return Cells(samples, cells, torch.ones_like(cells))

    def value(sums: Tensor) -> Tensor:
        others, own = sums.view(2, classes, bins, -1).permute(0, 3, 1, 2)
        return auroc_area(others, own)

    return Family(2 * classes * bins, add, {"auroc": value}, most=1.0)


# ── numbers, tokens and tags ─────────────────────────────────────────────────────────────────────────────────────


def _add_numbers(found: Tensor, target: Tensor) -> Cells:
    wanted = target.double()
    error = found.squeeze(-1).double() - wanted
    return _columns(torch.ones_like(wanted), error.square(), error.abs(), wanted, wanted.square())


def _r2(sums: Tensor) -> Tensor:
    count, squares, _, total, total_squares = sums
    spread = total_squares - total.square() / count
    share: Tensor = squares / torch.where(spread > 0, spread, torch.nan)
    return 1 - share


_NUMBERS = Family(
    5,
    _add_numbers,
    {"mse": lambda sums: sums[1] / sums[0], "mae": lambda sums: sums[2] / sums[0], "r2": _r2},
)


def _right(guess: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Of each sample the tokens that are right, and all that have a target: (n,) each."""
    kept = target != IGNORED
    return ((guess == target) & kept).sum(1), kept.sum(1)


def _add_tokens(logits: Tensor, target: Tensor) -> Cells:
    return _columns(*_right(logits.argmax(-1), target))


def _add_tags(predictions: Any, target: Tensor) -> Cells:
    return _columns(*_right(predictions["tags"], target), *predictions["entities"].unbind(1))


def _entity_score(name: str, sums: Tensor) -> Tensor:
    return entity_scores(sums[2:])[name]


_ACCURACY: dict[str, Callable[[Tensor], Tensor]] = {"tokenAccuracy": lambda sums: sums[0] / sums[1]}
_TOKENS = Family(2, _add_tokens, _ACCURACY)
_TAGS = Family(5, _add_tags, _ACCURACY | {name: partial(_entity_score, name) for name in ENTITY_SCORES})


# ── images and texts ─────────────────────────────────────────────────────────────────────────────────────────────


def _add_classes(predictions: Any, wanted: Any) -> Cells:
    """What an image is of, or whether each of two texts is its: one class or several a pair, (n × k,)."""
    count, kinds = len(wanted["pairs"]), zip(predictions["classes"], wanted["classes"], strict=True)
    hits = [(found == right).view(count, -1).double() for found, right in kinds]
    rows = torch.cat(hits or [torch.zeros(count, 0)], dim=1)
    return _columns(rows.sum(1), torch.ones_like(rows).sum(1))


_PAIRS = Family(2, _add_classes, {"accuracy": lambda sums: sums[0] / sums[1]})


def recall_family() -> Family:
    """All recalls; it takes ranks of queries (n,), and which part of the sums they are of: 0 images, 1 texts."""
    width = len(DEPTHS) + 1

    def add(ranks: Tensor, part: int) -> Cells:
        counted = _columns(*(ranks < depth for depth in DEPTHS), torch.ones_like(ranks))
        return Cells(counted.samples, counted.cells + part * width, counted.values)

    def share(sums: Tensor, part: int, place: int) -> Tensor:
        return sums[part * width + place] / sums[(part + 1) * width - 1]

    values: dict[str, Callable[[Tensor], Tensor]] = {}
    for place, depth in enumerate(DEPTHS):
        values[f"textRecallAt{depth}"] = partial(share, part=0, place=place)
        values[f"imageRecallAt{depth}"] = partial(share, part=1, place=place)
        values[f"recallAt{depth}"] = partial(_mean_share, share, place)
    return Family(2 * width, add, values)


def _mean_share(share: Callable[[Tensor, int, int], Tensor], place: int, sums: Tensor) -> Tensor:
    return (share(sums, 0, place) + share(sums, 1, place)) / 2


_QUERIES = 1024
"""Taken in at once: their weights take 8 MiB with 1,000 resamples."""


class Bootstrap:
    """Resamples of everything that one evaluation measures."""

    def __init__(self, target: Target, classes: int, wanted: Intervals) -> None:
        self._confidence = wanted.confidence
        self._loss = Resamples(loss_family(), wanted)
        self._texts = Resamples(TEXT_FAMILY, wanted)
        self._recalls = Resamples(recall_family(), wanted)
        self._boxes = BoxResamples(wanted) if target == Target.BOXES else None
        self._families = tuple(Resamples(family, wanted) for family in families(target, classes))

    def update(self, predictions: Any, targets: Any, losses: Tensor, counts: Tensor, indices: Indices) -> None:
        """Take in one batch: predictions and targets as ``Task.judged`` has them, losses and counts of its samples."""
        if losses.shape == (len(indices),):
            self._loss.update(losses, counts, indices)
        else:  # of several parts, or not to be told apart by sample: there is no interval, on any rank
            self._loss.sums.fill_(torch.nan)
        for resamples in self._families:
            resamples.update(predictions, targets, indices)
        if self._boxes is not None:
            self._boxes.update(predictions, targets, indices)

    def update_texts(self, written: list[str], expected: list[str], indices: Indices) -> None:
        """Take in what the model wrote for one batch, and what was expected."""
        self._texts.update(written, expected, indices)

    def update_queries(self, queries: Sequence[Queries]) -> None:
        """Take in all images and all texts of a retrieval; one rank does."""
        for part, each in enumerate(queries):
            for start in range(0, len(each.ranks), _QUERIES):
                some = slice(start, start + _QUERIES)
                self._recalls.update(each.ranks[some], part, each.samples[some].numpy())

    def intervals(self, exact: Mapping[str, float], group: Group) -> dict[str, Interval]:
        """Intervals of the metrics ``exact``. Every rank takes part."""
        found = self._boxes.intervals(exact, self._confidence, group) if self._boxes else {}
        for resamples in (self._loss, self._texts, self._recalls, *self._families):
            group.add_up(resamples.sums)
            found |= resamples.intervals(exact, self._confidence)
        return {name: found[name] for name in exact if name in found}
