"""What a tenant who may edit FineTuneJobs in one namespace cannot get; each is tried as that user.

The namespace enforces Pod Security ``restricted``, and pods are made: the cluster's nodes are simulated.
"""

import json
from dataclasses import dataclass

import pytest

from charts import found, rendered
from cluster.errors import ClusterError
from cluster.manifests import RESTRICTED
from cluster.running import Cluster
from operating import RUNTIME, Operator, Stage, job, until
from pod_security import violations

TENANT = "tenant"
ROLES = ("finetune-operator-view", "finetune-operator-edit", "finetune-operator-runtimes")
"""Of the chart."""
VIEW = "view"
"""Kubernetes' own, which docs/tenancy.md has a team bound to as well."""
SPEC = {
    **RUNTIME["spec"],
    "ceilings": {"workers": 2, "resources": {"cpu": "4", "memory": "8Gi", "gpus": 0}},
    "env": [{"name": "PLATFORM", "value": "1"}],
    "egress": "dns",
}
OTHERS = "the-others"
"""A Secret and a claim in another namespace."""


@dataclass
class Team:
    """A tenant's namespace, the tenant, and what an operator makes of its jobs."""

    stage: Stage
    tenant: Cluster
    other: str
    """A namespace that is not the tenant's."""

    def refused(self, *manifests):
        """What the API server says to the tenant who applies this."""
        with pytest.raises(ClusterError) as caught:
            self.tenant.apply(*manifests)
        return str(caught.value)

    def refused_kubectl(self, *arguments):
        with pytest.raises(ClusterError) as caught:
            self.tenant.kubectl(*arguments)
        return str(caught.value)

    def apply(self, name, **spec):
        """Apply a job as the tenant."""
        self.tenant.apply(job(self.stage.namespace, name, **spec))

    def pod(self, name):
        """A worker of the job."""
        (named, *_) = until(
            lambda: self.stage.get("pods", f"--selector=finetune.dev/job={name}"), what=f"pod of {name}"
        )
        return named

    def condition(self, name, kind):
        """A condition of the job, once it is there and false."""

        def look():
            conditions = self.stage.status(name).get("conditions", [])
            return next((one for one in conditions if (one["type"], one["status"]) == (kind, "False")), None)

        return until(look, what=f"{kind} of {name}")


@pytest.fixture(scope="module")
def team(simulated_cluster, tmp_path_factory):
    cluster = simulated_cluster
    objects = rendered({"tenantRoles": {"runtimeReaders": [TENANT]}})
    cluster.apply({**RUNTIME, "spec": SPEC}, *(found(objects, "ClusterRole", name) for name in ROLES))
    with cluster.namespace("team", RESTRICTED) as mine, cluster.namespace("other") as other:
        for role in (*ROLES[:2], VIEW):
            cluster.kubectl("-n", mine, "create", "rolebinding", role, f"--clusterrole={role}", f"--user={TENANT}")
        cluster.apply(found(objects, "ClusterRoleBinding", ROLES[2]))
        for namespace, name in ((mine, "mine"), (other, OTHERS)):
            cluster.kubectl("-n", namespace, "create", "secret", "generic", name, "--from-literal=token=x")
        cluster.apply(*volume("runs", mine), *volume(OTHERS, other))
        stage = Stage(cluster, mine, tmp_path_factory.mktemp("tenancy"))
        stage.start().await_ready()
        yield Team(stage, Cluster(cluster.user(TENANT, (TENANT,))), other)
        stage.end()
    for name in ("runs", OTHERS):
        cluster.kubectl("delete", "pv", f"{mine}-{name}", f"{other}-{name}", "--ignore-not-found", "--wait=false")


def volume(name, namespace):
    """A claim, and the volume that it is bound to."""
    claim = {
        "accessModes": ["ReadWriteMany"],
        "resources": {"requests": {"storage": "1Gi"}},
        "storageClassName": "none",
    }
    place = {"accessModes": ["ReadWriteMany"], "capacity": {"storage": "1Gi"}, "storageClassName": "none"}
    place |= {"nfs": {"server": "127.0.0.1", "path": "/"}, "claimRef": {"namespace": namespace, "name": name}}
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": f"{namespace}-{name}"}, "spec": place},
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {**claim, "volumeName": f"{namespace}-{name}"},
        },
    )


# --- fields that no job has


UNKNOWN = {
    "another service account": {"serviceAccountName": "admin"},
    "a token": {"automountServiceAccountToken": True},
    "a pod template": {"template": {"spec": {"hostNetwork": True}}},
    "an image": {"image": "mine:1"},
    "a host path": {"volumes": [{"hostPath": {"path": "/"}}]},
    "a host path as the checkpoint volume": {"checkpoint": {"volume": {"hostPath": "/"}}},
    "a Secret of another namespace": {"hub": {"secretRef": {"name": "a", "key": "b", "namespace": "kube-system"}}},
    "a claim of another namespace": {"checkpoint": {"volume": {"claimName": "a", "namespace": "other"}}},
    "a variable": {"env": [{"name": "LD_PRELOAD", "value": "/x"}]},
    "a command": {"command": ["sh"]},
    "a node": {"nodeName": "simulated-0"},
    "a security context": {"securityContext": {"privileged": True}},
    "a namespace of its parts": {"workersNamespace": "kube-system"},
}


@pytest.mark.parametrize("spec", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_no_field_asks_for(team, spec):
    told = team.refused(job(team.stage.namespace, "unknown", **spec))
    assert 'strict decoding error: unknown field "spec.' in told


INVALID = {
    "a claim by a path": ({"checkpoint": {"volume": {"claimName": "other/claim"}}}, "spec.checkpoint.volume.claimName"),
    "a Secret by a path": ({"hub": {"secretRef": {"name": "other/hub", "key": "b"}}}, "spec.hub.secretRef.name"),
    "a claim outside its folder": ({"data": {"source": "pvc://../etc"}}, "spec.data.source"),
    "a runtime by a path": ({"runtime": "../other"}, "spec.runtime"),
}


@pytest.mark.parametrize(("spec", "field"), INVALID.values(), ids=INVALID.keys())
def test_no_field_takes(team, spec, field):
    assert f"{field}: Invalid value" in team.refused(job(team.stage.namespace, "invalid", **spec))


# --- rights that the tenant does not have

FORBIDDEN = {
    "a runtime's ceilings": lambda team: ("patch", "ftr", "default", *merge({"spec": {"ceilings": {"workers": 100}}})),
    "a runtime's end": lambda team: ("delete", "ftr", "default"),
    "a runtime of its own": lambda team: ("create", "--filename=-", runtime_manifest()),
    "a job in another namespace": lambda team: ("create", "--filename=-", job(team.other)),
    "jobs of another namespace": lambda team: ("get", "ftj", "-n", team.other),
    "a status": lambda team: ("replace", "--raw", path(team, "finetunejobs/x/status"), "--filename=-", SUCCEEDED),
    "a Secret": lambda team: ("get", "secret", "mine", *here(team)),
    "a Secret of another namespace": lambda team: ("get", "secret", OTHERS, "-n", team.other),
    "a token of the service account": lambda team: ("create", "token", "default", *here(team)),
    "a Job": lambda team: ("create", "job", "x", "--image=x", *here(team)),
    "a pod": lambda team: ("run", "x", "--image=x", *here(team)),
    "a shell in a pod": lambda team: (
        "create",
        "--raw",
        path(team, "pods/x/exec?command=sh", core=True),
        "--filename=-",
        {},
    ),
    "the network's rules": lambda team: ("delete", "networkpolicy", "x", *here(team)),
    "the namespace's labels": lambda team: ("label", "namespace", team.stage.namespace, "a=b"),
    "another one's name": lambda team: ("get", "ftj", *here(team), "--as=admin"),
}
SUCCEEDED = {"phase": "Succeeded", "conditions": [{"type": "Succeeded", "status": "True", "reason": "Completed",
             "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}  # fmt: skip


def here(team):
    return ("-n", team.stage.namespace)


def path(team, rest, *, core=False):
    return f"/{'api/v1' if core else 'apis/finetune.dev/v1alpha1'}/namespaces/{team.stage.namespace}/{rest}"


def merge(patch):
    return ("--type=merge", f"--patch={json.dumps(patch)}")


def runtime_manifest():
    return {**RUNTIME, "metadata": {"name": "mine"}}


@pytest.mark.parametrize("attempt", FORBIDDEN.values(), ids=FORBIDDEN.keys())
def test_no_right_to(team, attempt):
    *arguments, last = attempt(team)
    manifest = {"stdin": json.dumps(last)} if isinstance(last, dict) else {}
    with pytest.raises(ClusterError, match="orbidden"):
        team.tenant.kubectl(*arguments, *([] if manifest else [last]), **manifest)


def test_a_tenant_may_do_what_it_should(team):
    """Else all the refusals would say nothing."""
    team.apply("may", suspend=True)
    team.tenant.kubectl("get", "ftj", "may", *here(team))
    team.tenant.kubectl("get", "ftr")
    team.tenant.kubectl("get", "pods,networkpolicies", *here(team))
    team.tenant.kubectl("patch", "ftj", "may", *here(team), *merge({"spec": {"queue": "a"}}))
    team.tenant.kubectl("delete", "ftj", "may", *here(team))


def test_a_job_is_not_born_succeeded(team):
    team.tenant.apply({**job(team.stage.namespace, "born", suspend=True), "status": SUCCEEDED})
    told = team.stage.until_phase("Suspended", "born")
    team.tenant.kubectl(*("patch", "ftj", "born", *here(team), *merge({"status": SUCCEEDED})))
    assert told["phase"] == team.stage.status("born")["phase"] == "Suspended"


# --- more than the runtime allows

TOO_MUCH = {
    "workers": ({"distributed": {"workers": 3}}, "spec.distributed.workers: must be ≤ 2"),
    "CPU": ({"distributed": {"resources": {"cpu": "4001m"}}}, "spec.distributed.resources.cpu: must be ≤ 4"),
    "memory": ({"distributed": {"resources": {"memory": "9Gi"}}}, "spec.distributed.resources.memory: must be ≤ 8Gi"),
    "no limit": ({"distributed": {"resources": {"memory": "0"}}}, "spec.distributed.resources.memory: must be more"),
    "GPUs": ({"distributed": {"resources": {"gpus": 1}}}, "spec.distributed.resources.gpus: must be ≤ 0"),
    "a checkpoint's code": (
        {"model": {"source": "hf://a/b", "trustRemoteCode": True}},
        "spec.model.trustRemoteCode: must be false",
    ),
    "the cluster's own priority": (
        {"priorityClass": "system-cluster-critical"},
        "spec.priorityClass: must be none of the cluster's own",
    ),
    "a runtime that is not there": ({"runtime": "root"}, "spec.runtime: there is no FineTuneRuntime root"),
}


@pytest.mark.parametrize(("spec", "told"), TOO_MUCH.values(), ids=TOO_MUCH.keys())
def test_not_more_than_allowed(team, request, spec, told):
    name = f"much-{list(TOO_MUCH).index(request.node.callspec.id)}"
    team.apply(name, **spec)
    assert told in team.condition(name, "Accepted")["message"]
    assert team.stage.get("pods", f"--selector=finetune.dev/job={name}") == []


def test_the_fields_that_may_change_are_no_way_around(team):
    """A ceiling is asked again when a job that was held goes on, and nothing else of a spec may change."""
    team.apply("held", suspend=True)
    team.stage.until_phase("Suspended", "held")
    patch = {"spec": {"suspend": False, "distributed": {"workers": 100}}}
    told = team.refused_kubectl("patch", "ftj", "held", *here(team), *merge(patch))
    assert "spec.distributed: Forbidden: cannot be changed" in told


# --- what pods are


def test_a_job_has_pods_that_hold_nothing_of_the_clusters(team):
    """With all that it may ask for; ``restricted`` is the API server's word, for the pods are there."""
    secret = {"secretRef": {"name": "mine", "key": "token"}}
    team.apply("full", distributed={"workers": 2}, hub=secret, tracking={"wandb": {"project": "p", **secret}})
    pod = team.pod("full")["spec"]
    assert violations(pod) == []
    assert (pod["serviceAccountName"], pod["automountServiceAccountToken"]) == ("default", False)
    assert pod["containers"][0]["image"] == RUNTIME["spec"]["image"]
    kinds = {kind for volume in pod["volumes"] for kind in volume if kind != "name"}
    assert kinds == {"downwardAPI", "emptyDir", "persistentVolumeClaim"}
    literals = {one["name"] for one in pod["containers"][0]["env"] if "value" in one}
    assert "PLATFORM" in literals
    assert not literals & {"HF_TOKEN", "WANDB_API_KEY", "LD_PRELOAD"}


def test_a_name_means_this_namespaces_secret_and_claim(team):
    """Another namespace's claim of the name is there, and bound; this namespace's is not, and so the pod waits."""
    reference = {"name": OTHERS, "key": "token"}
    team.apply("names", hub={"secretRef": reference}, checkpoint={"volume": {"claimName": OTHERS}})
    pod = team.pod("names")
    assert pod["metadata"]["namespace"] == team.stage.namespace
    (token,) = (one for one in pod["spec"]["containers"][0]["env"] if one["name"] == "HF_TOKEN")
    assert token["valueFrom"] == {"secretKeyRef": reference}
    until(lambda: f'persistentvolumeclaim "{OTHERS}" not found' in team.stage.message("names"), 40, "why it waits")


def test_no_more_than_the_namespaces_quota(team):
    """A job's pods count as everybody's: a quota of the namespace is kept."""
    name = "strict"
    team.stage.cluster.apply(
        {
            "apiVersion": "v1",
            "kind": "ResourceQuota",
            "metadata": {"name": name, "namespace": team.stage.namespace},
            "spec": {"hard": {"requests.cpu": "0"}},
        }
    )
    until(lambda: "hard" in (team.stage.find("resourcequotas", name) or {}).get("status", {}))
    try:
        team.apply(name)
        until(lambda: "exceeded quota" in team.stage.message(name), 40, "that its pods are refused")
        assert team.stage.get("pods", f"--selector=finetune.dev/job={name}") == []
    finally:
        team.stage.kubectl("delete", "resourcequota", name)


# --- names of others' objects


def network_policy(name):
    return {"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name},
            "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}}  # fmt: skip


def claim(name):
    spec = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    return {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name}, "spec": spec}


def batch_job(name):
    pod = {"restartPolicy": "Never", "containers": [{"name": "main", "image": "x"}]}
    spec = {"suspend": True, "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": spec}


TAKEN = {
    "a NetworkPolicy": ("deny-all", network_policy("deny-all"), {}),
    "a claim": ("data", claim("data-checkpoints"), {"checkpoint": {"volume": {"size": "1Gi"}}}),
    "a Job": ("nightly", batch_job("nightly-1"), {}),
}


@pytest.mark.parametrize(("name", "manifest", "spec"), TAKEN.values(), ids=TAKEN.keys())
def test_an_object_of_somebody_else_is_not_taken(team, name, manifest, spec):
    manifest["metadata"]["namespace"] = team.stage.namespace
    team.stage.cluster.apply(manifest)
    plural, theirs = manifest["kind"].lower(), manifest["metadata"]["name"]
    before = team.stage.find(plural, theirs)
    team.apply(name, **spec)
    refusal = f"there is a {manifest['kind']} {theirs} that is not this job's"
    until(lambda: refusal in team.stage.message(name), 40, refusal)
    assert kept(team.stage.find(plural, theirs)) == kept(before)
    assert team.stage.get("pods", f"--selector=finetune.dev/job={name}") == []
    team.tenant.kubectl("delete", "ftj", name, *here(team))
    until(lambda: team.stage.find("finetunejobs", name) is None)
    assert kept(team.stage.find(plural, theirs)) == kept(before), "it does not go with the job"


def kept(found):
    """What must not change of an object; its own controller writes its status."""
    metadata = {name: found["metadata"].get(name) for name in ("uid", "labels", "ownerReferences", "generation")}
    return metadata, found["spec"]


def test_jobs_whose_names_run_together_share_nothing(team):
    """``a`` and ``a-1`` have attempts ``a-1`` and ``a-1-1``; no name of an object stands for both."""
    names = ("a", "a-1", "a-1-1", "a-checkpoints")
    for name in names:
        team.apply(name, checkpoint={"volume": {"size": "1Gi"}})
    owners = {name: team.stage.find("finetunejobs", name)["metadata"]["uid"] for name in names}
    for name, uid in owners.items():
        for kind, child in (("jobs", f"{name}-1"), ("networkpolicies", name), ("pvc", f"{name}-checkpoints")):
            made = until(lambda kind=kind, child=child: team.stage.find(kind, child), what=f"{kind} {child}")
            assert [one["uid"] for one in made["metadata"]["ownerReferences"]] == [uid], (kind, child)


def test_nothing_of_it_was_a_bug(team):
    operator: Operator
    (operator,) = team.stage.operators
    assert not [name for name, value in operator.metrics().items() if 'result="bug"' in name and value]
