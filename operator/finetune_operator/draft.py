"""A plan in the making."""

from dataclasses import dataclass

from finetune_api.status import JobStatus
from finetune_operator.actions import Event, Plan, StartAttempt, StopAttempt
from finetune_operator.conditions import Situation, with_situation
from finetune_operator.observed import Observed


@dataclass(frozen=True)
class Draft:
    """What is observed, the status that follows from it so far, and what is said on the way."""

    observed: Observed
    status: JobStatus
    events: tuple[Event, ...] = ()

    def to_plan(
        self,
        situation: Situation | None = None,
        *,
        action: StartAttempt | StopAttempt | None = None,
        event: Event | None = None,
        look_again_seconds: float | None = None,
    ) -> Plan:
        """The plan, with the job in ``situation`` (None: where it stood before)."""
        status = self.status
        if situation is not None:
            status = with_situation(status, situation, self.observed.now, self.observed.generation)
        return Plan(action, status, (*self.events, event) if event else self.events, look_again_seconds)
