"""What a plan may ask of a cluster."""

from dataclasses import dataclass
from typing import Literal

from finetune_api.experiment import ExperimentReason
from finetune_api.status import JobStatus, Reason


@dataclass(frozen=True)
class StartAttempt:
    """Start every worker of an attempt; where it exists already, nothing."""

    number: int


@dataclass(frozen=True)
class StopAttempt:
    """Ask every worker of an attempt to save and leave (SIGTERM), and end those that have not after their grace."""

    number: int


@dataclass(frozen=True)
class Event:
    """Something that people shall read of."""

    type: Literal["Normal", "Warning"]
    reason: Reason | ExperimentReason
    message: str


@dataclass(frozen=True)
class Plan:
    """What shall be done now. An empty plan says that everything is as it should be."""

    action: StartAttempt | StopAttempt | None = None
    status: JobStatus | None = None
    """The status to write; None if it is as written."""
    events: tuple[Event, ...] = ()
    look_again_seconds: float | None = None
    """When to look again, even if nothing happens meanwhile; None for never."""

    @property
    def is_empty(self) -> bool:
        """Nothing to do, to write or to say."""
        return self.action is None and self.status is None and not self.events
