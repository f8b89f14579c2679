"""The operator on a real API server; pods are played by the test, for there is no node."""

import time
from datetime import UTC, datetime

import pytest

from finetune_api import Cause, ProgressReport
from finetune_api.status import Best, LastCheckpoint, Progress, Result
from finetune_api.status import Stage as TrainerStage
from operating import RUNTIME, Stage, message, serving, until

LEASE = ("--lease-namespace=default",)


@pytest.fixture(scope="module", autouse=True)
def runtime(cluster):
    cluster.apply(RUNTIME)


@pytest.fixture
def stage(cluster, namespace, tmp_path):
    made = Stage(cluster, namespace, tmp_path)
    yield made
    made.end()


def report(step, attempt=1):
    run = "/finetune/run"
    return ProgressReport(
        stage=TrainerStage.TRAINING,
        attempt=attempt,
        progress=Progress(step=step, total_steps=30, epoch=1, percent=step / 0.3, time=datetime.now(UTC)),
        metrics={"loss": 0.5},
        best=Best(metric="f1", value=0.8, step=10, checkpoint=f"{run}/checkpoints/step-10"),
        last_checkpoint=LastCheckpoint(step=10, path=f"{run}/checkpoints/step-10", time=datetime.now(UTC)),
    )


def phases(status):
    return {one["type"]: (one["status"], one["reason"]) for one in status["conditions"]}


def test_a_job_runs_to_its_end(stage):
    operator = stage.start().await_ready()
    stage.apply(distributed={"workers": 2})
    pods = stage.pods(count=2)
    starting = stage.until_phase("Starting")
    assert phases(starting)["Running"] == ("False", "Starting")
    uid = stage.find("finetunejobs", "demo")["metadata"]["uid"]
    made = {kind: stage.find(kind, name) for kind, name in [
        ("jobs", "demo-1"), ("networkpolicies", "demo"), ("services", "finetune-workers-0")]}  # fmt: skip
    owners = {
        kind: [one["uid"] for one in found["metadata"].get("ownerReferences", [])] for kind, found in made.items()
    }
    assert owners == {"jobs": [uid], "networkpolicies": [uid], "services": []}
    with serving(report(12)) as address:
        for pod in pods:
            stage.run(pod, address)
        running = stage.until_phase("Running")
    folder = f"pvc://runs/demo-{uid[:8]}"
    assert running["progress"]["step"] == 12
    assert running["best"]["checkpoint"] == f"{folder}/checkpoints/step-10"
    assert running["lastCheckpoint"]["path"] == f"{folder}/checkpoints/step-10"
    result = Result(reason="Completed", model="/finetune/run/model", metrics={"f1": 0.9})
    stage.finish(pods[1], 0, message(0))
    stage.finish(pods[0], 0, message(0, step=30, result=result))
    done = stage.until_phase("Succeeded")
    expected = {"reason": "Completed", "model": f"{folder}/model", "metrics": {"f1": 0.9}, "intervals": {}}
    assert done["result"] == expected
    assert phases(done)["Succeeded"] == ("True", "Completed")
    assert [(one["number"], one["toStep"], one["exitCode"]) for one in done["attempts"]] == [(1, 30, 0)]
    # NetworkPolicy, Service, Job, three statuses; events of the start, the training and the end.
    assert until(lambda: operator.writes() == 9), operator.metrics()
    stage.kubectl("wait", "--for=condition=Succeeded", "ftj/demo", "--timeout=5s")
    metrics = operator.metrics()
    assert metrics[f'finetune_operator_jobs{{namespace="{stage.namespace}",phase="Succeeded"}}'] == 1
    assert metrics['finetune_operator_transitions_total{phase="Running"}'] == 1
    began = time.monotonic()
    assert operator.stop() == 0
    assert time.monotonic() - began < 10


def test_an_unchanged_manifest_changes_nothing(stage):
    operator = stage.start().await_ready()
    stage.apply()
    stage.pods()
    stage.until_phase("Starting")
    until(lambda: operator.writes() >= 4)  # NetworkPolicy, Job, status, event
    before = stage.get("jobs,networkpolicies,finetunejobs")
    stage.apply()
    time.sleep(2)
    assert operator.writes() == 4
    assert stage.get("jobs,networkpolicies,finetunejobs") == before
    assert "finalizers" not in stage.find("finetunejobs", "demo")["metadata"]


def test_failures_are_retried_until_the_budget_ends(stage):
    stage.start().await_ready()
    stage.apply(recovery={"maxRestarts": {"application": 1}})
    bug = message(70, Cause.APPLICATION, "KeyError: 'x'")
    (pod,) = stage.pods()
    stage.run(pod)
    stage.finish(pod, 70, bug)
    (again,) = stage.pods(2)
    restarting = until(lambda: (s := stage.status())["restarts"] and s)
    assert (restarting["phase"], restarting["restarts"]) == ("Restarting", {"Application": 1})
    assert restarting["attempts"][0]["reason"] == "KeyError: 'x'"
    stage.finish(again, 70, bug)
    failed = stage.until_phase("Failed")
    assert phases(failed)["Failed"] == ("True", "BudgetExhausted")
    assert [(one["number"], one["cause"]) for one in failed["attempts"]] == [(1, "Application"), (2, "Application")]


PLATFORM = {
    "out of memory": (137, {"reason": "OOMKilled"}, "OutOfMemory"),
    "evicted": (
        143,
        {"conditions": [{"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI"}]},
        "Preempted",
    ),
    "bad data": (65, {}, "Configuration"),
}


@pytest.mark.parametrize(("code", "told", "cause"), PLATFORM.values(), ids=PLATFORM.keys())
def test_what_the_platform_saw_is_the_cause(stage, code, told, cause):
    stage.start().await_ready()
    stage.apply()
    (pod,) = stage.pods()
    stage.finish(pod, code, **told)
    ended = until(lambda: (s := stage.status())["attempts"][0].get("cause") and s)
    assert (ended["attempts"][0]["cause"], ended["attempts"][0]["exitCode"]) == (cause, code)


def test_a_deleted_pod_is_a_preemption(stage):
    stage.start().await_ready()
    stage.apply()
    (pod,) = stage.pods()
    stage.run(pod)
    stage.kubectl("delete", "pod", pod)
    stage.pods(2)
    status = until(lambda: (s := stage.status())["restarts"] and s)
    assert (status["restarts"], status["attempts"][0]["reason"]) == ({"Preempted": 1}, "was deleted")


def test_suspended_and_resumed(stage):
    stage.start().await_ready()
    stage.apply()
    stage.pods()
    stage.until_phase("Starting")
    stage.patch("ftj", "demo", {"spec": {"suspend": True}})
    suspended = stage.until_phase("Suspended")
    assert phases(suspended)["Suspended"] == ("True", "SuspendedByUser")
    ended = until(lambda: (s := stage.status())["attempts"][0].get("end") and s)
    assert ended["attempts"][0]["cause"] == "Preempted"
    assert stage.get("pods") == []
    stage.patch("ftj", "demo", {"spec": {"suspend": False}})
    stage.pods(2)
    assert stage.until_phase("Starting")["restarts"] == {}


def test_a_queue_holds_and_admits(stage):
    stage.start().await_ready()
    stage.apply(queue="team")
    held = stage.until_phase("Suspended")
    assert phases(held)["Suspended"] == ("True", "Queued")
    assert stage.find("jobs", "demo-1")["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team"
    stage.patch("job", "demo-1", {"spec": {"suspend": False}})
    (pod,) = stage.pods()
    stage.until_phase("Starting")
    with serving(report(12)) as address:
        stage.run(pod, address)
        stage.until_phase("Running")
        stage.patch("job", "demo-1", {"spec": {"suspend": True}})
        until(lambda: stage.get("pods") == [])
        again = stage.until_phase("Suspended")
    assert again["runningSeconds"] > 0
    stage.patch("job", "demo-1", {"spec": {"suspend": False}})
    stage.pods()
    assert [one["number"] for one in stage.until_phase("Starting")["attempts"]] == [1]


def test_drift_is_repaired(stage):
    operator = stage.start().await_ready()
    stage.apply(distributed={"workers": 2})
    stage.pods(count=2)
    stage.kubectl("delete", "networkpolicy", "demo")
    stage.kubectl("delete", "service", "finetune-workers-0")
    until(lambda: stage.find("networkpolicies", "demo") and stage.find("services", "finetune-workers-0"))
    stage.patch("networkpolicy", "demo", {"spec": {"ingress": []}})
    until(lambda: stage.find("networkpolicies", "demo")["spec"].get("ingress"))
    settled = operator.writes()
    time.sleep(2)
    assert operator.writes() == settled


def test_deleted_and_made_again(stage):
    operator = stage.start().await_ready()
    stage.apply()
    stage.pods()
    first = stage.find("finetunejobs", "demo")["metadata"]["uid"]
    stage.kubectl("delete", "ftj", "demo")
    stage.apply()

    def owner():
        found = stage.find("jobs", "demo-1")
        return found and found["metadata"]["ownerReferences"][0]["uid"]

    until(lambda: owner() not in (None, first), 40)
    assert [one["number"] for one in stage.until_phase("Starting", seconds=40)["attempts"]] == [1]
    stage.kubectl("delete", "ftj", "demo")
    until(lambda: stage.get("jobs,networkpolicies,pods") == [])
    assert not [name for name in operator.metrics() if stage.namespace in name]


def test_a_finished_job_is_deleted_when_its_time_has_come(stage):
    stage.start().await_ready()
    stage.apply(ttlSecondsAfterFinished=2)
    (pod,) = stage.pods()
    stage.finish(pod, 0, message(0))
    until(lambda: stage.find("finetunejobs", "demo") is None)


def quota(stage):
    hard = {"apiVersion": "v1", "kind": "ResourceQuota", "spec": {"hard": {"pods": "0"}}}
    stage.cluster.apply({**hard, "metadata": {"name": "none", "namespace": stage.namespace}})
    until(lambda: "hard" in (stage.find("resourcequotas", "none") or {}).get("status", {}))
    stage.apply()


def foreign_job(stage):
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "x"}]}
    stage.cluster.apply(
        {
            "apiVersion": "batch/v1",
            "kind": "Job",
            "metadata": {"name": "demo-1", "namespace": stage.namespace},
            "spec": {"suspend": True, "template": {"spec": pod}},
        }
    )
    stage.apply()


def foreign_policy(stage):
    policy = {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "spec": {"podSelector": {}}}
    stage.cluster.apply({**policy, "metadata": {"name": "demo", "namespace": stage.namespace}})
    stage.apply()


def image(stage):
    stage.apply()
    stage.wait_with(stage.pods()[0], "ImagePullBackOff", 'Back-off pulling image "trainer:1"')


def secret(stage):
    stage.apply(hub={"secretRef": {"name": "hub", "key": "token"}})
    stage.wait_with(stage.pods()[0], "CreateContainerConfigError", 'secret "hub" not found')


def peers(stage):
    stage.apply(distributed={"workers": 2})
    stage.run(stage.pods(count=2)[0])


WAITS = {
    "no node": (lambda stage: stage.apply(), "no node takes it (Unschedulable): no nodes available"),
    "quota": (quota, "its pods cannot be made: pods"),
    "image": (image, "its image cannot be pulled (ImagePullBackOff): Back-off pulling"),
    "secret": (secret, 'its container cannot be started (CreateContainerConfigError): secret "hub" not found'),
    "peers": (peers, "1 of 2 workers run; worker 1 waits: no node takes it"),
    "runtime": (lambda stage: stage.apply(runtime="other"), "there is no FineTuneRuntime other"),
    "a Job of somebody else": (foreign_job, "Job demo-1 that is not this job's"),
    "a NetworkPolicy of somebody else": (foreign_policy, "NetworkPolicy demo that is not this job's"),
}


@pytest.mark.parametrize(("make", "told"), WAITS.values(), ids=WAITS.keys())
def test_a_job_that_cannot_run_says_why(stage, make, told):
    stage.start().await_ready()
    make(stage)
    until(lambda: told in stage.message(), 30, f"{told}")
    assert told in stage.kubectl("get", "ftj", "demo"), "in the row that people see"


def test_killed_in_between_it_goes_on(stage):
    """However short its lives are, the same objects come out, once each."""
    for delay in (1.2, 1.4, 1.6, 1.8, 2.0, 2.2):
        operator = stage.start()
        if delay == 1.2:
            stage.apply(recovery={"maxRestarts": {"application": 1}})
        time.sleep(delay)
        operator.kill()
    operator = stage.start().await_ready()
    (pod,) = stage.pods()
    operator.kill()
    stage.finish(pod, 70)
    stage.start().await_ready()
    (pod,) = stage.pods(2)
    stage.finish(pod, 0, message(0, step=30))
    done = stage.until_phase("Succeeded")
    assert done["restarts"] == {"Application": 1}
    assert [(one["number"], one.get("cause")) for one in done["attempts"]] == [(1, "Application"), (2, None)]
    assert sorted(one["metadata"]["name"] for one in stage.get("jobs")) == ["demo-1", "demo-2"]


def test_when_the_leader_is_killed_another_one_takes_over(stage):
    lease = (*LEASE, f"--lease-name={stage.namespace}")
    leader = stage.start(*lease, "--identity=a").await_ready()
    until(lambda: leader.metrics()["finetune_operator_leading"])
    follower = stage.start(*lease, "--identity=b").await_ready()
    stage.apply()
    stage.pods()
    stage.until_phase("Starting")
    assert (follower.metrics()["finetune_operator_leading"], follower.writes()) == (0, 0)
    leader.kill()
    began = time.monotonic()
    stage.apply("second")
    stage.pods(name="second")
    assert time.monotonic() - began < 20
    third = stage.start(*lease, "--identity=c").await_ready()
    assert follower.stop() == 0
    began = time.monotonic()
    until(lambda: third.metrics()["finetune_operator_leading"])
    assert time.monotonic() - began < 5
