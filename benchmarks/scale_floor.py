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

from finetune_operator.__main__ import GC_THRESHOLD
from finetune_operator.api import Api, load_configuration
from finetune_operator.build.job import build_job
from finetune_operator.build.network_policy import build_network_policy
from finetune_operator.events import Posting, build_event
from finetune_operator.gathering import GatheringSelector, run
from finetune_operator.handlers import Course, watch
from finetune_operator.kinds import EVENT, FINE_TUNE_JOB, JOB, NETWORK_POLICY, Kind
from finetune_operator.observed import Observed
from finetune_operator.plan import plan
from finetune_operator.resolved import Resolved
from finetune_operator.schedule import Key
from finetune_operator.serve import WORKERS
from scale_cluster import Cluster, cpu_seconds

NAME, UID = "name-of-the-job", "11111111-2222-3333-4444-555555555555"
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


def templates(resolved: Resolved) -> tuple[list[tuple[Kind, str]], dict[str, Any]]:
    """What is created for a job that starts, as JSON with NAME and UID in it; and its status."""
    now, namespace = datetime.now(UTC), resolved.job.metadata.namespace
    made = plan(Observed(resolved.job, now))
    assert made.status is not None
    postings = [Posting(Key(namespace, NAME), UID, event, now) for event in made.events]
    manifests = [
        (NETWORK_POLICY, build_network_policy(resolved, ())),
        (JOB, build_job(resolved, 1)),
        *((EVENT, build_event(posting, "floor")) for posting in postings),
    ]
    return [(kind, json.dumps(manifest)) for kind, manifest in manifests], made.status.to_wire()


async def main(selector: GatheringSelector) -> None:
    """Watch, and write, until killed."""
    from operator_scale import resolved_job

    selector.gathers = True

    resolved = resolved_job(NAME, uid=UID)
    created, status = templates(resolved)
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
            version = {name: metadata[name] for name in ("namespace", "name", "uid", "resourceVersion")}
            job = {"apiVersion": raw["apiVersion"], "kind": raw["kind"], "metadata": version, "status": status}
            await api.replace(FINE_TUNE_JOB, job, "status")
            os.write(sys.stdout.fileno(), b".")

    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
    configuration = await load_configuration()
    async with ApiClient(configuration) as client:
        workers = [asyncio.create_task(work(Api(client))) for _ in range(WORKERS)]
        await watch(sink, configuration, None, Course())
        await asyncio.gather(*workers)


if __name__ == "__main__":
    run(main)
