"""What a platform does to a release and a namespace on a real node while trainers run: they go on, or they leave."""

import os
import shutil

import pytest

import on_node
from charts import CHART, NAMESPACE, RELEASE, helm
from cluster import images
from cluster.manifests import RESTRICTED
from on_node import DATA, DIGITS_RUN, RUNS, Run, Site

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]
GONE_SECONDS = 60


@pytest.fixture(scope="module")
def site(node_cluster, tmp_path_factory):
    with on_node.site(node_cluster, tmp_path_factory.mktemp("volumes")) as ours:
        yield ours


@pytest.fixture(scope="module")
def names(site: Site):
    return {target: images.import_project_image(site.cluster, target) for target in ("operator", "trainer")}


def release(site: Site, command: str, *arguments, values=None) -> None:
    """Helm's ``command`` on the release, until it has come to its end."""
    env = os.environ | {"KUBECONFIG": str(site.cluster.kubeconfig)}
    waits = ("-n", NAMESPACE, "--wait", f"--timeout={GONE_SECONDS}s")
    helm(command, RELEASE, *arguments, *waits, values=values, env=env)


def operator_images(site: Site) -> set[str]:
    pods = site.cluster.get("--namespace", NAMESPACE, "pods")
    return {pod["spec"]["containers"][0]["image"] for pod in pods if "deletionTimestamp" not in pod["metadata"]}


def trains(run: Run) -> list[str]:
    """The uids of its pods, once it trains."""
    run.until(lambda: run.step() > 0, "the first step")
    return uids(run)


def uids(run: Run) -> list[str]:
    return [pod["metadata"]["uid"] for pod in run.pods(1)]


def test_an_upgrade_of_the_release_restarts_no_trainer(site: Site, names, tmp_path):
    newer = shutil.copytree(CHART, tmp_path / "newer")
    (newer / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text().replace("\nversion: 0.", "\nversion: 9."))
    image = names["operator"] + "-newer"
    images.tag(site.cluster, names["operator"], image)
    run = site.apply("upgraded", **DIGITS_RUN)
    pods = trains(run)
    assert operator_images(site) == {names["operator"]}
    release(site, "upgrade", newer, values=on_node.values(names | {"operator": image}))
    assert operator_images(site) == {image}
    status = run.until_finished()
    assert ([attempt["exitCode"] for attempt in status["attempts"]], uids(run)) == ([0], pods)


def test_trainers_go_on_while_there_is_no_release(site: Site, names):
    run = site.apply("orphaned", **DIGITS_RUN)
    pods = trains(run)
    release(site, "uninstall")
    run.until(lambda: run.step() == DIGITS_RUN["training"]["maxSteps"], "the last step")
    assert "result" not in run.status()
    release(site, "install", CHART, values=on_node.values(names))
    status = run.until_finished()
    assert ([attempt["exitCode"] for attempt in status["attempts"]], uids(run)) == ([0], pods)
    assert status["result"]["metrics"]


def test_a_namespace_goes_with_its_trainers(site: Site, tmp_path):
    """They are asked to leave, and save; nothing keeps the namespace."""
    cluster = site.cluster
    with cluster.namespace("leaving", labels=RESTRICTED) as namespace:
        shutil.copytree(site.data, tmp_path / DATA)
        volumes = [on_node.local_volume(namespace, claim, tmp_path / claim) for claim in (RUNS, DATA)]
        cluster.apply(*(item for volume in volumes for item in volume))
        there = Site(cluster, namespace, NAMESPACE, tmp_path / RUNS, tmp_path / DATA)
        run = there.apply("leaves", **DIGITS_RUN)
        trains(run)
        step = run.step()
        cluster.kubectl("delete", "namespace", namespace, f"--timeout={GONE_SECONDS}s", seconds=GONE_SECONDS + 30)
        assert run.saved_step() >= step
        cluster.kubectl("delete", "pv", *(pv["metadata"]["name"] for pv, _ in volumes), "--wait=false")
