"""The chart's dashboard: off by default; what it may do, who may reach it, and what it is started with."""

import subprocess
import sys

import pytest

from charts import NAMESPACE, RELEASE, VARIANTS, found, pod_of, rendered
from finetune_cli.dashboard import arguments as dashboard
from finetune_cli.dashboard.cluster_source import scopes
from finetune_cli.main import build_parser
from test_chart_rights import by_resource
from test_dockerfile import PROJECT, installed_with

NAME = f"{RELEASE}-dashboard"
ON, SOME = (rendered(VARIANTS[name]) for name in ("a dashboard", "a dashboard of two namespaces"))
USED = {(scope.kind.group, scope.kind.plural): {"list", "watch"} for scope in scopes(None)}
SELECTOR = {
    "app.kubernetes.io/name": "finetune-operator",
    "app.kubernetes.io/instance": RELEASE,
    "app.kubernetes.io/component": "dashboard",
}


def added(objects, values):
    """What the dashboard adds to a release with these values."""
    plain = {one["metadata"]["name"] + one["kind"] for one in rendered(values)}
    return sorted(
        f"{one['kind']}/{one['metadata']['name']}"
        for one in objects
        if one["metadata"]["name"] + one["kind"] not in plain
    )


def test_what_is_added():
    assert added(ON, {}) == [
        f"ClusterRole/{NAMESPACE}:{NAME}",
        f"ClusterRoleBinding/{NAMESPACE}:{NAME}",
        f"Deployment/{NAME}",
        f"NetworkPolicy/{NAME}",
        f"Service/{NAME}",
        f"ServiceAccount/{NAME}",
    ]
    without = {**VARIANTS["a dashboard of two namespaces"], "dashboard": {"enabled": False}}
    assert added(SOME, without) == [
        f"Deployment/{NAME}",
        f"NetworkPolicy/{NAME}",
        f"Role/{NAME}",
        f"Role/{NAME}",
        f"Role/{NAME}-readers",
        f"RoleBinding/{NAME}",
        f"RoleBinding/{NAME}",
        f"RoleBinding/{NAME}-readers",
        f"Service/{NAME}",
        f"ServiceAccount/{NAME}",
    ]


# --- rights


def account(binding):
    return binding["subjects"] == [{"kind": "ServiceAccount", "name": NAME, "namespace": NAMESPACE}]


def test_it_may_do_what_its_code_does_and_nothing_else():
    assert pod_of(ON, NAME)["serviceAccountName"] == NAME
    assert by_resource(found(ON, "ClusterRole", f"{NAMESPACE}:{NAME}")) == USED
    assert [one["metadata"]["name"] for one in ON if "Binding" in one["kind"] and account(one)] == [
        f"{NAMESPACE}:{NAME}"
    ]


def test_of_some_namespaces_it_has_a_role_in_each():
    roles = {
        one["metadata"]["namespace"]: by_resource(one)
        for one in SOME
        if one["kind"] == "Role" and one["metadata"]["name"] == NAME
    }
    assert roles == {"team-a": USED, "team-b": USED}
    bindings = [one for one in SOME if "Binding" in one["kind"] and account(one)]
    assert [(one["kind"], one["metadata"]["namespace"]) for one in bindings] == [
        ("RoleBinding", "team-b"),
        ("RoleBinding", "team-a"),
    ]


def test_readers_are_let_through_by_the_api_server_to_this_service_alone():
    role, binding = found(SOME, "Role", f"{NAME}-readers"), found(SOME, "RoleBinding", f"{NAME}-readers")
    port = found(SOME, "Service", NAME)["spec"]["ports"][0]["name"]
    rule = {"apiGroups": [""], "resources": ["services/proxy"], "resourceNames": [f"{NAME}:{port}"], "verbs": ["get"]}
    assert (role["rules"], role["metadata"]["namespace"]) == ([rule], NAMESPACE)
    assert binding["subjects"] == [{"apiGroup": "rbac.authorization.k8s.io", "kind": "Group", "name": "ml-team"}]


# --- who reaches it


@pytest.mark.parametrize(
    ("objects", "let_in"), [(ON, None), (SOME, [{"ipBlock": {"cidr": "10.0.0.1/32"}}])], ids=["nobody", "named"]
)
def test_only_who_is_named_reaches_its_pod(objects, let_in):
    policy = found(objects, "NetworkPolicy", NAME)["spec"]
    assert policy["podSelector"]["matchLabels"] == SELECTOR
    assert "Ingress" in policy["policyTypes"]
    ports = [{"port": "http", "protocol": "TCP"}]
    assert policy.get("ingress") == ([{"from": let_in, "ports": ports}] if let_in else None)


def test_it_reaches_the_api_server_alone_where_policies_are_asked_for():
    assert "egress" not in found(ON, "NetworkPolicy", NAME)["spec"]
    operator, own = (found(SOME, "NetworkPolicy", name)["spec"]["egress"] for name in (RELEASE, NAME))
    assert own == operator[:2]


def test_there_is_a_service_inside_the_cluster_and_no_other_way():
    service = found(SOME, "Service", NAME)["spec"]
    assert (service["type"], service["selector"]) == ("ClusterIP", SELECTOR)
    assert not [one for one in SOME if one["kind"] in ("Ingress", "HTTPRoute")]
    labels = found(SOME, "Deployment", NAME)["spec"]["template"]["metadata"]["labels"]
    assert labels.items() >= SELECTOR.items()
    assert found(SOME, "Deployment", NAME)["spec"]["selector"]["matchLabels"] == SELECTOR
    assert found(SOME, "Deployment", RELEASE)["spec"]["selector"]["matchLabels"].items() - labels.items(), (
        "the operator's differ"
    )


# --- its pod


def options_of(objects):
    (container,) = pod_of(objects, NAME)["containers"]
    assert container["command"] == ["finetune", "dashboard"]
    return build_parser().parse_args([*container["command"][1:], *container["args"]])


def test_what_it_is_started_with():
    everywhere, some = options_of(ON), options_of(SOME)
    assert (everywhere.all_namespaces, everywhere.namespace, everywhere.allow_host) == (True, [], [])
    assert (some.all_namespaces, some.namespace, some.allow_host) == (False, ["team-a", "team-b"], ["api.example.com"])
    for options in (everywhere, some):
        assert dashboard._misuse(options) == ""
        assert (options.address, options.port, options.no_secret) == ("", 8080, True)


def test_its_image_is_the_operators_and_holds_what_it_needs():
    assert pod_of(SOME, NAME)["containers"][0]["image"] == pod_of(SOME)["containers"][0]["image"]
    assert installed_with("dashboard") <= installed_with("operator")
    assert "torch" not in installed_with("dashboard")
    assert PROJECT["scripts"]["finetune"] == "finetune_cli.main:main"


def test_it_imports_nothing_heavy():
    code = "import finetune_cli.dashboard.serve, finetune_cli.dashboard.folder_source, sys; print(*sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "numpy", "transformers", "optuna", "kopf"} & set(loaded)


def test_where_it_runs_and_when_it_is_well():
    pod = pod_of(SOME, NAME)
    fields = ("nodeSelector", "tolerations", "imagePullSecrets")
    assert {name: pod[name] for name in fields} == {
        name: VARIANTS["a dashboard of two namespaces"][name] for name in fields
    }
    (container,) = pod["containers"]
    probes = {container[name]["httpGet"]["path"] for name in ("startupProbe", "livenessProbe", "readinessProbe")}
    assert (probes, container["ports"][0]["containerPort"]) == ({"/healthz"}, 8080)
    assert "volumes" not in pod


REFUSED = {
    "a typo": ({"reader": []}, "reader"),
    "a peer that is none": ({"from": [{"cidr": "10.0.0.0/8"}]}, "/dashboard/from/0"),
    "a name with a port": ({"allowedHosts": ["a.example.com:443"]}, "/dashboard/allowedHosts/0"),
}


@pytest.mark.parametrize(("values", "told"), REFUSED.values(), ids=REFUSED)
def test_values_that_are_refused(values, told):
    with pytest.raises(Exception, match=told):
        rendered({"dashboard": {"enabled": True, **values}})
