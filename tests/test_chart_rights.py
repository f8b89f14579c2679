"""What the chart's roles grant: what the operator's code asks for, and nothing that lets anybody become another."""

import pytest

from charts import EVERYTHING, NAMESPACE, VARIANTS, found, pod_of, rendered
from finetune_operator.settings import parse_settings
from verbs import used_verbs

variants = pytest.mark.parametrize("values", VARIANTS.values(), ids=VARIANTS.keys())


USED = used_verbs()
CLUSTER_SCOPED = {("finetune.dev", "finetuneruntimes"), ("", "namespaces")}
ELECTION = ("coordination.k8s.io", "leases")
IN_NAMESPACES = {resource: verbs for resource, verbs in USED.items() if resource not in {*CLUSTER_SCOPED, ELECTION}}
IN_CLUSTER = {resource: verbs for resource, verbs in USED.items() if resource in CLUSTER_SCOPED}


def grants(rules):
    """(group, resource, verb) of everything that the rules grant."""
    return {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }


def by_resource(role):
    table = {}
    for group, resource, verb in grants(role["rules"]):
        table.setdefault((group, resource), set()).add(verb)
    return table


def test_the_operators_code_tells_what_it_needs():
    assert set(USED) == {*IN_NAMESPACES, *IN_CLUSTER, ELECTION}
    assert USED["", "namespaces"] == {"get"}
    assert USED["finetune.dev", "finetunejobs/status"] == {"update"}
    assert USED["finetune.dev", "finetuneexperiments"] == {"list", "watch", "delete"}
    assert USED["", "services"] == {"list", "watch", "create", "patch"}
    assert USED["batch", "jobs"] == {"get", "list", "watch", "create", "patch", "delete"}


def test_in_cluster_mode_one_role_grants_what_is_used():
    role = by_resource(found(rendered(), "ClusterRole", "finetune-system:finetune-operator"))
    assert role == IN_NAMESPACES | IN_CLUSTER


def test_the_lease_is_granted_by_its_name():
    rules = found(rendered(), "Role", "finetune-operator-election")["rules"]
    named = [rule for rule in rules if rule["verbs"] != ["create"]]
    assert [rule["resourceNames"] for rule in named] == [[parse_settings(["--no-leader-election"]).lease_name]]
    assert {verb for _, _, verb in grants(rules)} == USED[ELECTION]


def test_in_namespaced_mode_only_runtimes_are_read_everywhere():
    objects = rendered(EVERYTHING)
    role = found(objects, "ClusterRole", "finetune-system:finetune-operator")
    assert by_resource(role) == IN_CLUSTER
    (namespaces,) = (rule for rule in role["rules"] if rule["resources"] == ["namespaces"])
    assert namespaces["resourceNames"] == EVERYTHING["watchNamespaces"]
    roles = {
        role["metadata"]["namespace"]: by_resource(role)
        for role in objects
        if role["kind"] == "Role" and role["metadata"]["name"] == "finetune-operator-jobs"
    }
    assert roles == {"team-a": IN_NAMESPACES, "team-b": IN_NAMESPACES}


@variants
def test_nothing_is_granted_that_lets_somebody_become_another(values):
    for role in (item for item in rendered(values) if item["kind"] in ("Role", "ClusterRole")):
        for group, resource, verb in grants(role["rules"]):
            where = f"{role['metadata']['name']}: {verb} {resource}.{group}"
            assert "*" not in group + resource + verb, where
            assert resource.partition("/")[0] not in ("secrets", "serviceaccounts", "roles", "rolebindings"), where
            assert "/".join(resource.split("/")[1:]) not in ("exec", "attach", "portforward", "token"), where
            assert verb not in ("impersonate", "bind", "escalate", "approve"), where


@variants
def test_every_binding_binds_the_operator_to_a_role_that_is_there(values):
    objects = [item for item in rendered(values) if "-dashboard" not in item["metadata"]["name"]]
    roles = {(item["kind"], item["metadata"]["name"], item["metadata"].get("namespace")) for item in objects}
    account = pod_of(objects)["serviceAccountName"]
    operator = [{"kind": "ServiceAccount", "name": account, "namespace": NAMESPACE}]
    for binding in (item for item in objects if item["kind"] in ("RoleBinding", "ClusterRoleBinding")):
        reference = binding["roleRef"]
        assert (reference["kind"], reference["name"], binding["metadata"].get("namespace")) in roles
        assert binding["subjects"] == operator or reference["name"] == "finetune-operator-runtimes"


THEIRS = (("finetune.dev", "finetunejobs"), ("finetune.dev", "finetuneexperiments"))


def test_tenants_get_jobs_by_the_clusters_own_roles():
    objects, aggregate = rendered(), "rbac.authorization.k8s.io/aggregate-to-"
    roles = {
        name: (
            by_resource(role := found(objects, "ClusterRole", f"finetune-operator-{name}")),
            {label.removeprefix(aggregate) for label in role["metadata"]["labels"] if label.startswith(aggregate)},
        )
        for name in ("view", "edit")
    }
    assert roles == {
        "view": (
            {
                **{key: {"get", "list", "watch"} for key in THEIRS},
                **{(group, f"{name}/status"): {"get"} for group, name in THEIRS},
            },
            {"view", "edit", "admin"},
        ),
        "edit": (
            {key: {"create", "update", "patch", "delete", "deletecollection"} for key in THEIRS},
            {"edit", "admin"},
        ),
    }
