"""What a tenant that applies very many jobs at once does to the others, who apply one now and then.

Quiet tenants take turns, one job each half second: first alone, then while another tenant's flood of jobs goes on,
until its last pod is there. A wait is from the request that makes a job to its last pod; p99 of them is compared.
Beside it stands the same with bare Indexed Jobs, whose controller serves whoever came first. All runs on one machine,
on which the control plane goes last.

python benchmarks/operator_tenants.py                 50 tenants, one of which applies 5,000 jobs
python benchmarks/operator_tenants.py --flood 300
"""

import asyncio
import contextlib
import statistics
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from measure import Report, arguments, note
from operator_scale import WORKERS, bare_job, bare_path, fine_tune_job, jobs_path, percentile
from scale_cluster import (
    CLAIM,
    NAMESPACE,
    VOLUME,
    Client,
    Cluster,
    client_of,
    let_control_plane_go_last,
    new_cluster,
    running_operator,
)

SPACING_SECONDS = 0.5
ROUNDS = 10
"""So many jobs of each quiet tenant alone: of few, the 99th percentile would be the slowest."""
QUIET_SECONDS = 15.0
"""From the jobs made alone to the flood."""


@dataclass
class Pods:
    """How many pods of each job there are, as a watch tells."""

    sent: dict[str, float] = field(default_factory=dict)
    waits: dict[str, float] = field(default_factory=dict)
    """Seconds of each job to its last pod."""
    _seen: Counter[str] = field(default_factory=Counter)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    async def follow(self, client: Client) -> None:
        """Take in every pod, until cancelled."""
        async with contextlib.aclosing(client.watch_pods()) as pods:
            async for name in pods:
                self._seen[name] += 1
                if self._seen[name] == WORKERS:
                    self.waits[name] = time.perf_counter() - self.sent[name]
                    self.changed.set()

    async def until(self, names: list[str]) -> list[float]:
        """The waits of these jobs, once all of them have their pods."""
        while not all(name in self.waits for name in names):
            self.changed.clear()
            await self.changed.wait()
        return [self.waits[name] for name in names]


@dataclass
class Tenants:
    """The quiet ones and the loud one, who make FineTuneJobs or bare Jobs."""

    client: Client
    pods: Pods
    quiet: list[str]
    is_bare: bool

    async def make(self, name: str, namespace: str) -> None:
        """Apply one job."""
        path, build = (bare_path, bare_job) if self.is_bare else (jobs_path, fine_tune_job)
        self.pods.sent[name] = time.perf_counter()
        await self.client.create(path(namespace), build(name, namespace))

    async def take_turns(self, prefix: str, end: asyncio.Event, at_least: int) -> list[float]:
        """One job each half second until ``end``, ``at_least`` so many; how long each waited for its pods."""
        names: list[str] = []
        for number in count():
            if number >= at_least and end.is_set():
                return await self.pods.until(names)
            names.append(f"{prefix}-{number:04}")
            await self.make(names[-1], self.quiet[number % len(self.quiet)])
            await asyncio.sleep(SPACING_SECONDS)
        raise AssertionError

    async def flood(self, jobs: int, end: asyncio.Event) -> None:
        """So many jobs of one tenant, as fast as one connection takes them; ``end`` once all have their pods."""
        names = [f"flood-{number:05}" for number in range(jobs)]
        for name in names:
            await self.make(name, NAMESPACE)
        await self.pods.until(names)
        end.set()


async def measured(cluster: Cluster, quiet: list[str], flood: int, *, is_bare: bool) -> tuple[list[float], list[float]]:
    """Waits of the quiet tenants alone, and beside the flood."""
    async with client_of(cluster) as client, asyncio.TaskGroup() as group:
        pods = Pods()
        following = group.create_task(pods.follow(client))
        tenants, over = Tenants(client, pods, quiet, is_bare), asyncio.Event()
        over.set()
        alone = await tenants.take_turns("alone", over, ROUNDS * len(quiet))
        await asyncio.sleep(QUIET_SECONDS)
        end = asyncio.Event()
        flooding = group.create_task(tenants.flood(flood, end))
        beside = await tenants.take_turns("beside", end, 1)
        await flooding
        following.cancel()
    return alone, beside


def prepare(cluster: Cluster, tenants: int) -> list[str]:
    """Namespaces of the quiet tenants, each with its volume."""
    names = [f"quiet-{number:03}" for number in range(tenants)]
    cluster.apply(*({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names))
    cluster.apply(*(one for name in names for one in volume_of(name)))
    for name in names:
        cluster.await_ready(name)
    return names


def volume_of(namespace: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """A volume and the claim that it is bound to."""
    volume = f"runs-{namespace}"
    claim = CLAIM | {
        "metadata": {"name": "runs", "namespace": namespace},
        "spec": CLAIM["spec"] | {"volumeName": volume},
    }
    return VOLUME | {"metadata": {"name": volume}}, claim


def compared(tenants: int, flood: int) -> Report:
    """Both sides."""
    columns = ("side", "alone p50 s", "alone p99 s", "jobs beside", "beside p50 s", "beside p99 s")
    report = Report(f"{tenants - 1} quiet tenants, and one that applies {flood:,} jobs at once", columns)
    for side, is_bare in (("bare Jobs", True), ("FineTuneJobs", False)):
        with new_cluster(2 * flood * WORKERS) as cluster:  # with room for the quiet ones
            quiet = prepare(cluster, tenants - 1)
            let_control_plane_go_last(cluster)
            with contextlib.nullcontext() if is_bare else running_operator(cluster):
                alone, beside = asyncio.run(measured(cluster, quiet, flood, is_bare=is_bare))
        before, after = percentile(alone, 99), percentile(beside, 99)
        report.add(side, statistics.median(alone), before, len(beside), statistics.median(beside), after)
        note(f"  {side}: {before:.2f} s alone, {after:.2f} s beside the flood")
        report.figure(f"quiet p99, beside / alone, {side}", after / before, at_most=None if is_bare else 2.0)
    return report


def main() -> int:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("--tenants", type=int, default=50, help="in all (default: 50)")
    parser.add_argument("--flood", type=int, default=5000, help="jobs of the loud one (default: 5000)")
    options = parser.parse_args()
    tenants, flood = (4, 6) if options.quick else (options.tenants, options.flood)
    compared(tenants, flood).print(as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
