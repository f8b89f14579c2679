"""What befalls pods on a real node: each is told by its right cause, and the run goes on as if nothing had been.

One run is left alone. Each other run of the same spec is hurt while it trains, beyond its newest checkpoint; when it is
finished its history has to be the same to the byte.
"""

import json
import os
import signal
import time
from dataclasses import dataclass
from typing import Any

import psutil
import pytest

import on_node
from cluster import node
from cluster.node import NAME, pids_of
from on_node import DIGITS_RUN as SPEC
from on_node import Run, Site, seconds_of

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]
HURT_AFTER = 80
"""A checkpoint of this step or a later one lies on the volume when a run is hurt."""

DEADLINE_SECONDS = 45
"""It trains by then."""


@dataclass(frozen=True)
class Recovery:
    """What came of a run that was hurt."""

    status: dict[str, Any]
    saved: int
    """The step of the newest checkpoint when the first attempt had ended."""
    seconds: float
    """From the hurt, once it is done (memory has run out), to the first step that the second attempt trained."""
    floor: float
    """Of these, from the start of its containers: imports, loading, meeting."""

    def __str__(self) -> str:
        ratio = self.seconds / self.floor
        return f"{self.seconds:.1f} s from the hurt to training, {ratio:.2f} times the floor of {self.floor:.1f} s"

    @property
    def first(self) -> dict[str, Any]:
        return self.status["attempts"][0]


@pytest.fixture(scope="module")
def site(node_cluster, tmp_path_factory):
    with on_node.site(node_cluster, tmp_path_factory.mktemp("volumes")) as ours:
        yield ours


@pytest.fixture(scope="module")
def undisturbed(site: Site) -> bytes:
    """The history of a run that nothing befell."""
    run = site.apply("undisturbed", **SPEC)
    assert len(run.until_finished()["attempts"]) == 1
    assert run.step() == SPEC["training"]["maxSteps"]
    return run.history()


def delete_pod(site: Site, run: Run) -> None:
    site.kubectl("delete", "pod", run.pods(1)[1]["metadata"]["name"], "--wait=false")


def evict(site: Site, run: Run) -> None:
    pod = run.pods(1)[1]["metadata"]["name"]
    asked = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": site.namespace}}
    where = f"/api/v1/namespaces/{site.namespace}/pods/{pod}/eviction"
    site.cluster.kubectl("create", f"--raw={where}", "--filename=-", stdin=json.dumps(asked))


def kill_rank(site: Site, run: Run) -> None:
    """The process that trains, of worker 1; its launcher stays."""
    launcher, *_ = pids_of(site.cluster, run.pods(1)[1])
    (rank,) = psutil.Process(launcher).children()
    rank.kill()


def kill_container(site: Site, run: Run) -> None:
    """The first process of worker 0's container, and with it the kernel kills all others."""
    launcher, *_ = pids_of(site.cluster, run.pods(1)[0])
    os.kill(launcher, signal.SIGKILL)


def fill_memory(site: Site, run: Run) -> None:
    """/dev/shm counts as memory of the container, and no process can be made to give it back."""
    fill = ("dd", "if=/dev/zero", "of=/dev/shm/fill", "bs=1M", "count=900")
    site.kubectl("exec", run.pods(1)[1]["metadata"]["name"], "--", *fill, check=False)


HURTS = {
    "a pod is deleted": (delete_pod, {}, "Preempted", 143, "asked to leave"),
    "a pod is evicted": (evict, {}, "Preempted", 143, "worker 1: evicted"),
    "a process is killed": (kill_rank, {}, "Infrastructure", 137, "worker 1: rank 1 was ended by SIGKILL"),
    "a container is killed": (kill_container, {}, "Infrastructure", 137, "worker 0: killed (SIGKILL)"),
    "memory runs out": (fill_memory, {"memory": "1Gi"}, "OutOfMemory", 137, "worker 1: killed by the kernel"),
}
"""What happens → (how, resources, the cause that is told, the exit code, a part of the reason)."""


@pytest.mark.parametrize("what", HURTS)
def test_a_run_goes_on_as_if_nothing_had_been(site: Site, undisturbed, what, record_property):
    hurt, resources, cause, code, reason = HURTS[what]
    name = what.replace(" ", "-")
    run = site.apply(name, **SPEC | {"distributed": {"workers": 2, "resources": resources}})
    run.until(lambda: run.saved_step() >= HURT_AFTER, "a checkpoint")
    run.until(lambda: run.step() > run.saved_step() + 5, "steps beyond it")
    recovery = recovered(site, run, lambda: hurt(site, run))
    record_property("seconds", f"{what}: {recovery}")
    print(f"{what}: {recovery}")
    assert (recovery.first["cause"], recovery.first["exitCode"]) == (cause, code), recovery.first
    assert reason in recovery.first["reason"]
    assert recovery.status["restarts"] == {cause: 1}
    assert recovery.status["resumedFromStep"] == recovery.saved
    assert [attempt.get("exitCode") for attempt in recovery.status["attempts"]] == [code, 0]
    assert run.history() == undisturbed


def recovered(site: Site, run: Run, hurt) -> Recovery:
    """Hurt a run, and follow it to its end; no worker of its second attempt starts beside one of its first."""
    hurt()
    began = time.time()
    second = run.until(lambda: run.pods(2), "pods of the second attempt", 200)
    saved = run.saved_step()
    assert alive(run.pods(1)) == [], "the second attempt waits until nothing of the first is alive"
    ends = [ended["finishedAt"] for pod in run.pods(1) if (ended := terminated(pod))]
    assert all(seconds_of(end) <= seconds_of(pod["metadata"]["creationTimestamp"]) for end in ends for pod in second)
    run.until(lambda: saved < run.step() and is_training(run), "training again")
    trains = time.time()
    started = max(psutil.Process(pids_of(site.cluster, pod)[0]).create_time() for pod in run.pods(2))
    status = run.until_finished()
    return Recovery(status, saved, trains - began, trains - started)


def alive(pods: list[dict[str, Any]]) -> list[str]:
    """Names of the pods of which a process runs or will."""
    return [pod["metadata"]["name"] for pod in pods
            if pod["status"]["phase"] not in ("Succeeded", "Failed") and not terminated(pod)]  # fmt: skip


def is_training(run: Run) -> bool:
    """Whether the second attempt has begun: its start is noted once it has loaded its checkpoint."""
    lines = [json.loads(line) for line in run.folder.attempts.read_text().splitlines()]
    return any((line["event"], line["attempt"]) == ("start", 2) for line in lines)


def terminated(pod: dict[str, Any]) -> dict[str, Any] | None:
    return next((one["state"].get("terminated") for one in pod["status"].get("containerStatuses", [])), None)


def test_too_little_memory_ends_a_job_once_its_budget_is_used_up(site: Site):
    small = {"distributed": {"workers": 2, "resources": {"memory": "150Mi"}}}
    run = site.apply("small", **SPEC | small | {"recovery": {"maxRestarts": {"outOfMemory": 1}}})
    status = run.until_finished("Failed")
    assert [(attempt["cause"], attempt["exitCode"]) for attempt in status["attempts"]] == 2 * [("OutOfMemory", 137)]
    (failed,) = (condition for condition in status["conditions"] if condition["type"] == "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "BudgetExhausted")
    assert "raise spec.distributed.resources.memory" in failed["message"]


def test_a_node_that_is_lost_is_waited_for_until_its_pods_are_known_to_be_dead(site: Site, undisturbed):
    """Its power fails: kubelet and all processes are gone at once, and the API server knows of neither."""
    run = site.apply("lost", **SPEC)
    run.until(lambda: run.saved_step() >= HURT_AFTER, "a checkpoint")
    saved = run.saved_step()
    dead = [pid for pod in run.pods(1) for pid in pids_of(site.cluster, pod)]
    site.cluster.stop("kubelet", signal.SIGKILL)
    for pid in dead:
        os.kill(pid, signal.SIGKILL)
    taint = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    try:
        run.until(lambda: "does not answer" in waiting(run), "word of the node that does not answer")
        assert run.pods(2) == [], "pods that may be alive keep the second attempt from starting"
        site.cluster.kubectl("taint", "node", NAME, taint)
        run.until(lambda: run.pods(2), "pods of the second attempt")
        assert alive(run.pods(1)) == []
    finally:
        site.cluster.kubectl("taint", "node", NAME, f"{taint}-", check=False)
        site.cluster.start("kubelet")
        node.await_ready(site.cluster)
    status = run.until_finished()
    assert (status["attempts"][0]["cause"], status["restarts"]) == ("Infrastructure", {"Infrastructure": 1})
    assert status["resumedFromStep"] >= saved
    assert run.history() == undisturbed


def test_trainers_go_on_while_their_kubelet_is_away(site: Site, undisturbed):
    run = site.apply("unwatched", **SPEC)
    run.until(lambda: run.saved_step() >= HURT_AFTER, "a checkpoint")
    site.cluster.stop("kubelet")
    try:
        run.until(lambda: "does not answer" in waiting(run), "word of the node that does not answer")
        run.until(lambda: run.step() == SPEC["training"]["maxSteps"], "the last step")
    finally:
        site.cluster.start("kubelet")
        node.await_ready(site.cluster)
    status = run.until_finished()
    assert [attempt.get("exitCode") for attempt in status["attempts"]] == [0]
    assert status.get("restarts", {}) == {}
    assert run.history() == undisturbed


def test_a_suspended_run_saves_first_and_goes_on_from_there(site: Site, undisturbed):
    run = site.apply("rests", **SPEC)
    run.until(lambda: run.step() > HURT_AFTER + 5, "steps beyond a checkpoint")
    before = run.step()
    set_suspend(site, run, wanted=True)
    run.until(lambda: run.status()["phase"] == "Suspended" and alive(run.pods(1)) == [], "its rest")
    saved = run.saved_step()
    assert saved == run.status()["lastCheckpoint"]["step"]
    assert before <= saved < SPEC["training"]["maxSteps"]
    assert saved % SPEC["checkpoint"]["every"]["steps"], "the checkpoint was made when it was asked to leave"
    set_suspend(site, run, wanted=False)
    status = run.until_finished()
    assert [attempt.get("exitCode") for attempt in status["attempts"]] == [143, 0]
    assert (status["resumedFromStep"], status.get("restarts", {})) == (saved, {})
    assert run.history() == undisturbed


def set_suspend(site: Site, run: Run, *, wanted: bool) -> None:
    patch = json.dumps({"spec": {"suspend": wanted}})
    site.kubectl("patch", "finetunejob", run.name, "--type=merge", f"--patch={patch}")


def test_a_run_out_of_time_has_saved(site: Site):
    longer = SPEC | {"training": SPEC["training"] | {"maxSteps": 100_000}}
    run = site.apply("overdue", **longer, activeDeadlineSeconds=DEADLINE_SECONDS)
    status = run.until_finished("Failed")
    (failed,) = (condition for condition in status["conditions"] if condition["type"] == "Failed")
    assert (failed["status"], failed["reason"]) == ("True", "DeadlineExceeded")
    assert DEADLINE_SECONDS <= status["runningSeconds"] < DEADLINE_SECONDS + 40
    assert run.saved_step() == status["lastCheckpoint"]["step"] == run.step()


def waiting(run: Run) -> str:
    """What the job says of itself."""
    return " ".join(condition["message"] for condition in run.status()["conditions"])
