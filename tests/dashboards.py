"""Jobs and experiments for tests of the dashboard, as an API server has them, and a server that shows them."""

import asyncio
import itertools
import json
import math
import random
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from threading import Thread

from aiohttp import web

from experimenting import World, experiment
from finetune_api import Cause
from finetune_api.status import (
    Best,
    EarlyStoppingStatus,
    EvaluationPoint,
    JobStatus,
    LastCheckpoint,
    Phase,
    Progress,
    ProgressReport,
    Reason,
    Result,
    Stage,
)
from finetune_cli.dashboard.board import Board
from finetune_cli.dashboard.cluster_source import entry_of
from finetune_cli.dashboard.server import Pace, Site, new_application
from finetune_operator.causes import Verdict
from finetune_operator.conditions import Situation, with_situation
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB
from finetune_operator.observed import ObservedWorker, WorkerPhase
from finetune_operator.status import with_attempt, with_failure, with_report, with_restart, with_success
from operating import job

HURRY = Pace(pause_seconds=0.05, beat_seconds=0.5, slow_seconds=2)
FOLDER = "pvc://runs/reviews-1a2b3c4d"
NOW = datetime.now(UTC)
KINDS = {FINE_TUNE_JOB.name: FINE_TUNE_JOB, FINE_TUNE_EXPERIMENT.name: FINE_TUNE_EXPERIMENT}
_versions = itertools.count(1)


def ago(**how):
    return NOW - timedelta(**how)


# --- where jobs stand


def standing(status, phase, reason, message="", now=NOW):
    return with_situation(status, Situation(phase, reason, message), now, 1)


def report(step, total=900, *, attempt=1, seed=0, saved=None, resumed=0, metric="accuracy"):
    """What worker 0 says at a step: a curve that rises and flattens, with some noise of its seed."""
    noise = random.Random(seed)
    course = tuple(
        EvaluationPoint(step=at, value=round(0.93 - 0.4 * math.exp(-at / (0.22 * total)) + noise.gauss(0, 0.006), 6))
        for at in range(total // 18, step + 1, total // 18)
    )
    best = max(course, key=lambda point: point.value, default=None)
    progress = Progress(
        step=step,
        total_steps=total,
        epoch=3 * step / total,
        percent=100 * step / total,
        eta_seconds=(total - step) * 1.7,
        samples_per_second=310.4 + seed,
        time=NOW,
    )
    loss = round(0.21 + 0.9 * math.exp(-step / (0.2 * total)) + noise.gauss(0, 0.02), 4)
    latest = {metric: course[-1].value} if course else {}
    return ProgressReport(
        stage=Stage.TRAINING,
        attempt=attempt,
        progress=progress,
        metrics={"trainLoss": loss, **latest},
        best=Best(metric=metric, value=best.value, step=best.step) if best else None,
        evaluations=course,
        early_stopping=EarlyStoppingStatus(evaluations_without_improvement=len(course) % 3),
        resumed_from_step=resumed,
        last_checkpoint=LastCheckpoint(step=saved, path=f"{FOLDER}/checkpoints/step-{saved}", time=NOW)
        if saved
        else None,
    )


def pending(message="there is no FineTuneRuntime h100", reason=Reason.RUNTIME_NOT_FOUND):
    return standing(JobStatus(), Phase.PENDING, reason, message)


def queued():
    return standing(
        with_attempt(JobStatus(), 1, ago(minutes=9)),
        Phase.SUSPENDED,
        Reason.QUEUED,
        "Attempt 1 waits to be admitted by queue team-gpus",
    )


def starting(message="no node takes it (Unschedulable): 0/12 nodes are available: 12 Insufficient nvidia.com/gpu"):
    return standing(with_attempt(JobStatus(), 1, ago(minutes=4)), Phase.STARTING, Reason.STARTING, message)


def running(step=540, total=900, seed=0, start=None):
    begun = with_attempt(JobStatus(), 1, start or ago(minutes=47))
    told = report(step, total, seed=seed, saved=step // 100 * 100 or None)
    return standing(with_report(begun, told), Phase.RUNNING, Reason.TRAINING, "Training")


def failure(status, cause, code, text, end, node="gpu-node-7"):
    return with_failure(
        status, end, Verdict(cause, text, ObservedWorker(0, WorkerPhase.FAILED, end, end, code, None, node))
    )


def restarted(step=620):
    """A job with a story: out of memory, preempted, and now at its third attempt."""
    first = with_report(with_attempt(JobStatus(), 1, ago(hours=3)), report(240, saved=200))
    first = failure(
        first, Cause.OUT_OF_MEMORY, 137, "killed by the kernel: out of memory (limit 32Gi)", ago(hours=2, minutes=31)
    )
    second = with_attempt(with_restart(first, Cause.OUT_OF_MEMORY), 2, ago(hours=2, minutes=30))
    second = with_report(second, report(410, attempt=2, saved=400, resumed=200))
    second = failure(
        second, Cause.PREEMPTED, 143, "evicted from its node: node is being drained", ago(hours=1, minutes=50)
    )
    third = with_attempt(with_restart(second, Cause.PREEMPTED), 3, ago(hours=1, minutes=48))
    third = with_report(third, report(step, attempt=3, saved=600, resumed=400))
    return standing(third, Phase.RUNNING, Reason.TRAINING, "Training")


def restarting():
    status = with_report(with_attempt(JobStatus(), 1, ago(minutes=30)), report(300, saved=300))
    status = failure(status, Cause.INFRASTRUCTURE, 75, "a peer was lost: worker 3 does not answer", ago(minutes=1))
    status = with_restart(status, Cause.INFRASTRUCTURE)
    told = "Attempt 1 ended (Infrastructure): a peer was lost; attempt 2 follows in 20 s"
    return standing(status, Phase.RESTARTING, Reason.RESTARTING, told)


def succeeded(seed=0, metric="accuracy"):
    status = with_report(with_attempt(JobStatus(), 1, ago(hours=5)), report(900, seed=seed, saved=900, metric=metric))
    value = status.best.value
    metrics = {"loss": 0.2741, metric: round(value - 0.004, 4), "f1": round(value - 0.01, 4)}
    result = Result(reason="EarlyStopped", model=f"{FOLDER}/model", report=f"{FOLDER}/report.html", metrics=metrics)
    done = with_success(status, ago(hours=4), None).model_copy(update={"result": result})
    told = "Trained 900 steps; stopped early, for the metric no longer improved"
    return standing(done, Phase.SUCCEEDED, Reason.EARLY_STOPPED, told)


def failed():
    status = with_report(with_attempt(JobStatus(), 1, ago(hours=2)), report(50))
    text = "data.csv, line 31,204: the label is empty; 14 more lines are like it"
    status = failure(status, Cause.CONFIGURATION, 65, text, ago(hours=2, minutes=-3))
    return standing(status, Phase.FAILED, Reason.CONFIGURATION, f"Attempt 1 ended (Configuration): {text}")


# --- objects of an API server


def raw_job(name, namespace="team-a", status=None, *, created=None, labels=None, **spec):
    made = job(namespace, name, earlyStopping={"patience": 3}, **spec)
    return _stored(made, status, created or ago(hours=1), labels)


def raw_experiment(name="schemes", namespace="team-a", ticks=1000, *, created=None):
    """An experiment of three variants with three seeds, so many steps of the planner after its beginning."""
    variants = [
        {"name": "full"},
        {"name": "lora", "set": {"strategy.lora": {"r": 8}}},
        {"name": "frozen", "set": {"strategy.freeze.bottomLayers": 10}},
    ]
    made = experiment(variants=variants)
    made = made.model_copy(update={"metadata": made.metadata.model_copy(update={"name": name})})

    def course(one, step):
        chosen = one.spec.strategy
        less = 0.045 if chosen.freeze else 0.002 if chosen.lora else 0
        noise = random.Random(f"{one.metadata.name}{one.spec.training.seed}").gauss(0, 0.004)
        return 0.92 - less + noise - 0.2 / step**2

    world = World(made, course)
    world.now = ago(minutes=40)
    world.run(ticks)
    wire = world.experiment.to_wire()
    wire["metadata"]["namespace"] = namespace
    return _stored(wire, wire.get("status"), created or ago(minutes=50)), world.jobs


def _stored(made, status, created, labels=None):
    wire = status.to_wire() if isinstance(status, JobStatus) else status
    metadata = {**made["metadata"], "creationTimestamp": created.strftime("%Y-%m-%dT%H:%M:%SZ"), "generation": 1}
    metadata |= {
        "uid": f"{made['kind']}-{metadata['namespace']}-{metadata['name']}",
        "resourceVersion": str(next(_versions)),
    }
    return {**made, "metadata": metadata | ({"labels": labels} if labels else {}), **({"status": wire} if wire else {})}


def entry(raw):
    return entry_of(KINDS[raw["kind"]], raw)


def write_status(cluster, namespace, name, status, kind="finetunejob"):
    """As the operator does, to a real API server."""
    wire = status.to_wire() if isinstance(status, JobStatus) else status
    where = ("-n", namespace, "patch", kind, name, "--subresource=status", "--type=merge")
    cluster.kubectl(*where, f"--patch={json.dumps({'status': wire})}")


# --- a server


@dataclass
class Shown:
    """A dashboard that is served."""

    board: Board
    loop: asyncio.AbstractEventLoop
    url: str
    port: int
    connections: Callable
    """How many clients the server is connected to."""

    def do(self, work):
        """Change the board, as a source does; returns when it is done."""

        async def done():
            return work(self.board)

        return asyncio.run_coroutine_threadsafe(done(), self.loop).result(30)

    def put(self, *raws):
        entries = [entry(raw) for raw in raws]
        self.do(lambda board: [board.put(one) for one in entries])


@contextmanager
def shown(site=None, pace=HURRY, port=0):
    """Within: a dashboard of a board that the test fills, on loopback."""
    site = site or Site("Namespace team-a of 127.0.0.1:6443")
    loop = asyncio.new_event_loop()
    thread = Thread(target=loop.run_forever)
    thread.start()
    run = partial(asyncio.run_coroutine_threadsafe, loop=loop)
    try:
        board, runner = run(_start(site, pace, port)).result(10)
        bound = runner.addresses[0][1]
        yield Shown(
            board, loop, f"http://127.0.0.1:{bound}{site.prefix}/", bound, lambda: len(runner.server.connections)
        )
        run(runner.cleanup()).result(20)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def _start(site, pace, port):
    board = Board()
    runner = web.AppRunner(new_application(board, site, pace), access_log=None, shutdown_timeout=0.2)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port).start()
    return board, runner


# --- a cluster with some life in it


def some():
    """A few jobs and experiments of three teams, in all states."""
    concluded, _ = raw_experiment("reviews-schemes", "search")
    under_way, trials = raw_experiment("routing-schemes", "support", 9, created=ago(minutes=45))
    label = {"finetune.dev/experiment": "routing-schemes"}
    return [
        raw_job("reviews-large", "search", restarted(), created=ago(hours=3), task="text-classification"),
        raw_job("reviews-distilled", "search", running(), created=ago(minutes=48)),
        raw_job("queries-multilingual", "search", queued(), created=ago(minutes=9)),
        raw_job("ranking-pairs", "search", succeeded(2), created=ago(hours=5)),
        concluded,
        raw_job("triage", "support", starting(), created=ago(minutes=4)),
        raw_job("answers-8b", "support", running(120, 4000, 3), created=ago(minutes=20), task="causal-lm"),
        raw_job("intents", "support", failed(), created=ago(hours=2)),
        raw_job("summaries", "support", succeeded(5), created=ago(days=1)),
        under_way,
        *(raw_job(name, "support", one.status, created=ago(minutes=40), labels=label) for name, one in trials.items()),
        raw_job("labels-h100", "vision", pending(), created=ago(minutes=2), task="image-classification"),
        raw_job("defects", "vision", restarting(), created=ago(minutes=31), task="object-detection"),
        raw_job("captions", "vision", running(2100, 2400, 4), created=ago(hours=6), task="image-captioning"),
        raw_job("parts", "vision", succeeded(7), created=ago(days=2), task="image-classification"),
    ]
