"""Where an experiment stands, as a phase and six conditions.

Invariant: as in ``finetune_operator.conditions``: all six are always there, and ``lastTransitionTime`` moves only when
a condition's status does.
"""

from dataclasses import dataclass
from datetime import datetime

from finetune_api.experiment import (
    ExperimentCondition,
    ExperimentConditionType,
    ExperimentPhase,
    ExperimentReason,
    ExperimentStatus,
)

_MESSAGE_CHARACTERS = 4096
Kind, Why = ExperimentConditionType, ExperimentReason


@dataclass(frozen=True)
class Standing:
    """The phase, and why."""

    phase: ExperimentPhase
    reason: ExperimentReason
    message: str = ""


def with_standing(status: ExperimentStatus, standing: Standing, now: datetime, generation: int) -> ExperimentStatus:
    """The status with the phase and conditions of ``standing``."""
    before = {one.type: one for one in status.conditions}
    conditions = tuple(
        _condition(kind, holds, reason, standing, before.get(kind), now, generation)
        for kind, (holds, reason) in _conditions_of(standing).items()
    )
    return status.model_copy(
        update={"phase": standing.phase, "conditions": conditions, "observed_generation": generation}
    )


def is_finished(status: ExperimentStatus) -> bool:
    """Concluded or failed: nothing more will be tried."""
    return status.phase in (ExperimentPhase.SUCCEEDED, ExperimentPhase.FAILED)


def answer(status: ExperimentStatus) -> str:
    """What the condition says that tells where it stands."""
    return next((one.message for one in status.conditions if one.message), "")


def _conditions_of(standing: Standing) -> dict[ExperimentConditionType, tuple[bool, ExperimentReason]]:
    phase, reason = standing.phase, standing.reason
    finished = phase in (ExperimentPhase.SUCCEEDED, ExperimentPhase.FAILED)
    refused = reason is Why.INVALID
    suspended = phase is ExperimentPhase.SUSPENDED
    ended = reason if finished else Why.NOT_FINISHED
    return {
        Kind.ACCEPTED: (not refused, reason if refused else Why.VALID),
        Kind.SUSPENDED: (suspended, reason if suspended else Why.NOT_SUSPENDED),
        Kind.RUNNING: (phase is ExperimentPhase.RUNNING, Why.FINISHED if finished else reason),
        Kind.STALLED: (phase is ExperimentPhase.FAILED, ended),
        Kind.CONCLUDED: (phase is ExperimentPhase.SUCCEEDED, ended),
        Kind.FAILED: (phase is ExperimentPhase.FAILED, ended),
    }


def _condition(
    kind: ExperimentConditionType,
    holding: bool,
    reason: ExperimentReason,
    standing: Standing,
    before: ExperimentCondition | None,
    now: datetime,
    generation: int,
) -> ExperimentCondition:
    same = before is not None and (before.status == "True") == holding
    return ExperimentCondition(
        type=kind,
        status="True" if holding else "False",
        reason=reason,
        message=standing.message[:_MESSAGE_CHARACTERS] if reason is standing.reason else "",
        last_transition_time=before.last_transition_time if before is not None and same else now,
        observed_generation=generation,
    )
