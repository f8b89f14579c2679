"""Confidence intervals: their weights, their sums against the metrics themselves, and how often they hold the truth."""

import numpy as np
import pytest
import torch
from scipy import stats

from finetune_api.intervals import Interval, Intervals
from finetune_trainer.bootstrap import LEAST_RESAMPLES, MOST_BYTES, Cells, Family, Resamples, poisson_weights
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


KINDS = {
    Target.CLASS: (classified, 4),
    Target.CLASSES: (any_of, 4),
    Target.NUMBER: (numbers, 1),
    Target.TOKENS: (tokens, 11),
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
            resamples.update(predictions[rows], wanted[rows], rows)
        found |= {name: value(resamples.sums)[-1].item() for name, value in family.values.items()}
    for name in found:
        metric = METRICS[name].build(target, classes)
        metric.update(*_arguments(target, name, predictions, wanted))
        expected[name] = pytest.approx(float(metric.compute()), abs=0.05 if name == "auroc" else 1e-5, rel=1e-5)
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
