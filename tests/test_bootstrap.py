"""Confidence intervals: their weights, their sums against the metrics themselves, and how often they hold the truth."""

import numpy as np
import pytest
import torch
from scipy import stats

import resampling
from finetune_api.intervals import Interval, Intervals
from finetune_trainer.bootstrap import LEAST_RESAMPLES, MOST_BYTES, Cells, Family, Resamples, poisson_weights
from finetune_trainer.box_metrics import BoxPrecision
from finetune_trainer.data.dataset import map_tensors
from finetune_trainer.entities import entity_counts, scheme_of
from finetune_trainer.families import families, loss_family
from finetune_trainer.metrics import METRICS
from finetune_trainer.task import IGNORED, Target


def test_weights_are_poisson():
    """Mean and spread of a weight are 1, and no weight says anything of another."""
    weights = poisson_weights(np.arange(2000), 500, seed=0)
    assert weights.shape == (2000, 500)
    counts = np.bincount(weights.astype(int).ravel(), minlength=7)[:7] / weights.size
    assert counts == pytest.approx(stats.poisson.pmf(range(7), 1), abs=2e-3)
    assert abs(np.corrcoef(weights[:200])[np.triu_indices(200, 1)]).max() < 0.25
    assert abs(np.corrcoef(weights[:, :200].T)[np.triu_indices(200, 1)]).max() < 0.12


def test_weights_are_a_function_of_seed_and_index():
    whole = poisson_weights(np.arange(100), 33, seed=7)
    parts = [poisson_weights(np.array(part), 33, seed=7) for part in np.split(np.arange(100), [1, 40])]
    assert np.array_equal(whole, np.concatenate(parts))
    assert not np.array_equal(whole, poisson_weights(np.arange(100), 33, seed=8))
    some = [poisson_weights(np.arange(100), 33, 7, part) for part in (range(12), range(12, 20), range(20, 33))]
    assert np.array_equal(whole, np.concatenate(some, axis=1))


def classified(count: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    logits = torch.randn(count, classes, generator=random) - torch.arange(classes) / classes
    return logits, (logits + torch.randn(count, classes, generator=random)).argmax(-1)


def any_of(count: int, classes: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    logits = torch.randn(count, classes, generator=random)
    return logits, (logits + torch.randn(count, classes, generator=random) > 0.5).float()


def numbers(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    target = 250_000 + 1000 * torch.randn(count, generator=random)
    return (target + 500 * torch.randn(count, generator=random)).unsqueeze(-1), target


def tokens(count: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(count)
    target = torch.randint(11, (count, 9), generator=random)
    target[torch.rand(count, 9, generator=random) < 0.3] = IGNORED
    return torch.randn(count, 9, 11, generator=random), target


LABELS = ("O", "B-A", "I-A", "B-B")


def tags(count: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """Tags and entities that are found, and the tags that are right."""
    random = torch.Generator().manual_seed(count)
    target, found = torch.randint(4, (2, count, 9), generator=random)
    found = torch.where(torch.rand(count, 9, generator=random) < 0.7, target, found)
    target[torch.rand(count, 9, generator=random) < 0.3] = IGNORED
    return {"tags": found, "entities": entity_counts(scheme_of(LABELS), found, target)}, target


KINDS = {
    Target.CLASS: (classified, 4),
    Target.CLASSES: (any_of, 4),
    Target.NUMBER: (numbers, 1),
    Target.TOKENS: (tokens, 11),
    Target.TAGS: (tags, 4),
}


@pytest.mark.parametrize("target", KINDS, ids=str)
@pytest.mark.parametrize("count", [1, 5, 300])
def test_sums_of_the_samples_as_they_are_make_the_metric(target, count):
    """What the resamples are functions of, at weights of 1: the metric that is told, to the last digits."""
    from finetune_trainer.metrics import _arguments

    make, classes = KINDS[target]
    predictions, wanted = make(count)
    found, expected = {}, {}
    for family in families(target, classes):
        resamples = Resamples(family, Intervals(resamples=1))
        for rows in np.array_split(np.arange(count), min(count, 7)):
            resamples.update(map_tensors(lambda value, rows=rows: value[rows], predictions), wanted[rows], rows)
        found |= {name: value(resamples.sums)[-1].item() for name, value in family.values.items()}
    for name in found:
        metric = METRICS[name].build(target, classes)
        metric.update(*(METRICS[name].arguments or _arguments)(target, name, predictions, wanted))
        value = metric.compute()
        value = value[name] if isinstance(value, dict) else value
        expected[name] = pytest.approx(float(value), abs=0.05 if name == "auroc" else 1e-5, rel=1e-5)
    if count == 1 and target == Target.NUMBER:
        del found["r2"], expected["r2"]  # not defined
    assert found == expected
    known = {name for name, metric in METRICS.items() if target in metric.targets and metric.build is not None}
    known -= {name for name, metric in METRICS.items() if metric.is_of_texts}
    assert found.keys() | {"r2"} == known | {"r2"}


def intervals_of(family: Family, exact: dict[str, float], *batches, wanted: Intervals) -> dict[str, Interval]:
    resamples, start = Resamples(family, wanted), 0
    for predictions, targets in batches:
        resamples.update(predictions, targets, np.arange(start, start + len(targets)))
        start += len(targets)
    return resamples.intervals(exact, wanted.confidence)


def drawn_with_replacement(family: Family, predictions, target) -> torch.Tensor:
    """The family's sums over 2,000 resamples that are drawn plainly."""
    count = len(target)
    weights = torch.from_numpy(np.random.default_rng(0).multinomial(count, [1 / count] * count, size=2000).T).double()
    cells, sums = family.add(predictions, target), torch.zeros(family.size, 2000, dtype=torch.float64)
    return sums.index_add_(0, cells.cells, weights[cells.samples] * cells.values.double().unsqueeze(1))


DRAWN = {
    "scores": (families(Target.CLASS, 4)[0], classified(300)),
    "area under the curve": (families(Target.CLASS, 2)[1], classified(300, classes=2)),
    "any of the classes": (families(Target.CLASSES, 4)[0], any_of(300)),
    "numbers": (families(Target.NUMBER, 1)[0], numbers(300)),
    "tokens": (families(Target.TOKENS, 11)[0], tokens(100)),
    "tags": (families(Target.TAGS, 4)[0], tags(100)),
}


@pytest.mark.parametrize(("family", "batch"), DRAWN.values(), ids=DRAWN)
def test_interval_is_that_of_samples_drawn_with_replacement(family, batch):
    sums = drawn_with_replacement(family, *batch)
    expected = {name: np.quantile(value(sums), [0.05, 0.95]) for name, value in family.values.items()}
    exact = {name: float(value(sums).mean()) for name, value in family.values.items()}
    found = intervals_of(family, exact, batch, wanted=Intervals(resamples=2000, confidence=0.9))
    for name, (low, high) in expected.items():
        width = high - low
        assert found[name].high - found[name].low == pytest.approx(width, rel=0.12)
        assert (found[name].low, found[name].high) == pytest.approx((low, high), abs=0.15 * width)


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Means of 200 draws, 400 times: 90 % of the intervals hold the true mean, give or take what chance allows."""
    random, held = np.random.default_rng(0), 0
    for _ in range(400):
        target = torch.from_numpy(random.exponential(size=200))
        found = intervals_of(
            families(Target.NUMBER, 1)[0],
            {"mae": target.mean().item()},
            (torch.zeros(200, 1), target),
            wanted=Intervals(resamples=200, confidence=0.9),
        )["mae"]
        held += found.low <= 1 <= found.high
    assert held / 400 == pytest.approx(0.88, abs=0.04)


def test_cut_and_order_of_the_batches_change_nothing():
    logits, target = classified(64)
    family, order = families(Target.CLASS, 4)[0], np.random.default_rng(0).permutation(64)
    one, other = (Resamples(family, Intervals(resamples=50)) for _ in range(2))
    one.update(logits, target, np.arange(64))
    for rows in np.split(order, [3, 40]):
        other.update(logits[rows], target[rows], rows)
    assert torch.equal(one.sums, other.sums)


def test_loss_and_perplexity():
    losses, counts = torch.tensor([2.0, 9.0, 4.0]), torch.tensor([1, 3, 2])
    found = intervals_of(loss_family(), {"loss": 2.5, "perplexity": np.exp(2.5)}, (losses, counts), wanted=Intervals())
    assert 2 <= found["loss"].low < found["loss"].high <= 3
    assert found["perplexity"].low == pytest.approx(np.exp(found["loss"].low), rel=0.1)


NOTHING = {
    "none are asked for": (families(Target.CLASS, 4)[0], Intervals(resamples=0)),
    "too many classes for any": (families(Target.CLASS, 10_000)[1], Intervals()),
}


@pytest.mark.parametrize(("family", "wanted"), NOTHING.values(), ids=NOTHING)
def test_no_intervals(family, wanted):
    assert intervals_of(family, {"accuracy": 0.5, "auroc": 0.5}, wanted=wanted) == {}


@pytest.mark.parametrize("classes", [2, 30, 128, 1000, 10_000])
def test_memory_is_bounded(classes):
    for family in families(Target.CLASS, classes):
        sums = Resamples(family, Intervals()).sums
        assert sums.nbytes <= MOST_BYTES
        assert sums.shape[1] == 0 or sums.shape[1] > LEAST_RESAMPLES


def test_a_metric_that_is_not_defined_on_any_resample():
    family = Family(
        1,
        lambda found, _: Cells(torch.arange(1), torch.zeros(1, dtype=torch.long), found),
        {"x": lambda sums: sums[0] * torch.nan},
    )
    assert intervals_of(family, {"x": 1.0}, (torch.ones(1), torch.ones(1)), wanted=Intervals()) == {}


# Boxes and retrieval: known only when all samples have been seen ------------------------------------------------------

ROUNDED = 1e-7
"""torchmetrics hands out float32."""


def drawn_images(count, seed):
    """Indices of as many images, drawn with replacement."""
    return np.random.default_rng(seed).integers(0, count, count)


def precision_of(images, chosen):
    """mAP and mAP at 0.5, by pycocotools, of the images chosen."""
    values = []
    for thresholds in (None, [0.5]):
        metric = BoxPrecision(thresholds)
        metric.update([images[index][0] for index in chosen], [images[index][1] for index in chosen])
        values.append(float(metric.compute()))
    return values


def test_average_precision_of_the_images_as_they_are_is_that_of_coco():
    images = resampling.images(40)
    values = resampling.resampled_boxes(images, Intervals(resamples=4))
    assert values[:, -1].tolist() == pytest.approx(precision_of(images, range(40)), abs=ROUNDED)


def test_average_precision_of_a_resample_is_that_of_coco_on_its_images():
    images = resampling.images(30)
    values = resampling.resampled_boxes(images, Intervals(resamples=6, seed=3))
    weights = poisson_weights(np.arange(30), 6, seed=3).astype(int)
    expected = [precision_of(images, np.repeat(np.arange(30), weights[:, column])) for column in range(6)]
    assert values[:, :-1].T.tolist() == [pytest.approx(each, abs=ROUNDED) for each in expected]


def test_interval_of_average_precision_is_that_of_images_drawn_with_replacement():
    images = resampling.images(50)
    exact = dict(zip(("map", "map50"), precision_of(images, range(50)), strict=True))
    found = resampling.box_intervals(images, exact, Intervals(resamples=1000, confidence=0.8))
    drawn = np.array([precision_of(images, drawn_images(50, seed))[1] for seed in range(150)])
    low, high = np.quantile(drawn, [0.1, 0.9])
    assert (found["map50"].low, found["map50"].high) == pytest.approx((low, high), abs=0.3 * (high - low))
    assert found["map"].low < exact["map"] < found["map"].high


def test_blocks_of_resamples_change_nothing(monkeypatch):
    images = resampling.images(20)
    whole = resampling.resampled_boxes(images, Intervals(resamples=50))
    monkeypatch.setattr("finetune_trainer.box_resamples._MOST_BYTES", 1)
    blocks = resampling.resampled_boxes(images, Intervals(resamples=50))
    torch.testing.assert_close(whole, blocks, rtol=1e-14, atol=0)


NO_BOXES = {
    "no object": ([("boxes", 3, 0)], {"map": 0.0}),
    "no image": ([], {"map": 0.0}),
    "none are asked for": ([("boxes", 3, 2)], {"loss": 1.0}),
}


@pytest.mark.parametrize(("images", "exact"), NO_BOXES.values(), ids=NO_BOXES)
def test_no_intervals_of_boxes(images, exact):
    made = [resampling.image(found, there, seed=0) for _, found, there in images]
    assert resampling.box_intervals(made, exact, Intervals()) == {}


def test_nothing_found_is_a_precision_of_0():
    made = [resampling.image(0, 2, seed=0)]
    assert resampling.box_intervals(made, {"map": 0.0}, Intervals()) == {"map": Interval(low=0, high=0)}


def test_intervals_of_recall_are_those_of_images_drawn_with_replacement():
    """Every image has two texts: they come and go with it."""
    images, texts, pairs = resampling.pairs(60, texts_each=2)
    exact, found = resampling.recall_intervals(images, texts, pairs, Intervals(resamples=2000, confidence=0.9))
    assert found.keys() == exact.keys()
    hits = resampling.ranks_of(images, texts, pairs)
    for name, (ranks, image_of) in hits.items():
        shares = []
        for seed in range(2000):
            chosen = np.bincount(drawn_images(60, seed), minlength=60)[image_of]
            shares.append(np.average(ranks < 5, weights=chosen))
        low, high = np.quantile(shares, [0.05, 0.95])
        interval = found[f"{name}At5"]
        assert (interval.low, interval.high) == pytest.approx((low, high), abs=0.15 * (high - low))
    assert found["recallAt5"].low < exact["recallAt5"] < found["recallAt5"].high


def test_intervals_of_what_is_known_at_the_end_over_processes_are_those_over_all_samples(group):
    """Images are shared unevenly, and one process has none."""
    (whole,) = group.run(resampling.intervals_of_rank, 1, (25,), (25,))
    both = group.run(resampling.intervals_of_rank, 2, (18, 7), (25, 0))
    assert both[0] == both[1] == whole
    assert [len(one) for one in whole] == [12, 12]


def test_memory_of_boxes_is_bounded():
    """One resample at a time would not fit beside 100,000 boxes of a class if all were computed at once: 0.8 GB."""
    assert resampling.most_at_once(boxes=100_000, resamples=1000) <= 16 * 2**20
