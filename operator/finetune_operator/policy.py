"""What follows from a failed attempt: another one, at once or after a while, or the end.

Invariant: progress earns retries, crash loops end. Budgets and back-off are counted in restarts since a newer
checkpoint last landed, so they are whole again once one lands; Configuration is never retried, for it would change
nothing; Preempted is free, for nothing went wrong.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from finetune_api.job import MaxRestarts
from finetune_api.outcomes import Cause
from finetune_api.status import Reason

FIRST_DELAY_SECONDS = 2.0
"""The second restart without progress waits this long, each further one twice as long; the first does not wait."""
MAX_DELAY_SECONDS = 300.0
FREE_PREEMPTIONS = 3
"""So many preemptions without progress do not wait; more of them are a loop."""


@dataclass(frozen=True)
class GiveUp:
    """The job has failed."""

    reason: Reason
    message: str


Rule = Callable[[Cause, MaxRestarts, Mapping[str, int]], GiveUp | None]
"""(cause, budgets, restarts since progress by cause) → the end, or nothing to say against another attempt."""


def give_up(cause: Cause, budgets: MaxRestarts, since_progress: Mapping[str, int]) -> GiveUp | None:
    """The reason to give up after a failure of this cause; None if another attempt shall be made."""
    verdicts = (rule(cause, budgets, since_progress) for rule in RULES)
    return next((verdict for verdict in verdicts if verdict is not None), None)


def never_for_configuration(cause: Cause, _budgets: MaxRestarts, _since: Mapping[str, int]) -> GiveUp | None:
    """The same again would fail the same way."""
    return GiveUp(Reason.CONFIGURATION, "trying again would change nothing") if cause is Cause.CONFIGURATION else None


def within_budget(cause: Cause, budgets: MaxRestarts, since_progress: Mapping[str, int]) -> GiveUp | None:
    """As often as ``spec.recovery.maxRestarts`` allows since a newer checkpoint last landed."""
    budget = budget_of(cause, budgets)
    used = since_progress.get(cause.value, 0)
    if budget is None or used < budget:
        return None
    spent = f"{used} restart{'' if used == 1 else 's'} without a newer checkpoint"
    return GiveUp(Reason.BUDGET_EXHAUSTED, f"the budget for {cause} is used up ({spent})")


RULES: tuple[Rule, ...] = (never_for_configuration, within_budget)


def budget_of(cause: Cause, budgets: MaxRestarts) -> int | None:
    """Restarts that a cause may have without progress; None for any number."""
    return {
        Cause.INFRASTRUCTURE: budgets.infrastructure,
        Cause.OUT_OF_MEMORY: budgets.out_of_memory,
        Cause.APPLICATION: budgets.application,
        Cause.STALLED: budgets.stalled,
    }.get(cause)


def delay_seconds(cause: Cause, since_progress: Mapping[str, int]) -> float:
    """How long to wait before the restart that ``since_progress`` already counts; 0 to MAX_DELAY_SECONDS."""
    preemptions = since_progress.get(Cause.PREEMPTED.value, 0)
    failures = sum(since_progress.values()) - preemptions
    earlier = preemptions - FREE_PREEMPTIONS if cause is Cause.PREEMPTED else failures - 1
    if earlier <= 0:
        return 0.0
    return float(min(MAX_DELAY_SECONDS, FIRST_DELAY_SECONDS * 2 ** min(earlier - 1, 16)))
