"""What shall be done while an attempt runs: tell how it goes, and ask it to leave if it should."""

from finetune_api.status import ConditionType, JobStatus, Phase, ProgressReport, Reason, Stage
from finetune_operator.actions import Event, Plan, StopAttempt
from finetune_operator.conditions import Situation, holds
from finetune_operator.draft import Draft
from finetune_operator.observed import Observed, ObservedAttempt
from finetune_operator.status import with_pause, with_report, with_start
from finetune_operator.wishes import PEER_GRACE_SECONDS, peer_gone_seconds, seconds_to_deadline, wish_to_stop

POLL_SECONDS = 10.0
"""How often a running attempt's progress is looked at, unless its cluster does so more often."""
_STAGES = {
    Stage.PREPARING: "Preparing data and model",
    Stage.TRAINING: "Training",
    Stage.EVALUATING: "Evaluating",
    Stage.EXPORTING: "Exporting the model",
    Stage.DONE: "Finishing",
}
_REASONS = {
    Phase.STARTING: Reason.STARTING,
    Phase.RESTARTING: Reason.RESTARTING,
    Phase.RUNNING: Reason.TRAINING,
}


def plan_alive(observed: Observed, attempt: ObservedAttempt) -> Plan:
    """The plan for the open attempt of the status, of which a process is or will be alive."""
    report = observed.report if observed.report and observed.report.attempt == attempt.number else None
    status = with_report(observed.status, report) if report else observed.status
    if attempt.running_since is not None:
        status = with_start(status, attempt.running_since)
    if attempt.held and observed.status.phase is Phase.RUNNING:
        status = with_pause(status, observed.now)
    draft = Draft(observed, status)
    situation = _situation(observed, attempt, report)
    look = _look_again(observed, status, attempt)
    wish = wish_to_stop(observed, status, attempt)
    if wish is None or attempt.stopping or attempt.held:
        event = _first_training(observed.status, status)
        return draft.to_plan(situation, event=event, look_again_seconds=look)
    return draft.to_plan(situation, action=StopAttempt(attempt.number), event=wish, look_again_seconds=look)


def _situation(observed: Observed, attempt: ObservedAttempt, report: ProgressReport | None) -> Situation | None:
    """Where the job stands; None if that is not known to have changed."""
    if attempt.held:
        return Situation(Phase.SUSPENDED, Reason.QUEUED, f"Attempt {attempt.number} waits to be admitted")
    if attempt.waiting is not None:
        return _waiting(observed.status, attempt.waiting)
    if report is not None:
        stalled = report.progress is None and holds(observed.status, ConditionType.STALLED)
        return Situation(Phase.RUNNING, Reason.TRAINING, _STAGES[report.stage], stalled)
    if observed.status.phase is Phase.RUNNING:
        return None
    return _waiting(observed.status, f"Attempt {attempt.number} starts")


def _waiting(status: JobStatus, message: str) -> Situation:
    """The phase stays what it is, unless the attempt comes out of a queue or is not told of yet."""
    phase = status.phase if status.phase in _REASONS else Phase.STARTING
    return Situation(phase, _REASONS[phase], message, holds(status, ConditionType.STALLED))


def _first_training(before: JobStatus, after: JobStatus) -> Event | None:
    """Said once an attempt, when its first report of training has come."""
    number = after.attempts[-1].number
    if after.resumed_from_step is not None and before.resumed_from_step is None:
        return Event("Normal", Reason.TRAINING, f"Attempt {number} trains on from step {after.resumed_from_step}")
    if after.progress is not None and before.progress is None:
        return Event("Normal", Reason.TRAINING, f"Attempt {number} trains")
    return None


def _look_again(observed: Observed, status: JobStatus, attempt: ObservedAttempt) -> float | None:
    if attempt.held:
        return None
    deadline, gone = seconds_to_deadline(observed, status), peer_gone_seconds(observed, attempt)
    grace = PEER_GRACE_SECONDS - gone if gone is not None else None
    waits = [seconds for seconds in (deadline, grace) if seconds is not None and seconds > 0]
    return min([POLL_SECONDS, *waits])
