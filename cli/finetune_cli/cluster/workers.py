"""Pods of a job's workers, and which of them are meant."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.cluster.screen import UNSEEN, printable
from finetune_operator.kinds import POD
from finetune_operator.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_UID, TRAINER_CONTAINER
from finetune_operator.observed import ObservedWorker, WorkerPhase
from finetune_operator.pods import observe_worker, waiting_text


@dataclass(frozen=True)
class Wanted:
    """Which logs."""

    worker: int | None = None
    """None for all."""
    attempt: int | None = None
    """None for the newest, and with ``follow`` those after it."""
    tail: int | None = None
    """So many of the last lines of each; None for all."""
    follow: bool = False


@dataclass(frozen=True)
class WorkerPod:
    """The pod of a worker."""

    name: str
    uid: str
    attempt: int
    worker: int
    created: str
    has_begun: bool
    """There is, or was, a container that prints."""
    waits_for: str | None

    @property
    def who(self) -> str:
        """For people."""
        return f"worker {self.worker} of attempt {self.attempt}"


def chosen(pods: list[WorkerPod], wanted: Wanted) -> list[WorkerPod]:
    """The wanted pods of the wanted or newest attempt, one a worker (the newest), in the workers' order."""
    number = wanted.attempt or max((pod.attempt for pod in pods), default=0)
    of_attempt = [pod for pod in pods if pod.attempt == number and wanted.worker in (None, pod.worker)]
    newest = {pod.worker: pod for pod in sorted(of_attempt, key=lambda pod: pod.created)}
    return [pod for _, pod in sorted(newest.items())]


def know_pod(pod: Mapping[str, Any]) -> WorkerPod:
    """The worker that a pod of the cluster is."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    worker = observe_worker(pod)
    number = metadata["labels"].get(LABEL_ATTEMPT, "")
    containers = [one for one in status.get("containerStatuses") or [] if one.get("name") == TRAINER_CONTAINER]
    state = (containers[0].get("state") or {}) if containers else {}
    begun = "running" in state or "terminated" in state
    waits = waiting_text(pod) or (state.get("waiting") or {}).get("reason") or _phase_text(worker)
    return WorkerPod(
        name=metadata["name"],
        uid=metadata["uid"],
        attempt=int(number) if number.isdecimal() else 0,
        worker=worker.index,
        created=metadata["creationTimestamp"],
        has_begun=begun,
        waits_for=None if begun else printable(waits),
    )


def _phase_text(worker: ObservedWorker) -> str:
    if worker.phase is WorkerPhase.PENDING:
        return f"node {worker.node} has not started it yet" if worker.node else "its pod waits for a node"
    return "its container has not begun"


def read_pods(cluster: Cluster, known: KnownJob) -> list[WorkerPod]:
    """All pods of a job that are there, whichever attempt they are of."""
    selector = f"{LABEL_JOB}={known.name},{LABEL_UID}={known.uid}"
    found = cluster.read_all(POD, known.namespace, labelSelector=selector)
    return [know_pod(item) for item in found["items"]]


def newest_text(number: int) -> str:
    """The newest attempt, for a fault that names another."""
    return f"the newest was {number}" if number else "none has begun"


def absent(known: KnownJob, wanted: Wanted) -> ClusterError:
    """Why there is no pod."""
    newest = known.status.attempts[-1].number if known.status.attempts else 0
    number = wanted.attempt or newest
    if number > newest and known.is_finished:
        return ClusterError(ExitCode.NOT_FOUND, f"{known.name}: has no attempt {number}; {newest_text(newest)}")
    if newest and (number < newest or known.is_finished):
        told = f"{known.name}: the pods of attempt {number} are gone, and their logs with them"
        return ClusterError(ExitCode.NOT_FOUND, f"{told}; finetune describe {known.name} tells how it ended")
    return ClusterError(ExitCode.RETRY, f"{known.name}: {why_no_pods(known)}")


def why_no_pods(known: KnownJob) -> str:
    """What a job waits for whose pods are not there yet."""
    deciding = known.deciding
    return printable(f"has no pods yet: {deciding.message if deciding else UNSEEN}")


def prefixed(line: str, pod: WorkerPod, *, prefix: bool) -> str:
    """The line, with whose it is if it has a ``prefix``."""
    return f"[worker {pod.worker}] {line}" if prefix else line
