"""Where a job stands, as a phase and six conditions.

Invariant: all six conditions are always there, every reason is a constant of the API, and ``lastTransitionTime`` moves
only when a condition's status does. ``Stalled`` follows kstatus
(https://github.com/kubernetes-sigs/cli-utils/tree/master/pkg/kstatus): it is true as well once the job has failed, so
that Flux, Argo CD and ``kpt`` report the failure.
"""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from finetune_api.status import Condition, ConditionType, JobStatus, Phase, Reason

SENTENCE_CHARACTERS = 1024
_REFUSALS = (Reason.INVALID, Reason.FORBIDDEN, Reason.RUNTIME_NOT_FOUND)
_Said = tuple[bool, Reason]


@dataclass(frozen=True)
class Situation:
    """Where a job stands: the phase, and why."""

    phase: Phase
    reason: Reason
    message: str = ""
    stalled: bool = False
    """The last attempt ended because nothing progressed, and the next one has not yet."""


def with_situation(status: JobStatus, situation: Situation, now: datetime, generation: int) -> JobStatus:
    """The status with the phase and conditions of ``situation``."""
    before = {condition.type: condition for condition in status.conditions}
    said = _conditions_of(situation)
    conditions = tuple(
        _condition(kind, holds, reason, situation, before.get(kind), now, generation)
        for kind, (holds, reason) in said.items()
    )
    return status.model_copy(
        update={"phase": situation.phase, "conditions": conditions, "observed_generation": generation}
    )


def condition(status: JobStatus, kind: ConditionType) -> Condition | None:
    """The condition of this type, if it is there."""
    return next((one for one in status.conditions if one.type is kind), None)


def holds(status: JobStatus, kind: ConditionType) -> bool:
    """Whether the condition of this type is True."""
    found = condition(status, kind)
    return found is not None and found.status == "True"


def is_finished(status: JobStatus) -> bool:
    """Succeeded or failed: nothing more will happen."""
    return holds(status, ConditionType.SUCCEEDED) or holds(status, ConditionType.FAILED)


def _conditions_of(situation: Situation) -> dict[ConditionType, _Said]:
    phase, reason = situation.phase, situation.reason
    finished = phase in (Phase.SUCCEEDED, Phase.FAILED)
    refused = reason in _REFUSALS
    running: _Said = (phase is Phase.RUNNING, Reason.FINISHED if finished else reason)
    stalled: _Said = (situation.stalled, Reason.STALLED if situation.stalled else Reason.PROGRESSING)
    return {
        ConditionType.ACCEPTED: (not refused, reason if refused else Reason.VALID),
        ConditionType.SUSPENDED: (
            phase is Phase.SUSPENDED,
            reason if phase is Phase.SUSPENDED else Reason.NOT_SUSPENDED,
        ),
        ConditionType.RUNNING: running,
        ConditionType.STALLED: (True, reason) if phase is Phase.FAILED else stalled,
        ConditionType.SUCCEEDED: (phase is Phase.SUCCEEDED, reason if finished else Reason.NOT_FINISHED),
        ConditionType.FAILED: (phase is Phase.FAILED, reason if finished else Reason.NOT_FINISHED),
    }


def _condition(
    kind: ConditionType,
    holding: bool,
    reason: Reason,
    situation: Situation,
    before: Condition | None,
    now: datetime,
    generation: int,
) -> Condition:
    status: Literal["True", "False"] = "True" if holding else "False"
    return Condition(
        type=kind,
        status=status,
        reason=reason,
        message=situation.message[:SENTENCE_CHARACTERS] if reason is situation.reason else "",
        last_transition_time=before.last_transition_time if before and before.status == status else now,
        observed_generation=generation,
    )
