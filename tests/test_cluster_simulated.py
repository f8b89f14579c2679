"""Simulated nodes: pods run, and end as a test says."""

import pytest

from cluster import simulated
from cluster.errors import ClusterError
from cluster.manifests import indexed_job
from cluster.running import Shape, bring_up
from workers import until

INDEX = "batch.kubernetes.io/job-completion-index"


@pytest.fixture
def namespace(simulated_cluster):
    with simulated_cluster.namespace() as name:
        yield name


@pytest.fixture
def pods(simulated_cluster, namespace):
    """The names of a job's two pods, which run."""
    simulated_cluster.apply(indexed_job("two", namespace))
    return [pod["metadata"]["name"] for pod in await_phase(simulated_cluster, namespace, "Running")]


def await_phase(cluster, namespace, phase, count=2):
    """The pods in the order of their indices, once ``count`` are in ``phase``."""

    def found():
        pods = cluster.get("pods", "--namespace", namespace, f"--field-selector=status.phase={phase}")
        return sorted(pods, key=lambda pod: pod["metadata"]["labels"][INDEX]) if len(pods) == count else None

    return until(found, f"{count} pods {phase}", pause=0.2, seconds=30)


def await_condition(cluster, namespace, condition):
    cluster.kubectl("--namespace", namespace, "wait", f"--for=condition={condition}", "job/two", "--timeout=30s")


def test_pods_run_until_they_are_ended(simulated_cluster, namespace, pods):
    simulated.end(simulated_cluster, namespace, *pods, message='{"steps": 3}')
    await_condition(simulated_cluster, namespace, "Complete")
    ended = [
        pod["status"]["containerStatuses"][0]["state"] for pod in await_phase(simulated_cluster, namespace, "Succeeded")
    ]
    told = [{name: state["terminated"][name] for name in ("exitCode", "message", "reason")} for state in ended]
    assert told == [{"exitCode": 0, "message": '{"steps": 3}', "reason": "Completed"}] * 2


def test_a_pod_fails_as_it_is_told(simulated_cluster, namespace, pods):
    simulated.end(simulated_cluster, namespace, pods[1], exit_code=137, reason="OOMKilled")
    (failed,) = await_phase(simulated_cluster, namespace, "Failed", count=1)
    terminated = failed["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (failed["metadata"]["name"], terminated["exitCode"], terminated["reason"]) == (pods[1], 137, "OOMKilled")
    await_condition(simulated_cluster, namespace, "Failed")


def test_a_deleted_pod_ends_before_it_goes(simulated_cluster, namespace, pods):
    simulated_cluster.kubectl("--namespace", namespace, "delete", "pod", pods[0], "--timeout=30s")
    await_condition(simulated_cluster, namespace, "Failed")
    left = simulated_cluster.get("pods", "--namespace", namespace)
    assert pods[0] not in {pod["metadata"]["name"] for pod in left}


def test_gpus_run_out(simulated_cluster, namespace):
    job = indexed_job("two", namespace)
    job["spec"]["template"]["spec"]["containers"][0]["resources"] = {"limits": {"nvidia.com/gpu": "9"}}
    simulated_cluster.apply(job)
    pods = await_phase(simulated_cluster, namespace, "Pending")

    def reason():
        events = simulated_cluster.get("events", "--namespace", namespace, "--field-selector=reason=FailedScheduling")
        return next((event["message"] for event in events), None)

    assert "Insufficient nvidia.com/gpu" in until(reason, "the scheduler's word", pause=0.2, seconds=30)
    assert [pod["spec"].get("nodeName") for pod in pods] == [None, None]


def test_nodes_can_be_added_but_the_shape_stays(simulated_cluster):
    for wanted in (5, 1):
        bring_up(simulated_cluster.folder, Shape(simulated_nodes=wanted))
        assert len(simulated_cluster.get("nodes")) == 5
    with pytest.raises(ClusterError, match="of another shape"):
        bring_up(simulated_cluster.folder, Shape(flags={"etcd": ["--debug"]}))
