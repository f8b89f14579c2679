"""What trials of experiments cost beside plain jobs, and whether that stays flat as there are more of them.

Both sides run to their end on a cluster of their own, with etcd in memory and kwok's nodes: so many FineTuneJobs of one
worker, all applied at once; or a tenth as many FineTuneExperiments of two variants with five seeds, two trials at a
time. Each pod runs for two seconds and says what it came to (an annotation that the benchmark gives it, one request on
either side). A trial's cost has all of its experiment's in it: its making, the statuses, the answer. CPU is that of the
operator's process from the first request until everything has ended; requests are the operator's own.

python benchmarks/operator_experiments.py            20 and 200 experiments, about a quarter of an hour on 2 cores
"""

import asyncio
import contextlib
import json
import random
import sys
import time
from collections import Counter
from dataclasses import dataclass
from typing import Any

from finetune_api.status import Result, TerminationMessage
from measure import Report, arguments, note
from operator_scale import fine_tune_job, jobs_path
from scale_cluster import (
    CONNECTIONS,
    NAMESPACE,
    Client,
    Operator,
    client_of,
    in_parallel,
    new_cluster,
    running_operator,
)

TRIALS = 10
"""Of an experiment."""
RUNS_FOR = "2s"
SIDES = ("plain jobs", "trials")
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods"
EXPERIMENTS = f"/apis/finetune.dev/v1alpha1/namespaces/{NAMESPACE}/finetuneexperiments"


@dataclass(frozen=True)
class Cost:
    """What one side cost the operator, by job or trial."""

    seconds: float
    """To the end of the last one, all in all."""
    requests: Counter[str]
    cpu: float
    mib: float


def experiment(name: str) -> dict[str, Any]:
    """Ten trials of jobs of one worker."""
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneExperiment",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "template": one_worker("x")["spec"],
            "variants": [{"name": "full"}, {"name": "head", "set": {"strategy.trainable": "head"}}],
            "seeds": list(range(TRIALS // 2)),
            "objective": {"metric": "accuracy"},
            "parallelism": 2,
        },
    }


def one_worker(name: str) -> dict[str, Any]:
    """A job of one worker."""
    made = fine_tune_job(name)
    made["spec"]["distributed"]["workers"] = 1
    return made


async def end_pods(client: Client) -> None:
    """Have every pod end of itself, with a value that its job's name decides; for ever."""
    free = asyncio.Semaphore(CONNECTIONS)

    async def end(pod: dict[str, Any]) -> None:
        name, job = pod["metadata"]["name"], pod["metadata"]["labels"]["finetune.dev/job"]
        metrics = {"accuracy": random.Random(job).uniform(0.5, 0.9)}
        result = Result(reason="Completed", model="/finetune/run/model", metrics=metrics)
        said = TerminationMessage(exit_code=0, step=100, result=result).model_dump_json(
            by_alias=True, exclude_none=True
        )
        annotations = {"simulated.test/runs-for": RUNS_FOR, "simulated.test/message": said}
        async with free:
            await client.patch(f"{PODS}/{name}", {"metadata": {"annotations": annotations}})

    # A watcher that waits for its own requests is cut off by the API server.
    async with asyncio.TaskGroup() as group, contextlib.aclosing(client.new_pods()) as pods:
        async for pod in pods:
            group.create_task(end(pod))
    raise RuntimeError("the watch of pods has ended")


async def measured(client: Client, operator: Operator, side: str, count: int) -> Cost:
    """So many jobs, or as many trials, to the end of the last one."""
    ending = asyncio.create_task(end_pods(client))
    requests, cpu, began = operator.requests(), operator.cpu_seconds(), time.perf_counter()
    if side == SIDES[0]:
        made = [client.create(jobs_path(), one_worker(f"job-{number:05}")) for number in range(count)]
    else:
        made = [client.create(EXPERIMENTS, experiment(f"e-{number:04}")) for number in range(count // TRIALS)]
    await in_parallel(made)
    while operator.jobs("Succeeded") < count or operator.experiments("Succeeded") * TRIALS < count * (side == SIDES[1]):
        if ending.done():
            ending.result()  # raises why
        await asyncio.sleep(1)
    seconds = time.perf_counter() - began
    cost = Cost(seconds, operator.requests() - requests, operator.cpu_seconds() - cpu, operator.memory_mib("VmHWM"))
    ending.cancel()
    return cost


def one_side(side: str, count: int) -> Cost:
    """In a cluster of its own."""

    async def run(cluster: Any, operator: Operator) -> Cost:
        async with client_of(cluster) as client:
            return await measured(client, operator, side, count)

    with new_cluster(count) as cluster, running_operator(cluster) as operator:
        cost = asyncio.run(run(cluster, operator))
    note(f"  {count} {side}: {cost.seconds:.0f} s")
    return cost


def main() -> int:
    """Measure and print."""
    parser = arguments(__doc__)
    parser.add_argument("counts", nargs="*", type=int, help="numbers of experiments (default: 20 200)")
    options = parser.parse_args()
    counts = options.counts or ([1] if options.quick else [20, 200])
    columns = ("side", "number", "seconds", "operator CPU ms each", "requests each", "by verb", "peak MiB")
    report = Report(f"Trials of experiments ({TRIALS} each) beside plain jobs", columns)
    cpu: dict[str, list[float]] = {side: [] for side in SIDES}
    asked: dict[str, list[float]] = {side: [] for side in SIDES}
    for number in counts:
        for side in SIDES:
            count = number * TRIALS
            cost = one_side(side, count)
            cpu[side].append(1000 * cost.cpu / count)
            asked[side].append(sum(cost.requests.values()) / count)
            verbs = json.dumps({verb: round(total / count, 2) for verb, total in cost.requests.most_common()})
            report.add(side, count, cost.seconds, cpu[side][-1], asked[side][-1], verbs, cost.mib)
    if len(counts) > 1:
        growth = {side: cpu[side][-1] / cpu[side][0] for side in SIDES}
        report.figure("CPU of a plain job, many / few", growth[SIDES[0]])
        report.figure("CPU of a trial, many / few", growth[SIDES[1]])
        report.figure("growth of a trial's CPU / growth of a job's", growth[SIDES[1]] / growth[SIDES[0]], at_most=1.15)
        report.figure("requests of a trial, many / few", asked[SIDES[1]][-1] / asked[SIDES[1]][0], at_most=1.15)
    report.figure("requests of a trial / of a job", asked[SIDES[1]][-1] / asked[SIDES[0]][-1])
    report.figure("CPU of a trial / of a job", cpu[SIDES[1]][-1] / cpu[SIDES[0]][-1])
    report.print(as_json=options.json)
    return 0


if __name__ == "__main__":
    sys.exit(main())
