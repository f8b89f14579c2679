"""Searches: what is proposed after an interruption is what an uninterrupted search proposes; who is ended early."""

import math
import random

import optuna
import pytest

from finetune_api.experiment import (
    Categorical,
    IntegerRange,
    LogUniform,
    Parameter,
    Pruner,
    Search,
    Uniform,
)
from finetune_api.status import EvaluationPoint
from finetune_operator.experiments.pruning import is_hopeless
from finetune_operator.experiments.search import Proposal, propose

RATE = Parameter(field="strategy.learningRate.value", log_uniform=LogUniform(low=1e-5, high=1e-1))
LAYERS = Parameter(field="strategy.lastLayers", int_range=IntegerRange(low=1, high=12, step=3))
BATCH = Parameter(field="training.batchSize", categorical=Categorical(choices=(8, 16, 32)))
DROPOUT = Parameter(field="model.dropout", uniform=Uniform(low=0.0, high=0.5))


def search(**fields):
    return Search(**{"parameters": (RATE, LAYERS, BATCH, DROPOUT), "startup_proposals": 5, "seed": 3} | fields)


def loss(settings):
    """A known function: best at a rate of 1e-3, one layer, batches of 32, no dropout."""
    distance = math.log10(settings[RATE.field]) + 3
    batch = {8: 0.4, 16: 0.2, 32: 0.0}[settings[BATCH.field]]
    return distance**2 + settings[LAYERS.field] / 12 + batch + settings[DROPOUT.field]


def uninterrupted(searched, count):
    """One study, asked and told as a program does that is never ended."""
    known = []
    for _ in range(count):
        settings = propose(searched, "min", known)
        known.append(Proposal(settings, value=loss(settings)))
    return known


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_search_resumed_at_every_trial_proposes_what_an_uninterrupted_one_does(sampler):
    searched = search(sampler=sampler)
    whole = uninterrupted(searched, 20)
    for number in range(20):
        # All that a resumed search has is what the cluster holds.
        restored = Search.model_validate_json(searched.model_dump_json())
        assert propose(restored, "min", whole[:number]) == whole[number].settings


def test_a_search_finds_what_is_good():
    best = min(uninterrupted(search(), 40), key=lambda one: one.value)
    blind = min(uninterrupted(search(sampler="random"), 40), key=lambda one: one.value)
    assert best.value < 0.4
    assert best.value <= blind.value


def test_proposals_lie_within_their_ranges_and_differ():
    found = [propose(search(sampler="random"), "max", known) for known in growing(12)]
    assert {one[LAYERS.field] for one in found} <= {1, 4, 7, 10}
    assert {one[BATCH.field] for one in found} == {8, 16, 32}
    assert all(1e-5 <= one[RATE.field] <= 1e-1 and 0 <= one[DROPOUT.field] <= 0.5 for one in found)
    assert len({one[RATE.field] for one in found}) == len(found)


def growing(count):
    known = []
    for _ in range(count):
        yield list(known)
        known.append(Proposal(propose(search(sampler="random"), "max", known)))


STATES = {
    "running": Proposal({}),
    "pruned": Proposal({}, pruned_at={10: 0.5}),
    "failed": Proposal({}, has_failed=True),
}


@pytest.mark.parametrize("left", STATES.values(), ids=STATES)
def test_proposals_without_a_value_are_known_too(left):
    whole = uninterrupted(search(), 8)
    odd = Proposal(whole[-1].settings, left.value, left.pruned_at, left.has_failed)
    settings = propose(search(), "min", [*whole[:-1], odd])
    assert settings == propose(search(), "min", [*whole[:-1], odd])
    assert settings.keys() == whole[0].settings.keys()


def points(values, every=10):
    return tuple(EvaluationPoint(step=every * number, value=value) for number, value in enumerate(values, 1))


def as_optuna_says(course, finished, rule, mode):
    study = optuna.create_study(direction="maximize" if mode == "max" else "minimize")
    for one in finished:
        values = {point.step: point.value for point in one}
        study.add_trial(
            optuna.trial.create_trial(value=one[-1].value, intermediate_values=values, params={}, distributions={})
        )
    trial = study.ask()
    for point in course:
        trial.report(point.value, point.step)
    pruner = optuna.pruners.PercentilePruner(rule.percentile, n_startup_trials=rule.startup_trials)
    return pruner.prune(study, study.trials[-1])


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_rule_is_optunas(mode):
    generator = random.Random(5)
    verdicts = set()
    for _ in range(200):
        finished = [points([generator.random() for _ in range(4)]) for _ in range(generator.randint(0, 8))]
        course = points([generator.random() for _ in range(generator.randint(1, 4))])
        rule = Pruner(percentile=generator.choice([25, 50, 80]), startup_trials=3, warmup_evaluations=0)
        found = is_hopeless(course, finished, rule, mode)
        assert found == as_optuna_says(course, finished, rule, mode)
        verdicts.add(found)
    assert verdicts == {True, False}


OTHERS = [points([0.5, 0.7, 0.8])] * 5
HOPES = {
    "worse than the others": (points([0.1, 0.2]), OTHERS, True),
    "as good as they": (points([0.4, 0.7]), OTHERS, False),
    "better before": (points([0.9, 0.2]), OTHERS, False),
    "the first evaluation is its warm-up": (points([0.1]), OTHERS, False),
    "not evaluated yet": ((), OTHERS, False),
    "too few others": (points([0.1, 0.2]), OTHERS[:4], False),
    "others were not judged at that step": (points([0.1, 0.2], every=7), OTHERS, False),
}


@pytest.mark.parametrize(("course", "finished", "expected"), HOPES.values(), ids=HOPES)
def test_who_is_ended_early(course, finished, expected):
    assert is_hopeless(course, finished, Pruner(), "max") is expected
