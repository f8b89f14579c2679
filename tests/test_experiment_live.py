"""Experiments on a real API server; the trials' pods are played by the test."""

import json
import math
import threading
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from cluster.errors import ClusterError
from finetune_api import ProgressReport
from finetune_api.experiment_checks import parse_experiment
from finetune_api.job import FineTuneJob
from finetune_api.status import Best, EvaluationPoint, Progress, Result
from finetune_api.status import Stage as TrainerStage
from finetune_operator.experiments.search import Proposal, propose
from operating import API_VERSION, RUNTIME, Stage, message, until

TEMPLATE = {
    "task": "text-classification",
    "model": {"source": "hf://owner/model"},
    "data": {"source": "hf://owner/data"},
}
TWO = [{"name": "full"}, {"name": "head", "set": {"strategy.trainable": "head"}}]
RATE = "strategy.learningRate.value"
SEARCH = {
    "parameters": [{"field": RATE, "logUniform": {"low": 1e-5, "high": 1e-1}}],
    "proposals": 6,
    "startupProposals": 2,
    "seed": 4,
}


@pytest.fixture(scope="module", autouse=True)
def runtime(cluster):
    cluster.apply(RUNTIME)


@pytest.fixture
def stage(cluster, namespace, tmp_path):
    made = Stage(cluster, namespace, tmp_path)
    yield made
    made.end()


def experiment(stage, **spec):
    fields = {"template": TEMPLATE, "objective": {"metric": "accuracy"}, "seeds": [0, 1, 2], "variants": TWO} | spec
    return {
        "apiVersion": API_VERSION,
        "kind": "FineTuneExperiment",
        "metadata": {"name": "e", "namespace": stage.namespace},
        "spec": {name: value for name, value in fields.items() if value is not None},
    }


def by_strategy(spec):
    head = spec.strategy.trainable == "head"
    return 0.8 - 0.2 * head + 0.01 * math.sin(7 * spec.training.seed + head)


def by_rate(spec):
    return 1 / (1 + abs(math.log10(spec.strategy.learning_rate.value) + 3))


def status(stage):
    return (stage.find("finetuneexperiments", "e") or {}).get("status") or {}


def condition(stage, kind):
    return next((one for one in status(stage).get("conditions", []) if one["type"] == kind), {})


def trials(stage):
    return {one["metadata"]["name"]: one for one in stage.get("finetunejobs")}


def ending(spec, value):
    """What worker 0 says when it has trained."""
    time = datetime.now(UTC)
    report = ProgressReport(
        stage=TrainerStage.TRAINING,
        attempt=1,
        progress=Progress(step=10, total_steps=10, epoch=1, percent=100, time=time),
        best=Best(metric="accuracy", value=value, step=10),
        evaluations=(EvaluationPoint(step=10, value=value),),
    )
    result = Result(reason="Completed", model="/finetune/run/model", metrics={"accuracy": value})
    return message(0, step=10, result=result, report=report)


class Player:
    """Ends every pod with the value that ``course`` gives it; ``before`` is called with the number of each."""

    def __init__(self, stage, course, before=lambda _number: None):
        self.stage, self.course, self.before = stage, course, before
        self.played, self.most = [], 0

    def run(self, ended):
        while not ended.wait(0.3):
            alive = [pod for pod in self.stage.get("pods") if pod["status"]["phase"] in ("Pending", "Running")]
            self.most = max(self.most, len(alive))
            for pod in alive:
                self.play(pod)

    def play(self, pod):
        spec = FineTuneJob.model_validate_json(pod["metadata"]["annotations"]["finetune.dev/spec"]).spec
        self.before(len(self.played))
        self.stage.finish(pod["metadata"]["name"], 0, ending(spec, self.course(spec)))
        self.played.append(pod["metadata"]["labels"]["finetune.dev/job"])


@contextmanager
def playing(stage, course, before=lambda _number: None):
    player, ended = Player(stage, course, before), threading.Event()
    thread = threading.Thread(target=player.run, args=(ended,))
    thread.start()
    try:
        yield player
    finally:
        ended.set()
        thread.join()


def test_an_experiment_runs_to_its_answer(stage):
    operator = stage.start().await_ready()
    stage.cluster.apply(experiment(stage, parallelism=2))
    with playing(stage, by_strategy) as player:
        stage.kubectl("wait", "--for=condition=Concluded", "fte/e", "--timeout=120s", seconds=150)
    found = status(stage)
    assert found["phase"] == "Succeeded"
    assert condition(stage, "Concluded")["message"].startswith("full is better than head by 0.")
    assert found["trials"] == {"total": 6, "running": 0, "succeeded": 6, "pruned": 0, "failed": 0}
    assert sorted(player.played) == [f"e-{variant}-{seed}" for variant in ("full", "head") for seed in range(3)]
    assert player.most == 2
    assert found["best"]["model"].startswith("pvc://runs/e-full-")
    row = stage.kubectl("get", "fte", "e").splitlines()[1].split()
    assert row[:6] == ["e", "Succeeded", "6", "0", "6", "accuracy"]
    reasons = {
        event["reason"] for event in stage.get("events") if event["involvedObject"]["kind"] == "FineTuneExperiment"
    }
    assert reasons == {"Running", "Difference"}
    counted = f'finetune_operator_experiments{{namespace="{stage.namespace}",phase="Succeeded"}}'
    assert operator.metrics()[counted] == 1
    stage.kubectl("delete", "fte", "e")
    until(lambda: not trials(stage), what="its trials go with it")


def test_a_search_whose_operator_is_killed_at_every_trial_proposes_what_one_study_does(stage):
    made = experiment(stage, variants=None, search=SEARCH, seeds=[0])
    stage.start().await_ready()

    def kill(_number):
        stage.operators[-1].kill()
        stage.start()

    stage.cluster.apply(made)
    with playing(stage, by_rate, kill) as player:
        stage.kubectl("wait", "--for=condition=Concluded", "fte/e", "--timeout=200s", seconds=230)
    assert len(stage.operators) == 1 + SEARCH["proposals"]
    assert player.played == [f"e-p{number}-0" for number in range(SEARCH["proposals"])]
    proposed = [row["set"] for row in status(stage)["variants"]]
    assert proposed == uninterrupted(parse_experiment(made).spec.search)


def uninterrupted(search):
    known = []
    for _ in range(search.proposals):
        settings = propose(search, "max", known)
        known.append(Proposal(settings, value=1 / (1 + abs(math.log10(settings[RATE]) + 3))))
    return [one.settings for one in known]


def test_suspended_resumed_and_the_best_kept(stage):
    stage.start().await_ready()
    stage.cluster.apply(experiment(stage, parallelism=2, promote="keepBest", seeds=[0, 1]))
    until(lambda: len(stage.get("pods")) == 2, what="two trials")
    stage.patch("fte", "e", {"spec": {"suspend": True}})
    until(lambda: not stage.get("pods") and status(stage)["phase"] == "Suspended", what="suspended")
    assert all(one["spec"]["suspend"] for one in trials(stage).values())
    stage.patch("fte", "e", {"spec": {"suspend": False}})
    with playing(stage, by_strategy):
        stage.kubectl("wait", "--for=condition=Concluded", "fte/e", "--timeout=120s", seconds=150)
    until(lambda: list(trials(stage)) == [status(stage)["best"]["trial"]], what="the best one alone is left")


REFUSED = {
    "no seeds": ({"seeds": []}, "spec.seeds"),
    "variants and a search": ({"search": SEARCH}, "search"),
    "one variant": ({"variants": TWO[:1]}, "spec.variants"),
}


@pytest.mark.parametrize(("fields", "told"), REFUSED.values(), ids=REFUSED)
def test_the_api_server_refuses_what_a_schema_can_tell(stage, fields, told):
    with pytest.raises(ClusterError, match=told):
        stage.cluster.apply(experiment(stage, **fields))


INVALID = {
    "a field that is not there": (
        {"variants": [{"name": "a"}, {"name": "b", "set": {"training.epoch": 3}}]},
        "spec.variants[1].set.training.epoch: ",
    ),
    "a variant that is no valid job": (
        {"variants": [{"name": "a"}, {"name": "b", "set": {"strategy.lora.r": 0}}]},
        "spec.variants[1].set.strategy.lora.r: must be ≥ 1, got 0",
    ),
    "a metric that the task does not have": ({"objective": {"metric": "map"}}, "spec.objective.metric: "),
}


@pytest.mark.parametrize(("fields", "told"), INVALID.values(), ids=INVALID)
def test_what_is_invalid_is_not_accepted_and_the_field_named(stage, fields, told):
    stage.start().await_ready()
    stage.cluster.apply(experiment(stage, **fields))
    accepted = until(lambda: condition(stage, "Accepted"), what="a condition")
    assert (accepted["status"], accepted["reason"]) == ("False", "Invalid")
    assert accepted["message"].startswith(told)
    assert trials(stage) == {}


def test_a_trial_that_its_runtime_forbids_is_told_in_the_experiment(stage):
    stage.start().await_ready()
    stage.cluster.apply(experiment(stage, template={**TEMPLATE, "runtime": "absent"}))
    told = until(lambda: "may not run" in (m := condition(stage, "Running").get("message", "")) and m, 45)
    assert "e-full-0 may not run: spec.runtime: there is no FineTuneRuntime absent" in told


def test_an_immutable_field_stays(stage):
    stage.cluster.apply(experiment(stage))
    with pytest.raises(ClusterError, match=r"spec\.seeds: Forbidden: cannot be changed"):
        stage.patch("fte", "e", {"spec": {"seeds": [0, 1, 2, 3]}})
    assert json.loads(stage.kubectl("get", "fte", "e", "-o", "json"))["spec"]["seeds"] == [0, 1, 2]
