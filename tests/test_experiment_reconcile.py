"""Experiments beside an API server in memory: what is written, and that any write may be the operator's last."""

import json
import math

import pytest

import fake_cluster
from experimenting import World, experiment, is_over
from fake_cluster import FakeCluster, FakePoster, OperatorLife, run_to_the_end
from finetune_api.experiment import ExperimentStatus
from finetune_api.job import FineTuneJob
from finetune_operator import experiment_reconcile
from finetune_operator.bucket import TokenBucket
from finetune_operator.errors import ApiError
from finetune_operator.experiment_apply import ExperimentApplier
from finetune_operator.experiment_reconcile import ExperimentReconciler
from finetune_operator.experiments import search
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB

SEARCH = {
    "parameters": [{"field": "strategy.learningRate.value", "logUniform": {"low": 1e-5, "high": 1e-1}}],
    "proposals": 6,
    "startupProposals": 3,
}


def by_strategy(job, step):
    head = job.spec.strategy.trainable == "head"
    return 0.5 + 0.1 * step - 0.2 * head + 0.01 * math.sin(7 * job.spec.training.seed + head)


def by_rate(job, step):
    return step / (1 + abs(math.log10(job.spec.strategy.learning_rate.value) + 3))


class Trials(FakeCluster):
    """Jobs train a step a second."""

    def __init__(self, course, **kills):
        super().__init__((), **kills)
        self.world = World(experiment(), course)
        self.refusals, self.told = {}, []
        self.most = 0

    def live(self):
        self.second += 1
        self.world.now = self.now()
        active = [raw for raw in self.kind(FINE_TUNE_JOB) if not over(raw) and not raw["spec"].get("suspend")]
        self.most = max(self.most, len(active))
        for raw in active:
            status = self.world.trained_on(FineTuneJob.model_validate_json(json.dumps(raw)))
            raw["status"] = status.to_wire()
            self.touch(raw)

    def kind(self, kind):
        return [raw for (name, _), raw in self.objects.items() if name == kind.name]

    async def create(self, kind, namespace, manifest):
        if manifest["metadata"]["name"] in self.refusals:
            raise self.refusals[manifest["metadata"]["name"]]
        return await super().create(kind, namespace, manifest)


def over(raw):
    return is_over(FineTuneJob.model_validate_json(json.dumps(raw)))


class ExperimentLife(OperatorLife):
    """One process of the operator that looks at experiments; jobs are played by the cluster."""

    def __init__(self, cluster, progress_writes=1e9):
        super().__init__(cluster)
        writes = TokenBucket(progress_writes, progress_writes, cluster.clock)
        applier = ExperimentApplier(self.store, cluster, cluster.told.append)
        self.reconciler = ExperimentReconciler(self.store, applier, FakePoster(cluster), writes, cluster.now)

    def looked_at(self):
        return list(self.store.experiments.records)


def stored(cluster, **spec):
    """Apply an experiment; returns its object."""
    made = experiment(**spec).to_wire()
    raw = cluster.put(
        FINE_TUNE_EXPERIMENT.name, made | {"metadata": {"name": "e", "namespace": "default", "labels": {}}}
    )
    cluster.objects[FINE_TUNE_EXPERIMENT.name, "e"]["metadata"]["generation"] = 1
    return raw


def lived(course=by_strategy, seconds=60, at=None, spec=None, *, quick=False, **kills):
    cluster = Trials(course, **kills)
    stored(cluster, **(spec or {}))
    cluster.kills = run_to_the_end(cluster, seconds, at, ExperimentLife, lambda one: quick and has_ended(one))
    return cluster


def has_ended(cluster):
    return status_of(cluster).phase in ("Succeeded", "Failed")


def status_of(cluster):
    found = cluster.objects[FINE_TUNE_EXPERIMENT.name, "e"].get("status") or {}
    return ExperimentStatus.model_validate_json(json.dumps(found))


def condition(cluster, kind):
    return next(one for one in status_of(cluster).conditions if one.type == kind)


def edit(**fields):
    """Somebody changes the spec."""

    def change(cluster):
        raw = cluster.objects[FINE_TUNE_EXPERIMENT.name, "e"]
        raw["spec"].update(fields)
        raw["metadata"]["generation"] += 1
        cluster.touch(raw)

    return change


NAMES = [f"e-{variant}-{seed}" for seed in range(3) for variant in ("full", "head")]


def test_an_experiment_runs_to_its_answer():
    cluster = lived(spec={"parallelism": 2})
    assert [one for one in cluster.log if "status" not in one] == [f"create FineTuneJob {name}" for name in NAMES]
    assert condition(cluster, "Concluded").reason == "Difference"
    assert status_of(cluster).best.model == "/runs/e-full-2/model"
    assert [event.reason for event in cluster.events] == ["Running", "Difference"]
    assert cluster.most == 2
    assert [key.name for key in cluster.told] == NAMES, "each is looked at once it is made"
    owners = {raw["metadata"]["ownerReferences"][0]["uid"] for raw in cluster.kind(FINE_TUNE_JOB)}
    assert owners == {cluster.objects[FINE_TUNE_EXPERIMENT.name, "e"]["metadata"]["uid"]}


def test_what_a_trial_costs():
    """A job, and a status that tells of its start and of the end of the one before it; all else is progress."""
    cluster = Trials(by_strategy)
    stored(cluster)
    run_to_the_end(cluster, 60, life_of=lambda cluster: ExperimentLife(cluster, progress_writes=0))
    assert len(cluster.log) == 6 + 7


def essence(cluster):
    """What must not depend on when the operator was killed."""
    status = status_of(cluster)
    rows = [(row.name, row.value, row.seed, row.phase) for row in status.trial_table]
    return rows, [one.model_dump() for one in status.variants], status.best, condition(cluster, "Concluded").message


COURSES = {
    "variants": (by_strategy, {"parallelism": 2}),
    "search": (by_rate, {"variants": None, "search": SEARCH, "seeds": [0], "parallelism": 1}),
    "search, pruned": (
        by_rate,
        {"variants": None, "search": SEARCH | {"pruner": {"startupTrials": 2}}, "seeds": [0, 1], "parallelism": 2},
    ),
}


@pytest.mark.parametrize(("course", "spec"), COURSES.values(), ids=COURSES)
@pytest.mark.parametrize("moment", ["kill_before", "kill_after"])
def test_any_write_may_be_the_last(course, spec, moment):
    """The same trials and the same answer come out; no job is made twice."""
    whole = lived(course, spec=spec)
    count = len([one for one in whole.log if one.startswith("create") or "status" in one])
    for number in range(1, count + 1):
        cluster = lived(course, spec=spec, quick=True, **{moment: number})
        assert cluster.kills == 1
        assert essence(cluster) == essence(whole), number
        made = [one for one in cluster.log if one.startswith("create")]
        tried_twice = {"kill_before": 1, "kill_after": 0}[moment]
        assert len(made) - len(set(made)) <= tried_twice
        assert len(cluster.kind(FINE_TUNE_JOB)) == len(whole.kind(FINE_TUNE_JOB))


def test_conflicts_are_looked_at_anew():
    cluster = lived(conflicts=range(2, 40, 3))
    assert essence(cluster)[0] == essence(lived())[0]


def test_a_strangers_job_in_the_place_of_a_trial_is_said_and_left_alone():
    def free(cluster):
        del cluster.objects[FINE_TUNE_JOB.name, "e-full-0"]

    def check(cluster):
        told = "there is a FineTuneJob e-full-0 that is not this experiment's; delete it, or give this experiment"
        assert told in condition(cluster, "Running").message

    cluster = Trials(by_strategy)
    stored(cluster)
    stranger = {"metadata": {"name": "e-full-0", "namespace": "default"}, "spec": experiment().spec.template.to_wire()}
    cluster.put(FINE_TUNE_JOB.name, {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", **stranger})
    run_to_the_end(cluster, 60, {5: check, 6: free}, ExperimentLife)
    assert status_of(cluster).trials.succeeded == 6


def test_what_the_cluster_refuses_is_said_and_tried_again():
    def allow(cluster):
        told = condition(cluster, "Running").message
        assert told.endswith("FineTuneJob e-head-0 is refused: exceeded quota: jobs")
        cluster.refusals.clear()

    cluster = Trials(by_strategy)
    stored(cluster)
    cluster.refusals["e-head-0"] = ApiError(403, "exceeded quota: jobs", "Forbidden")
    run_to_the_end(cluster, 60, {20: allow}, ExperimentLife)
    assert essence(cluster) == essence(lived())


INVALID = {
    "a field": ({"seeds": []}, "spec.seeds: must"),
    "a variant": ({"variants": [{"name": "a"}, {"name": "b", "set": {"strategy.lora.r": 0}}]}, "spec.variants[1].set"),
    "a field that is not there": (
        {"variants": [{"name": "a"}, {"name": "b", "set": {"training.epoch": 3}}]},
        "spec.variants[1].set.training.epoch: is not a field; did you mean epochs?",
    ),
    "a metric": ({"objective": {"metric": "map"}}, "spec.objective.metric: text-classification has the metrics"),
}


@pytest.mark.parametrize(("fields", "told"), INVALID.values(), ids=INVALID)
def test_what_is_invalid_is_said_once_and_nothing_is_made(fields, told):
    cluster = Trials(by_strategy)
    stored(cluster)
    cluster.objects[FINE_TUNE_EXPERIMENT.name, "e"]["spec"].update(fields)
    run_to_the_end(cluster, 5, life_of=ExperimentLife)
    accepted = condition(cluster, "Accepted")
    assert (accepted.status, accepted.reason) == ("False", "Invalid")
    assert accepted.message.startswith(told)
    assert cluster.log == ["replace status of FineTuneExperiment e"]
    assert [(event.type, event.reason) for event in cluster.events] == [("Warning", "Invalid")]


def test_a_search_without_optuna_says_what_to_install(monkeypatch):
    def missing():
        raise search.SpecError((search.Fault("spec.search", "needs optuna"),))

    monkeypatch.setattr(search, "optuna_module", missing)
    cluster = lived(by_rate, 5, spec={"variants": None, "search": SEARCH, "seeds": [0]})
    assert condition(cluster, "Accepted").message == "spec.search: needs optuna"


def test_suspended_and_resumed():
    def check(cluster):
        assert status_of(cluster).phase == "Suspended"
        assert [raw["spec"]["suspend"] for raw in cluster.kind(FINE_TUNE_JOB)] == [True, True]

    cluster = lived(at={2: edit(suspend=True), 5: check, 6: edit(suspend=False)}, spec={"parallelism": 2})
    assert essence(cluster) == essence(lived(spec={"parallelism": 2}))


def test_parallelism_may_change_meanwhile():
    assert lived(at={2: edit(parallelism=6)}).most == len(NAMES)


def test_the_best_trial_alone_is_kept():
    cluster = lived(spec={"promote": "keepBest"})
    assert [raw["metadata"]["name"] for raw in cluster.kind(FINE_TUNE_JOB)] == ["e-full-2"]
    assert status_of(cluster).trials.succeeded == 6


def test_it_goes_when_its_time_has_come_and_takes_its_trials_along():
    cluster = lived(seconds=80, spec={"ttlSecondsAfterFinished": 30})
    assert cluster.kind(FINE_TUNE_EXPERIMENT) == cluster.kind(FINE_TUNE_JOB) == []


def delete(name):
    def do(cluster):
        cluster.objects.pop((FINE_TUNE_JOB.name, name))

    return do


def test_a_trial_that_is_deleted_is_made_again_unless_it_has_ended():
    cluster = lived(at={2: delete("e-full-0"), 12: delete("e-full-0")})
    made = [one for one in cluster.log if one.startswith("create")]
    assert made == [f"create FineTuneJob {name}" for name in ("e-full-0", *NAMES)]
    assert essence(cluster) == essence(lived())


def test_an_experiment_that_is_being_deleted_makes_nothing():
    cluster = Trials(by_strategy)
    stored(cluster)
    cluster.objects[FINE_TUNE_EXPERIMENT.name, "e"]["metadata"]["deletionTimestamp"] = cluster.wire_now()
    run_to_the_end(cluster, 5, life_of=ExperimentLife)
    assert cluster.log == []


def test_a_concluded_experiment_is_left_alone_by_the_next_operator():
    cluster = lived()
    writes, finished = cluster.writes, fake_cluster.copy.deepcopy(cluster.objects)
    run_to_the_end(cluster, 5, life_of=ExperimentLife)
    assert (cluster.writes, cluster.objects) == (writes, finished)


def test_jobs_that_have_not_changed_are_not_read_again(monkeypatch):
    read = []

    def parse(document):
        read.append(document)
        return FineTuneJob.model_validate_json(document)

    monkeypatch.setattr(experiment_reconcile, "parse_stored", parse)
    cluster = lived()
    assert len(read) == len(set(read))
    assert len(read) <= 6 * (cluster.world.steps + 1)
