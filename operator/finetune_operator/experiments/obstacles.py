"""What keeps trials from running, in words: what the cluster does not take, and what a runtime does not allow."""

from collections.abc import Iterator

from finetune_api.status import ConditionType, Phase
from finetune_operator.conditions import condition
from finetune_operator.experiments.scene import Scene
from finetune_operator.experiments.trials import Trial

_TOLD = 3
"""So many trials are told of one by one."""


def obstacles(scene: Scene) -> Iterator[str]:
    """A sentence each."""
    if scene.observed.obstacle is not None:
        yield scene.observed.obstacle
    refused = [(one.name, why) for one in scene.trials if one.is_active and (why := _refusal(one))]
    yield from (f"{name} may not run: {why}" for name, why in refused[:_TOLD])
    if len(refused) > _TOLD:
        yield f"and {len(refused) - _TOLD} more may not run"


def _refusal(trial: Trial) -> str | None:
    """Why the trial's job is not accepted, or waits."""
    status = trial.job.status if trial.job else None
    if status is None or status.phase is not Phase.PENDING:
        return None
    accepted = condition(status, ConditionType.ACCEPTED)
    return accepted.message if accepted is not None and accepted.status == "False" else None
