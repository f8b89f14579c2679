"""What a real node does not start is told by its job within 30 s, in its condition and in the row that people see.

The trainers' image is a shell's, for no job here gets so far as to run.
"""

import pytest

import on_node
from charts import NAMESPACE
from cluster import images
from cluster.manifests import RESTRICTED
from on_node import RUNS, Run, Site
from operating import API_VERSION

pytestmark = [pytest.mark.node, pytest.mark.timeout(1200)]
TOLD_SECONDS = 30.0
ABSENT = "127.0.0.1:9/trainer:none"
"""No registry is there: a pull is refused at once, whatever names the node can look up."""


@pytest.fixture(scope="module")
def names(node_cluster):
    """The images that the chart is given."""
    images.import_image(node_cluster, images.shell_image())
    return {"operator": images.import_project_image(node_cluster, "operator"), "trainer": images.SHELL_IMAGE}


@pytest.fixture(scope="module")
def site(node_cluster, names, tmp_path_factory):
    runs = tmp_path_factory.mktemp("volumes") / RUNS
    with node_cluster.namespace("tenant", labels=RESTRICTED) as tenant, on_node.release(node_cluster, names):
        volume, claim = on_node.local_volume(tenant, RUNS, runs)
        node_cluster.apply(volume, claim)
        yield Site(node_cluster, tenant, NAMESPACE, runs, runs)
        node_cluster.kubectl("delete", "finetunejobs", "--all", "--namespace", tenant, "--timeout=60s")
        node_cluster.kubectl("delete", "pv", volume["metadata"]["name"], "--wait=false")


@pytest.fixture
def runtime(node_cluster, names):
    """Makes a runtime like the default one, but for what is said; returns its name."""

    def make(**spec):
        manifest = {"apiVersion": API_VERSION, "kind": "FineTuneRuntime", "metadata": {"name": "absent"}}
        node_cluster.apply({**manifest, "spec": {**on_node.values(names)["defaultRuntime"]["spec"], **spec}})
        return "absent"

    yield make
    node_cluster.kubectl("delete", "finetuneruntime", "absent", "--ignore-not-found")


def not_pulled(runtime):
    return {"runtime": runtime(image=ABSENT, imagePullPolicy="IfNotPresent")}


def never_pulled(runtime):
    return {"runtime": runtime(image=ABSENT, imagePullPolicy="Never")}


def no_secret(_runtime):
    return {"hub": {"secretRef": {"name": "nobodys", "key": "token"}}}


REFUSALS = {
    "no-image": (not_pulled, ("its image cannot be pulled (", ABSENT)),
    "image-never-pulled": (never_pulled, ("its image cannot be pulled (ErrImageNeverPull): ", ABSENT)),
    "no-secret": (no_secret, ('its container cannot be started (CreateContainerConfigError): secret "nobodys" ',)),
}
"""The job's name → (what its spec is, what is told)."""


@pytest.mark.parametrize("name", REFUSALS)
def test_what_the_node_does_not_start_is_told(site: Site, runtime, name):
    prepare, told = REFUSALS[name]
    run = site.apply(name, **prepare(runtime))
    run.until(lambda: all(part in condition(run) for part in told), f"{told}", TOLD_SECONDS)
    row = site.kubectl("get", "ftj", name)
    assert all(part in row for part in told), row


def condition(run: Run) -> str:
    """Why it does not run."""
    return next((one["message"] for one in run.status().get("conditions", []) if one["type"] == "Running"), "")
