"""report.html of an experiment: whole without other files, well-formed, and true to its numbers."""

import math
import random
import re
from dataclasses import replace
from html import unescape
from xml.etree import ElementTree as ET

import pytest

from experimenting import World, experiment
from finetune_cli.experiments.importance import LEAST_PROPOSALS, importances
from finetune_cli.experiments.plots import Axis, band, curves, differences, proposals
from finetune_cli.experiments.report import report
from finetune_operator.experiments.search import Proposal


def by_strategy(job, step):
    return 0.5 + 0.1 * step - 0.3 * (job.spec.strategy.trainable == "head") + 0.01 * job.spec.training.seed * step


def by_rate(job, step):
    return job.spec.strategy.learning_rate.value * step


SEARCH = {
    "parameters": [
        {"field": "strategy.learningRate.value", "logUniform": {"low": 1e-5, "high": 1e-1}},
        {"field": "training.scheduler", "categorical": {"choices": ["linear", "cosine"]}},
    ],
    "proposals": 12,
}
MADE = {
    "variants": (experiment(), by_strategy, 2, ["Differences", "Curves", "All in numbers"]),
    "search": (
        experiment(variants=None, search=SEARCH, seeds=[0]),
        by_rate,
        2,
        ["Search", "Importance", "Curves", "All in numbers"],
    ),
}


@pytest.mark.parametrize(("made", "course", "plots", "sections"), MADE.values(), ids=MADE)
def test_a_page(made, course, plots, sections):
    world = World(made, course).run()
    page = report(world.experiment, world.jobs)
    assert re.findall("<h2>(.*?)</h2>", page) == sections
    drawn = [ET.fromstring(one) for one in re.findall("<svg.*?</svg>", page, re.DOTALL)]
    assert len(drawn) == plots
    assert all(one.get("role") == "img" and one.get("aria-label") for one in drawn)
    assert world.condition("Concluded").message in unescape(page)
    assert not re.search(r"@import|url\(|<script", page)
    assert all(where.startswith(("#", "data:")) for where in re.findall('(?:src|href)="(.*?)"', page))
    assert page.count("<tr>") == 1 + len(world.status.variants)


def test_an_experiment_that_has_not_begun_has_a_page_too():
    assert re.findall("<h2>(.*?)</h2>", report(experiment(), {})) == ["All in numbers"]


def test_names_are_text_not_markup():
    drawn = curves({"<b>": [[(1, 0.5), (2, 0.6)]]}, "<i>")
    assert ET.fromstring(drawn) is not None
    assert "&lt;b&gt;" in drawn


def test_a_band_is_the_mean_and_deviation_over_seeds():
    found = band([[(10, 0.4), (20, 0.6)], [(10, 0.6), (20, 0.6)], [(10, 0.5)], [(30, 9.0)]])
    assert found == [(10, pytest.approx(0.5), pytest.approx(0.1)), (20, pytest.approx(0.6), pytest.approx(0))]
    assert band([]) == []


def test_nothing_is_drawn_of_nothing():
    assert [curves({}, "a"), differences([], "a", "b"), proposals([], [], 0)] == ["", "", ""]


AXES = {
    "linear": (Axis(0, 10, 100, 200), 5, 150),
    "upwards": (Axis(0, 10, 200, 100), 1, 190),
    "orders of magnitude": (Axis(1e-4, 1e-2, 0, 100, log=True), 1e-3, 50),
    "one value": (Axis(3, 3, 0, 100), 3, 50),
}


@pytest.mark.parametrize(("axis", "value", "place"), AXES.values(), ids=AXES)
def test_an_axis(axis, value, place):
    assert axis.place(value) == pytest.approx(place)


def test_ticks_are_round():
    assert Axis(0.03, 0.97, 0, 1).ticks() == pytest.approx([0.2, 0.4, 0.6, 0.8])
    assert Axis(20, 60, 0, 1).ticks() == [20, 30, 40, 50, 60]
    assert Axis(1, 3, 0, 1, whole=True).ticks() == [1, 2, 3]


def known(count, seed=0):
    """Proposals whose value follows from the rate alone."""
    chosen = random.Random(seed)
    rates = [10 ** chosen.uniform(-5, -1) for _ in range(count)]
    settings = [
        {"strategy.learningRate.value": rate, "training.scheduler": chosen.choice(["linear", "cosine"])}
        for rate in rates
    ]
    return [Proposal(one, -abs(math.log10(rate) + 3)) for one, rate in zip(settings, rates, strict=True)]


def test_the_field_that_matters_is_told_from_chance():
    search = experiment(variants=None, search=SEARCH | {"proposals": 40}, seeds=[0]).spec.search
    first, second = importances(search, "max", known(40))
    assert (first.field, first.is_told) == ("strategy.learningRate.value", True)
    assert (second.field, second.is_told) == ("training.scheduler", False)
    assert importances(search, "max", known(LEAST_PROPOSALS - 1)) == ()


def test_chance_is_rarely_told_as_importance():
    """Values that follow from nothing: of 2 fields each, 1 in 20 is expected to be told."""
    search = experiment(variants=None, search=SEARCH | {"proposals": 30}, seeds=[0]).spec.search
    told = 0
    for seed in range(12):
        chosen = random.Random(1000 + seed)
        aimless = [replace(one, value=chosen.random()) for one in known(30, seed)]
        told += sum(one.is_told for one in importances(search, "max", aimless))
    assert told <= 4
