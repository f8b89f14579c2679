"""Simulated nodes: kwok pretends to be their kubelets. What it does to pods is in stages.yaml."""

from pathlib import Path
from typing import Any

from cluster.client import Cluster
from cluster.programs import program

PROGRAMS = ("kwok",)
NAME = "kwok"
SELECTOR = "kwok.x-k8s.io/node=fake"
NODE_SIZE = {"cpu": "1k", "memory": "16Ti", "ephemeral-storage": "16Ti", "pods": "1k", "nvidia.com/gpu": "8"}
"""Of each node; GPUs are what runs out."""
STAGES = Path(__file__).with_name("stages.yaml")


def start(cluster: Cluster, count: int) -> None:
    """Start kwok and have ``count`` nodes, ``simulated-0`` and on."""
    known = len(cluster.get("nodes", "--selector=simulated.test/node"))
    if known < count:
        cluster.apply(*(build_node(f"simulated-{index}") for index in range(known, count)))
    command: list[str | Path] = [program("kwok"), "--kubeconfig", cluster.kubeconfig, "--config", STAGES]
    command += ["--manage-nodes-with-annotation-selector", SELECTOR, "--node-lease-duration-seconds=40"]
    cluster.add_process(NAME, command, {"KWOK_WORKDIR": str(cluster.folder / "kwok")})
    cluster.kubectl(
        "wait", "--for=condition=Ready", "node", "--selector=simulated.test/node", "--timeout=60s", seconds=90
    )


def build_node(name: str, size: dict[str, str] | None = None) -> dict[str, Any]:
    """A node that kwok takes for its own, as large as ``size``."""
    size = size or NODE_SIZE
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "annotations": dict([SELECTOR.split("=")]),
            "labels": {
                "simulated.test/node": "",
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": "amd64",
            },
        },
        "status": {"allocatable": size, "capacity": size},
    }


def end(
    cluster: Cluster,
    namespace: str,
    *pods: str,
    exit_code: int = 0,
    reason: str = "Error",
    message: str = "",
    after: str = "0s",
) -> None:
    """Let these pods end ``after`` they began to run (``5s``), as containers that exit so; the message is theirs."""
    said = {"runs-for": after, "exit-code": exit_code, "reason": reason, "message": message}
    pairs = [f"simulated.test/{name}={value}" for name, value in said.items()]
    cluster.kubectl("--namespace", namespace, "annotate", "--overwrite", "pods", *pods, *pairs)
