"""Experiments, planned to their end: every trial once, never more at a time than allowed, and an answer."""

import math
import random
from datetime import timedelta

import pytest

from experimenting import T0, World, experiment
from finetune_api.errors import SpecError
from finetune_api.experiment import BestTrial, ExperimentPhase, TrialCounts, VariantStatus
from finetune_operator.experiments.observed import ExperimentPlan, ObservedExperiment
from finetune_operator.experiments.plan import plan_experiment

RATE = "strategy.learningRate.value"
SEARCH = {
    "parameters": [{"field": RATE, "logUniform": {"low": 1e-5, "high": 1e-1}}],
    "proposals": 12,
    "startupProposals": 4,
}


def by_strategy(gain=0.2, spread=0.01):
    """A course in which training only the head is worse by ``gain``."""

    def course(job, step):
        noise = random.Random(f"{job.metadata.name}").gauss(0, spread)
        return 0.5 + 0.1 * step - gain * (job.spec.strategy.trainable == "head") + noise

    return course


def by_rate(job, step):
    """A course that the learning rate decides: best at 1e-3, told apart from the first evaluation on."""
    distance = abs(math.log10(job.spec.strategy.learning_rate.value) + 3)
    return (1 - 0.2 * distance) * (0.6 + 0.1 * step)


@pytest.mark.parametrize("parallelism", [1, 2, 6, 20])
def test_every_trial_runs_once_and_never_too_many_at_a_time(parallelism):
    world = World(experiment(parallelism=parallelism), by_strategy()).run()
    assert world.status.phase is ExperimentPhase.SUCCEEDED
    assert sorted(world.jobs) == [f"e-{variant}-{seed}" for variant in ("full", "head") for seed in range(3)]
    assert world.most == min(parallelism, 6)
    assert world.status.trials == TrialCounts(total=6, succeeded=6)
    assert world.plan() == ExperimentPlan()


def test_trials_of_a_seed_come_together_and_differ_in_nothing_else():
    world = World(experiment(), by_strategy()).run()
    assert list(world.jobs) == ["e-full-0", "e-head-0", "e-full-1", "e-head-1", "e-full-2", "e-head-2"]
    full, head = world.jobs["e-full-1"], world.jobs["e-head-1"]
    assert (full.spec.training.seed, head.spec.training.seed) == (1, 1)
    assert full.spec.model_copy(update={"strategy": head.spec.strategy}) == head.spec
    assert head.spec.strategy.trainable == "head"
    assert head.metadata.model_extra["labels"] == {"finetune.dev/experiment": "e", "finetune.dev/variant": "head"}


def test_the_answer_names_the_better_variant():
    world = World(experiment(), by_strategy()).run()
    concluded = world.condition("Concluded")
    assert (concluded.status, concluded.reason) == ("True", "Difference")
    assert concluded.message.startswith("full is better than head by 0.")
    assert concluded.message.endswith("n = 3 seeds)")
    full, head = world.status.variants
    assert full.difference is None
    assert (head.difference.verdict, head.difference.seeds, head.seeds) == ("worse", 3, 3)
    assert (full.worker_seconds, full.gpu_seconds) == (3 * 4 * 60 * 2, 3 * 4 * 60 * 2)
    assert world.status.best.variant == "full"
    assert world.status.best.model == f"/runs/{world.status.best.trial}/model"


def test_equal_variants_are_not_told_apart():
    world = World(experiment(), by_strategy(gain=0, spread=0.05)).run()
    concluded = world.condition("Concluded")
    told = "No difference in accuracy between full and head can be told at n = 3"
    assert (concluded.reason, concluded.message) == ("NoDifference", told)


def test_one_seed_tells_nothing():
    world = World(experiment(seeds=[7]), by_strategy()).run()
    assert world.condition("Concluded").reason == "NoDifference"
    assert world.status.variants[0] == VariantStatus(
        name="full", seeds=1, mean=world.status.variants[0].mean, worker_seconds=480, gpu_seconds=480
    )


def test_a_plan_is_repeated_without_harm_when_its_status_was_not_written():
    made = experiment(parallelism=2)
    whole = World(made, by_strategy()).run()
    world = World(made, by_strategy())
    for _ in range(1000):
        plan = world.plan()
        if plan.status is not None and plan.create:
            world.apply(ExperimentPlan(plan.create, plan.change))  # killed before the status
        world.reconcile()
        if world.status.phase is ExperimentPhase.SUCCEEDED:
            break
        world.tick()
    assert world.status.variants == whole.status.variants


def test_suspended_trials_stop_and_go_on():
    world = World(experiment(parallelism=2), by_strategy()).run(ticks=2)
    spec = world.experiment.spec
    world.experiment = world.experiment.model_copy(update={"spec": spec.model_copy(update={"suspend": True})})
    world.reconcile()
    assert world.status.phase is ExperimentPhase.SUSPENDED
    assert [job.spec.suspend for job in world.jobs.values()] == [True, True]
    trained = world.trained
    world.tick()
    assert world.trained == trained
    world.experiment = world.experiment.model_copy(update={"spec": spec})
    assert world.run().status.trials.succeeded == 6


def test_an_interrupted_one_rests_and_says_so():
    world = World(experiment(), by_strategy()).run(ticks=2)
    world.interrupted = True
    world.reconcile()
    assert (world.status.phase, world.condition("Suspended").reason) == (ExperimentPhase.SUSPENDED, "Interrupted")


def test_some_trials_may_fail():
    world = World(experiment(), by_strategy(), fails=("e-head-1",)).run()
    assert world.status.phase is ExperimentPhase.SUCCEEDED
    assert world.status.trials == TrialCounts(total=6, succeeded=5, failed=1)
    assert world.status.variants[1].difference.seeds == 2


def test_too_many_that_fail_end_it_and_what_runs():
    world = World(experiment(maxFailedTrials=0, parallelism=3), by_strategy(), fails=("e-head-0",)).run()
    assert world.status.phase is ExperimentPhase.FAILED
    assert world.condition("Failed").reason == "TrialsFailed"
    assert "e-head-0" in world.condition("Failed").message
    assert world.status.trials == TrialCounts(total=6, pruned=2, failed=1)
    assert world.plan() == ExperimentPlan()


def test_a_trial_that_was_deleted_is_made_again():
    world = World(experiment(), by_strategy()).run(ticks=2)
    del world.jobs["e-full-0"]
    assert world.run().status.trials.succeeded == 6


def test_an_answer_outlives_its_jobs():
    world = World(experiment(promote="keepBest"), by_strategy()).run()
    before = world.status
    world.reconcile()
    assert list(world.jobs) == [before.best.trial]
    assert world.status == before
    assert world.plan() == ExperimentPlan()


@pytest.mark.parametrize(("age", "expected"), [(0, False), (59, False), (60, True), (600, True)])
def test_it_goes_when_its_time_has_come(age, expected):
    world = World(experiment(ttlSecondsAfterFinished=60), by_strategy()).run()
    world.now = world.status.completion_time + timedelta(seconds=age)
    made = world.plan()
    assert made.delete_experiment is expected
    assert made.look_again_seconds == (None if expected else 60 - age)


def test_what_is_refused_does_not_begin():
    made = plan_experiment(ObservedExperiment(experiment(), T0, refusal="spec.seeds: wrong"))
    assert made.create == ()
    accepted = made.status.conditions[0]
    assert (accepted.status, accepted.reason, accepted.message) == ("False", "Invalid", "spec.seeds: wrong")


# --- searches


def searching(**fields):
    return experiment(variants=None, search=SEARCH | fields.pop("search", {}), seeds=[0], **fields)


@pytest.mark.parametrize("parallelism", [1, 3])
def test_a_search_spends_its_budget_and_tells_the_best(parallelism):
    world = World(searching(parallelism=parallelism), by_rate).run()
    assert world.status.trials == TrialCounts(total=12, succeeded=12)
    assert world.status.phase is ExperimentPhase.SUCCEEDED
    best = max(world.status.variants, key=lambda one: one.mean)
    assert world.status.best == BestTrial(
        variant=best.name, trial=f"e-{best.name}-0", value=best.mean, model=f"/runs/e-{best.name}-0/model"
    )
    assert world.condition("Concluded").message.startswith(f"The best of 12 proposals is {best.name} with accuracy")
    assert [job.spec.strategy.learning_rate.value for job in world.jobs.values()] == [
        one.set[RATE] for one in world.status.variants
    ]


def test_a_search_whose_status_is_lost_proposes_the_same():
    whole = World(searching(), by_rate).run()
    world = World(searching(), by_rate)
    while world.status is None or world.status.phase is not ExperimentPhase.SUCCEEDED:
        world.reconcile()
        if world.status.phase is not ExperimentPhase.SUCCEEDED:
            # The operator is killed; nothing but the jobs is left.
            world.experiment = world.experiment.model_copy(update={"status": None})
            world.tick()
    assert world.status.variants == whole.status.variants


def test_a_proposal_has_a_trial_of_each_seed():
    world = World(searching(search={"proposals": 3}), by_rate)
    world.experiment = world.experiment.model_copy(
        update={"spec": world.experiment.spec.model_copy(update={"seeds": (4, 5)})}
    )
    world.run()
    assert list(world.jobs) == ["e-p0-4", "e-p0-5", "e-p1-4", "e-p1-5", "e-p2-4", "e-p2-5"]
    assert [one.seeds for one in world.status.variants] == [2, 2, 2]


def test_a_search_ends_when_its_time_is_spent():
    world = World(searching(search={"minutes": 20}), by_rate).run()  # 4 steps of a minute, 2 workers: 8 minutes each
    assert world.status.trials == TrialCounts(total=3, succeeded=3)


def test_a_parameter_that_never_makes_a_valid_job_is_refused_before_the_first_trial():
    fields = [{"field": "training.gradientAccumulation", "intRange": {"low": 1, "high": 4}}]
    fields += [{"field": "strategy.lora.dropout", "uniform": {"low": 0, "high": 1}}]
    fields += [{"field": "strategy.learningRate.layerDecay", "uniform": {"low": 0.5, "high": 1}}]
    with pytest.raises(SpecError, match=r"spec.search.parameters\[1\].field: strategy.lora.dropout = 0"):
        searching(search={"parameters": fields})


def test_a_proposal_that_is_no_valid_job_is_a_failed_trial():
    # Each end is valid with the others' first value; the rest shows when it is drawn.
    fields = [
        {"field": "strategy.trainable", "categorical": {"choices": ["all", "head"]}},
        {"field": "strategy.freeze.embeddings", "categorical": {"choices": [False, True]}},
    ]
    made = searching(search={"parameters": fields, "sampler": "random"}, maxFailedTrials=100)
    world = World(made, by_strategy()).run()
    heads = sum(one.set["strategy.trainable"] == "head" for one in world.status.variants)
    assert 0 < heads < 12
    assert world.status.trials == TrialCounts(total=12, succeeded=12 - heads, failed=heads)


PRUNER = {"percentile": 50, "startupTrials": 3, "warmupEvaluations": 1}


def test_pruning_saves_steps_and_finds_the_same_winner():
    budget = {"sampler": "random", "proposals": 30}
    plain = World(searching(search=budget), by_rate, steps=10).run()
    pruned = World(searching(search=budget | {"pruner": PRUNER | {"percentile": 30}}), by_rate, steps=10).run()
    assert pruned.status.best == plain.status.best
    assert pruned.status.trials.pruned >= 10
    assert pruned.trained <= 0.7 * plain.trained
    ended = [row for row in pruned.status.trial_table if row.pruned]
    assert all(row.value is None and row.phase == "Succeeded" and row.step < 10 for row in ended)


def test_a_proposal_without_hope_gets_no_further_seed():
    made = searching(search={"pruner": PRUNER, "sampler": "random", "proposals": 20})
    made = made.model_copy(update={"spec": made.spec.model_copy(update={"seeds": (0, 1)})})
    world = World(made, by_rate, steps=6).run()
    lost = [one for one in world.status.variants if one.pruned]
    assert lost
    assert all(f"e-{one.name}-1" not in world.jobs for one in lost if one.pruned == 1 and one.seeds == 0)
    assert world.status.best.variant not in {one.name for one in lost}
