"""What shall be done while nothing of a job runs: refuse, end or suspend it, wait, or start the next attempt."""

from dataclasses import replace
from datetime import datetime, timedelta

from finetune_api.outcomes import Cause
from finetune_api.status import ConditionType, JobStatus, Phase, Reason
from finetune_operator.actions import Event, Plan, StartAttempt
from finetune_operator.alive import POLL_SECONDS
from finetune_operator.conditions import Situation, holds
from finetune_operator.draft import Draft
from finetune_operator.policy import delay_seconds
from finetune_operator.status import latest_attempt, open_attempt, with_attempt
from finetune_operator.wishes import deadline_text, is_end_wanted, is_past_deadline, wanted_suspension


def plan_idle(draft: Draft) -> Plan:
    """The plan for a job of which no process is alive and whose last attempt's end is in ``draft.status``."""
    observed = draft.observed
    if observed.refusal is not None:
        situation = Situation(Phase.PENDING, observed.refusal.reason, observed.refusal.message)
        return _rest(draft, situation, Event("Warning", situation.reason, situation.message))
    if is_end_wanted(observed):
        return _plan_pruned(draft)
    if is_past_deadline(observed, draft.status):
        return plan_failure(draft, Reason.DEADLINE_EXCEEDED, deadline_text(observed))
    suspended = wanted_suspension(observed)
    if suspended is not None:
        return _rest(draft, suspended, Event("Normal", suspended.reason, suspended.message))
    current = open_attempt(draft.status)
    if current is not None:
        # Begun, says the status, but nowhere to be seen: its objects were deleted, or never made. The same start again.
        return draft.to_plan(action=StartAttempt(current.number), look_again_seconds=POLL_SECONDS)
    return _wait_or_start(draft)


def plan_failure(draft: Draft, reason: Reason, message: str) -> Plan:
    """The job has failed, for good."""
    latest = latest_attempt(draft.status)
    time = latest.end if latest and latest.end else draft.observed.now
    failed = replace(draft, status=draft.status.model_copy(update={"completion_time": time}))
    return failed.to_plan(Situation(Phase.FAILED, reason, message), event=Event("Warning", reason, message))


def _plan_pruned(draft: Draft) -> Plan:
    """The job is over where it is, because that was asked for: no failure, and nothing exported."""
    latest = latest_attempt(draft.status)
    time = latest.end if latest and latest.end else draft.observed.now
    ended = replace(draft, status=draft.status.model_copy(update={"completion_time": time}))
    message = f"Ended by spec.stop {f'at step {latest.to_step}' if latest else 'before it began'}; nothing was exported"
    situation = Situation(Phase.SUCCEEDED, Reason.PRUNED, message)
    return ended.to_plan(situation, event=Event("Normal", Reason.PRUNED, message))


def _rest(draft: Draft, situation: Situation, event: Event) -> Plan:
    """Nothing runs until the spec or the platform changes; said once."""
    said = any(condition.reason is situation.reason for condition in draft.observed.status.conditions)
    return draft.to_plan(situation, event=None if said else event)


def _wait_or_start(draft: Draft) -> Plan:
    latest, now = latest_attempt(draft.status), draft.observed.now
    number = latest.number + 1 if latest else 1
    due = _due(draft.status)
    if due is not None and due > now:
        situation = _situation(draft, f"Attempt {number} starts at {due:%H:%M:%S} UTC, after a back-off")
        return draft.to_plan(situation, look_again_seconds=(due - now).total_seconds())
    if draft.observed.obstacle is not None:
        situation = _situation(draft, f"Attempt {number} cannot start: {draft.observed.obstacle}")
        return draft.to_plan(situation, action=StartAttempt(number), look_again_seconds=POLL_SECONDS)
    started = replace(draft, status=with_attempt(draft.status, number, now))
    message = f"Attempt {number} starts"
    return started.to_plan(
        _situation(draft, message),
        action=StartAttempt(number),
        event=Event("Normal", Reason.STARTING, message),
        look_again_seconds=POLL_SECONDS,
    )


def _situation(draft: Draft, message: str) -> Situation:
    """Restarting after a failure; starting the first time and after a suspension."""
    latest = latest_attempt(draft.status)
    stalled = latest is not None and latest.cause is Cause.STALLED
    if latest is None or holds(draft.observed.status, ConditionType.SUSPENDED):
        return Situation(Phase.STARTING, Reason.STARTING, message, stalled)
    return Situation(Phase.RESTARTING, Reason.RESTARTING, message, stalled)


def _due(status: JobStatus) -> datetime | None:
    """When the back-off after the latest attempt ends; None if there is none."""
    latest = latest_attempt(status)
    if latest is None or latest.cause is None or latest.end is None:
        return None
    return latest.end + timedelta(seconds=delay_seconds(latest.cause, status.restarts_since_progress))
