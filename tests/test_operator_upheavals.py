"""What a platform does around running jobs: upgrades, namespaces deleted, nodes that have not what is asked for."""

import os
from types import SimpleNamespace

import pytest

from charts import CHART, RELEASE, helm
from cluster.running import Shape
from operating import RUNTIME, job, message, until
from surviving import SIZED, Outside, Replica

GONE_SECONDS = 60.0
"""Until a namespace with running jobs, or a release beside them, is gone."""


@pytest.fixture(scope="module")
def nodes(start_cluster):
    """A cluster of simulated nodes whose runtimes these tests change."""
    cluster = start_cluster(Shape(simulated_nodes=2))
    cluster.apply_crds()
    cluster.apply(SIZED)
    return cluster


@pytest.fixture
def scene(nodes, tmp_path):
    """(a namespace seen from outside, the operator that serves it); the namespace may be deleted meanwhile."""
    context = nodes.namespace()
    outside = Outside(nodes, context.__enter__())
    outside.give_volumes(3)
    replica = Replica(nodes, outside.namespace, tmp_path)
    yield SimpleNamespace(outside=outside, replica=replica)
    replica.close()
    context.__exit__(None, None, None)


def test_an_upgrade_restarts_no_pod(nodes, scene):
    """A new operator process, a new image in the runtime: what runs goes on, what comes next gets the new image."""
    outside, replica = scene.outside, scene.replica
    outside.apply("long", distributed={"workers": 2})
    pods = outside.until_runs("long", workers=2)
    sized = {**SIZED, "spec": {**SIZED["spec"], "image": "trainer:2", "sharedMemory": "2Gi"}}
    assert replica.operator.stop() == 0
    nodes.apply(sized)
    until(lambda: replica.ends == [0] and replica.operator.fetch(replica.operator.health_port, "/readyz")[0] == 200)
    outside.apply("next")
    outside.until_runs("next")
    assert outside.until_runs("long", workers=2) == pods
    assert [images(outside, name) for name in ("long", "next")] == [{"trainer:1"}, {"trainer:2"}]
    outside.finish("long", 1, 0, message(0, step=30), (0, 1))
    outside.until_phase("long", "Succeeded")


def images(outside, name):
    return {pod["spec"]["containers"][0]["image"] for pod in outside.pods(name, 1)}


@pytest.mark.parametrize("is_served", [True, False], ids=["with its operator", "without an operator"])
def test_a_namespace_with_running_jobs_is_deleted(nodes, scene, is_served):
    outside = scene.outside
    names = [f"runs-{number}" for number in range(3)]
    outside.apply(*names, distributed={"workers": 2})
    for name in names:
        outside.until_runs(name, workers=2)
    if not is_served:
        scene.replica.end()
    nodes.kubectl("delete", "namespace", outside.namespace, f"--timeout={GONE_SECONDS:.0f}s")
    assert outside.ask("GET", f"/api/v1/namespaces/{outside.namespace}") is None
    assert "Traceback" not in scene.replica.log()


def test_a_release_goes_and_its_jobs_go_on(nodes, scene, tmp_path):
    outside = scene.outside
    outside.apply("long")
    pods = outside.until_runs("long")
    env = os.environ | {"KUBECONFIG": str(nodes.kubeconfig), "HELM_CACHE_HOME": str(tmp_path)}
    with nodes.namespace() as release:
        values = {"crds": {"enabled": False}}
        helm("install", RELEASE, CHART, "-n", release, values=values, env=env)
        helm("uninstall", RELEASE, "-n", release, "--wait", f"--timeout={GONE_SECONDS:.0f}s", env=env)
    assert outside.until_runs("long") == pods
    nodes.kubectl("delete", "finetuneruntime", "default", "--ignore-not-found")


def gpus(_nodes):
    return {"distributed": {"resources": {"gpus": 16}}}, "Insufficient nvidia.com/gpu"


def unbound(nodes):
    spec = {**RUNTIME["spec"], "volume": {"size": "1Gi", "storageClassName": "of-nobody"}}
    nodes.apply({**RUNTIME, "metadata": {"name": "elsewhere"}, "spec": spec})
    return {"runtime": "elsewhere"}, "unbound immediate PersistentVolumeClaims"


@pytest.mark.parametrize("prepare", [gpus, unbound], ids=["GPUs", "volume"])
def test_what_no_node_has_is_told(nodes, scene, prepare):
    spec, told = prepare(nodes)
    scene.replica.operator.await_ready()
    nodes.apply(job(scene.outside.namespace, "waits", **{"runtime": "sized", **spec}))
    until(lambda: told in row(nodes, scene.outside.namespace), 30, lambda: row(nodes, scene.outside.namespace))
    (running,) = [one for one in scene.outside.status("waits")["conditions"] if one["type"] == "Running"]
    assert told in running["message"]


def row(nodes, namespace):
    """What a person sees."""
    return nodes.kubectl("-n", namespace, "get", "ftj", "waits")
