"""A control plane with simulated nodes for benchmarks, what is asked of it, and the operator as a process beside it.

etcd lies in memory (/dev/shm), so that no disk is measured. Pods are kwok's: they run as soon as they are scheduled.
"""

import asyncio
import json
import os
import re
import ssl
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cluster.ports import free_ports
from cluster.running import Cluster, Shape, bring_up, take_down
from cluster.simulated import NAME as KUBELETS

__all__ = [
    "Client",
    "Cluster",
    "Operator",
    "client_of",
    "cpu_seconds",
    "in_parallel",
    "let_control_plane_go_last",
    "new_cluster",
    "running_operator",
]

NAMESPACE = "scale"
PODS_A_NODE = 900
LAST = 10
"""As nice(1) counts: who has it gets a tenth of what others may have, and waits for them."""
CONNECTIONS = 64
"""As many requests of the benchmark's own are under way at a time."""
RUNTIME = {
    "apiVersion": "finetune.dev/v1alpha1",
    "kind": "FineTuneRuntime",
    "metadata": {"name": "default"},
    "spec": {"image": "trainer:1", "volume": {"claimName": "runs"}, "ceilings": {"resources": {"gpus": 0}}},
}
VOLUME: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "PersistentVolume",
    "metadata": {"name": "runs"},
    "spec": {
        "capacity": {"storage": "1Ti"},
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "none",
        "nfs": {"server": "127.0.0.1", "path": "/"},
    },
}
CLAIM: dict[str, Any] = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "runs", "namespace": NAMESPACE},
    "spec": {
        "accessModes": ["ReadWriteMany"],
        "storageClassName": "none",
        "volumeName": "runs",
        "resources": {"requests": {"storage": "1Ti"}},
    },
}
FLAGS = {"kube-apiserver": ["--feature-gates=DetectCacheInconsistency=false"]}
"""Else the API server, each five to seven minutes, reads all objects of a kind twice to see that its cache is as etcd
has them: that fills one of two cores for seconds, in the midst of whatever is measured."""
WRITES = {"POST", "PUT", "PATCH", "APPLY", "DELETE"}
UNCOUNTED = {"", "leases", "nodes"}
"""Reviews and the like, and heartbeats: with more than a few nodes some are under way at any time."""
_REQUESTS = re.compile(r"^apiserver_request_total\{(.*)\} (\S+)$", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="([^"]*)"')
_TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def new_cluster(pods: int) -> Iterator[Cluster]:
    """A cluster with the CRDs, a runtime, a bound claim and room for so many pods; it is taken down afterwards."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None, ignore_cleanup_errors=True) as folder:
        shape = Shape(simulated_nodes=1 + pods // PODS_A_NODE, flags=FLAGS)
        cluster = bring_up(Path(folder) / "it", shape, owned=True)
        try:
            cluster.apply_crds()
            # Else the garbage collector, which learns of new kinds twice a minute, asks for each owner by itself.
            cluster.stop("kube-controller-manager")
            cluster.start("kube-controller-manager")
            cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}, VOLUME)
            cluster.await_ready(NAMESPACE)
            cluster.apply(RUNTIME, CLAIM)
            cluster.kubectl("wait", "-n", NAMESPACE, "--for=jsonpath={.status.phase}=Bound", "pvc/runs")
            yield cluster
        finally:
            take_down(cluster.folder)


def let_control_plane_go_last(cluster: Cluster) -> None:
    """Give way to kubelets, operator and clients, which in a cluster have machines of their own.

    On one that is full, each of them waits for a processor now and then, up to 0.15 s, and that is in every wait which
    is measured.
    """
    pids = cluster.keeper.pids()
    session = Path(f"/proc/{pids.pop(KUBELETS)}/autogroup")
    if session.exists():  # the kernel then shares processors out by sessions first
        session.write_text(str(LAST))
    for pid in pids.values():
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):
                os.setpriority(os.PRIO_PROCESS, int(thread.name), LAST)


@dataclass
class Client:
    """The administrator's requests."""

    url: str
    session: aiohttp.ClientSession

    async def create(self, path: str, manifest: dict[str, Any]) -> dict[str, Any]:
        """POST; raises ``aiohttp.ClientResponseError``."""
        async with self.session.post(self.url + path, json=manifest) as answer:
            answer.raise_for_status()
            made: dict[str, Any] = await answer.json()
            return made

    async def replace(self, path: str, manifest: dict[str, Any]) -> None:
        """PUT."""
        async with self.session.put(self.url + path, json=manifest) as answer:
            answer.raise_for_status()

    async def patch(self, path: str, patch: dict[str, Any]) -> None:
        """Merge patch."""
        headers = {"Content-Type": "application/merge-patch+json"}
        async with self.session.patch(self.url + path, json=patch, headers=headers) as answer:
            answer.raise_for_status()

    async def requests(self) -> Counter[str]:
        """Requests that the API server has answered, by verb and kind; watches, heartbeats and reviews are left out."""
        async with self.session.get(f"{self.url}/metrics") as answer:
            text = await answer.text()
        counts: Counter[str] = Counter()
        for labels, value in _REQUESTS.findall(text):
            told = dict(_LABEL.findall(labels))
            if told["resource"] not in UNCOUNTED and told["verb"] in (WRITES | {"GET", "LIST"}):
                counts[f"{told['verb']} {told['resource']}"] += int(float(value))
        return counts

    async def writes(self) -> int:
        """Writes that the API server has answered."""
        return sum(count for kind, count in (await self.requests()).items() if kind.split()[0] in WRITES)

    async def watch_pods(self) -> AsyncGenerator[str, None]:
        """The job of each pod of any namespace (the label finetune.dev/job) as it is created."""
        async for pod in self.new_pods():
            yield pod["metadata"]["labels"]["finetune.dev/job"]

    async def new_pods(self) -> AsyncGenerator[dict[str, Any], None]:
        """The metadata of each pod of a job as it is created.

        The API server ends the watch of whoever does not keep up. It is begun anew after the last pod that was told,
        or, once that is too long ago, with all that there are.
        """
        headers = {"Accept": "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io"}
        url = f"{self.url}/api/v1/pods?watch=1&labelSelector=finetune.dev/job&resourceVersion="
        told: set[str] = set()
        since = ""
        while True:
            async with self.session.get(url + since, headers=headers, read_bufsize=2**20) as answer:
                if answer.status == HTTPStatus.GONE:
                    since = ""
                    continue
                answer.raise_for_status()
                async for line in answer.content:
                    if line.startswith(b'{"type":"ERROR"'):
                        since = ""
                    if line.startswith(b'{"type":"ADDED"'):
                        pod = json.loads(line)["object"]
                        since = pod["metadata"]["resourceVersion"]
                        if pod["metadata"]["uid"] not in told:
                            told.add(pod["metadata"]["uid"])
                            yield pod


@asynccontextmanager
async def client_of(cluster: Cluster) -> AsyncIterator[Client]:
    """A client with the administrator's rights."""
    identity = cluster.plane.authority.issue("benchmark", "benchmark", groups=("system:masters",))
    trusted = ssl.create_default_context(cafile=str(cluster.plane.authority.root.certificate))
    trusted.load_cert_chain(identity.certificate, identity.key)
    connector, patience = aiohttp.TCPConnector(ssl=trusted, limit=0), aiohttp.ClientTimeout(total=None)
    async with aiohttp.ClientSession(connector=connector, timeout=patience) as session:
        yield Client(cluster.plane.url, session)


@dataclass
class Operator:
    """One replica without a lease, in a process of its own."""

    process: subprocess.Popen[bytes]
    metrics_port: int

    def requests(self) -> Counter[str]:
        """Requests that it has made, by verb; those of its watches are kopf's and not among them."""
        counts: Counter[str] = Counter()
        for line in _fetch(self.metrics_port, "/metrics").splitlines():
            if line.startswith("finetune_operator_api_requests_total{"):
                counts[dict(_LABEL.findall(line))["verb"]] += int(float(line.rpartition(" ")[2]))
        return counts

    def looks(self) -> int:
        """How often it has looked at a job."""
        name = "finetune_operator_queue_wait_seconds_count "
        lines = _fetch(self.metrics_port, "/metrics").splitlines()
        return next(int(float(line.removeprefix(name))) for line in lines if line.startswith(name))

    def jobs(self, phase: str) -> int:
        """How many jobs are in this phase, as far as it knows."""
        return self._in_phase("jobs", phase)

    def experiments(self, phase: str) -> int:
        """How many experiments are."""
        return self._in_phase("experiments", phase)

    def _in_phase(self, kind: str, phase: str) -> int:
        wanted = f'finetune_operator_{kind}{{namespace="{NAMESPACE}",phase="{phase}"}} '
        lines = _fetch(self.metrics_port, "/metrics").splitlines()
        return next((int(float(line.removeprefix(wanted))) for line in lines if line.startswith(wanted)), 0)

    def cpu_seconds(self) -> float:
        """CPU time so far, user and system."""
        return cpu_seconds(self.process.pid)

    def memory_mib(self, field: str = "VmRSS") -> float:
        """Resident memory: now, or the most there was (VmHWM)."""
        text = Path(f"/proc/{self.process.pid}/status").read_text()
        return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(field))


@contextmanager
def running_operator(cluster: Cluster, profile: Path | None = None) -> Iterator[Operator]:
    """The operator, ready; its log is in the cluster's folder."""
    metrics_port, health_port = free_ports(2)
    profiled = ["-m", "cProfile", "-o", str(profile)] if profile else []
    flags = ["--no-leader-election", "--bind-address=127.0.0.1", "--progress-readers=operator"]
    flags += [f"--metrics-port={metrics_port}", f"--health-port={health_port}"]
    environment = os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
    with cluster.log("operator").open("wb") as log:
        command = [sys.executable, *profiled, "-m", "finetune_operator", *flags]
        process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    try:
        _await_ready(process, health_port, cluster.log("operator"))
        yield Operator(process, metrics_port)
    finally:
        process.terminate()
        process.wait(30)


def cpu_seconds(pid: int) -> float:
    """CPU time of a process so far, user and system, its threads included."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


async def in_parallel(coroutines: list[Any]) -> list[Any]:
    """All of them, CONNECTIONS at a time."""
    free = asyncio.Semaphore(CONNECTIONS)

    async def one(coroutine: Any) -> Any:
        async with free:
            return await coroutine

    return await asyncio.gather(*(one(coroutine) for coroutine in coroutines))


def _await_ready(process: subprocess.Popen[bytes], port: int, log: Path) -> None:
    deadline = time.monotonic() + 90
    while True:
        try:
            _fetch(port, "/readyz")
        except OSError as error:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"the operator is not ready:\n{log.read_text()[-3000:]}") from error
            time.sleep(0.2)
        else:
            return


def _fetch(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=30) as answer:
        text: str = answer.read().decode()
        return text
