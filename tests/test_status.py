"""Causes, policy and the builders of a status, one function at a time."""

from datetime import UTC, datetime, timedelta

import pytest

from finetune_api import Cause, JobStatus, ProgressReport, TerminationMessage
from finetune_api.job import MaxRestarts
from finetune_api.status import Attempt, ConditionType, LastCheckpoint, Phase, Progress, Reason, Stage
from finetune_operator.causes import root_cause
from finetune_operator.conditions import Situation, is_finished, with_situation
from finetune_operator.names import attempt_name
from finetune_operator.observed import ObservedAttempt, ObservedWorker, PlatformReason, WorkerPhase
from finetune_operator.policy import MAX_DELAY_SECONDS, delay_seconds, give_up
from finetune_operator.status import (
    reopened,
    running_seconds,
    tells_only_start,
    with_attempt,
    with_report,
    with_restart,
)

T0 = datetime(2030, 1, 1, tzinfo=UTC)


def at(seconds):
    return T0 + timedelta(seconds=seconds)


def failed(index=0, code=None, *, cause=None, text="", platform=None, ended=10):
    message = TerminationMessage(exit_code=code or 0, cause=cause, message=text) if cause else None
    return ObservedWorker(index, WorkerPhase.FAILED, T0, at(ended), code, message, f"node-{index}", platform)


def report(step, *, resumed=0, saved=None, attempt=1, lost=0):
    return ProgressReport(
        stage=Stage.TRAINING,
        attempt=attempt,
        progress=Progress(step=step, total_steps=100, epoch=0, percent=step, time=T0),
        metrics={"loss": 1.0},
        last_checkpoint=LastCheckpoint(step=saved, path="c", time=T0) if saved is not None else None,
        resumed_from_step=resumed,
        lost_steps=lost,
    )


EVIDENCE = {
    "the platform before the message": (
        failed(code=70, cause=Cause.APPLICATION, platform=PlatformReason.OOM_KILLED),
        False,
        Cause.OUT_OF_MEMORY,
    ),
    "the message before the code": (failed(code=70, cause=Cause.STALLED, text="no step"), False, Cause.STALLED),
    "the message before a deletion": (
        failed(code=65, cause=Cause.CONFIGURATION, platform=PlatformReason.DELETED),
        False,
        Cause.CONFIGURATION,
    ),
    "the scheduler": (failed(code=143, platform=PlatformReason.PREEMPTED), False, Cause.PREEMPTED),
    "the command was killed": (failed(platform=PlatformReason.SUPERVISOR_LOST), False, Cause.PREEMPTED),
    "SIGKILL": (failed(code=137), False, Cause.INFRASTRUCTURE),
    "SIGKILL after it was asked to leave": (failed(code=137), True, Cause.PREEMPTED),
    "a fault although it was asked to leave": (failed(code=70), True, Cause.APPLICATION),
    "no trace": (failed(), False, Cause.INFRASTRUCTURE),
    "a code of nobody's": (failed(code=3), False, Cause.APPLICATION),
    "a peer was lost": (failed(code=75), False, Cause.INFRASTRUCTURE),
}


@pytest.mark.parametrize(("worker", "stopping", "cause"), EVIDENCE.values(), ids=EVIDENCE.keys())
def test_cause_of_one_worker(worker, stopping, cause):
    assert root_cause(ObservedAttempt(1, (worker,), stopping)).cause is cause


def test_of_equal_failures_the_first_in_time_is_the_root():
    attempt = ObservedAttempt(1, (failed(0, 70, ended=12), failed(1, 70, ended=11), failed(2, 75, ended=9)))
    verdict = root_cause(attempt)
    assert (verdict.worker.index, verdict.sentence) == (1, "worker 1: left with exit code 70")


GIVING_UP = {
    "configuration": (Cause.CONFIGURATION, {}, Reason.CONFIGURATION),
    "preempted, again and again": (Cause.PREEMPTED, {"Preempted": 1000}, None),
    "application, the first time": (Cause.APPLICATION, {}, None),
    "application, budget left": (Cause.APPLICATION, {"Application": 1}, None),
    "application, budget used": (Cause.APPLICATION, {"Application": 2}, Reason.BUDGET_EXHAUSTED),
    "each cause has its own budget": (Cause.STALLED, {"Application": 2, "OutOfMemory": 2}, None),
    "stalled": (Cause.STALLED, {"Stalled": 3}, Reason.BUDGET_EXHAUSTED),
    "out of memory": (Cause.OUT_OF_MEMORY, {"OutOfMemory": 2}, Reason.BUDGET_EXHAUSTED),
    "infrastructure": (Cause.INFRASTRUCTURE, {"Infrastructure": 10}, Reason.BUDGET_EXHAUSTED),
}


@pytest.mark.parametrize(("cause", "since", "reason"), GIVING_UP.values(), ids=GIVING_UP.keys())
def test_giving_up(cause, since, reason):
    end = give_up(cause, MaxRestarts(), since)
    assert (end.reason if end else None) is reason


DELAYS = {
    "first failure": (Cause.APPLICATION, {"Application": 1}, 0),
    "second": (Cause.APPLICATION, {"Application": 2}, 2),
    "third, of several causes": (Cause.STALLED, {"Application": 2, "Stalled": 1}, 4),
    "bounded": (Cause.INFRASTRUCTURE, {"Infrastructure": 500}, MAX_DELAY_SECONDS),
    "preempted after failures": (Cause.PREEMPTED, {"Application": 2, "Preempted": 1}, 0),
    "failed after preemptions": (Cause.APPLICATION, {"Application": 1, "Preempted": 9}, 0),
    "third preemption": (Cause.PREEMPTED, {"Preempted": 3}, 0),
    "a loop of preemptions": (Cause.PREEMPTED, {"Preempted": 5}, 4),
    "nothing is counted": (Cause.PREEMPTED, {}, 0),
}


@pytest.mark.parametrize(("cause", "since", "seconds"), DELAYS.values(), ids=DELAYS.keys())
def test_delay(cause, since, seconds):
    assert delay_seconds(cause, since) == seconds


def test_building_twice_from_one_report_changes_nothing():
    status = with_attempt(with_report(with_attempt(JobStatus(), 1, T0), report(45, saved=40)), 2, at(50))
    once = with_report(status, report(41, resumed=40, saved=40, attempt=2))
    assert (once.lost_steps, once.resumed_from_step) == (5, 40)
    assert with_report(once, report(41, resumed=40, saved=40, attempt=2)) == once


def test_steps_of_an_attempt_that_never_trained_are_lost_once():
    status = with_attempt(with_report(with_attempt(JobStatus(), 1, T0), report(45, saved=40)), 2, at(50))
    status = with_attempt(status, 3, at(60))
    assert with_report(status, report(41, resumed=40, attempt=3)).lost_steps == 5


def test_steps_that_nobody_saw_are_lost_all_the_same():
    """Killed between two looks: only its history knows how far the attempt came."""
    status = with_attempt(with_report(with_attempt(JobStatus(), 1, T0), report(45, saved=40)), 2, at(50))
    assert with_report(status, report(41, resumed=40, attempt=2, lost=9)).lost_steps == 9


STARTS = {
    "its start": ({"start": at(5)}, {}, True),
    "nothing": ({}, {}, True),
    "its start and its steps": ({"start": at(5), "to_step": 3}, {}, False),
    "its start and a metric": ({"start": at(5)}, {"metrics": {"loss": 1.0}}, False),
}


@pytest.mark.parametrize(("attempt", "fields", "only"), STARTS.values(), ids=STARTS.keys())
def test_a_start_alone_can_wait(attempt, fields, only):
    before = with_attempt(JobStatus(), 1, T0)
    latest = before.attempts[-1].model_copy(update=attempt)
    assert tells_only_start(before, before.model_copy(update={"attempts": (latest,), **fields})) is only


CHECKPOINTS = {
    "newer": (50, 50, {}),
    "the same": (40, 40, {"Application": 1}),
    "older, for the newest was damaged": (30, 40, {"Application": 1}),
}


@pytest.mark.parametrize(("saved", "kept", "since"), CHECKPOINTS.values(), ids=CHECKPOINTS.keys())
def test_a_checkpoint_gives_budgets_back_only_if_it_is_newer(saved, kept, since):
    status = with_restart(with_report(with_attempt(JobStatus(), 1, T0), report(45, saved=40)), Cause.APPLICATION)
    after = with_report(with_attempt(status, 2, at(50)), report(55, resumed=saved, saved=saved, attempt=2))
    assert (after.last_checkpoint.step, after.restarts_since_progress) == (kept, since)
    assert after.restarts == {"Application": 1}


def test_a_report_before_training_leaves_what_is_known():
    status = with_report(with_attempt(JobStatus(), 1, T0), report(45, saved=40))
    preparing = ProgressReport(stage=Stage.PREPARING, attempt=1)
    assert with_report(status, preparing) == status


def test_running_seconds():
    status = JobStatus(attempts=(Attempt(number=1, start=at(10)),), running_seconds=5)
    assert running_seconds(status, at(25), is_running=True) == 20
    assert running_seconds(status, at(25), is_running=False) == 5


def test_transition_times_move_only_with_the_status():
    first = with_situation(JobStatus(), Situation(Phase.STARTING, Reason.STARTING, "Attempt 1 starts"), T0, 1)
    later = with_situation(first, Situation(Phase.SUSPENDED, Reason.QUEUED), at(9), 2)
    moved = {one.type for one in later.conditions if one.last_transition_time == at(9)}
    assert moved == {ConditionType.SUSPENDED}
    assert {one.observed_generation for one in later.conditions} == {2}
    assert [one.type for one in later.conditions] == list(ConditionType)


def test_a_message_that_is_too_long_is_cut():
    status = with_situation(JobStatus(), Situation(Phase.FAILED, Reason.CONFIGURATION, "x" * 5000), T0, 1)
    assert {len(one.message) for one in status.conditions} == {0, 1024}


def test_reopened():
    over = with_situation(JobStatus(), Situation(Phase.FAILED, Reason.CONFIGURATION), T0, 1)
    assert is_finished(over)
    assert not is_finished(reopened(over))


def test_names():
    assert attempt_name("a" * 52, 1234) == "a" * 52 + "-1234"
