"""The chart on a real API server, by real Helm: install, upgrade, uninstall, and what its roles come to there."""

import os
import shutil
from types import SimpleNamespace

import pytest
import yaml

from charts import CHART, NAMESPACE, RELEASE, ROOT, VARIANTS, found, helm, installed, rendered
from cluster import builder, images
from cluster.running import ClusterError, Shape
from operating import Operator, job, until
from test_dockerfile import MOST_OPERATOR_BYTES

RESTRICTED = {f"pod-security.kubernetes.io/{mode}": "restricted" for mode in ("enforce", "warn")}
MANAGED = "app.kubernetes.io/managed-by=finetune-operator"
FOREIGN = {"PodMonitor", "ServiceMonitor"}
"""Kinds of Prometheus Operator, which is not there."""
JOB = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneJob",
    "metadata": {"name": "kept", "namespace": "team-a"},
    "spec": {"task": "causal-lm", "model": {"source": "hf://a/b"}, "data": {"source": "hf://a/c"}},
}


@pytest.fixture(scope="module")
def fresh(start_cluster):
    """A cluster that has never seen the project's kinds."""
    made = start_cluster(Shape())
    for name, labels in {NAMESPACE: RESTRICTED, "team-a": {}, "team-b": {}}.items():
        made.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return made


@pytest.fixture
def release(fresh, tmp_path):
    """Helm at that cluster; what it leaves is removed.

    It installs as users do, and waits, for the API server is to know the kinds; no node is here that pods could run on.
    """
    env = os.environ | {"KUBECONFIG": str(fresh.kubeconfig), "HELM_CACHE_HOME": str(tmp_path)}

    def run(verb, *arguments, chart=CHART, values=None):
        where = [RELEASE, *([] if verb in ("uninstall", "rollback") else [chart]), "--namespace", NAMESPACE]
        if verb == "install":
            where, values = [*where, "--wait"], {"replicas": 0} | (values or {})
        return helm(verb, *where, *arguments, values=values, env=env)

    yield run
    run("uninstall", "--ignore-not-found")
    fresh.kubectl("delete", "crd", "finetunejobs.finetune.dev", "finetuneruntimes.finetune.dev", "--ignore-not-found")


def runtime(cluster):
    """(shared memory, egress) of the default runtime."""
    spec = cluster.get("finetuneruntime", "default")["spec"]
    return spec["sharedMemory"], spec["egress"]


def runtime_values(**spec):
    return {"defaultRuntime": {"spec": spec}}


def test_a_release_from_install_to_uninstall_and_back(fresh, release):
    release("install", values=runtime_values(egress="dns"))
    assert runtime(fresh) == ("1Gi", "dns")
    fresh.apply(JOB)

    release("upgrade", values=runtime_values(sharedMemory="2Gi"))
    assert runtime(fresh) == ("2Gi", "all"), "the first upgrade takes the hook's object over"
    made = fresh.get("finetuneruntime", "default")["metadata"]["uid"]
    release("upgrade", values=runtime_values(sharedMemory="3Gi"))
    assert runtime(fresh) == ("3Gi", "all")
    release("rollback", "2")
    assert runtime(fresh) == ("2Gi", "all")
    assert fresh.get("finetuneruntime", "default")["metadata"]["uid"] == made, "from then on it is changed in place"

    release("uninstall")
    assert (
        fresh.get("deployments,roles,serviceaccounts", "-n", NAMESPACE, "-l", f"app.kubernetes.io/instance={RELEASE}")
        == []
    )
    assert fresh.get("clusterroles,clusterrolebindings", "-l", f"app.kubernetes.io/instance={RELEASE}") == []
    assert fresh.get("finetunejob", "kept", "-n", "team-a")["spec"]["task"] == "causal-lm", "jobs outlive the release"
    assert runtime(fresh) == ("2Gi", "all"), "and so does what they name"

    release("install", values=runtime_values(egress="none"))
    assert runtime(fresh) == ("1Gi", "none")


def test_an_upgrade_brings_the_crds_along(fresh, release, tmp_path):
    columns = "{.spec.versions[0].additionalPrinterColumns[*].name}"

    def shown():
        return fresh.kubectl("get", "crd", "finetunejobs.finetune.dev", f"--output=jsonpath={columns}")

    older = shutil.copytree(CHART, tmp_path / "older")
    template = older / "templates/crds/finetunejobs.yaml"
    text = template.read_text()
    template.write_text(text.replace("- name: Attempt\n", "- name: Try\n"))
    release("install", chart=older)
    assert "Try" in shown()
    release("upgrade")
    assert "Try" not in shown()
    assert "Attempt" in shown()
    release("uninstall")
    release("install", chart=older)
    assert "Try" in shown(), "CRDs that an uninstalled release left are taken over whole"


def test_the_api_server_accepts_every_object_without_a_warning(fresh, release):
    release("install")
    for name, values in VARIANTS.items():
        objects = [item for item in rendered(values) if item["kind"] not in FOREIGN]
        said = fresh.kubectl("apply", "--dry-run=server", "--server-side", "--force-conflicts", "--filename=-",
                             stdin=yaml.safe_dump_all(objects), check=False).splitlines()  # fmt: skip
        assert len(said) == len(objects), (name, said)
        assert all(line.endswith("serverside-applied (server dry run)") for line in said), (name, said)


def test_a_pod_is_admitted_where_restricted_is_enforced(fresh, release):
    release("install")
    release("upgrade", values={"replicas": 2})
    fresh.kubectl("-n", NAMESPACE, "wait", "deployment/finetune-operator", "--for=jsonpath={.status.replicas}=2",
                  "--timeout=30s")  # fmt: skip
    assert len(fresh.get("pods", "-n", NAMESPACE)) == 2


OPERATOR = f"system:serviceaccount:{NAMESPACE}:finetune-operator"
TENANT = "tenant"
CAN = {
    "operator, status of any job": (OPERATOR, "update finetunejobs --subresource=status -n team-b", True),
    "operator, replace a job": (OPERATOR, "update finetunejobs -n team-b", False),
    "operator, make a trial": (OPERATOR, "create finetunejobs -n team-b", True),
    "operator, spec of an experiment": (OPERATOR, "patch finetuneexperiments -n team-b", False),
    "operator, make a Job": (OPERATOR, "create jobs.batch -n team-b", True),
    "operator, make a pod": (OPERATOR, "create pods -n team-b", False),
    "operator, read secrets": (OPERATOR, "get secrets -n team-b", False),
    "operator, change a runtime": (OPERATOR, "patch finetuneruntimes", False),
    "operator, its own Lease": (OPERATOR, f"update leases/finetune-operator -n {NAMESPACE}", True),
    "operator, another Lease": (OPERATOR, f"update leases/other -n {NAMESPACE}", False),
    "operator, Leases of a tenant": (OPERATOR, "create leases -n team-a", False),
    "tenant, make a job": (TENANT, "create finetunejobs -n team-a", True),
    "tenant, delete a job": (TENANT, "delete finetunejobs -n team-a", True),
    "tenant, say what a job's status is": (TENANT, "update finetunejobs --subresource=status -n team-a", False),
    "tenant, make an experiment": (TENANT, "create finetuneexperiments -n team-a", True),
    "tenant, a job elsewhere": (TENANT, "create finetunejobs -n team-b", False),
    "tenant, change a runtime": (TENANT, "patch finetuneruntimes", False),
}


def test_who_may_do_what(fresh, release):
    release("install")
    fresh.kubectl("-n", "team-a", "create", "rolebinding", TENANT, "--clusterrole=edit", f"--user={TENANT}")
    answers = {}
    for name, (who, what, _) in CAN.items():
        answers[name] = (
            fresh.kubectl("auth", "can-i", "--as", who, *what.split(), check=False).splitlines()[-1] == "yes"
        )
    assert answers == {name: may for name, (_, _, may) in CAN.items()}


@pytest.mark.parametrize("values", [{}, {"watchNamespaces": ["team-a"]}], ids=["all namespaces", "one namespace"])
def test_the_operator_needs_no_other_right(fresh, release, tmp_path, values):
    rule = {"namespaces": {"matchLabels": {"kubernetes.io/metadata.name": "team-a"}}}
    release("install", values={**values, **runtime_values(**rule)})
    fresh.kubectl("-n", "team-a", "create", "quota", "none", "--hard=pods=0")
    (container,) = found(rendered(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    flags = [one.replace("$(POD_NAME)", "pod-1") for one in container["args"] if "-port=" not in one]
    operator = Operator(SimpleNamespace(kubeconfig=as_operator(fresh, tmp_path)), tmp_path / "operator.log", *flags)
    try:
        operator.await_ready()
        name = f"live-{len(flags[0])}"
        fresh.apply(job("team-a", name, distributed={"workers": 2}))

        def said():
            conditions = fresh.get("ftj", name, "-n", "team-a").get("status", {}).get("conditions", [])
            return next((one["message"] for one in conditions if "exceeded quota" in one.get("message", "")), None)

        until(said, 60, "that the quota is used up")
        fresh.kubectl("-n", "team-a", "patch", "ftj", name, "--type=merge", '--patch={"spec": {"suspend": true}}')
        fresh.kubectl("-n", "team-a", "wait", "ftj", name, "--for=condition=Suspended", "--timeout=30s")
        made = {item["kind"] for item in fresh.get("networkpolicies,services,pvc", "-n", "team-a", "-l", MANAGED)}
        assert made == {"NetworkPolicy", "Service", "PersistentVolumeClaim"}
        run_an_experiment(fresh)
        assert fresh.get("lease", "finetune-operator", "-n", NAMESPACE)["spec"]["holderIdentity"] == "pod-1"
        assert until(
            lambda: fresh.get("events.events.k8s.io", "-n", "team-a", f"--field-selector=regarding.name={name}")
        )
        assert [series for series in operator.metrics() if 'code="403"' in series] == []
        assert "orbidden" not in operator.log.read_text()
    finally:
        operator.kill()
        fresh.kubectl("-n", "team-a", "delete", "quota,finetuneexperiments,finetunejobs", "--all")


def run_an_experiment(cluster):
    """Its trials are made, and suspended with it."""
    template = job("team-a", "x")["spec"]
    spec = {"template": template, "variants": [{"name": "a"}, {"name": "b"}], "objective": {"metric": "accuracy"}}
    metadata = {"name": "schemes", "namespace": "team-a"}
    cluster.apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneExperiment", "metadata": metadata,
                   "spec": {**spec, "parallelism": 2}})  # fmt: skip
    trials = ("-n", "team-a", "finetunejobs", "--selector=finetune.dev/experiment=schemes")
    until(lambda: len(cluster.get(*trials)) == 2, 30, "its trials")
    patch = '--patch={"spec": {"suspend": true}}'
    cluster.kubectl("-n", "team-a", "patch", "fte", "schemes", "--type=merge", patch)
    cluster.kubectl("-n", "team-a", "wait", "fte/schemes", "--for=condition=Suspended", "--timeout=30s")
    assert all(trial["spec"]["suspend"] for trial in cluster.get(*trials))


def as_operator(cluster, folder):
    """A kubeconfig of the chart's service account."""
    token = cluster.kubectl("-n", NAMESPACE, "create", "token", "finetune-operator").strip()
    config = yaml.safe_load(cluster.kubeconfig.read_text())
    config["users"] = [{"name": user["name"], "user": {"token": token}} for user in config["users"]]
    path = folder / "kubeconfig"
    path.write_text(yaml.safe_dump(config))
    return path


def test_a_release_does_not_take_over_what_is_not_its_own(fresh, release):
    fresh.apply_crds(ROOT / "crds")
    with pytest.raises(Exception, match="invalid ownership metadata"):
        release("install")
    release("install", values={"crds": {"enabled": False}})
    assert runtime(fresh) == ("1Gi", "all")
    with pytest.raises(ClusterError, match=r"spec\.image"):
        fresh.apply({"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneRuntime", "metadata": {"name": "x"},
                     "spec": {}})  # fmt: skip


@pytest.mark.node
def test_the_operators_image_adds_little_to_its_base():
    name = builder.project_image("operator")
    added = builder.size_bytes(name) - builder.size_bytes(builder.BASE_IMAGE)
    print(f"{added / 1e6:.0f} MB")
    assert added < MOST_OPERATOR_BYTES


@pytest.mark.node
def test_the_dashboard_is_served_through_the_api_server(node_cluster):
    repository, _, tag = images.import_project_image(node_cluster, "operator").rpartition(":")
    image = {"repository": repository, "tag": tag, "pullPolicy": "Never"}
    values = {"crds": {"enabled": False}, "image": image, "replicas": 1, "dashboard": {"enabled": True}}
    with node_cluster.namespace(labels=RESTRICTED) as namespace, installed(node_cluster, namespace, values):
        proxy = f"/api/v1/namespaces/{namespace}/services/finetune-operator-dashboard:http/proxy"
        assert node_cluster.kubectl("get", "--raw", f"{proxy}/healthz") == "ok"
        assert "<title>" in node_cluster.kubectl("get", "--raw", f"{proxy}/")
        node_cluster.apply(job(namespace, "seen"))
        asked = f"{proxy}/object?kind=FineTuneJob&namespace={namespace}&name=seen"
        shown = until(lambda: node_cluster.kubectl("get", "--raw", asked, check=False), 30, "the job is shown")
        assert '"name": "seen"' in shown


@pytest.mark.node
def test_two_replicas_are_ready_on_a_node_and_one_leads(node_cluster):
    repository, _, tag = images.import_project_image(node_cluster, "operator").rpartition(":")
    values = {"crds": {"enabled": False}, "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"}}
    with node_cluster.namespace(labels=RESTRICTED) as namespace, installed(node_cluster, namespace, values):
        pods = node_cluster.get("pods", "-n", namespace)
        assert [container["restartCount"] for pod in pods for container in pod["status"]["containerStatuses"]] == [0, 0]
        names = {pod["metadata"]["name"] for pod in pods}

        def holder():
            return node_cluster.get("lease", "finetune-operator", "-n", namespace)["spec"]["holderIdentity"]

        first = until(holder)
        assert first in names
        node_cluster.kubectl("-n", namespace, "delete", "pod", first, "--wait=false")
        assert until(lambda: holder() not in ("", first), 20)
