"""The operator on a real node as its users have it: its chart and images, volumes of an administrator, and jobs.

A node of tests has no provisioner: an administrator's volumes are folders of this machine, so a test reads what a
trainer writes without asking it.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from charts import NAMESPACE, ROOT, installed
from cluster import images
from cluster.manifests import RESTRICTED
from cluster.node import NAME
from finetune_api.wiring import RunFolder
from operating import job, until

RUNS, DATA = "runs", "data"
"""Claims of the tenant."""
START_SECONDS = 400.0
"""Two trainers import torch and transformers at once on two cores that others use as well; quiet, it takes 25."""
DIGITS_RUN: dict[str, Any] = {
    "task": "image-classification",
    "model": {
        "config": {
            "model_type": "vit",
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "image_size": 8,
            "patch_size": 4,
        }
    },
    "data": {
        "source": "pvc://data/digits",
        "imageSize": 8,
        "augmentation": {"image": {"rotateDegrees": 10, "cropMinArea": 0.8}},
    },
    "strategy": {"learningRate": {"value": 3e-3}},
    "training": {"maxSteps": 400, "batchSize": 32, "precision": "fp32"},
    "evaluation": {"every": {"steps": 200}},
    "checkpoint": {"every": {"steps": 40}},
    "distributed": {"workers": 2},
}
"""A spec that trains for half a minute in two workers."""


@dataclass
class Site:
    """A cluster with the operator, and a tenant's namespace with volumes and data."""

    cluster: Any
    namespace: str
    operator_namespace: str
    runs: Path
    """The volume that runs lie on."""
    data: Path
    """The volume of the data: the digits are in its folder `digits`."""

    def apply(self, name: str, **spec: Any) -> "Run":
        """Apply a job whose run lies on the volume."""
        self.cluster.apply(job(self.namespace, name, **spec))
        return Run(self, name)

    def kubectl(self, *arguments: str | Path, **options: Any) -> str:
        """``kubectl`` in the tenant's namespace."""
        return self.cluster.kubectl("--namespace", self.namespace, *arguments, **options)

    def get(self, *arguments: str) -> Any:
        """Objects of the tenant's namespace."""
        return self.cluster.get("--namespace", self.namespace, *arguments)


@dataclass
class Run:
    """A job on the node, and its run on the volume."""

    site: Site
    name: str

    @property
    def folder(self) -> RunFolder:
        """The run's folder."""
        (found,) = self.site.runs.glob(f"{self.name}-????????")
        return RunFolder(found)

    def status(self) -> dict[str, Any]:
        """The job's status."""
        return self.site.get("finetunejob", self.name).get("status") or {}

    def pods(self, attempt: int) -> list[dict[str, Any]]:
        """An attempt's pods in the order of its workers."""
        selector = f"--selector=finetune.dev/job={self.name},finetune.dev/attempt={attempt}"
        return sorted(self.site.get("pods", selector), key=lambda pod: pod["metadata"]["name"])

    def history(self) -> bytes:
        """The complete lines of the history; empty before the first."""
        with contextlib.suppress(ValueError, FileNotFoundError):
            return self.folder.history.read_bytes().rpartition(b"\n")[0]
        return b""

    def step(self) -> int:
        """The last step of the history; 0 before the first."""
        lines = self.history().splitlines()
        return json.loads(lines[-1])["step"] if lines else 0

    def saved_step(self) -> int:
        """The step of the newest complete checkpoint; 0 before the first."""
        with contextlib.suppress(ValueError):
            return max((int(path.name[5:]) for path in self.folder.checkpoints.glob("step-*")), default=0)
        return 0

    def until(self, look: Callable[[], Any], what: str, seconds: float = START_SECONDS) -> Any:
        """Wait; what goes wrong is told with what the workers said."""
        try:
            return until(look, seconds, what)
        except AssertionError as failure:
            raise AssertionError(f"{failure}\n{self.told()}") from failure

    def until_finished(self, phase: str = "Succeeded", seconds: float = START_SECONDS) -> dict[str, Any]:
        """The status once the job is finished."""
        ends = ("Succeeded", "Failed")
        status = self.until(lambda: (s := self.status()).get("phase") in ends and s, f"end of {self.name}", seconds)
        assert status["phase"] == phase, f"{status}\n{self.told()}"
        return status

    def told(self) -> str:
        """What there is to read when something goes wrong."""
        whose = f"--selector=finetune.dev/job={self.name}"
        asked = (["describe", "ftj", self.name], ["get", "pods", "-o", "wide"], ["logs", whose, "--tail=25"])
        told = [self.site.kubectl(*arguments, check=False) for arguments in asked]
        operator = ["-n", self.site.operator_namespace, "logs", "deployment/finetune-operator", "--tail=15"]
        return "\n".join([*told, self.site.cluster.kubectl(*operator, check=False)])


@contextlib.contextmanager
def site(cluster: Any, folder: Path) -> Iterator[Site]:
    """Within: the operator is installed, and a tenant has volumes and the digits."""
    names = {target: images.import_project_image(cluster, target) for target in ("operator", "trainer")}
    subprocess.run([sys.executable, ROOT / "examples/make_digits.py", folder / DATA / "digits"], check=True)
    with cluster.namespace("tenant", labels=RESTRICTED) as tenant, release(cluster, names):
        volumes = [local_volume(tenant, claim, folder / claim) for claim in (RUNS, DATA)]
        cluster.apply(*(item for volume in volumes for item in volume))
        try:
            yield Site(cluster, tenant, NAMESPACE, folder / RUNS, folder / DATA)
        finally:
            cluster.kubectl("delete", "finetunejobs", "--all", "--namespace", tenant, "--timeout=60s")
            cluster.kubectl("delete", "pv", *(pv["metadata"]["name"] for pv, _ in volumes), "--wait=false")


@contextlib.contextmanager
def release(cluster: Any, names: dict[str, str]) -> Iterator[None]:
    """Within: the chart is installed with these images, in a namespace of its own."""
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE, "labels": RESTRICTED}})
    try:
        with installed(cluster, NAMESPACE, values(names)):
            yield
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=60s", seconds=90)


def values(names: dict[str, str]) -> dict[str, Any]:
    """The chart's values for a node of two cores: nobody reserves one, and the operator stays whatever befalls it."""
    repository, _, tag = names["operator"].rpartition(":")
    return {
        "crds": {"enabled": False},
        "replicas": 1,
        "image": {"repository": repository, "tag": tag, "pullPolicy": "Never"},
        "tolerations": [{"operator": "Exists"}],
        "defaultRuntime": {
            "spec": {
                "image": names["trainer"],
                "imagePullPolicy": "Never",
                "resources": {"memory": "2Gi"},
                "volume": {"claimName": RUNS},
                "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
            }
        },
    }


def local_volume(namespace: str, claim: str, path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """A folder of the node as a volume, and the claim that it is bound to."""
    path.mkdir(parents=True, exist_ok=True)
    name = f"{namespace}-{claim}"
    here = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NAME]}
    both = {"accessModes": ["ReadWriteMany"], "storageClassName": ""}
    volume = {
        "capacity": {"storage": "1Gi"},
        "persistentVolumeReclaimPolicy": "Retain",
        "local": {"path": str(path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [here]}]}},
        "claimRef": {"namespace": namespace, "name": claim},
    }
    wanted = {"volumeName": name, "resources": {"requests": {"storage": "1Gi"}}}
    return (
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": both | volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim, "namespace": namespace},
         "spec": both | wanted},
    )  # fmt: skip


def seconds_of(text: str) -> float:
    """A time of Kubernetes in seconds since the epoch."""
    return datetime.fromisoformat(text).timestamp()
