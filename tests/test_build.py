"""The manifests of a job: whole for a small and a big one, and what each single setting changes in them."""

import copy
import json
import re

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from kubernetes.client import ApiClient

from finetune_api import FineTuneJob, FineTuneRuntime, parse_job, parse_runtime
from finetune_api.base import DNS_LABEL
from finetune_api.wiring import Variable
from finetune_operator.build.children import build_children, build_lasting
from finetune_operator.names import first_worker_address
from finetune_operator.resolve import resolve
from finetune_operator.resolved import Resolved
from pod_security import CONTROLS, violations

API_VERSION = "finetune.dev/v1alpha1"
UID = "0123abcd-0000-0000-0000-000000000000"
READERS = ("finetune-operator",)


def job(metadata=(), **spec) -> FineTuneJob:
    return parse_job(
        {
            "apiVersion": API_VERSION,
            "kind": "FineTuneJob",
            "metadata": {"name": "demo", "namespace": "team-a", "uid": UID, **dict(metadata)},
            "spec": {
                "task": "text-classification",
                "model": {"source": "hf://owner/model"},
                "data": {"source": "hf://owner/data"},
                **spec,
            },
        }
    )


def runtime(**spec) -> FineTuneRuntime:
    document = {"apiVersion": API_VERSION, "kind": "FineTuneRuntime", "metadata": {"name": "default"}}
    return parse_runtime({**document, "spec": {"image": "trainer:1", **spec}})


def children(spec=(), by=(), metadata=(), attempt=1, readers=READERS):
    """The manifests by kind."""
    resolved = resolve(job(metadata, **dict(spec)), runtime(**dict(by)), {})
    assert isinstance(resolved, Resolved), resolved
    made = build_children(resolved, attempt, readers)
    assert len({manifest["kind"] for manifest in made}) == len(made)
    return {manifest["kind"]: manifest for manifest in made}


def pod(manifests):
    return manifests["Job"]["spec"]["template"]["spec"]


# --- whole

OWNERS = [{"apiVersion": API_VERSION, "kind": "FineTuneJob", "name": "demo", "uid": UID, "controller": True}]
MANAGED = {"app.kubernetes.io/managed-by": "finetune-operator"}
LABELS = {**MANAGED, "finetune.dev/job": "demo"}
PEERS = {"podSelector": {"matchLabels": {"finetune.dev/job": "demo"}}}
POLICY = {
    "apiVersion": "networking.k8s.io/v1",
    "kind": "NetworkPolicy",
    "metadata": {"name": "demo", "namespace": "team-a", "labels": LABELS, "ownerReferences": OWNERS},
    "spec": {
        "podSelector": {"matchLabels": {"finetune.dev/job": "demo"}},
        "policyTypes": ["Ingress"],
        "ingress": [
            {"from": [PEERS]},
            {
                "from": [
                    {
                        "namespaceSelector": {
                            "matchExpressions": [
                                {
                                    "key": "kubernetes.io/metadata.name",
                                    "operator": "In",
                                    "values": ["finetune-operator"],
                                }
                            ]
                        }
                    }
                ],
                "ports": [{"port": 8080, "protocol": "TCP"}],
            },
        ],
    },
}
POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 65532,
    "runAsGroup": 65532,
    "fsGroup": 65532,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}
CONTAINER_SECURITY = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}
WIRING = [
    {"name": "MASTER_PORT", "value": "29400"},
    {"name": "FINETUNE_SCRATCH", "value": "/finetune/scratch"},
    {"name": "FINETUNE_TERMINATION_LOG", "value": "/dev/termination-log"},
    {"name": "FINETUNE_PROGRESS_ADDRESS", "value": "0.0.0.0:8080"},
    {"name": "FINETUNE_CACHE", "value": "/finetune/run/cache"},
    {"name": "FINETUNE_VOLUMES", "value": "/volumes"},
    {
        "name": "FINETUNE_WORKER",
        "valueFrom": {
            "fieldRef": {"fieldPath": "metadata.annotations['batch.kubernetes.io/job-completion-index']"},
        },
    },
]
MOUNTS = [
    {"name": "spec", "mountPath": "/finetune/spec", "readOnly": True},
    {"name": "scratch", "mountPath": "/finetune/scratch"},
    {"name": "tmp", "mountPath": "/tmp"},
    {"name": "shared-memory", "mountPath": "/dev/shm"},
    {"name": "claim-0", "mountPath": "/finetune/run", "subPath": "demo-0123abcd"},
]


def volumes(shared_memory):
    spec = {"fieldPath": "metadata.annotations['finetune.dev/spec']"}
    return [
        {"name": "spec", "downwardAPI": {"items": [{"path": "job.json", "fieldRef": spec}]}},
        {"name": "scratch", "emptyDir": {}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "shared-memory", "emptyDir": {"medium": "Memory", "sizeLimit": shared_memory}},
    ]


def told(spec):
    """The annotation that the trainer reads."""
    metadata = {"name": "demo", "namespace": "team-a"}
    whole = {"apiVersion": API_VERSION, "kind": "FineTuneJob", "metadata": metadata, "spec": spec}
    return json.dumps(whole, separators=(",", ":"))


def test_a_small_job():
    labels = {**LABELS, "finetune.dev/attempt": "1", "finetune.dev/job-uid": UID}
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {
            "name": "demo-checkpoints",
            "namespace": "team-a",
            "labels": LABELS,
            "ownerReferences": OWNERS,
        },
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "20Gi"}}},
    }
    spec = {
        "task": "text-classification",
        "model": {"source": "hf://owner/model"},
        "data": {"source": "hf://owner/data"},
        "checkpoint": {"volume": {"size": "20Gi"}},
        "distributed": {"resources": {"cpu": "2", "memory": "4Gi", "gpus": 0}},
    }
    container = {
        "name": "trainer",
        "image": "trainer:1",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python", "-m", "finetune_trainer.launch"],
        "env": [
            {"name": "HOME", "value": "/finetune/scratch"},
            {"name": "HF_HOME", "value": "/finetune/run/cache/huggingface"},
            {"name": "FINETUNE_JOB", "value": "/finetune/spec/job.json"},
            {"name": "FINETUNE_RUN", "value": "/finetune/run"},
            {"name": "FINETUNE_ATTEMPT", "value": "1"},
            {"name": "MASTER_ADDR", "value": "127.0.0.1"},
            *WIRING,
        ],
        "ports": [{"name": "progress", "containerPort": 8080, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"cpu": "2", "memory": "4Gi"}},
        "volumeMounts": MOUNTS,
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    attempt = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": "demo-1", "namespace": "team-a", "labels": labels, "ownerReferences": OWNERS},
        "spec": {
            "completionMode": "Indexed",
            "completions": 1,
            "parallelism": 1,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": {**labels, "app.kubernetes.io/component": "worker"},
                    "annotations": {"finetune.dev/spec": told(spec)},
                },
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 120,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": POD_SECURITY,
                    "containers": [container],
                    "volumes": [
                        *volumes("1Gi"),
                        {"name": "claim-0", "persistentVolumeClaim": {"claimName": "demo-checkpoints"}},
                    ],
                },
            },
        },
    }
    resolved = resolve(job(), runtime(), {})
    assert build_children(resolved, 1, READERS) == (claim, POLICY, attempt)


BIG = {
    "model": {"source": "pvc://models/bert"},
    "data": {"source": "pvc://reviews/train.csv", "testSource": "pvc://run-claim/test.csv"},
    "hub": {"secretRef": {"name": "hub", "key": "token"}},
    "checkpoint": {"volume": {"claimName": "run-claim"}},
    "distributed": {"workers": 4, "strategy": "fsdp", "resources": {"cpu": "16000m", "gpus": 8}},
    "tracking": {"wandb": {"project": "p", "secretRef": {"name": "wandb", "key": "api-key"}}},
    "queue": "team-queue",
    "priorityClass": "urgent",
}
BIG_RUNTIME = {
    "image": "trainer@sha256:abc",
    "imagePullPolicy": "Always",
    "resources": {"memory": "1024Gi"},
    "placement": {
        "nodeSelector": {"pool": "gpu", "gpu": "h100"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "schedulerName": "packer",
        "spread": "pack",
    },
    "env": [{"name": "NCCL_DEBUG", "value": "WARN"}, {"name": "HOME", "value": "/tmp"}, {"name": "EMPTY"}],
    "sharedMemory": "64Gi",
    "modelCache": "model-cache",
    "egress": "dns",
}


def test_a_big_job():
    labels = {**LABELS, "finetune.dev/attempt": "12", "finetune.dev/job-uid": UID}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": "finetune-workers-0", "namespace": "team-a", "labels": MANAGED},
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": {
                "address.finetune.dev/finetune-workers-0": "",
                "batch.kubernetes.io/job-completion-index": "0",
            },
            "ports": [{"name": "rendezvous", "port": 29400, "protocol": "TCP"}],
        },
    }
    policy = copy.deepcopy(POLICY)
    policy["spec"]["policyTypes"] = ["Ingress", "Egress"]
    dns = [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]
    policy["spec"]["egress"] = [{"to": [PEERS]}, {"ports": dns}]
    spec = {
        "task": "text-classification",
        "model": BIG["model"],
        "data": BIG["data"],
        "hub": BIG["hub"],
        "checkpoint": {"volume": {"claimName": "run-claim"}},
        "distributed": {
            "workers": 4,
            "strategy": "fsdp",
            "resources": {"cpu": "16000m", "memory": "1024Gi", "gpus": 8},
        },
        "tracking": BIG["tracking"],
    }
    amounts = {"cpu": "16", "memory": "1Ti", "nvidia.com/gpu": "8"}
    container = {
        "name": "trainer",
        "image": "trainer@sha256:abc",
        "imagePullPolicy": "Always",
        "command": ["python", "-m", "finetune_trainer.launch"],
        "env": [
            {"name": "HOME", "value": "/tmp"},
            {"name": "HF_HOME", "value": "/finetune/models"},
            {"name": "HF_HUB_OFFLINE", "value": "1"},
            {"name": "NCCL_DEBUG", "value": "WARN"},
            {"name": "EMPTY"},
            {"name": "FINETUNE_JOB", "value": "/finetune/spec/job.json"},
            {"name": "FINETUNE_RUN", "value": "/finetune/run"},
            {"name": "FINETUNE_ATTEMPT", "value": "12"},
            {"name": "MASTER_ADDR", "value": "demo-12-0.finetune-workers-0.team-a.svc"},
            *WIRING,
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "hub", "key": "token"}}},
            {"name": "WANDB_API_KEY", "valueFrom": {"secretKeyRef": {"name": "wandb", "key": "api-key"}}},
        ],
        "ports": [{"name": "progress", "containerPort": 8080, "protocol": "TCP"}],
        "resources": {"requests": amounts, "limits": amounts},
        "volumeMounts": [
            *MOUNTS,
            {"name": "claim-1", "mountPath": "/finetune/models"},
            {"name": "claim-2", "mountPath": "/volumes/models", "readOnly": True},
            {"name": "claim-3", "mountPath": "/volumes/reviews", "readOnly": True},
            {"name": "claim-0", "mountPath": "/volumes/run-claim", "readOnly": True},
        ],
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": CONTAINER_SECURITY,
    }
    near = {
        "labelSelector": {"matchLabels": {"finetune.dev/job": "demo", "finetune.dev/attempt": "12"}},
        "topologyKey": "kubernetes.io/hostname",
    }
    wish = {"weight": 100, "podAffinityTerm": near}
    attempt = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {
            "name": "demo-12",
            "namespace": "team-a",
            "labels": {**labels, "kueue.x-k8s.io/queue-name": "team-queue"},
            "ownerReferences": OWNERS,
        },
        "spec": {
            "suspend": True,
            "completionMode": "Indexed",
            "completions": 4,
            "parallelism": 4,
            "backoffLimit": 0,
            "podReplacementPolicy": "Failed",
            "template": {
                "metadata": {
                    "labels": {
                        **labels,
                        "app.kubernetes.io/component": "worker",
                        "address.finetune.dev/finetune-workers-0": "",
                    },
                    "annotations": {"finetune.dev/spec": told(spec)},
                },
                "spec": {
                    "restartPolicy": "Never",
                    "terminationGracePeriodSeconds": 120,
                    "automountServiceAccountToken": False,
                    "enableServiceLinks": False,
                    "securityContext": POD_SECURITY,
                    "subdomain": "finetune-workers-0",
                    "nodeSelector": {"gpu": "h100", "pool": "gpu"},
                    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
                    "schedulerName": "packer",
                    "priorityClassName": "urgent",
                    "affinity": {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [wish]}},
                    "containers": [container],
                    "volumes": [
                        *volumes("64Gi"),
                        {"name": "claim-0", "persistentVolumeClaim": {"claimName": "run-claim"}},
                        {"name": "claim-1", "persistentVolumeClaim": {"claimName": "model-cache"}},
                        {"name": "claim-2", "persistentVolumeClaim": {"claimName": "models", "readOnly": True}},
                        {"name": "claim-3", "persistentVolumeClaim": {"claimName": "reviews", "readOnly": True}},
                    ],
                },
            },
        },
    }
    resolved = resolve(job(**BIG), runtime(**BIG_RUNTIME), {})
    assert build_children(resolved, 12, READERS) == (service, policy, attempt)


# --- what a single setting changes


def leaves(value, path=""):
    """Every value by its path; items of lists by what the API server tells them apart by."""
    if isinstance(value, dict) and value:
        inner = {f"{path}.{name}" if path else name: item for name, item in value.items()}
    elif isinstance(value, list) and value:
        inner = {f"{path}[{_key(item, number)}]": item for number, item in enumerate(value)}
    else:
        return {path: value}
    return {where: leaf for name, item in inner.items() for where, leaf in leaves(item, name).items()}


def _key(item, number):
    if not isinstance(item, dict):
        return number
    return item.get("mountPath", item.get("name", number))


def difference(before, after):
    """Paths that differ → (before, after), None for what is not there; the trainer's spec as the paths in it."""
    old, new = leaves(_with_spec(before)), leaves(_with_spec(after))
    changed = {path: (old.get(path), new.get(path)) for path in old.keys() | new.keys()}
    return {path: pair for path, pair in changed.items() if pair[0] != pair[1]}


def _with_spec(manifests):
    manifests = copy.deepcopy(manifests)
    annotations = manifests["Job"]["spec"]["template"]["metadata"]["annotations"]
    annotations["spec"] = json.loads(annotations.pop("finetune.dev/spec"))["spec"]
    return manifests


POD = "Job.spec.template.spec"
ONE = f"{POD}.containers[trainer]"
TOLD = "Job.spec.template.metadata.annotations.spec"
LIMITS = f"{ONE}.resources.limits"
REQUESTS = f"{ONE}.resources.requests"
NEAR = f"{POD}.affinity.podAffinity"
NODE = "kubernetes.io/hostname"
TWO = {"distributed": {"workers": 2}}


def env(name, value, before=None):
    entry = f"{ONE}.env[{name}]"
    named = {} if before else {f"{entry}.name": (None, name)}
    return {**named, f"{entry}.value": (before, value)}


def secret(name, secret_name, key):
    entry = f"{ONE}.env[{name}]"
    return {
        f"{entry}.name": (None, name),
        f"{entry}.valueFrom.secretKeyRef.name": (None, secret_name),
        f"{entry}.valueFrom.secretKeyRef.key": (None, key),
    }


def claim(number, name, **mounts):
    """A claim's volume and mounts, to add."""
    volume = f"{POD}.volumes[claim-{number}]"
    return {
        f"{volume}.name": (None, f"claim-{number}"),
        f"{volume}.persistentVolumeClaim.claimName": (None, name),
        **mounts,
    }


def mount(number, path, read_only=True):
    entry = f"{ONE}.volumeMounts[{path}]"
    fields = {f"{entry}.name": (None, f"claim-{number}"), f"{entry}.mountPath": (None, path)}
    return fields | ({f"{entry}.readOnly": (None, True)} if read_only else {})


def near(path):
    return {
        f"{path}.labelSelector.matchLabels.finetune.dev/job": (None, "demo"),
        f"{path}.labelSelector.matchLabels.finetune.dev/attempt": (None, "1"),
        f"{path}.topologyKey": (None, NODE),
    }


VOLUME_GONE = {
    path: (value, None) for path, value in leaves(children()).items() if path.startswith("PersistentVolumeClaim")
}
EGRESS_TYPE = {"NetworkPolicy.spec.policyTypes[1]": (None, "Egress")}
EGRESS_PEERS = {
    "NetworkPolicy.spec.egress[0].to[0].podSelector.matchLabels.finetune.dev/job": (None, "demo"),
}
EGRESS_DNS = {
    f"NetworkPolicy.spec.egress[1].ports[{number}].{name}": (None, value)
    for number, protocol in enumerate(("UDP", "TCP"))
    for name, value in (("port", 53), ("protocol", protocol))
}
# (job, runtime) before; (job, runtime) to change it by → the difference
CHANGES = {
    "image": (({}, {}), ({}, {"image": "trainer:2"}), {f"{ONE}.image": ("trainer:1", "trainer:2")}),
    "pull policy": (
        ({}, {}),
        ({}, {"imagePullPolicy": "Never"}),
        {f"{ONE}.imagePullPolicy": ("IfNotPresent", "Never")},
    ),
    "workers": (
        (TWO, {}),
        ({"distributed": {"workers": 3}}, {}),
        {
            "Job.spec.completions": (2, 3),
            "Job.spec.parallelism": (2, 3),
            f"{TOLD}.distributed.workers": (2, 3),
        },
    ),
    "memory": (
        ({}, {}),
        ({"distributed": {"resources": {"memory": "8192Mi"}}}, {}),
        {
            f"{LIMITS}.memory": ("4Gi", "8Gi"),
            f"{REQUESTS}.memory": ("4Gi", "8Gi"),
            f"{TOLD}.distributed.resources.memory": ("4Gi", "8192Mi"),
        },
    ),
    "GPUs": (
        ({}, {}),
        ({"distributed": {"resources": {"gpus": 2}}}, {}),
        {
            f"{LIMITS}.nvidia.com/gpu": (None, "2"),
            f"{REQUESTS}.nvidia.com/gpu": (None, "2"),
            f"{TOLD}.distributed.resources.gpus": (0, 2),
        },
    ),
    "no amounts at all": (
        ({}, {}),
        ({}, {"resources": {}}),
        {
            f"{LIMITS}.cpu": ("2", None),
            f"{LIMITS}.memory": ("4Gi", None),
            f"{REQUESTS}.cpu": ("2", None),
            f"{REQUESTS}.memory": ("4Gi", None),
            f"{TOLD}.distributed.resources.cpu": ("2", None),
            f"{TOLD}.distributed.resources.memory": ("4Gi", None),
        },
    ),
    "queue of the job": (
        ({}, {}),
        ({"queue": "q"}, {}),
        {"Job.metadata.labels.kueue.x-k8s.io/queue-name": (None, "q"), "Job.spec.suspend": (None, True)},
    ),
    "queue of the runtime": (
        ({}, {}),
        ({}, {"queue": "q"}),
        {"Job.metadata.labels.kueue.x-k8s.io/queue-name": (None, "q"), "Job.spec.suspend": (None, True)},
    ),
    "priority": (({}, {}), ({"priorityClass": "high"}, {}), {f"{POD}.priorityClassName": (None, "high")}),
    "fields that are the operator's alone": (
        ({}, {}),
        ({"suspend": True, "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 60}, {}),
        {},
    ),
    "training": (({}, {}), ({"training": {"seed": 7}}, {}), {f"{TOLD}.training.seed": (None, 7)}),
    "scheduler": (
        ({}, {}),
        ({}, {"placement": {"schedulerName": "packer"}}),
        {f"{POD}.schedulerName": (None, "packer")},
    ),
    "node selector": (
        ({}, {}),
        ({}, {"placement": {"nodeSelector": {"pool": "gpu"}}}),
        {f"{POD}.nodeSelector.pool": (None, "gpu")},
    ),
    "toleration of everything": (
        ({}, {}),
        ({}, {"placement": {"tolerations": [{"operator": "Exists", "value": ""}]}}),
        {f"{POD}.tolerations[0].operator": (None, "Exists")},
    ),
    "one worker is neither packed": (({}, {}), ({}, {"placement": {"spread": "pack"}}), {}),
    "nor spread": (({}, {}), ({}, {"placement": {"spread": "spread"}}), {}),
    "packed": (
        (TWO, {}),
        ({}, {"placement": {"spread": "pack"}}),
        {
            f"{NEAR}.preferredDuringSchedulingIgnoredDuringExecution[0].weight": (None, 100),
            **near(f"{NEAR}.preferredDuringSchedulingIgnoredDuringExecution[0].podAffinityTerm"),
        },
    ),
    "spread": (
        (TWO, {}),
        ({}, {"placement": {"spread": "spread"}}),
        {
            f"{POD}.topologySpreadConstraints[0].maxSkew": (None, 1),
            f"{POD}.topologySpreadConstraints[0].whenUnsatisfiable": (None, "ScheduleAnyway"),
            **near(f"{POD}.topologySpreadConstraints[0]"),
        },
    ),
    "a volume of one node": (
        (TWO, {"placement": {"spread": "spread"}, "volume": {"claimName": "c"}}),
        ({}, {"volume": {"size": "20Gi", "accessMode": "ReadWriteOnce"}}),
        {
            **{path: (None, pair[0]) for path, pair in VOLUME_GONE.items()},
            "PersistentVolumeClaim.spec.accessModes[0]": (None, "ReadWriteOnce"),
            f"{POD}.topologySpreadConstraints[0].maxSkew": (1, None),
            f"{POD}.topologySpreadConstraints[0].whenUnsatisfiable": ("ScheduleAnyway", None),
            **{path: pair[::-1] for path, pair in near(f"{POD}.topologySpreadConstraints[0]").items()},
            **near(f"{NEAR}.requiredDuringSchedulingIgnoredDuringExecution[0]"),
            f"{POD}.volumes[claim-0].persistentVolumeClaim.claimName": ("c", "demo-checkpoints"),
            f"{TOLD}.checkpoint.volume.claimName": ("c", None),
            f"{TOLD}.checkpoint.volume.size": (None, "20Gi"),
            f"{TOLD}.checkpoint.volume.accessMode": (None, "ReadWriteOnce"),
        },
    ),
    "a claim of the user's": (
        ({}, {}),
        ({"checkpoint": {"volume": {"claimName": "mine"}}}, {}),
        {
            **VOLUME_GONE,
            f"{POD}.volumes[claim-0].persistentVolumeClaim.claimName": ("demo-checkpoints", "mine"),
            f"{TOLD}.checkpoint.volume.claimName": (None, "mine"),
            f"{TOLD}.checkpoint.volume.size": ("20Gi", None),
        },
    ),
    "size and storage class": (
        ({}, {}),
        ({"checkpoint": {"volume": {"size": "1024Gi", "storageClassName": "fast"}}}, {}),
        {
            "PersistentVolumeClaim.spec.resources.requests.storage": ("20Gi", "1Ti"),
            "PersistentVolumeClaim.spec.storageClassName": (None, "fast"),
            f"{TOLD}.checkpoint.volume.size": ("20Gi", "1024Gi"),
            f"{TOLD}.checkpoint.volume.storageClassName": (None, "fast"),
        },
    ),
    "shared memory": (
        ({}, {}),
        ({}, {"sharedMemory": "0.5Gi"}),
        {f"{POD}.volumes[shared-memory].emptyDir.sizeLimit": ("1Gi", "512Mi")},
    ),
    "model cache": (
        ({}, {}),
        ({}, {"modelCache": "cache"}),
        {
            **claim(1, "cache", **mount(1, "/finetune/models", read_only=False)),
            **env("HF_HOME", "/finetune/models", before="/finetune/run/cache/huggingface"),
        },
    ),
    "data on a claim": (
        ({}, {}),
        ({"data": {"source": "pvc://reviews/a.csv"}}, {}),
        {
            **claim(1, "reviews", **mount(1, "/volumes/reviews")),
            f"{POD}.volumes[claim-1].persistentVolumeClaim.readOnly": (None, True),
            f"{TOLD}.data.source": ("hf://owner/data", "pvc://reviews/a.csv"),
        },
    ),
    "data on the model cache's claim, which stays one volume": (
        ({}, {"modelCache": "cache"}),
        ({"data": {"source": "pvc://cache/a.csv"}}, {}),
        {
            **mount(1, "/volumes/cache"),
            f"{TOLD}.data.source": ("hf://owner/data", "pvc://cache/a.csv"),
        },
    ),
    "a variable": (
        ({}, {}),
        ({}, {"env": [{"name": "NCCL_IB_DISABLE", "value": "1"}]}),
        env("NCCL_IB_DISABLE", "1"),
    ),
    "a variable that is a convenience": (
        ({}, {}),
        ({}, {"env": [{"name": "HF_HOME", "value": "/volumes/hub"}]}),
        env("HF_HOME", "/volumes/hub", before="/finetune/run/cache/huggingface"),
    ),
    "a variable of the wiring": (({}, {}), ({}, {"env": [{"name": "MASTER_ADDR", "value": "elsewhere"}]}), {}),
    "the hub's token": (
        ({}, {}),
        ({"hub": {"secretRef": {"name": "hub", "key": "token"}}}, {}),
        {
            **secret("HF_TOKEN", "hub", "token"),
            f"{TOLD}.hub.secretRef.name": (None, "hub"),
            f"{TOLD}.hub.secretRef.key": (None, "token"),
        },
    ),
    "a tracker's key instead of the runtime's variable": (
        ({"tracking": {"wandb": {"project": "p"}}}, {}),
        (
            {"tracking": {"wandb": {"project": "p", "secretRef": {"name": "w", "key": "k"}}}},
            {"env": [{"name": "WANDB_API_KEY", "value": "shared"}]},
        ),
        {
            **secret("WANDB_API_KEY", "w", "k"),
            f"{TOLD}.tracking.wandb.secretRef.name": (None, "w"),
            f"{TOLD}.tracking.wandb.secretRef.key": (None, "k"),
        },
    ),
    "a token for MLflow": (
        ({"tracking": {"mlflow": {"trackingUri": "https://m"}}}, {}),
        ({"tracking": {"mlflow": {"trackingUri": "https://m", "secretRef": {"name": "m", "key": "k"}}}}, {}),
        {
            **secret("MLFLOW_TRACKING_TOKEN", "m", "k"),
            f"{TOLD}.tracking.mlflow.secretRef.name": (None, "m"),
            f"{TOLD}.tracking.mlflow.secretRef.key": (None, "k"),
        },
    ),
    "no egress": (
        ({}, {}),
        ({}, {"egress": "none"}),
        {**EGRESS_TYPE, **EGRESS_PEERS, **env("HF_HUB_OFFLINE", "1")},
    ),
    "DNS alone": (
        ({}, {}),
        ({}, {"egress": "dns"}),
        {**EGRESS_TYPE, **EGRESS_PEERS, **EGRESS_DNS, **env("HF_HUB_OFFLINE", "1")},
    ),
}


@pytest.mark.parametrize(("base", "change", "expected"), CHANGES.values(), ids=CHANGES.keys())
def test_a_setting_changes_this_and_nothing_else(base, change, expected):
    before = children(*base)
    after = children(base[0] | change[0], base[1] | change[1])
    assert difference(before, after) == expected


def test_the_next_attempt_differs_in_its_number_alone():
    before, after = children(TWO), children(TWO, attempt=2)
    assert difference(before, after) == {
        "Job.metadata.name": ("demo-1", "demo-2"),
        "Job.metadata.labels.finetune.dev/attempt": ("1", "2"),
        "Job.spec.template.metadata.labels.finetune.dev/attempt": ("1", "2"),
        **env("FINETUNE_ATTEMPT", "2", before="1"),
        **env(
            "MASTER_ADDR", first_worker_address("demo", 2, "team-a"), before=first_worker_address("demo", 1, "team-a")
        ),
    }


def test_several_workers_get_names():
    before, after = children(), children(TWO)
    assert {path for path in difference(before, after) if not path.startswith("Service")} == {
        "Job.spec.completions",
        "PersistentVolumeClaim.spec.accessModes[0]",
        "Job.spec.parallelism",
        "Job.spec.template.metadata.labels.address.finetune.dev/finetune-workers-0",
        f"{POD}.subdomain",
        f"{ONE}.env[MASTER_ADDR].value",
        f"{TOLD}.distributed.workers",
    }
    assert "Service" not in before
    assert "Service" in after


TRIAL = {"ownerReferences": [{"kind": "FineTuneExperiment", "name": "schemes", "uid": UID, "controller": True}]}
RUNS = {"volume": {"claimName": "runs"}}
SHARED = {
    "with the runs": (
        RUNS,
        {
            **mount(0, "/finetune/cache", read_only=False),
            f"{ONE}.volumeMounts[/finetune/cache].subPath": (None, "schemes-0123abcd-cache"),
            **env("FINETUNE_CACHE", "/finetune/cache", before="/finetune/run/cache"),
            **env("HF_HOME", "/finetune/cache/huggingface", before="/finetune/run/cache/huggingface"),
        },
    ),
    "with the models": (
        {"modelCache": "models"},
        {
            **mount(1, "/finetune/cache", read_only=False),
            f"{ONE}.volumeMounts[/finetune/cache].subPath": (None, "schemes-0123abcd-cache"),
            **env("FINETUNE_CACHE", "/finetune/cache", before="/finetune/run/cache"),
        },
    ),
    "nowhere, for each trial has a claim of its own": ({}, {}),
}


@pytest.mark.parametrize(("by", "expected"), SHARED.values(), ids=SHARED.keys())
def test_trials_share_what_they_make_ready(by, expected):
    assert difference(children(by=by), children(by=by, metadata=TRIAL)) == expected


def test_nobody_may_read_progress_if_nobody_is_named():
    policy = children(readers=())["NetworkPolicy"]
    assert policy["spec"]["ingress"] == [{"from": [PEERS]}]


def test_a_job_that_no_cluster_knows_owns_nothing():
    made = children(metadata={"uid": None})
    assert all("ownerReferences" not in manifest["metadata"] for manifest in made.values())
    assert pod(made)["containers"][0]["volumeMounts"][4]["subPath"] == "demo"


def test_what_all_attempts_share_comes_first():
    resolved = resolve(job(**TWO), runtime(), {})
    lasting = build_lasting(resolved, READERS)
    assert [manifest["kind"] for manifest in lasting] == ["PersistentVolumeClaim", "Service", "NetworkPolicy"]
    assert build_children(resolved, 3, READERS)[:-1] == lasting


# --- any job

SIZES = st.sampled_from([{"claimName": "mine"}, {"size": "1Gi"}, {"size": "2.5Ti", "accessMode": "ReadWriteOnce"}])
SOURCES = st.sampled_from(["hf://a/b", "file:///data", "pvc://mine/a", "pvc://cache/b", "pvc://" + "c" * 253 + "/d"])
SPECS = st.fixed_dictionaries(
    {"distributed": st.fixed_dictionaries({"workers": st.sampled_from([1, 2, 1024])})},
    optional={
        "model": st.fixed_dictionaries({"source": SOURCES}),
        "data": st.fixed_dictionaries({"source": SOURCES, "testSource": SOURCES}),
        "checkpoint": st.fixed_dictionaries({"volume": SIZES}),
        "queue": st.just("q"),
        "priorityClass": st.just("p"),
        "hub": st.just({"secretRef": {"name": "hub", "key": "token"}}),
        "tracking": st.just({"wandb": {"project": "p", "secretRef": {"name": "w", "key": "k"}}}),
    },
)
RUNTIMES = st.fixed_dictionaries(
    {},
    optional={
        "resources": st.sampled_from([{}, {"cpu": "0.1", "memory": "1000Mi", "gpus": 64}]),
        "placement": st.fixed_dictionaries(
            {"spread": st.sampled_from(["pack", "spread", "any"])},
            optional={
                "nodeSelector": st.just({"a": "b", "c": ""}),
                "tolerations": st.just([{"operator": "Exists"}]),
                "schedulerName": st.just("s"),
            },
        ),
        "env": st.just([{"name": "A", "value": "b"}, {"name": "WANDB_API_KEY", "value": "c"}, {"name": "D"}]),
        "volume": SIZES,
        "modelCache": st.sampled_from(["cache", "mine"]),
        "egress": st.sampled_from(["dns", "all"]),
        "queue": st.just("r"),
    },
)
MODELS = {"PersistentVolumeClaim": "V1PersistentVolumeClaim", "Service": "V1Service", "Job": "V1Job"}
CLIENT = ApiClient()


def as_kubernetes_knows_it(manifest):
    """The manifest read into the client's models, which know every field of the API, and written again."""
    kind = MODELS.get(manifest["kind"], f"V1{manifest['kind']}")
    return CLIENT.sanitize_for_serialization(CLIENT._ApiClient__deserialize(copy.deepcopy(manifest), kind))


def keys_of(manifest):
    """What tells items apart in the lists that a server-side apply merges by key."""
    spec = manifest["spec"]["template"]["spec"]
    one = spec["containers"][0]
    yield [entry["name"] for entry in one["env"]]
    yield [entry["mountPath"] for entry in one["volumeMounts"]]
    yield [volume["name"] for volume in spec["volumes"]]
    yield [
        volume["persistentVolumeClaim"]["claimName"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume
    ]


@settings(max_examples=60, deadline=None, derandomize=True)
@given(spec=SPECS, by=RUNTIMES, name=st.sampled_from(["a", "n" * 52]), attempt=st.sampled_from([1, 99_999]))
def test_any_job(spec, by, name, attempt):
    made = children(spec, by, {"name": name}, attempt)
    assert made == children(spec, by, {"name": name}, attempt)
    assert violations(pod(made)) == []
    for manifest in made.values():
        assert as_kubernetes_knows_it(manifest) == manifest
        assert None not in leaves(manifest).values()
        assert "&id" not in yaml.safe_dump(manifest), "no object stands in two places"
    assert all(len(set(keys)) == len(keys) for keys in keys_of(made["Job"]))
    mounted = {entry["name"] for entry in pod(made)["containers"][0]["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod(made)["volumes"]}
    host = f"{made['Job']['metadata']['name']}-{made['Job']['spec']['completions'] - 1}"
    assert len(host) <= 63
    assert re.fullmatch(DNS_LABEL, host)


def test_a_misspelt_field_would_be_found():
    manifest = children()["Job"]
    manifest["spec"]["template"]["spec"]["containers"][0]["imagePulPolicy"] = "Always"
    assert as_kubernetes_knows_it(manifest) != manifest


# control of Pod Security → a pod's spec that does not meet it
BREAKS = {
    "host namespaces": lambda spec: spec.update(hostNetwork=True),
    "privileged": lambda spec: first(spec)["securityContext"].update(privileged=True),
    "host process": lambda spec: spec["securityContext"].update(windowsOptions={"hostProcess": True}),
    "host ports": lambda spec: first(spec)["ports"][0].update(hostPort=80),
    "AppArmor": lambda spec: spec["securityContext"].update(appArmorProfile={"type": "Unconfined"}),
    "SELinux": lambda spec: spec["securityContext"].update(seLinuxOptions={"type": "spc_t"}),
    "/proc": lambda spec: first(spec)["securityContext"].update(procMount="Unmasked"),
    "sysctls": lambda spec: spec["securityContext"].update(sysctls=[{"name": "a", "value": "1"}]),
    "volume types": lambda spec: spec["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
    "privilege escalation": lambda spec: first(spec)["securityContext"].pop("allowPrivilegeEscalation"),
    "non-root": lambda spec: spec["securityContext"].pop("runAsNonRoot"),
    "non-root user": lambda spec: first(spec)["securityContext"].update(runAsUser=0),
    "seccomp": lambda spec: spec["securityContext"].pop("seccompProfile"),
    "capabilities": lambda spec: first(spec)["securityContext"].pop("capabilities"),
}


def first(spec):
    return spec["containers"][0]


@pytest.mark.parametrize("control", CONTROLS)
def test_a_pod_that_breaks_a_control_would_be_found(control):
    spec = copy.deepcopy(pod(children()))
    BREAKS[control](spec)
    assert violations(spec) == [control]


def test_every_variable_of_the_wiring_is_set():
    names = {entry["name"] for entry in pod(children())["containers"][0]["env"]}
    assert {variable.value for variable in Variable} <= names
