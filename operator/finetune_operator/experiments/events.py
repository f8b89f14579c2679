"""What people shall read of an experiment's course: an event whenever it comes to stand elsewhere."""

from finetune_api.experiment import ExperimentConditionType, ExperimentPhase, ExperimentReason, ExperimentStatus
from finetune_operator.actions import Event

_DECIDING = {
    ExperimentPhase.PENDING: ExperimentConditionType.ACCEPTED,
    ExperimentPhase.SUSPENDED: ExperimentConditionType.SUSPENDED,
    ExperimentPhase.RUNNING: ExperimentConditionType.RUNNING,
    ExperimentPhase.SUCCEEDED: ExperimentConditionType.CONCLUDED,
    ExperimentPhase.FAILED: ExperimentConditionType.FAILED,
}
"""The condition that says why it is in a phase."""
_WARNINGS = (ExperimentReason.INVALID, ExperimentReason.TRIALS_FAILED)


def events_of(before: ExperimentStatus, after: ExperimentStatus) -> tuple[Event, ...]:
    """The event of a change of status, if it is one that people shall read of."""
    was, now = _standing(before), _standing(after)
    if now is None or (was is not None and was[0] is now[0]):
        return ()
    reason, message = now
    return (Event("Warning" if reason in _WARNINGS else "Normal", reason, message),)


def _standing(status: ExperimentStatus) -> tuple[ExperimentReason, str] | None:
    kind = _DECIDING[status.phase]
    return next(((one.reason, one.message) for one in status.conditions if one.type is kind), None)
