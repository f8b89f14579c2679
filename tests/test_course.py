"""The course of a run, simulated to its end: what is due at which step, resumed anywhere, and at which rate."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from transformers import get_cosine_schedule_with_warmup, get_linear_schedule_with_warmup

from finetune_api.job import Every, Training, Warmup
from finetune_trainer.course import BestSeen, Course, RunState, advance, evaluated, make_course, saved, thinned
from finetune_trainer.metrics import is_better
from finetune_trainer.optimizer import rate_factor

LONG = Every(steps=10_000)


@dataclass(frozen=True)
class Simulated:
    """What a run did: steps at which it evaluated and saved, and how it ended."""

    evaluated: tuple[int, ...]
    saved: tuple[int, ...]
    end: RunState


def settle(course: Course, state: RunState, metric, *, patience, did: dict[str, list[int]]) -> RunState:
    """As the loop does between two steps."""
    if course.is_evaluation_due(state):
        did["evaluated"].append(state.step)
        state = evaluated(
            state,
            course,
            {"accuracy": metric(state.step)},
            watched="accuracy",
            improves=lambda value, best: is_better(value, best, mode="max", min_delta=0.0),
            patience=patience,
        )
    if course.is_save_due(state):
        did["saved"].append(state.step)
        state = saved(state, course)
    return state


def simulate(
    course: Course, *, batches=lambda _epoch: 10, metric=lambda _step: 0.0, patience=None, from_state=None
) -> Simulated:
    """Step a run to its end. ``batches``: epoch → its batches of 8 samples."""
    did: dict[str, list[int]] = {"evaluated": [], "saved": []}
    state = settle(course, from_state or RunState(), metric, patience=patience, did=did)
    while not course.is_finished(state):
        assert state.step < 1000, "never ends"
        state = advance(state, 8, batches(state.epoch))
        state = settle(course, state, metric, patience=patience, did=did)
    return Simulated(tuple(did["evaluated"]), tuple(did["saved"]), state)


COURSES = {
    "epochs, every epoch": (Training(epochs=3), Every(epochs=1), Every(epochs=1), 30, (10, 20, 30), (10, 20, 30)),
    "three epochs if nothing is said": (Training(), Every(epochs=1), LONG, 30, (10, 20, 30), (10, 30)),
    "half epochs": (Training(epochs=1), Every(epochs=0.5), Every(epochs=1), 10, (5, 10), (5, 10)),
    "a third of an epoch is reached at the next step": (
        Training(epochs=1),
        Every(epochs=1 / 3),
        LONG,
        10,
        (4, 7, 10),
        (4, 10),
    ),
    "a tenth of an epoch: every step, none twice": (
        Training(epochs=2),
        Every(epochs=0.1),
        LONG,
        20,
        tuple(range(1, 21)),
        (1, 20),
    ),
    "less than a step: every step": (Training(maxSteps=4), Every(epochs=0.01), LONG, 4, (1, 2, 3, 4), (1, 4)),
    "more than the run": (Training(epochs=1), Every(epochs=2), Every(epochs=2), 10, (10,), (10,)),
    "a part of an epoch": (Training(epochs=1.5), Every(epochs=1), Every(epochs=0.5), 15, (10, 15), (5, 10, 15)),
    "a run of a tenth of an epoch": (Training(epochs=0.1), Every(epochs=1), LONG, 1, (1,), (1,)),
    "ends at the next whole step": (Training(epochs=0.25), Every(epochs=1), LONG, 3, (3,), (3,)),
    "steps, every few": (Training(maxSteps=12), Every(steps=5), Every(steps=4), 12, (5, 10, 12), (4, 5, 8, 12)),
    "steps, evaluated by epochs": (Training(maxSteps=25), Every(epochs=1), LONG, 25, (10, 20, 25), (10, 25)),
    "epochs, evaluated by steps": (
        Training(epochs=1),
        Every(steps=4),
        Every(steps=3),
        10,
        (4, 8, 10),
        (3, 4, 6, 9, 10),
    ),
    "one step": (Training(maxSteps=1), Every(steps=1), Every(steps=1), 1, (1,), (1,)),
}
"""The first evaluation is the best (the metric stays 0), so it is always saved."""


@pytest.mark.parametrize(
    ("training", "evaluate", "save", "steps", "evaluations", "saves"), COURSES.values(), ids=COURSES
)
def test_what_is_due(training, evaluate, save, steps, evaluations, saves):
    course = make_course(training, evaluate, save, steps_per_epoch=10)
    did = simulate(course)
    assert (course.total_steps, did.end.step, did.evaluated, did.saved) == (steps, steps, evaluations, saves)
    assert (did.end.samples, course.done(did.end)) == (8 * steps, 1.0)


def rising(step: int) -> float:
    return step / 100


def peaked(step: int) -> float:
    """Best at step 12."""
    return -abs(step - 12)


RESUMED = {
    "by epochs": (Training(epochs=2.5), Every(epochs=0.3), Every(epochs=0.4), rising, None),
    "by steps": (Training(maxSteps=31), Every(steps=3), Every(steps=7), rising, None),
    "best in the middle": (Training(maxSteps=31), Every(steps=3), Every(steps=7), peaked, None),
    "early stopping": (Training(maxSteps=31), Every(steps=3), Every(steps=7), peaked, 3),
}


@pytest.mark.parametrize(("training", "evaluate", "save", "metric", "patience"), RESUMED.values(), ids=RESUMED)
@pytest.mark.parametrize("batches", [lambda _epoch: 10, lambda epoch: 9 + epoch % 3], ids=["even", "uneven epochs"])
def test_a_run_resumed_at_any_step_does_what_is_left(training, evaluate, save, metric, patience, batches):
    course = make_course(training, evaluate, save, steps_per_epoch=10)
    whole = simulate(course, batches=batches, metric=metric, patience=patience)
    for stop in range(1, whole.end.step):
        first = stopped_after(course, stop, batches, metric, patience)
        rest = simulate(course, batches=batches, metric=metric, patience=patience, from_state=first.end)
        assert (first.evaluated + rest.evaluated, rest.end) == (whole.evaluated, whole.end)
        assert first.saved + rest.saved == whole.saved


def stopped_after(course: Course, stop: int, batches, metric, patience) -> Simulated:
    """The run up to and with step ``stop``, through JSON as a checkpoint keeps it."""
    did: dict[str, list[int]] = {"evaluated": [], "saved": []}
    state = RunState()
    while state.step < stop:
        state = settle(course, advance(state, 8, batches(state.epoch)), metric, patience=patience, did=did)
    return Simulated(tuple(did["evaluated"]), tuple(did["saved"]), RunState.from_json(state.to_json()))


def test_an_evaluation_that_was_broken_off_is_made_up():
    course = make_course(Training(maxSteps=10), Every(steps=5), LONG, steps_per_epoch=10)
    state = RunState()
    for _ in range(5):
        state = advance(state, 8, 10)
    asked_to_leave = RunState.from_json(saved(state, course).to_json())
    assert simulate(course, from_state=asked_to_leave).evaluated == (5, 10)


STATES = {
    "within an epoch": (
        RunState(step=3, batch=3, samples_in_epoch=24, samples=24, position=0.3),
        RunState(step=4, batch=4, samples_in_epoch=32, samples=32, position=0.4),
    ),
    "end of an epoch": (
        RunState(step=19, epoch=1, batch=9, samples_in_epoch=72, samples=152, position=1.9),
        RunState(step=20, epoch=2, batch=0, samples_in_epoch=0, samples=160, position=2.0),
    ),
}


@pytest.mark.parametrize(("before", "after"), STATES.values(), ids=STATES)
def test_advance(before, after):
    assert advance(before, 8, 10) == after


STOPPING = {
    "no gain for three evaluations": ([1, 2, 1, 1, 1, 9], 3, (5, 2, True)),
    "a gain in time": ([1, 2, 1, 1, 3, 1, 1, 1, 9], 3, (8, 5, True)),
    "at the last step nothing is left to stop": ([2, 1, 1], 2, (3, 1, False)),
    "equal is no gain": ([1, 1, 1, 9], 2, (3, 1, True)),
    "never": ([5, 4, 3, 2, 1], None, (5, 1, False)),
    "NaN is no gain": ([1, float("nan"), float("nan"), 9], 2, (3, 1, True)),
}


@pytest.mark.parametrize(("values", "patience", "expected"), STOPPING.values(), ids=STOPPING)
def test_early_stopping(values, patience, expected):
    course = make_course(Training(maxSteps=len(values)), Every(steps=1), LONG, steps_per_epoch=100)
    end = simulate(course, metric=lambda step: float(values[step - 1]), patience=patience).end
    assert end.best is not None
    assert (end.step, end.best.step, end.early_stopped) == expected
    assert end.saved_step == end.step


BETTER = {
    "first": (0.5, None, "max", 0.0, True),
    "more": (0.6, 0.5, "max", 0.0, True),
    "less": (0.4, 0.5, "max", 0.0, False),
    "less is better": (0.4, 0.5, "min", 0.0, True),
    "more is worse": (0.6, 0.5, "min", 0.0, False),
    "equal": (0.5, 0.5, "max", 0.0, False),
    "enough": (0.75, 0.5, "max", 0.125, True),
    "too little": (0.625, 0.5, "max", 0.125, False),
    "enough, less is better": (0.25, 0.5, "min", 0.125, True),
    "NaN": (float("nan"), None, "max", 0.0, False),
    "infinite loss is beaten by any": (3.0, float("inf"), "min", 0.5, True),
}


@pytest.mark.parametrize(("value", "best", "mode", "min_delta", "expected"), BETTER.values(), ids=BETTER)
def test_is_better(value, best, mode, min_delta, expected):
    assert is_better(value, best, mode=mode, min_delta=min_delta) is expected


def test_state_goes_through_json_unchanged():
    state = RunState(step=7, position=0.7, best=BestSeen(0.9, 5), metrics={"f1": 0.9}, loss_scaling={"scale": 2.0**16})
    assert RunState.from_json(state.to_json()) == state
    assert RunState.from_json(replace(state, best=None).to_json()) == replace(state, best=None)


SCHEDULES = {
    "linear": ("linear", get_linear_schedule_with_warmup),
    "cosine": ("cosine", get_cosine_schedule_with_warmup),
}
LENGTHS = {"no warm-up": (50, 0), "warm-up": (50, 7), "one step of warm-up": (13, 1), "warm-up to the end": (20, 20)}


@pytest.mark.parametrize(("total", "warmup"), LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize(("scheduler", "theirs"), SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize("by", ["steps", "epochs"])
def test_rates_are_those_of_transformers(scheduler, theirs, by, total, warmup):
    length = {"max_steps": total} if by == "steps" else {"epochs": total / 10}
    training = Training(scheduler=scheduler, warmup=Warmup(steps=warmup), **length)
    course, state = make_course(training, LONG, LONG, steps_per_epoch=10), RunState()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=1.0)
    schedule = theirs(optimizer, warmup, total)
    for _ in range(total):
        assert course.factor(state) == pytest.approx(schedule.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        schedule.step()
        state = advance(state, 8, 10)
    assert course.is_finished(state)


FACTORS = {
    "constant": (0.9, 0.1, "constant", 1.0),
    "constant rises as well": (0.05, 0.1, "constant", 0.5),
    "all is warm-up": (0.25, 1.0, "linear", 0.25),
    "end of a run that is all warm-up": (1.0, 1.0, "linear", 0.0),
    "warm-up of nothing": (0.0, 0.0, "linear", 1.0),
    "past the end": (1.2, 0.1, "cosine", 0.0),
}


@pytest.mark.parametrize(("done", "warmup", "scheduler", "factor"), FACTORS.values(), ids=FACTORS)
def test_rate_factor(done, warmup, scheduler, factor):
    assert rate_factor(done, warmup=warmup, scheduler=scheduler) == pytest.approx(factor, abs=1e-12)


def test_warmup_ratio_is_a_share_of_the_run():
    course = make_course(Training(maxSteps=200, warmup=Warmup(ratio=0.1)), LONG, LONG, steps_per_epoch=10)
    states = [RunState(step=step) for step in (0, 10, 20, 110, 200)]
    assert [course.factor(state) for state in states] == pytest.approx([0, 0.5, 1, 0.5, 0], abs=1e-12)


def test_length_by_a_token_budget_is_an_estimate_and_the_epochs_decide():
    """Epochs may have a few more or fewer batches than the first."""
    course = make_course(Training(epochs=3), Every(epochs=1), LONG, steps_per_epoch=10)
    did = simulate(course, batches=lambda epoch: 10 + epoch)
    assert (course.total_steps, did.end.step, did.end.epoch, did.evaluated) == (30, 33, 3, (10, 21, 33))


def test_a_state_keeps_its_evaluations():
    course = make_course(Training(epochs=3), Every(epochs=1), LONG, 10)
    end = simulate(course, metric=lambda step: step / 100).end
    assert end.evaluated_values == ((10, 0.1), (20, 0.2), (30, 0.3))
    assert RunState.from_json(json.loads(json.dumps(end.to_json()))) == end
    older = {name: value for name, value in end.to_json().items() if name != "evaluated_values"}
    assert RunState.from_json(older) == replace(end, evaluated_values=())


def test_evaluations_thin_out():
    kept: tuple[tuple[int, float], ...] = ()
    for step in range(1, 101):
        kept = thinned((*kept, (step, 0.0)))
        assert len(kept) <= 32
        assert (kept[0][0], kept[-1][0]) == (1, step)
