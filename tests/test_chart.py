"""The Helm chart, rendered by real Helm: what it installs, what it grants, what it refuses."""

import json
import tomllib
from dataclasses import replace

import pytest
import yaml

from charts import (
    CHART,
    EVERYTHING,
    KUBERNETES,
    NAMESPACE,
    RELEASE,
    ROOT,
    VARIANTS,
    HelmError,
    found,
    helm,
    pod_of,
    rendered,
)
from finetune_api.chart import crd_template
from finetune_api.crd import RESOURCES, definition
from finetune_api.runtime import FineTuneRuntime
from finetune_operator.names import LABEL_COMPONENT, PROGRESS_PORT, PROGRESS_PORT_NAME, WORKER, managed_labels
from finetune_operator.settings import Settings, parse_settings
from pod_security import violations

variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())


def names(objects):
    return sorted(f"{item['kind']}/{item['metadata']['name']}" for item in objects)


# --- what is installed


def test_it_passes_helms_own_check():
    assert "0 chart(s) failed" in helm("lint", "--strict", "--kube-version", KUBERNETES, CHART)


def test_what_is_installed():
    assert names(rendered()) == [
        "ClusterRole/finetune-operator-edit",
        "ClusterRole/finetune-operator-view",
        "ClusterRole/finetune-system:finetune-operator",
        "ClusterRoleBinding/finetune-system:finetune-operator",
        "CustomResourceDefinition/finetuneexperiments.finetune.dev",
        "CustomResourceDefinition/finetunejobs.finetune.dev",
        "CustomResourceDefinition/finetuneruntimes.finetune.dev",
        "Deployment/finetune-operator",
        "FineTuneRuntime/default",
        "PodDisruptionBudget/finetune-operator",
        "Role/finetune-operator-election",
        "RoleBinding/finetune-operator-election",
        "ServiceAccount/finetune-operator",
    ]


def test_what_is_installed_when_all_is_asked_for():
    assert set(names(rendered(EVERYTHING))) - set(names(rendered())) == {
        "ClusterRole/finetune-operator-runtimes",
        "ClusterRoleBinding/finetune-operator-runtimes",
        "FineTuneRuntime/gpu",
        "NetworkPolicy/finetune-operator",
        "PodMonitor/finetune-operator",
        "PodMonitor/finetune-operator-trainers",
        "Role/finetune-operator-jobs",
        "RoleBinding/finetune-operator-jobs",
        "Service/finetune-operator-metrics",
        "ServiceMonitor/finetune-operator",
    }


def test_the_least_that_can_be_installed():
    assert names(rendered(VARIANTS["nothing beside the operator"])) == [
        "ClusterRole/finetune-system:finetune-operator",
        "ClusterRoleBinding/finetune-system:finetune-operator",
        "Deployment/finetune-operator",
        "Role/finetune-operator-election",
        "RoleBinding/finetune-operator-election",
    ]


@variants
def test_every_object_says_where_it_belongs(values):
    for item in rendered(values):
        labels = item["metadata"]["labels"]
        assert labels["app.kubernetes.io/instance"] == RELEASE, item["kind"]
        assert labels.items() >= values.get("extraLabels", {}).items(), item["kind"]


def test_the_chart_is_of_this_version():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


# --- the operator's pods


@variants
def test_pod_security_restricted_accepts_the_pods(values):
    for item in rendered(values):
        if item["kind"] == "Deployment":
            pod = item["spec"]["template"]["spec"]
            assert violations(pod) == []
            assert all(one["securityContext"]["readOnlyRootFilesystem"] for one in pod["containers"])


def settings_of(values):
    """What the operator makes of its arguments."""
    (operator,) = pod_of(rendered(values))["containers"]
    (name,) = (one for one in operator["env"] if one["name"] == "POD_NAME")
    assert name["valueFrom"] == {"fieldRef": {"fieldPath": "metadata.name"}}
    return parse_settings([argument.replace("$(POD_NAME)", "pod-1") for argument in operator["args"]])


SETTINGS = Settings(
    namespaces=None,
    lease_namespace=NAMESPACE,
    lease_name="finetune-operator",
    identity="pod-1",
    leader_election=True,
    progress_readers=(NAMESPACE,),
    health_port=8081,
    metrics_port=8080,
    bind_address="",
    log_format="plain",
    verbose=False,
)


def test_the_operators_settings():
    assert settings_of({}) == SETTINGS
    assert settings_of(EVERYTHING) == replace(
        SETTINGS, namespaces=("team-a", "team-b"), progress_readers=(NAMESPACE, "monitoring"), log_format="json"
    )


def test_probes_ask_where_the_operator_answers():
    (operator,) = pod_of(rendered())["containers"]
    ports = {port["name"]: port["containerPort"] for port in operator["ports"]}
    assert ports == {"metrics": SETTINGS.metrics_port, "health": SETTINGS.health_port}
    asked = {name: operator[name]["httpGet"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert asked == {
        "startupProbe": {"path": "/healthz", "port": "health"},
        "livenessProbe": {"path": "/healthz", "port": "health"},
        "readinessProbe": {"path": "/readyz", "port": "health"},
    }


def test_where_the_operators_pods_run():
    pod = pod_of(rendered(EVERYTHING))
    fields = ("nodeSelector", "tolerations", "affinity", "priorityClassName", "imagePullSecrets")
    assert {name: pod[name] for name in fields} == {name: EVERYTHING[name] for name in fields}
    assert pod["containers"][0]["image"] == f"mirror/operator@sha256:{'0' * 64}"


def test_the_operators_pods_are_spread():
    objects = rendered()
    (constraint,) = pod_of(objects)["topologySpreadConstraints"]
    assert constraint == {
        "topologyKey": "kubernetes.io/hostname",
        "maxSkew": 1,
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": found(objects, "Deployment")["spec"]["selector"],
    }


@variants
def test_selectors_find_the_operators_pods(values):
    objects = [item for item in rendered(values) if not item["metadata"]["name"].endswith("-dashboard")]
    labels = found(objects, "Deployment")["spec"]["template"]["metadata"]["labels"]
    selectors = {
        "Deployment": lambda spec: spec["selector"]["matchLabels"],
        "PodDisruptionBudget": lambda spec: spec["selector"]["matchLabels"],
        "NetworkPolicy": lambda spec: spec["podSelector"]["matchLabels"],
        "Service": lambda spec: spec["selector"],
    }
    for item in objects:
        if item["kind"] in selectors:
            assert selectors[item["kind"]](item["spec"]).items() <= labels.items(), item["kind"]


def test_where_workers_are_scraped():
    objects = rendered(EVERYTHING)
    monitor = found(objects, "PodMonitor", "finetune-operator-trainers")["spec"]
    index = {"batch.kubernetes.io/job-completion-index": "0"}
    workers = managed_labels() | {LABEL_COMPONENT: WORKER}
    assert monitor["selector"]["matchLabels"] == workers | index
    assert [end["port"] for end in monitor["podMetricsEndpoints"]] == [PROGRESS_PORT_NAME]
    assert monitor["namespaceSelector"] == {"matchNames": EVERYTHING["watchNamespaces"]}
    (_, _, to_workers) = found(objects, "NetworkPolicy")["spec"]["egress"]
    assert to_workers == {
        "to": [{"namespaceSelector": {}, "podSelector": {"matchLabels": workers}}],
        "ports": [{"port": PROGRESS_PORT, "protocol": "TCP"}],
    }


# --- the CRDs and the default runtime


def test_the_crds_are_those_of_the_models_and_are_kept():
    objects = rendered()
    for resource in RESOURCES:
        expected = definition(resource)
        installed = found(objects, "CustomResourceDefinition", expected["metadata"]["name"])
        assert installed["spec"] == expected["spec"]
        assert installed["metadata"]["annotations"] == {"helm.sh/resource-policy": "keep"}


def test_braces_in_a_description_stay_braces(tmp_path):
    text = 'kind: ConfigMap\nmetadata:\n  name: x\ndata: {braces: "{{ .Values }}"}\n'
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates/crd.yaml").write_text(crd_template(text, "notice"))
    (tmp_path / "templates/names.tpl").write_text((CHART / "templates/_names.tpl").read_text())
    (tmp_path / "Chart.yaml").write_text((CHART / "Chart.yaml").read_text())
    values = {"crds": {"enabled": True}, "extraLabels": {}}
    shown = helm("template", tmp_path, "--kube-version", KUBERNETES, values=values)
    assert yaml.safe_load(shown)["data"] == {"braces": "{{ .Values }}"}


RUNTIME_SPECS = {
    "as it is": {"image": "finetune-trainer:0.1.0"},
    "everything": {"image": "finetune-trainer:2", "sharedMemory": "8Gi", "egress": "dns"},
}


@pytest.mark.parametrize("variant", RUNTIME_SPECS)
def test_the_default_runtime_is_one(variant):
    runtime = found(rendered(VARIANTS[variant]), "FineTuneRuntime")
    assert runtime["spec"] == RUNTIME_SPECS[variant]
    FineTuneRuntime.model_validate_json(json.dumps(runtime))


def test_the_runtimes_own_image_wins():
    spec = {"defaultRuntime": {"spec": {"image": "ours:1"}}}
    assert found(rendered(spec), "FineTuneRuntime")["spec"] == {"image": "ours:1"}


def test_the_default_runtime_waits_for_its_kind_only_where_it_is_unknown():
    always = {
        "helm.sh/resource-policy": "keep",
        "meta.helm.sh/release-name": RELEASE,
        "meta.helm.sh/release-namespace": NAMESPACE,
    }
    annotations = found(rendered(), "FineTuneRuntime")["metadata"]["annotations"]
    assert annotations == always | {"helm.sh/hook": "post-install,post-upgrade"}
    known = rendered({}, "--api-versions", "finetune.dev/v1alpha1/FineTuneRuntime")
    assert found(known, "FineTuneRuntime")["metadata"]["annotations"] == always


# --- what is refused

REFUSED = {
    "a typo at the top": ({"replica": 1}, "replica"),
    "a typo inside": ({"monitoring": {"podMonitors": {}}}, "podMonitors"),
    "a typo in the runtime": ({"defaultRuntime": {"spec": {"shareMemory": "1Gi"}}}, "shareMemory"),
    "a runtime's value": ({"defaultRuntime": {"spec": {"egress": "some"}}}, "/defaultRuntime/spec/egress"),
    "a number as text": ({"replicas": "2"}, "/replicas"),
    "a namespace that is none": ({"watchNamespaces": ["Team A"]}, "/watchNamespaces/0"),
    "a log format": ({"logFormat": "xml"}, "/logFormat"),
    "a short digest": ({"image": {"digest": "sha256:1"}}, "/image/digest"),
    "a label of the chart's own": ({"extraLabels": {"app.kubernetes.io/name": "x"}}, "app.kubernetes.io/name"),
    "a budget of nothing": ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
}


@pytest.mark.parametrize(("values", "told"), REFUSED.values(), ids=REFUSED.keys())
def test_values_that_are_refused(values, told):
    with pytest.raises(HelmError) as refusal:
        rendered(values)
    assert "values don't meet the specifications of the schema" in str(refusal.value)
    assert told in str(refusal.value)


def test_every_value_is_in_the_schema_and_has_a_default():
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert set(schema["properties"]) - {"global"} == set(values)


def test_an_older_kubernetes_is_refused():
    with pytest.raises(HelmError, match="incompatible with Kubernetes"):
        helm("template", CHART, "--kube-version", "1.28")
