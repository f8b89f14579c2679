"""The one decision: from what is observed of a job to what shall be done about it.

``plan`` is pure and level-triggered: it looks at what is, not at what has changed, and once its plan is applied and
nothing new happens the next plan is empty. Order of its questions: is the job finished; has an attempt ended; does one
run (alive.py); if none does, may the next one start (idle.py).
"""

from dataclasses import replace

from finetune_api.outcomes import Cause
from finetune_api.status import JobStatus, Phase, Reason
from finetune_operator.actions import Event, Plan, StopAttempt
from finetune_operator.alive import POLL_SECONDS, plan_alive
from finetune_operator.causes import Verdict, root_cause
from finetune_operator.conditions import Situation, is_finished
from finetune_operator.draft import Draft
from finetune_operator.idle import plan_failure, plan_idle
from finetune_operator.observed import Observed, ObservedAttempt, WorkerPhase
from finetune_operator.policy import budget_of, delay_seconds, give_up
from finetune_operator.status import (
    latest_attempt,
    open_attempt,
    with_attempt,
    with_failure,
    with_report,
    with_restart,
    with_start,
    with_success,
)
from finetune_operator.wishes import is_end_wanted, is_past_deadline, wanted_suspension


def plan(observed: Observed) -> Plan:
    """What shall be done now; empty for a finished job and whenever everything is as it should be."""
    if is_finished(observed.status):
        return Plan()
    decided = _decide(_adopt(observed))
    return replace(decided, status=None) if decided.status == observed.status else decided


def _adopt(observed: Observed) -> Observed:
    """An attempt that runs but is not in the status (its start was the last thing its operator did) is put there."""
    latest, attempt = latest_attempt(observed.status), observed.attempt
    if attempt is None or attempt.number <= (latest.number if latest else 0):
        return observed
    status = with_attempt(observed.status, attempt.number, attempt.running_since or observed.now)
    return replace(observed, job=observed.job.model_copy(update={"status": status}))


def _decide(observed: Observed) -> Plan:
    attempt, current = observed.attempt, open_attempt(observed.status)
    if attempt is None:
        return plan_idle(Draft(observed, observed.status))
    if current is None or attempt.number != current.number:
        return _plan_leftover(observed, attempt)
    if attempt.is_over:
        return _plan_ended(observed, attempt)
    return plan_alive(observed, attempt)


def _plan_leftover(observed: Observed, attempt: ObservedAttempt) -> Plan:
    """An attempt that counts as ended: nothing starts while a process of it is alive."""
    draft = Draft(observed, observed.status)
    if not any(worker.is_alive for worker in attempt.workers):
        return plan_idle(draft)
    stop = None if attempt.stopping else StopAttempt(attempt.number)
    return draft.to_plan(action=stop, look_again_seconds=POLL_SECONDS)


def _plan_ended(observed: Observed, attempt: ObservedAttempt) -> Plan:
    """The end of the run if worker 0 has finished it; else what the policy makes of the root cause."""
    status = _with_last_reports(observed, attempt)
    if attempt.running_since is not None:
        status = with_start(status, attempt.running_since)
    end = max((worker.ended for worker in attempt.workers if worker.ended is not None), default=observed.now)
    first = next((worker for worker in attempt.workers if worker.index == 0), attempt.workers[0])
    failed = any(worker.phase is WorkerPhase.FAILED for worker in attempt.workers)
    if first.phase is WorkerPhase.SUCCEEDED or not failed:
        return _plan_success(observed, with_success(status, end, first.message))
    verdict = root_cause(attempt)
    return _plan_after_failure(observed, with_failure(status, end, verdict), verdict)


def _with_last_reports(observed: Observed, attempt: ObservedAttempt) -> JobStatus:
    """The status with the last report that was pulled, and the one that worker 0 left behind, which is newer."""
    left = (worker.message.report for worker in attempt.workers if worker.index == 0 and worker.message)
    status = observed.status
    for report in (observed.report, *left):
        if report is not None and report.attempt == attempt.number:
            status = with_report(status, report)
    return status


def _plan_success(observed: Observed, status: JobStatus) -> Plan:
    stopped = status.early_stopping.stopped_at_step if status.early_stopping else None
    early = status.result.reason == "EarlyStopped" if status.result else stopped is not None
    reason = Reason.EARLY_STOPPED if early else Reason.COMPLETED
    trained = f"Trained {status.attempts[-1].to_step} steps"
    message = f"{trained}; stopped early, for the metric no longer improved" if early else trained
    situation = Situation(Phase.SUCCEEDED, reason, message)
    return Draft(observed, status).to_plan(situation, event=Event("Normal", reason, message))


def _plan_after_failure(observed: Observed, status: JobStatus, verdict: Verdict) -> Plan:
    """The end, or on to the question whether the next attempt may start."""
    draft = Draft(observed, status)
    wanted = is_end_wanted(observed) or wanted_suspension(observed) or is_past_deadline(observed, status)
    if verdict.cause is Cause.PREEMPTED and wanted:
        return plan_idle(draft)
    told = f"Attempt {status.attempts[-1].number} ended ({verdict.cause}): {verdict.sentence}"
    budgets = observed.job.spec.recovery.max_restarts
    end = give_up(verdict.cause, budgets, status.restarts_since_progress)
    if end is not None:
        return plan_failure(draft, end.reason, f"{told}; {end.message}")
    status = with_restart(status, verdict.cause)
    chance = _chance(verdict.cause, budget_of(verdict.cause, budgets), status.restarts_since_progress)
    return plan_idle(Draft(observed, status, (Event("Warning", Reason.RESTARTING, f"{told}; {chance}"),)))


def _chance(cause: Cause, budget: int | None, since_progress: dict[str, int]) -> str:
    """The restart to come, in words."""
    delay = delay_seconds(cause, since_progress)
    when = f"restart in {delay:g} s" if delay else "restart at once"
    return f"{when} ({since_progress[cause.value]} of {budget} without progress)" if budget is not None else when
