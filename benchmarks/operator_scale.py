"""What jobs of two workers cost, applied all at once, beside as many bare Indexed Jobs with the very same pods.

All sides run on a cluster of their own, one after the other: etcd in memory, scheduler, controllers with raised client
limits, and kwok's nodes. Workers of bare Jobs cannot find each other, so another side gives each Job the headless
Service that one writes by hand for that. "To the last pod" is from the first request to the moment a watch tells of the
last pod; "a job's pods" from the request that made the job to its last pod. Requests are those that the API server
counts over all clients (kwok and scheduler too, on all sides) until there are no more. CPU and requests of the operator
are those of its process from the first request until every job has its pods and says so in its status. Its progress
requests find nobody: kwok's pods have no address that answers. The floor is a process of the same libraries that
watches and writes the same for each job, without a thought (scale_floor.py).

python benchmarks/operator_scale.py                   100, 300 and 1,000 jobs, and 10,000 finished ones
python benchmarks/operator_scale.py 5000 --idle 0     5,000 jobs alone
"""

import asyncio
import contextlib
import statistics
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from finetune_api import Cause
from finetune_api.load import parse_job, parse_runtime
from finetune_api.status import (
    Attempt,
    Best,
    Condition,
    ConditionType,
    EarlyStoppingStatus,
    EvaluationPoint,
    Interval,
    JobStatus,
    LastCheckpoint,
    Phase,
    Progress,
    Reason,
    Result,
)
from finetune_operator.build.job import build_job
from finetune_operator.build.network_policy import build_network_policy
from finetune_operator.kinds import NETWORK_POLICY
from finetune_operator.names import LABEL_JOB
from finetune_operator.resolve import resolve
from finetune_operator.resolved import Resolved
from finetune_operator.resync import INTERVAL_SECONDS
from measure import Report, arguments, note
from scale_cluster import (
    NAMESPACE,
    RUNTIME,
    Client,
    Cluster,
    Operator,
    client_of,
    cpu_seconds,
    in_parallel,
    new_cluster,
    running_operator,
)
from scale_floor import running_floor

Made = list[tuple[str, dict[str, Any]]]
"""What one job is made of: paths, and what is created there, in this order."""
BARE, SERVED, OURS = "bare Jobs", "bare Jobs, each with a Service", "FineTuneJobs"
WORKERS = 2
QUIET_SECONDS = 3.0
"""Without a write for so long, a cluster has come to rest."""
AFTERWARDS_SECONDS = 12.0
"""Likewise, after jobs were made: the operator looks at each again after 10 s."""
TICK_SECONDS = 0.01
"""The kernel's unit of CPU time."""
IDLE_SECONDS = 1.25 * INTERVAL_SECONDS
"""So long that the operator reads everything anew at least once."""


@dataclass(frozen=True)
class Outcome:
    """What one side cost."""

    last_pod: float
    """Seconds to the last pod."""
    waits: list[float]
    """Seconds of each job to its last pod."""
    requests: Counter[str]
    api_cpu: float
    """CPU seconds of the API server."""
    controllers_cpu: float
    """CPU seconds of Kubernetes' own controllers, of which the Job controller does most of the work here."""
    operator: "Usage | None" = None


@dataclass(frozen=True)
class Usage:
    """What the operator used."""

    requests: Counter[str]
    looks: int
    cpu: float
    mib: float


def jobs_path(namespace: str = NAMESPACE) -> str:
    """Where FineTuneJobs are made."""
    return f"/apis/finetune.dev/v1alpha1/namespaces/{namespace}/finetunejobs"


def bare_path(namespace: str = NAMESPACE) -> str:
    """Where Jobs are made."""
    return f"/apis/batch/v1/namespaces/{namespace}/jobs"


def fine_tune_job(name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """A job of two workers."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "task": "text-classification",
            "model": {"source": "hf://owner/model"},
            "data": {"source": "hf://owner/data"},
            "distributed": {"workers": WORKERS, "resources": {"cpu": "1", "memory": "1Gi"}},
        },
    }


def bare_job(name: str, namespace: str = NAMESPACE) -> dict[str, Any]:
    """The Indexed Job of that job's first attempt, which nobody owns."""
    return build_job(resolved_job(name, namespace), 1)


def job_with_service(name: str) -> Made:
    """That Job, and the headless Service of its own by which its workers find each other."""
    job = bare_job(name)
    job["spec"]["template"]["spec"]["subdomain"] = name
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"clusterIP": "None", "publishNotReadyAddresses": True, "selector": {LABEL_JOB: name}},
    }
    return [(f"/api/v1/namespaces/{NAMESPACE}/services", service), (bare_path(), job)]


def resolved_job(name: str, namespace: str = NAMESPACE, uid: str | None = None) -> Resolved:
    """The job with what its runtime decides; one with a uid owns what is built from it."""
    document = fine_tune_job(name, namespace)
    document["metadata"] |= {"uid": uid, "generation": 1} if uid else {}
    resolved = resolve(parse_job(document), parse_runtime(RUNTIME), {})
    assert isinstance(resolved, Resolved)
    return resolved


SIDES: dict[str, Callable[[str], Made]] = {
    BARE: lambda name: [(bare_path(), bare_job(name))],
    SERVED: job_with_service,
    OURS: lambda name: [(jobs_path(), fine_tune_job(name))],
}


def jobs_of(side: str, count: int) -> dict[str, Made]:
    """So many jobs, by name."""
    return {name: SIDES[side](name) for name in (f"job-{number:05}" for number in range(count))}


async def applied(client: Client, jobs: dict[str, Made]) -> tuple[float, list[float]]:
    """Make all of these (by name); seconds to the last pod, and of each job to its last one."""
    sent, waits, left = {}, [], Counter(dict.fromkeys(jobs, WORKERS))
    watching = client.watch_pods()
    began = time.perf_counter()

    async def make(name: str) -> None:
        sent[name] = time.perf_counter()
        for path, manifest in jobs[name]:
            await client.create(path, manifest)

    making = asyncio.create_task(in_parallel([make(name) for name in jobs]))
    async with contextlib.aclosing(watching):
        async for name in watching:
            left[name] -= 1
            if not left[name]:
                waits.append(time.perf_counter() - sent[name])
            if len(waits) == len(jobs):
                break
    await making
    return time.perf_counter() - began, waits


async def settled(client: Client, quiet_seconds: float) -> Counter[str]:
    """The requests that the API server has answered, once nobody has written for so long."""
    writes, quiet_since = -1, time.monotonic()
    while True:
        total = await client.writes()
        if total != writes:
            writes, quiet_since = total, time.monotonic()
        elif time.monotonic() - quiet_since > quiet_seconds:
            return await client.requests()
        await asyncio.sleep(0.5)


async def measured(cluster: Cluster, jobs: dict[str, Made], operator: Operator | None = None) -> Outcome:
    """One side; with an operator these are FineTuneJobs."""
    api, controllers = (cluster.keeper.pids()[name] for name in ("kube-apiserver", "kube-controller-manager"))
    used = None
    async with client_of(cluster) as client:
        before = await settled(client, QUIET_SECONDS)
        api_before, controllers_before = cpu_seconds(api), cpu_seconds(controllers)
        own, cpu = (operator.requests(), operator.cpu_seconds()) if operator else (Counter[str](), 0.0)
        last_pod, waits = await applied(client, jobs)
        if operator:
            while operator.jobs("Starting") < len(jobs):  # noqa: ASYNC110 - nobody tells; its metrics do when asked
                await asyncio.sleep(1)  # being asked costs it some milliseconds
            spent = operator.cpu_seconds() - cpu
            used = Usage(operator.requests() - own, operator.looks(), spent, operator.memory_mib("VmHWM"))
        after = await settled(client, AFTERWARDS_SECONDS)
    api_cpu, controllers_cpu = cpu_seconds(api) - api_before, cpu_seconds(controllers) - controllers_before
    return Outcome(last_pod, waits, after - before, api_cpu, controllers_cpu, used)


async def floor(cluster: Cluster, count: int) -> float:
    """CPU seconds of a process that only watches and writes."""
    jobs = jobs_of(OURS, count)
    with running_floor(cluster) as process:
        before = process.cpu_seconds()
        async with client_of(cluster) as client:
            await applied(client, jobs)
        while process.done() < count:  # noqa: ASYNC110 - another process, which nobody tells of
            await asyncio.sleep(1)
        return max(TICK_SECONDS, process.cpu_seconds() - before)


def all_sides(count: int, profile: Path | None) -> tuple[dict[str, Outcome], float]:
    """Each side in a cluster of its own; and the CPU seconds of the floor in another."""
    outcomes = {}
    for side in SIDES:
        with new_cluster(count * WORKERS) as cluster, contextlib.ExitStack() as running:
            operator = running.enter_context(running_operator(cluster, profile)) if side == OURS else None
            outcomes[side] = asyncio.run(measured(cluster, jobs_of(side, count), operator))
            note(f"  {count} {side}: {outcomes[side].last_pod:.1f} s")
    with new_cluster(count * WORKERS) as cluster:
        return outcomes, asyncio.run(floor(cluster, count))


def compared(count: int, sides: dict[str, Outcome], least: float) -> Report:
    """The table of one number of jobs."""
    columns = (
        "side", "last pod s", "p50 s", "p99 s", "requests a job", "by verb and kind",
        "API server ms a job", "controllers ms a job",
    )  # fmt: skip
    report = Report(f"{count:,} jobs x {WORKERS} workers applied at once", columns)
    for side, outcome in sides.items():
        total = sum(outcome.requests.values())
        report.add(side, outcome.last_pod, statistics.median(outcome.waits), percentile(outcome.waits, 99),
                   total / count, by_kind(outcome.requests, count),
                   1000 * outcome.api_cpu / count, 1000 * outcome.controllers_cpu / count)  # fmt: skip
    bare, served, ours = sides[BARE], sides[SERVED], sides[OURS]
    assert ours.operator
    report.figure(f"last pod, ours / bare at {count}", ours.last_pod / bare.last_pod, at_most=2.0)
    report.figure(f"last pod, ours / bare with a Service each at {count}", ours.last_pod / served.last_pod)
    report.figure(f"operator CPU ms a job at {count}", 1000 * ours.operator.cpu / count, at_most=5.0)
    report.figure(f"floor: CPU ms a job at {count}", 1000 * least / count)
    report.figure(f"operator CPU at {count}, of the floor", ours.operator.cpu / least)
    report.figure(
        f"operator CPU at {count}, of that of Kubernetes' controllers", ours.operator.cpu / bare.controllers_cpu
    )
    report.figure(f"operator requests a job at {count}", sum(ours.operator.requests.values()) / count)
    report.figure(f"looks a job at {count}", ours.operator.looks / count)
    report.figure(f"operator peak MiB at {count}", ours.operator.mib)
    return report


def growth(measured_at: dict[int, dict[str, Outcome]]) -> Report:
    """What a job costs among more and more of them, of what it costs among the fewest."""
    fewest = min(measured_at)
    report = Report(
        f"A job's cost, of that among {fewest:,}", ("side", "jobs", "requests", "API server", "controllers", "operator")
    )
    for side in SIDES:
        least = costs(measured_at[fewest][side], fewest)
        for count in sorted(measured_at):
            ratios = [now / then for now, then in zip(costs(measured_at[count][side], count), least, strict=True)]
            report.add(side, count, *ratios, *[""] * (4 - len(ratios)))
    return report


def costs(outcome: Outcome, count: int) -> list[float]:
    """Of one job: requests; CPU of the API server, of Kubernetes' controllers and, if there is one, of the operator."""
    used = [outcome.operator.cpu] if outcome.operator else []
    cpu = (max(TICK_SECONDS, seconds) / count for seconds in (outcome.api_cpu, outcome.controllers_cpu, *used))
    return [outcome.requests.total() / count, *cpu]


def idle(count: int, seconds: float) -> Report:
    """The operator with so many finished jobs and nothing to do, beside one with none."""
    report = Report(f"Nothing to do, for {seconds:.0f} s", ("finished jobs", "cores", "MiB"))
    with new_cluster(0) as cluster:
        for present in (0, count):
            asyncio.run(finish_jobs(cluster, present))
            with running_operator(cluster) as operator:
                time.sleep(5)
                before, began = operator.cpu_seconds(), time.monotonic()
                time.sleep(seconds)
                cores = (operator.cpu_seconds() - before) / (time.monotonic() - began)
                mib = operator.memory_mib()
                report.add(present, cores, mib)
    report.figure(f"cores with {count:,} finished jobs", cores, at_most=0.05)
    report.figure(f"MiB with {count:,} finished jobs", mib, at_most=300)
    return report


async def finish_jobs(cluster: Cluster, count: int) -> None:
    """Make so many jobs that have succeeded, each with its NetworkPolicy and its Job (held back, so without pods)."""
    status = finished().model_dump(mode="json", by_alias=True, exclude_none=True)

    async def one(client: Client, name: str) -> None:
        made = await client.create(jobs_path(), fine_tune_job(name))
        await client.replace(f"{jobs_path()}/{name}/status", {**made, "status": status})
        attempt = bare_job(name)
        await client.create(bare_path(), {**attempt, "spec": attempt["spec"] | {"suspend": True}})
        await client.create(NETWORK_POLICY.path(NAMESPACE), build_network_policy(resolved_job(name), ()))

    async with client_of(cluster) as client:
        await in_parallel([one(client, f"done-{number:05}") for number in range(count)])


def finished() -> JobStatus:
    """As much as the status of a job says that took two attempts and evaluated 16 times."""
    now, folder, names = datetime.now(UTC), "/finetune/run", ("loss", "accuracy", "f1")
    metrics = dict.fromkeys(names, 0.912345)
    conditions = [
        Condition(type=kind, status=held, reason=reason, message="Trained 1,600 steps", last_transition_time=now)
        for kind, held, reason in (
            (ConditionType.ACCEPTED, "True", Reason.VALID),
            (ConditionType.RUNNING, "False", Reason.COMPLETED),
            (ConditionType.SUCCEEDED, "True", Reason.COMPLETED),
        )
    ]
    return JobStatus(
        phase=Phase.SUCCEEDED,
        conditions=tuple(conditions),
        start_time=now,
        completion_time=now,
        progress=Progress(step=1600, total_steps=1600, epoch=3, percent=100, time=now),
        metrics=metrics,
        best=Best(metric="f1", value=0.912345, step=1600, checkpoint=f"{folder}/checkpoints/step-1600"),
        evaluations=tuple(EvaluationPoint(step=100 * number, value=0.912345) for number in range(1, 17)),
        early_stopping=EarlyStoppingStatus(),
        last_checkpoint=LastCheckpoint(step=1600, path=f"{folder}/checkpoints/step-1600", time=now),
        attempts=(
            Attempt(number=1, start=now, end=now, to_step=700, cause=Cause.OUT_OF_MEMORY, exit_code=137, node="node-1"),
            Attempt(number=2, start=now, end=now, from_step=600, to_step=1600),
        ),
        restarts={Cause.OUT_OF_MEMORY: 1},
        result=Result(
            reason="Completed",
            model=f"{folder}/model",
            report=f"{folder}/report.html",
            metrics=metrics,
            intervals=dict.fromkeys(names, Interval(low=0.9, high=0.92)),
        ),
    )


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that so many per cent of all do not exceed."""
    return sorted(values)[max(0, -(-len(values) * percent // 100) - 1)]


def by_kind(requests: Counter[str], count: int) -> str:
    """Requests a job by verb and kind, in words."""
    return ", ".join(f"{verb} {total / count:.1f}" for verb, total in requests.most_common() if total / count >= 0.05)


def main() -> int:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("counts", nargs="*", type=int, help="numbers of jobs (default: 100 300 1000)")
    parser.add_argument(
        "--idle", type=int, default=10_000, help="finished jobs of the idle operator (0: do not measure)"
    )
    parser.add_argument("--profile", type=Path, help="write the operator's profile (cProfile) here; it slows it down")
    options = parser.parse_args()
    measured_at = {}
    for count in options.counts or ([3] if options.quick else [100, 300, 1000]):
        measured_at[count], least = all_sides(count, options.profile)
        compared(count, measured_at[count], least).print(as_json=options.json)
    if options.quick or len(measured_at) > 1:
        growth(measured_at).print(as_json=options.json)
    if options.idle:
        idle(*((5, 1.0) if options.quick else (options.idle, IDLE_SECONDS))).print(as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
