"""The planner, stepped to the end of a job in a simulated world; then it must have nothing left to plan."""

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_api import Cause, FineTuneJob, JobStatus, Phase, ProgressReport, TerminationMessage, parse_job
from finetune_api.status import Best, EarlyStoppingStatus, LastCheckpoint, Progress, Reason, Result, Stage
from finetune_operator.actions import StartAttempt, StopAttempt
from finetune_operator.conditions import is_finished
from finetune_operator.observed import (
    Observed,
    ObservedAttempt,
    ObservedWorker,
    PlatformReason,
    Refusal,
    WorkerPhase,
)
from finetune_operator.plan import plan

T0 = datetime(2030, 1, 1, tzinfo=UTC)
TOTAL = 30
SAVES_EVERY = 10


def at(seconds: float) -> datetime:
    return T0 + timedelta(seconds=seconds)


def job(**spec) -> FineTuneJob:
    return parse_job(
        {
            "apiVersion": "finetune.dev/v1alpha1",
            "kind": "FineTuneJob",
            "metadata": {"name": "demo", "generation": 1},
            "spec": {
                "task": "text-classification",
                "model": {"source": "file:///models/tiny"},
                "data": {"source": "file:///data.csv"},
                **spec,
            },
        }
    )


@dataclass(frozen=True)
class Exit:
    """How a worker ends."""

    code: int | None = None
    cause: Cause | None = None
    text: str = ""
    platform: PlatformReason | None = None


@dataclass(frozen=True)
class Script:
    """One attempt of the simulated trainer: a step a second, a checkpoint every ten; by default it runs to the end."""

    starts_after: int = 0
    fails_after: int | None = None
    exits: dict[int, Exit] = field(default_factory=dict)
    hanging: frozenset[int] = frozenset()
    stops_early_at: int | None = None
    deaf: bool = False
    silent: bool = False


@dataclass
class Running:
    number: int
    launched: float
    script: Script
    from_step: int
    stopped: float | None = None
    ended: dict[int, tuple[float, Exit]] = field(default_factory=dict)


class World:
    """A cluster of which every second is computed."""

    def __init__(self, made: FineTuneJob, *scripts: Script) -> None:
        self.job = made
        self.scripts = scripts
        self.second = 0
        self.saved = 0
        self.running: Running | None = None
        self.interrupted = False
        self.refusal: Refusal | None = None
        self.events: list[tuple[int, str, str]] = []
        self.actions: list[tuple[int, str]] = []

    # the trainer

    def step_of(self, run: Running) -> int:
        begun = run.launched + run.script.starts_after
        until = min([self.second, *(second for second, _ in run.ended.values())])
        last = run.script.stops_early_at or TOTAL
        return max(0, min(last, run.from_step + int(until - begun)))

    def live(self) -> None:
        run = self.running
        if run is None:
            return
        step = self.step_of(run)
        last = run.script.stops_early_at or TOTAL
        workers = range(self.job.spec.distributed.workers)
        for worker in workers:
            ending = self.ending(run, worker, step >= last)
            if ending is not None and worker not in run.ended:
                run.ended[worker] = (self.second, ending)
        if not run.script.silent and step > run.from_step:
            self.saved = max(self.saved, step // SAVES_EVERY * SAVES_EVERY)
            if any(ending.code == 143 for _, ending in run.ended.values()):
                self.saved = max(self.saved, step)

    def ending(self, run: Running, worker: int, done: bool) -> Exit | None:
        age = self.second - run.launched
        if run.stopped is not None and self.second > run.stopped:
            return Exit(137) if run.script.deaf else Exit(143)
        if run.script.fails_after is not None and age >= run.script.fails_after and worker not in run.script.hanging:
            return run.script.exits.get(worker, Exit(75))
        return Exit(0) if done and run.script.fails_after is None else None

    def report(self) -> ProgressReport | None:
        run = self.running
        if run is None or run.script.silent or self.second < run.launched + max(1, run.script.starts_after):
            return None
        step = self.step_of(run)
        early = run.script.stops_early_at
        return ProgressReport(
            stage=Stage.TRAINING,
            attempt=run.number,
            progress=Progress(
                step=step, total_steps=TOTAL, epoch=step / 10, percent=100 * step / TOTAL, time=at(self.second)
            ),
            metrics={"loss": 1 / (1 + step)},
            best=Best(metric="accuracy", value=0.5, step=self.saved) if self.saved else None,
            early_stopping=EarlyStoppingStatus(stopped_at_step=early if step == early else None) if early else None,
            last_checkpoint=LastCheckpoint(step=self.saved, path=f"step-{self.saved}", time=at(0))
            if self.saved
            else None,
            resumed_from_step=run.from_step,
        )

    # the cluster

    def worker(self, run: Running, index: int) -> ObservedWorker:
        begun = run.launched + run.script.starts_after
        started = at(begun) if self.second >= begun else None
        alive = ObservedWorker(index, WorkerPhase.RUNNING if started else WorkerPhase.PENDING, started)
        if index not in run.ended:
            return alive
        second, ending = run.ended[index]
        done = ending.code == 0
        early = run.script.stops_early_at is not None
        message = None
        if done and index == 0:
            result = Result(
                reason="EarlyStopped" if early else "Completed", model="/run/model", metrics={"accuracy": 0.9}
            )
            message = TerminationMessage(exit_code=0, step=self.step_of(run), result=result, report=self.report())
        elif ending.cause is not None and ending.code is not None:
            message = TerminationMessage(exit_code=ending.code, cause=ending.cause, message=ending.text)
        return replace(
            alive,
            phase=WorkerPhase.SUCCEEDED if done else WorkerPhase.FAILED,
            ended=at(second),
            exit_code=ending.code,
            message=message,
            node=f"node-{index}",
            platform_reason=ending.platform,
        )

    def observe(self) -> Observed:
        run = self.running
        attempt = None
        if run is not None:
            workers = tuple(self.worker(run, index) for index in range(self.job.spec.distributed.workers))
            attempt = ObservedAttempt(run.number, workers, stopping=run.stopped is not None)
        return Observed(
            job=self.job,
            now=at(self.second),
            attempt=attempt,
            report=self.report(),
            interrupted=self.interrupted,
            refusal=self.refusal,
        )

    def reconcile(self) -> None:
        observed = self.observe()
        made = plan(observed)
        if isinstance(made.action, StartAttempt):
            assert observed.attempt is None or observed.attempt.is_over, "an attempt started beside another"
            script = self.scripts[made.action.number - 1] if made.action.number <= len(self.scripts) else Script()
            self.running = Running(made.action.number, self.second, script, self.saved)
        if isinstance(made.action, StopAttempt):
            assert self.running is not None
            self.running.stopped = self.second
        if made.action is not None:
            self.actions.append((self.second, f"{type(made.action).__name__} {made.action.number}"))
        if made.status is not None:
            assert made.status != observed.status
            JobStatus.model_validate_json(made.status.model_dump_json())
            self.job = self.job.model_copy(update={"status": made.status})
        self.events += [(self.second, event.reason.value, event.message) for event in made.events]

    def run(self, until: int = 10_000) -> "World":
        """To the end of the job, or to a second at which the test wants to do something."""
        while self.second < until and not is_finished(self.status):
            self.live()
            self.reconcile()
            again = plan(self.observe())
            assert again.action is None, "the same observation asked for the same action twice"
            self.second += 1
        return self

    @property
    def status(self) -> JobStatus:
        return self.job.status or JobStatus()

    def set(self, **spec) -> None:
        self.job = self.job.model_copy(update={"spec": self.job.spec.model_copy(update=spec)})


def told(status: JobStatus) -> dict:
    """The whole status, short: times as seconds, conditions as ``True Reason since``."""

    def short(value):
        if isinstance(value, dict):
            return {key: short(item) for key, item in value.items()}
        if isinstance(value, list):
            return [short(item) for item in value]
        if isinstance(value, str) and value.startswith("2030-"):
            return (datetime.fromisoformat(value) - T0).total_seconds()
        return value

    wire = short(status.to_wire())
    wire["conditions"] = {
        one["type"]: f"{one['status']} {one['reason']} {one['lastTransitionTime']:g}" for one in wire["conditions"]
    }
    return {key: value for key, value in wire.items() if value not in ({}, [], None)}


def conditions(**changed: str) -> dict[str, str]:
    return {
        "Accepted": "True Valid 0",
        "Suspended": "False NotSuspended 0",
        "Running": "False Finished 30",
        "Stalled": "False Progressing 0",
        "Succeeded": "True Completed 30",
        "Failed": "False Completed 0",
        **changed,
    }


def attempt(number: int, start: int, end: int, from_step: int, to_step: int, *failure) -> dict:
    ended = {"number": number, "start": start, "end": end, "fromStep": from_step, "toStep": to_step}
    if not failure:
        return {**ended, "exitCode": 0}
    cause, code, reason, node = failure
    told_code = {} if code is None else {"exitCode": code}
    return {**ended, "cause": cause, **told_code, "reason": reason, "node": node}


def finished(end: int, *attempts: dict, **more) -> dict:
    return {
        "phase": "Succeeded",
        "conditions": conditions(Running=f"False Finished {end}", Succeeded=f"True Completed {end}"),
        "observedGeneration": 1,
        "startTime": 0,
        "completionTime": end,
        "progress": {"step": 30, "totalSteps": 30, "epoch": 3.0, "percent": 100.0, "time": end},
        "metrics": {"loss": 1 / 31},
        "best": {"metric": "accuracy", "value": 0.5, "step": 30},
        "lastCheckpoint": {"step": 30, "path": "step-30", "time": 0},
        "lostSteps": 0,
        "attempts": list(attempts),
        "runningSeconds": float(end),
        "result": {"reason": "Completed", "model": "/run/model", "metrics": {"accuracy": 0.9}, "intervals": {}},
        **more,
    }


def failed(end: int, reason: str, *attempts: dict, ran: bool = True, **more) -> dict:
    return {
        "phase": "Failed",
        "conditions": conditions(
            Running=f"False Finished {end if ran else 0}",
            Stalled=f"True {reason} {end}",
            Succeeded=f"False {reason} 0",
            Failed=f"True {reason} {end}",
        ),
        "observedGeneration": 1,
        "startTime": 0,
        "completionTime": end,
        "lostSteps": 0,
        "attempts": list(attempts),
        "runningSeconds": float(end),
        **more,
    }


def fails(after: int, exit_: Exit, **more) -> Script:
    return Script(fails_after=after, exits={0: exit_}, **more)


OUT_OF_MEMORY = (
    "killed by the kernel: out of memory; raise spec.distributed.resources.memory, or"
    " spec.training.gradientAccumulation (less memory a step)"
)
BUG = Exit(70, Cause.APPLICATION, "KeyError: 'x'")
RETRIED_AT_15 = {
    "application": (BUG, ("Application", 70, "KeyError: 'x'", "node-0")),
    "infrastructure": (
        Exit(75, Cause.INFRASTRUCTURE, "lost rank 3"),
        ("Infrastructure", 75, "lost rank 3", "node-0"),
    ),
    "node lost": (
        Exit(platform=PlatformReason.NODE_LOST),
        ("Infrastructure", None, "its node was lost", "node-0"),
    ),
    "out of memory, told by the trainer": (
        Exit(70, Cause.OUT_OF_MEMORY, "CUDA out of memory"),
        ("OutOfMemory", 70, "CUDA out of memory", "node-0"),
    ),
    "out of memory, told by the platform": (
        Exit(137, platform=PlatformReason.OOM_KILLED),
        (
            "OutOfMemory",
            137,
            OUT_OF_MEMORY,
            "node-0",
        ),
    ),
    "killed, nobody knows why": (
        Exit(137),
        ("Infrastructure", 137, "killed (SIGKILL) from outside; nothing tells of a lack of memory", "node-0"),
    ),
    "evicted": (
        Exit(143, platform=PlatformReason.EVICTED),
        ("Preempted", 143, "evicted from its node", "node-0"),
    ),
    "preempted": (Exit(143), ("Preempted", 143, "left with exit code 143", "node-0")),
    "deleted": (Exit(platform=PlatformReason.DELETED), ("Preempted", None, "was deleted", "node-0")),
    "segmentation fault": (Exit(139), ("Application", 139, "left with exit code 139", "node-0")),
}


def test_success():
    world = World(job()).run()
    assert told(world.status) == finished(30, attempt(1, 0, 30, 0, 30))
    assert [(second, reason) for second, reason, _ in world.events] == [
        (0, "Starting"),
        (1, "Training"),
        (30, "Completed"),
    ]
    assert plan(world.observe()).is_empty


def test_early_stopped():
    world = World(job(), Script(stops_early_at=20)).run()
    assert told(world.status) == finished(
        20,
        attempt(1, 0, 20, 0, 20),
        conditions=conditions(
            Running="False Finished 20", Succeeded="True EarlyStopped 20", Failed="False EarlyStopped 0"
        ),
        progress={"step": 20, "totalSteps": 30, "epoch": 2.0, "percent": pytest.approx(66.67, abs=0.01), "time": 20},
        metrics={"loss": 1 / 21},
        best={"metric": "accuracy", "value": 0.5, "step": 20},
        earlyStopping={"evaluationsWithoutImprovement": 0, "stoppedAtStep": 20},
        lastCheckpoint={"step": 20, "path": "step-20", "time": 0},
        result={"reason": "EarlyStopped", "model": "/run/model", "metrics": {"accuracy": 0.9}, "intervals": {}},
    )
    assert plan(world.observe()).is_empty


@pytest.mark.parametrize(("exit_", "failure"), RETRIED_AT_15.values(), ids=RETRIED_AT_15.keys())
def test_an_attempt_that_failed_is_tried_again_from_the_newest_checkpoint(exit_, failure):
    world = World(job(), fails(15, exit_)).run()
    saved = 15 if exit_.code == 143 else 10
    end = 15 + 30 - saved
    assert told(world.status) == finished(
        end,
        attempt(1, 0, 15, 0, 15, *failure),
        attempt(2, 15, end, saved, 30),
        resumedFromStep=saved,
        lostSteps=15 - saved,
        restarts={failure[0]: 1},
    )
    assert plan(world.observe()).is_empty


NEVER_RETRIED = {
    "bad spec": Exit(64, Cause.CONFIGURATION, "spec.data.columns.text: no such column"),
    "bad data": Exit(65, Cause.CONFIGURATION, "data.csv, line 3"),
    "not found": Exit(66),
    "diverged": Exit(76),
    "denied": Exit(77),
    "platform": Exit(78),
}


@pytest.mark.parametrize("exit_", NEVER_RETRIED.values(), ids=NEVER_RETRIED.keys())
def test_configuration_is_never_retried(exit_):
    world = World(job(), fails(3, exit_, silent=True)).run()
    reason = exit_.text or f"left with exit code {exit_.code}"
    assert told(world.status) == failed(
        3, "Configuration", attempt(1, 0, 3, 0, 0, "Configuration", exit_.code, reason, "node-0"), ran=False
    )
    assert reason in world.events[-1][2]
    assert plan(world.observe()).is_empty


BUDGETS = {
    "application": (BUG, "application", "Application"),
    "infrastructure": (Exit(75), "infrastructure", "Infrastructure"),
    "out of memory": (Exit(137, platform=PlatformReason.OOM_KILLED), "outOfMemory", "OutOfMemory"),
    "stalled": (Exit(75, Cause.STALLED, "no step for 600 s"), "stalled", "Stalled"),
}


@pytest.mark.parametrize(("exit_", "budget", "cause"), BUDGETS.values(), ids=BUDGETS.keys())
@pytest.mark.parametrize("allowed", [0, 1, 4])
def test_a_crash_loop_ends_when_its_budget_is_used_up(exit_, budget, cause, allowed):
    world = World(
        job(recovery={"maxRestarts": {budget: allowed}}), *[fails(3, exit_, silent=True)] * (allowed + 1)
    ).run()
    status = world.status
    assert (status.phase, status.conditions[-1].reason) == (Phase.FAILED, Reason.BUDGET_EXHAUSTED)
    assert len(status.attempts) == allowed + 1
    assert status.restarts == ({cause: allowed} if allowed else {})
    assert plan(world.observe()).is_empty


def test_a_crash_loop_backs_off():
    world = World(job(recovery={"maxRestarts": {"application": 5}}), *[fails(3, BUG, silent=True)] * 6).run()
    starts = [(one.start - T0).total_seconds() for one in world.status.attempts]
    ends = [(one.end - T0).total_seconds() for one in world.status.attempts]
    assert [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)] == [0, 2, 4, 8, 16]


def test_while_it_waits_nothing_is_planned_but_another_look():
    world = World(job(recovery={"maxRestarts": {"application": 5}}), *[fails(3, BUG, silent=True)] * 6)
    world.run(until=6 + 1)
    assert world.status.phase is Phase.RESTARTING
    idle = plan(world.observe())
    assert (idle.is_empty, idle.look_again_seconds) == (True, 1)


def test_progress_gives_a_budget_back():
    """Two failures on a budget of one, each after another checkpoint."""
    world = World(job(recovery={"maxRestarts": {"application": 1}}), fails(12, BUG), fails(13, BUG)).run()
    assert told(world.status) == finished(
        35,
        attempt(1, 0, 12, 0, 12, "Application", 70, "KeyError: 'x'", "node-0"),
        attempt(2, 12, 25, 10, 23, "Application", 70, "KeyError: 'x'", "node-0"),
        attempt(3, 25, 35, 20, 30),
        resumedFromStep=20,
        lostSteps=2 + 3,
        restarts={"Application": 2},
    )


def test_without_progress_a_budget_is_not_given_back():
    scripts = [fails(12, BUG), fails(5, BUG)]
    world = World(job(recovery={"maxRestarts": {"application": 1}}), *scripts).run()
    status = told(world.status)
    expected = failed(
        17,
        "BudgetExhausted",
        attempt(1, 0, 12, 0, 12, "Application", 70, "KeyError: 'x'", "node-0"),
        attempt(2, 12, 17, 10, 15, "Application", 70, "KeyError: 'x'", "node-0"),
        resumedFromStep=10,
        lostSteps=2,
        restarts={"Application": 1},
        restartsSinceProgress={"Application": 1},
    )
    assert {key: status[key] for key in expected} == expected
    told_why = "Attempt 2 ended (Application): KeyError: 'x'; the budget for Application is used up"
    assert world.events[-1] == (17, "BudgetExhausted", f"{told_why} (1 restart without a newer checkpoint)")


def test_preemptions_are_free_but_a_loop_of_them_backs_off():
    world = World(job(), *[fails(1, Exit(143), silent=True)] * 6).run()
    starts = [(one.start - T0).total_seconds() for one in world.status.attempts]
    ends = [(one.end - T0).total_seconds() for one in world.status.attempts]
    assert [start - end for start, end in zip(starts[1:], ends[:-1], strict=True)] == [0, 0, 0, 2, 4, 8]
    assert world.status.phase is Phase.SUCCEEDED
    assert world.status.restarts == {"Preempted": 6}


def test_suspended_and_resumed():
    world = World(job()).run(until=15)
    world.set(suspend=True)
    world.run(until=100)
    paused = attempt(1, 0, 16, 0, 16, "Preempted", 143, "saved and left as it was asked to", "node-0")
    assert told(world.status) == {
        "phase": "Suspended",
        "conditions": conditions(
            Suspended="True SuspendedByUser 16",
            Running="False SuspendedByUser 16",
            Succeeded="False NotFinished 0",
            Failed="False NotFinished 0",
        ),
        "observedGeneration": 1,
        "startTime": 0,
        "progress": {"step": 16, "totalSteps": 30, "epoch": 1.6, "percent": pytest.approx(53.33, abs=0.01), "time": 16},
        "metrics": {"loss": 1 / 17},
        "best": {"metric": "accuracy", "value": 0.5, "step": 16},
        "lastCheckpoint": {"step": 16, "path": "step-16", "time": 0},
        "lostSteps": 0,
        "attempts": [paused],
        "runningSeconds": 16.0,
    }
    assert plan(world.observe()) == replace(plan(world.observe()), action=None, status=None, look_again_seconds=None)
    world.set(suspend=False)
    world.run()
    assert told(world.status) == finished(
        114,
        paused,
        attempt(2, 100, 114, 16, 30),
        conditions=conditions(
            Suspended="False NotSuspended 100", Running="False Finished 114", Succeeded="True Completed 114"
        ),
        resumedFromStep=16,
        runningSeconds=30.0,
    )
    assert world.actions == [(0, "StartAttempt 1"), (15, "StopAttempt 1"), (100, "StartAttempt 2")]
    assert plan(world.observe()).is_empty


def test_interrupted_command():
    world = World(job()).run(until=15)
    world.interrupted = True
    world.run(until=30)
    assert world.status.phase is Phase.SUSPENDED
    assert {one.reason for one in world.status.conditions} >= {Reason.INTERRUPTED}
    assert world.status.restarts == {}
    assert plan(world.observe()).is_empty


def test_created_suspended():
    world = World(job(suspend=True)).run(until=5)
    assert (world.status.phase, world.status.start_time, world.actions) == (Phase.SUSPENDED, None, [])
    assert [reason for _, reason, _ in world.events] == ["SuspendedByUser"]
    assert plan(world.observe()).is_empty


def test_ended_by_stop_it_saves_and_has_succeeded_without_a_model():
    world = World(job()).run(until=15)
    world.set(stop=True)
    world.run()
    left = world.status.attempts[0]
    assert (world.status.phase, left.cause, left.exit_code) == (Phase.SUCCEEDED, Cause.PREEMPTED, 143)
    assert world.status.result is None
    assert world.status.completion_time == left.end
    assert world.status.restarts == {}
    assert world.actions == [(0, "StartAttempt 1"), (15, "StopAttempt 1")]
    succeeded = next(one for one in world.status.conditions if one.type == "Succeeded")
    said = f"Ended by spec.stop at step {left.to_step}; nothing was exported"
    assert (succeeded.status, succeeded.reason, succeeded.message) == ("True", Reason.PRUNED, said)
    assert plan(world.observe()).is_empty


@pytest.mark.parametrize("suspend", [False, True])
def test_ended_before_it_began(suspend):
    world = World(job(stop=True, suspend=suspend)).run(until=5)
    assert (world.status.phase, world.actions) == (Phase.SUCCEEDED, [])
    assert plan(world.observe()).is_empty


def test_a_suspended_job_may_be_ended():
    world = World(job()).run(until=15)
    world.set(suspend=True)
    world.run(until=40)
    world.set(stop=True)
    world.run()
    assert (world.status.phase, world.status.resumed_from_step) == (Phase.SUCCEEDED, None)


def test_stop_comes_too_late_for_a_finished_run():
    world = World(job()).run()
    world.set(stop=True)
    assert plan(world.observe()).is_empty


def test_a_worker_that_would_not_leave_was_still_asked_to():
    world = World(job(), Script(deaf=True)).run(until=15)
    world.set(suspend=True)
    world.run(until=20)
    assert world.status.phase is Phase.SUSPENDED
    assert world.status.attempts[0].cause is Cause.PREEMPTED
    assert world.status.restarts == {}


def test_deadline():
    world = World(job(activeDeadlineSeconds=15)).run()
    left = attempt(1, 0, 16, 0, 16, "Preempted", 143, "saved and left as it was asked to", "node-0")
    status = told(world.status)
    expected = failed(16, "DeadlineExceeded", left)
    assert {key: status[key] for key in expected} == expected
    assert world.actions == [(0, "StartAttempt 1"), (15, "StopAttempt 1")]
    assert plan(world.observe()).is_empty


def test_the_deadline_counts_running_time_only():
    """20 s in the queue, then 12 s of running, a suspension of 50 s, and the other 18."""
    world = World(job(activeDeadlineSeconds=40), Script(starts_after=20)).run(until=32)
    world.set(suspend=True)
    world.run(until=83)
    assert world.status.running_seconds == 13
    world.set(suspend=False)
    world.run()
    assert world.status.phase is Phase.SUCCEEDED
    assert world.status.running_seconds == 30


def test_the_planner_looks_again_when_the_deadline_comes():
    world = World(job(activeDeadlineSeconds=15)).run(until=12)
    assert plan(world.observe()).look_again_seconds == 3


def test_stalled_until_the_next_attempt_trains():
    stall = fails(12, Exit(75, Cause.STALLED, "no step for 600 s"))
    world = World(job(), stall, Script(starts_after=5)).run(until=15)
    stalled = next(one for one in world.status.conditions if one.type == "Stalled")
    assert (world.status.phase, stalled.status, stalled.reason) == (Phase.RESTARTING, "True", Reason.STALLED)
    world.run()
    assert world.status.restarts == {"Stalled": 1}
    assert told(world.status)["conditions"]["Stalled"] == "False Progressing 17"


TWO_WORKERS = {
    "peer lost, then the bug": ({0: Exit(75), 1: BUG}, "Application", "worker 1: KeyError: 'x'", "node-1"),
    "the bug, then peer lost": ({0: BUG, 1: Exit(75)}, "Application", "worker 0: KeyError: 'x'", "node-0"),
    "evicted": (
        {0: Exit(75), 1: Exit(143, platform=PlatformReason.EVICTED)},
        "Preempted",
        "worker 1: evicted from its node",
        "node-1",
    ),
    "evicted, and the other left along": (
        {0: Exit(143), 1: Exit(143, platform=PlatformReason.EVICTED)},
        "Preempted",
        "worker 1: evicted from its node",
        "node-1",
    ),
    "only peers lost": ({0: Exit(75), 1: Exit(75)}, "Infrastructure", "worker 0: left with exit code 75", "node-0"),
    "the others are deleted once one has failed": (
        {0: Exit(platform=PlatformReason.DELETED), 1: BUG},
        "Application",
        "worker 1: KeyError: 'x'",
        "node-1",
    ),
}


@pytest.mark.parametrize(("exits", "cause", "reason", "node"), TWO_WORKERS.values(), ids=TWO_WORKERS.keys())
def test_of_two_workers_one_is_the_root_cause(exits, cause, reason, node):
    world = World(job(distributed={"workers": 2}), Script(fails_after=15, exits=exits)).run()
    first = world.status.attempts[0]
    assert (first.cause, first.reason, first.node) == (cause, reason, node)
    assert world.status.phase is Phase.SUCCEEDED
    assert world.status.restarts == {cause: 1}


def test_a_worker_whose_peer_is_gone_is_asked_to_leave_after_a_while():
    script = Script(fails_after=15, exits={1: BUG}, hanging=frozenset({0}))
    world = World(job(distributed={"workers": 2}), script).run()
    assert world.actions[:3] == [(0, "StartAttempt 1"), (25, "StopAttempt 1"), (26, "StartAttempt 2")]
    assert world.status.attempts[0].reason == "worker 1: KeyError: 'x'"


def test_configuration_found_while_leaving_ends_the_job():
    world = World(job(), fails(15, Exit(65))).run(until=15)
    world.set(suspend=True)
    world.run(until=20)
    assert world.status.phase is Phase.FAILED


def test_an_attempt_that_is_not_in_the_status_is_adopted():
    world = World(job())
    world.running = Running(1, 0, Script(), 0)
    world.run()
    assert told(world.status)["attempts"] == [attempt(1, 0, 30, 0, 30)]
    assert world.actions == []


def test_an_attempt_that_is_nowhere_to_be_seen_is_started_again():
    world = World(job()).run(until=5)
    world.running = None
    world.run()
    assert world.actions == [(0, "StartAttempt 1"), (5, "StartAttempt 1")]
    assert [one.number for one in world.status.attempts] == [1]


def test_nothing_starts_beside_what_is_left_of_an_older_attempt():
    world = World(job()).run()
    leftover = ObservedAttempt(1, (ObservedWorker(0, WorkerPhase.RUNNING, at(0)),))
    open_again = world.status.model_copy(update={"conditions": (), "phase": Phase.RESTARTING})
    observed = Observed(job=job().model_copy(update={"status": open_again}), now=at(40), attempt=leftover)
    assert plan(observed).action == StopAttempt(1)
    asked = plan(replace(observed, attempt=replace(leftover, stopping=True)))
    assert (asked.is_empty, asked.look_again_seconds) == (True, 10)


def test_refused_by_the_platform():
    world = World(job())
    world.refusal = Refusal(Reason.FORBIDDEN, "spec.distributed.workers: at most 4 in runtime default, got 8")
    world.run(until=5)
    assert world.status.phase is Phase.PENDING
    assert told(world.status)["conditions"]["Accepted"] == "False Forbidden 0"
    assert [reason for _, reason, _ in world.events] == ["Forbidden"]
    assert plan(world.observe()).is_empty
    world.refusal = None
    world.run()
    assert world.status.phase is Phase.SUCCEEDED


def test_held_by_a_queue():
    held = ObservedAttempt(1, held=True)
    world = World(job()).run(until=1)
    planned = plan(replace(world.observe(), attempt=held))
    assert planned.status.phase is Phase.SUSPENDED
    assert told(planned.status)["conditions"]["Suspended"] == "True Queued 1"
    settled = replace(world.observe(), attempt=held, job=world.job.model_copy(update={"status": planned.status}))
    assert plan(settled).is_empty


def test_what_runs_and_is_then_held_back_has_run():
    """Kueue preempts it after 10 s of running and admits it anew 40 s later; only the time in which it ran counts."""
    world = World(job()).run(until=10)
    held = replace(world.observe(), attempt=ObservedAttempt(1, held=True))
    planned = plan(held)
    assert (planned.status.phase, planned.status.running_seconds) == (Phase.SUSPENDED, 10)
    waits = replace(held, now=at(50), job=world.job.model_copy(update={"status": planned.status}))
    assert plan(waits).is_empty
    begun = ObservedAttempt(1, (ObservedWorker(0, WorkerPhase.RUNNING, at(50)),))
    admitted = plan(replace(waits, attempt=begun, report=None))
    assert (admitted.status.phase, admitted.status.running_seconds) == (Phase.STARTING, 10)
    assert admitted.status.attempts[0].start == at(50)


def running_message(status):
    return next(one.message for one in status.conditions if one.type == "Running")


def test_what_an_attempt_waits_for_is_told_and_then_forgotten():
    world = World(job(), Script(starts_after=50)).run(until=2)
    seen = world.observe()
    waits = replace(seen, attempt=replace(seen.attempt, waiting="no node takes it"))
    planned = plan(waits)
    assert (planned.status.phase, running_message(planned.status)) == (Phase.STARTING, "no node takes it")
    told = replace(waits, job=world.job.model_copy(update={"status": planned.status}))
    assert plan(told).is_empty
    over = plan(replace(told, attempt=seen.attempt))
    assert (over.status.phase, running_message(over.status)) == (Phase.STARTING, "Attempt 1 starts")


def test_what_is_in_the_way_of_an_attempt_is_told_and_tried_again():
    world = World(job())
    planned = plan(replace(world.observe(), obstacle="quota exceeded"))
    assert (planned.action, planned.status.phase, planned.status.attempts) == (StartAttempt(1), Phase.STARTING, ())
    assert running_message(planned.status) == "Attempt 1 cannot start: quota exceeded"
    assert (planned.events, planned.look_again_seconds) == ((), 10)


def test_of_many_attempts_the_latest_twenty_are_kept():
    world = World(job(recovery={"maxRestarts": {"infrastructure": 30}}), *[fails(1, Exit(75), silent=True)] * 25).run()
    assert [one.number for one in world.status.attempts] == list(range(7, 27))
    assert world.status.phase is Phase.SUCCEEDED


EXITS = st.builds(
    Exit,
    st.sampled_from([None, 0, 64, 70, 75, 76, 137, 139, 143]),
    st.sampled_from([None, *Cause]),
    platform=st.sampled_from([None, None, None, *PlatformReason]),
).filter(lambda exit_: exit_.code != 0 or exit_ == Exit(0))
SCRIPTS = st.builds(
    Script,
    starts_after=st.integers(0, 3),
    fails_after=st.integers(1, 25),
    exits=st.dictionaries(st.integers(0, 1), EXITS, max_size=2),
    hanging=st.frozensets(st.just(1)),
    deaf=st.booleans(),
    silent=st.booleans(),
)


@settings(max_examples=80, deadline=None)
@given(st.lists(SCRIPTS, max_size=6), st.none() | st.integers(1, 60), st.none() | st.integers(1, 40))
def test_whatever_happens_a_job_ends_and_then_nothing_is_planned(scripts, deadline, suspended_at):
    """Attempts never overlap and no action is asked for twice (the world asserts it); budgets bound the restarts."""
    world = World(
        job(distributed={"workers": 2}, **({"activeDeadlineSeconds": deadline} if deadline else {})), *scripts
    )
    if suspended_at is not None:
        world.run(until=suspended_at)
        world.set(suspend=True)
        world.run(until=suspended_at + 40)
        assert is_finished(world.status) or world.status.phase is Phase.SUSPENDED
        world.set(suspend=False)
    world.run()
    assert is_finished(world.status)
    assert plan(world.observe()).is_empty
    assert [one.end is not None for one in world.status.attempts] == [True] * len(world.status.attempts)
    assert world.status.running_seconds <= world.second
