"""The least that an operator of the same libraries costs: kopf's watches of all kinds, and a job's writes.

Nothing is decided and nothing kept: a job that comes gets a NetworkPolicy, a Job, a status and an Event, each a
template in which its name and uid are put. Run as a process of its own; it writes a byte a job to standard output.
"""

import asyncio
import gc
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from kubernetes.aio.client.api_client import ApiClient

from finetune_api.job import FineTuneJob
from finetune_operator.api import Api, load_configuration
from finetune_operator.build.job import build_job
from finetune_operator.build.network_policy import build_network_policy
from finetune_operator.handlers import Course, watch
from finetune_operator.kinds import EVENT, FINE_TUNE_JOB, JOB, NETWORK_POLICY, Kind
from finetune_operator.observed import Observed, ObservedAttempt, ObservedWorker, WorkerPhase
from finetune_operator.plan import plan
from finetune_operator.resolved import Resolved
from scale_cluster import Cluster, cpu_seconds

NAME, UID = "name-of-the-job", "11111111-2222-3333-4444-555555555555"
WORKERS = 32
"""Jobs that are worked on at a time, as the operator does."""
BEGIN_SECONDS = 10.0


@dataclass
class Floor:
    """That process."""

    process: subprocess.Popen[bytes]
    output: Path

    def done(self) -> int:
        """Jobs that have got everything."""
        return self.output.stat().st_size

    def cpu_seconds(self) -> float:
        """CPU time so far, user and system."""
        return cpu_seconds(self.process.pid)


@contextmanager
def running_floor(cluster: Cluster) -> Iterator[Floor]:
    """The process, once it watches."""
    output, environment = cluster.log("floor"), os.environ | {"KUBECONFIG": str(cluster.kubeconfig)}
    with output.open("wb") as file, cluster.log("floor-errors").open("wb") as errors:
        process = subprocess.Popen([sys.executable, __file__], env=environment, stdout=file, stderr=errors)
    try:
        time.sleep(BEGIN_SECONDS)
        yield Floor(process, output)
    finally:
        process.kill()
        process.wait(30)


def templates(resolved: Resolved) -> tuple[tuple[Kind, str], ...]:
    """What is created for a job, as JSON with NAME and UID in it."""
    event = {
        "apiVersion": "events.k8s.io/v1",
        "kind": "Event",
        "metadata": {"name": f"{NAME}.1", "namespace": resolved.job.metadata.namespace},
        "eventTime": datetime.now(UTC).isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "reportingController": "floor",
        "reportingInstance": "floor",
        "action": "Start",
        "reason": "AttemptStarted",
        "type": "Normal",
        "note": "Attempt 1 starts",
        "regarding": {"apiVersion": FINE_TUNE_JOB.api_version, "kind": FINE_TUNE_JOB.name, "name": NAME, "uid": UID,
                      "namespace": resolved.job.metadata.namespace},
    }  # fmt: skip
    made = ((NETWORK_POLICY, build_network_policy(resolved, ())), (JOB, build_job(resolved, 1)), (EVENT, event))
    return tuple((kind, json.dumps(manifest)) for kind, manifest in made)


def status_of(job: FineTuneJob) -> dict[str, Any]:
    """The status of a job that starts."""
    now = datetime.now(UTC)
    worker = ObservedWorker(0, WorkerPhase.RUNNING, started=now)
    made = plan(Observed(job, now, attempt=ObservedAttempt(1, (worker,)))).status
    assert made is not None
    return made.to_wire()


async def main() -> None:
    """Watch, and write, until killed."""
    from operator_scale import resolved_job

    resolved = resolved_job(NAME, uid=UID)
    created, status = templates(resolved), status_of(resolved.job)
    jobs: asyncio.Queue[dict[str, Any]] = asyncio.Queue()

    def sink(kind: Kind, event: str | None, raw: dict[str, Any]) -> None:
        if kind is FINE_TUNE_JOB and event == "ADDED":
            jobs.put_nowait(raw)

    async def work(api: Api) -> None:
        while True:
            raw = await jobs.get()
            metadata = raw["metadata"]
            for kind, text in created:
                filled = text.replace(NAME, metadata["name"]).replace(UID, metadata["uid"])
                await api.create(kind, metadata["namespace"], json.loads(filled))
            await api.replace(FINE_TUNE_JOB, raw | {"status": status}, "status")
            os.write(sys.stdout.fileno(), b".")

    gc.freeze()
    gc.set_threshold(20_000)
    configuration = await load_configuration()
    async with ApiClient(configuration) as client:
        workers = [asyncio.create_task(work(Api(client))) for _ in range(WORKERS)]
        await watch(sink, configuration, None, Course())
        await asyncio.gather(*workers)


if __name__ == "__main__":
    asyncio.run(main())
