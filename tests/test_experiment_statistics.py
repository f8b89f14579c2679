"""What follows from trials: against scipy; and simulated: how often it is wrong, how often it finds what is there."""

import math
import random

import pytest
from scipy import stats

from finetune_api.experiment import Difference
from finetune_operator.experiments.statistics import compare, conclude, holm, judge, summarize
from finetune_operator.experiments.student import critical_t, two_sided_p


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30, 400])
@pytest.mark.parametrize("t", [0.0, 0.01, 0.5, 1.0, 2.776, 10.0, 300.0])
def test_the_tail_is_scipys(t, freedom):
    assert two_sided_p(t, freedom) == pytest.approx(2 * stats.t.sf(t, freedom), rel=1e-9)
    assert two_sided_p(-t, freedom) == two_sided_p(t, freedom)


@pytest.mark.parametrize("freedom", [1, 2, 4, 9, 30, 400])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_quantile_is_scipys(level, freedom):
    assert critical_t(level, freedom) == pytest.approx(stats.t.ppf(0.5 + level / 2, freedom), rel=1e-9)


def test_a_summary():
    values = [0.9, 0.92, 0.95]
    found = summarize(values)
    low, high = stats.t.interval(0.95, 2, loc=sum(values) / 3, scale=stats.sem(values))
    assert (found.n, found.mean, found.std) == (3, pytest.approx(0.92333, abs=1e-5), pytest.approx(0.0251661, abs=1e-6))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert summarize([0.5]).std is None
    assert summarize([]).mean is None


def test_a_comparison_pairs_equal_seeds():
    first, other = {0: 0.90, 1: 0.80, 2: 0.85, 9: 0.1}, {2: 0.88, 1: 0.82, 0: 0.91, 7: 0.9}
    found = compare(first, other)
    expected = stats.ttest_rel([0.91, 0.82, 0.88], [0.90, 0.80, 0.85])
    interval = expected.confidence_interval(0.95)
    told = (found.mean, found.low, found.high, found.p)
    assert found.seeds == 3
    assert told == pytest.approx((0.02, interval.low, interval.high, expected.pvalue))


NOTHING_TO_JUDGE_BY = {
    "one seed": ({0: 0.5}, {0: 0.9}, 1),
    "differences without spread": ({0: 0.5, 1: 0.7}, {0: 0.6, 1: 0.8}, 2),
    "equal values": ({0: 0.5, 1: 0.7}, {0: 0.5, 1: 0.7}, 2),
}


@pytest.mark.parametrize(("first", "other", "seeds"), NOTHING_TO_JUDGE_BY.values(), ids=NOTHING_TO_JUDGE_BY)
def test_without_spread_nothing_is_claimed(first, other, seeds):
    found = compare(first, other)
    assert (found.seeds, found.low, found.p, found.verdict) == (seeds, None, None, "unknown")
    assert judge([found], "max") == (found,)


def test_without_equal_seeds_nothing_is_compared():
    assert compare({0: 1.0}, {1: 2.0}) is None


def test_holms_correction_is_that_of_the_book():
    # The example of Wikipedia's article on the Holm-Bonferroni method.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([]) == []
    assert holm([0.9, 0.8]) == [1.0, 1.0]


def claims(generator, *, effect, seeds, variants=1):
    """How many variants of a simulated experiment are called better or worse. ``effect`` in standard deviations."""
    first = {seed: generator.gauss(0, 1) for seed in range(seeds)}
    others = [{seed: first[seed] + generator.gauss(effect, 1) for seed in range(seeds)} for _ in range(variants)]
    return [one.verdict for one in judge([compare(first, other) for other in others], "max")]


@pytest.mark.parametrize("variants", [1, 4], ids=["two variants", "five variants"])
@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_equal_variants_are_seldom_called_different(seeds, variants):
    generator = random.Random(7)
    rounds = [claims(generator, effect=0, seeds=seeds, variants=variants) for _ in range(2000)]
    wrong = sum(any(verdict != "unknown" for verdict in one) for one in rounds) / len(rounds)
    assert wrong <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / len(rounds))


def test_of_a_hundred_experiments_with_equal_variants_seven_at_most_claim_better():
    generator = random.Random(2026)
    better = sum(claims(generator, effect=0, seeds=5) == ["better"] for _ in range(100))
    assert better <= 7


@pytest.mark.parametrize("seeds", [3, 5, 10])
def test_a_difference_of_two_standard_errors_is_found_as_often_as_the_formula_says(seeds):
    freedom, shift = seeds - 1, 2.0
    critical = stats.t.ppf(0.975, freedom)
    power = stats.nct.sf(critical, freedom, shift) + stats.nct.cdf(-critical, freedom, shift)
    generator = random.Random(11)
    rounds = 1000
    found = sum(claims(generator, effect=shift / math.sqrt(seeds), seeds=seeds) != ["unknown"] for _ in range(rounds))
    assert found / rounds == pytest.approx(power, abs=0.1)


def difference(verdict, mean=0.012, low=0.004, high=0.02, seeds=5):
    return Difference(seeds=seeds, mean=mean, low=low, high=high, p=0.01, verdict=verdict)


CONCLUSIONS = {
    "better": (
        [("lora", difference("better"))],
        "lora is better than full by 0.012 in accuracy (95 % interval 0.004 to 0.02, n = 5 seeds)",
    ),
    "worse": (
        [("head", difference("worse", -0.3, -0.4, -0.2))],
        "full is better than head by 0.3 in accuracy (95 % interval 0.2 to 0.4, n = 5 seeds)",
    ),
    "unknown": (
        [("a", difference("unknown", seeds=3)), ("b", None)],
        "No difference in accuracy between full and a, b can be told at n = 0 to 3",
    ),
    "both": (
        [("a", difference("unknown")), ("b", difference("better"))],
        (
            "b is better than full by 0.012 in accuracy (95 % interval 0.004 to 0.02, n = 5 seeds)."
            " No difference in accuracy between full and a can be told at n = 5"
        ),
    ),
}


@pytest.mark.parametrize(("others", "sentence"), CONCLUSIONS.values(), ids=CONCLUSIONS)
def test_the_answer_in_a_sentence(others, sentence):
    assert conclude("full", others, "accuracy") == sentence


@pytest.mark.parametrize(("mode", "verdict"), [("max", "better"), ("min", "worse")])
def test_what_is_better_goes_by_the_metric(mode, verdict):
    (judged,) = judge([compare({0: 0.0, 1: 0.0, 2: 0.0}, {0: 1.0, 1: 1.1, 2: 1.2})], mode)
    assert judged.verdict == verdict
