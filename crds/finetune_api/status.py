"""Status of a FineTuneJob, and the messages that a trainer sends: progress while it runs, a result when it ends.

Conditions are the truth; the phase is for people. Both sides of the wire (trainer and operator) use these models.
"""

from datetime import datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Count, NonNegativeFloat, Steps, Unique, Word
from finetune_api.intervals import Interval
from finetune_api.outcomes import Cause

Path = Annotated[str, Field(max_length=1024)]
Sentence = Annotated[str, Field(max_length=1024)]
Percent = Annotated[float, Field(ge=0, le=100)]
Metrics = Annotated[dict[Word, float], Field(max_length=64)]


class Phase(StrEnum):
    """Where a job stands, in one word for people."""

    PENDING = "Pending"
    """Not launched yet: it waits to be accepted, or for its queue."""
    SUSPENDED = "Suspended"
    """It holds no resources until `spec.suspend` is false again."""
    STARTING = "Starting"
    """An attempt is launched and has not reported yet."""
    RUNNING = "Running"
    """Worker 0 reports: it prepares, trains, evaluates or exports."""
    RESTARTING = "Restarting"
    """An attempt ended before the run was finished; the next one follows."""
    SUCCEEDED = "Succeeded"
    """The model is trained and exported."""
    FAILED = "Failed"
    """It ended without a result and is not tried again."""


class ConditionType(StrEnum):
    """What can be true or false of a job."""

    ACCEPTED = "Accepted"
    """The spec is valid, and its runtime exists and allows it."""
    SUSPENDED = "Suspended"
    """It was asked to hold no resources, or waits for a queue to admit it."""
    RUNNING = "Running"
    """An attempt reports progress."""
    STALLED = "Stalled"
    """Nothing progressed for `spec.recovery.stallTimeoutSeconds`; true as well once the job has failed (kstatus)."""
    SUCCEEDED = "Succeeded"
    """The run is finished and its model is exported."""
    FAILED = "Failed"
    """The run ended without a result and is not tried again."""


class Reason(StrEnum):
    """Why a condition is what it is; the only reasons that are ever written."""

    VALID = "Valid"
    """Accepted: nothing is wrong with the spec."""
    INVALID = "Invalid"
    """Not accepted: the spec breaks a rule; the message names the field."""
    FORBIDDEN = "Forbidden"
    """Not accepted: the runtime does not allow what the spec asks for."""
    RUNTIME_NOT_FOUND = "RuntimeNotFound"
    """Not accepted: there is no FineTuneRuntime of the name in `spec.runtime`."""
    SUSPENDED_BY_USER = "SuspendedByUser"
    """Suspended: `spec.suspend` is true."""
    INTERRUPTED = "Interrupted"
    """Suspended: the local run was interrupted; running it again goes on from its checkpoint."""
    QUEUED = "Queued"
    """Suspended: the queue has not admitted it yet."""
    NOT_SUSPENDED = "NotSuspended"
    """Not suspended."""
    STARTING = "Starting"
    """Not running yet: an attempt is being launched."""
    TRAINING = "Training"
    """Running: worker 0 reports progress."""
    RESTARTING = "Restarting"
    """Not running: an attempt ended, the next one follows."""
    FINISHED = "Finished"
    """Not running any more: the job succeeded or failed."""
    PROGRESSING = "Progressing"
    """Not stalled: progress arrives."""
    STALLED = "Stalled"
    """Stalled: no progress within the time-out."""
    COMPLETED = "Completed"
    """Succeeded: every step was trained."""
    EARLY_STOPPED = "EarlyStopped"
    """Succeeded: the metric no longer improved."""
    PRUNED = "Pruned"
    """Succeeded: it was ended by `spec.stop`; nothing was exported."""
    BUDGET_EXHAUSTED = "BudgetExhausted"
    """Failed: attempts kept ending for a cause whose restarts are used up."""
    CONFIGURATION = "Configuration"
    """Failed: spec, data, model or platform are wrong, so trying again would change nothing."""
    DEADLINE_EXCEEDED = "DeadlineExceeded"
    """Failed: it ran for `spec.activeDeadlineSeconds`."""
    NOT_FINISHED = "NotFinished"
    """Neither succeeded nor failed so far."""


class Condition(ApiModel):
    """One condition, as Kubernetes has them (metav1.Condition)."""

    type: ConditionType
    """What is said of the job."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: Reason
    """Why, in one word."""
    message: Sentence = ""
    """Why, in a sentence."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: Count = 0
    """Generation of the spec that this was said of."""


class Progress(ApiModel):
    """How far the run is."""

    step: Steps
    """Optimizer steps done."""
    total_steps: Steps
    """Optimizer steps of the whole run, if it is not stopped early."""
    epoch: NonNegativeFloat
    """Epochs done, with a fraction."""
    percent: Percent
    """Share of the steps done, 0 to 100."""
    eta_seconds: NonNegativeFloat | None = None
    """Seconds until the last step at the present rate; unset before a rate is known."""
    samples_per_second: NonNegativeFloat | None = None
    """Training samples a second over all processes; unset before a rate is known."""
    time: datetime
    """When this was read."""


class Best(ApiModel):
    """The best evaluation so far."""

    metric: Word
    """The metric that is watched."""
    value: float
    """Its best value."""
    step: Steps
    """The step at which it was measured."""
    checkpoint: Path | None = None
    """The checkpoint of that step."""


class EvaluationPoint(ApiModel):
    """One evaluation on the validation set."""

    step: Steps
    """The step at which it was made."""
    value: float
    """The watched metric there, to six digits."""


Evaluations = Annotated[tuple[EvaluationPoint, ...], Field(max_length=32)]


class EarlyStoppingStatus(ApiModel):
    """How near early stopping is."""

    evaluations_without_improvement: Count = 0
    """Evaluations since the best one."""
    stopped_at_step: Steps | None = None
    """The step at which the run was stopped; unset if it was not."""


class LastCheckpoint(ApiModel):
    """The newest complete checkpoint."""

    step: Steps
    """Its step."""
    path: Path
    """Its folder."""
    time: datetime
    """When it became complete."""


class Attempt(ApiModel):
    """One try at the run."""

    number: Annotated[int, Field(ge=1)]
    """1 for the first."""
    start: datetime
    """When it was launched."""
    end: datetime | None = None
    """When its last process had ended; unset while it runs."""
    from_step: Steps = 0
    """The step it resumed from; 0 for a fresh start."""
    to_step: Steps = 0
    """The last step it reported."""
    cause: Cause | None = None
    """Why it ended before the run was finished; unset while it runs or if it finished."""
    exit_code: Annotated[int, Field(ge=0, le=255)] | None = None
    """Exit code of the process that failed first."""
    reason: Sentence | None = None
    """What happened, in a sentence."""
    node: Word | None = None
    """Where the process ran that failed first."""


class Result(ApiModel):
    """What the run came to."""

    reason: Literal["Completed", "EarlyStopped"]
    """Whether all steps were trained or early stopping ended the run."""
    model: Path
    """Folder of the trained model; `transformers` loads it as it is."""
    adapter: Path | None = None
    """Folder of the LoRA adapter alone."""
    report: Path | None = None
    """The report page."""
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """Metrics on the test set (on the validation set if there is no test set)."""
    intervals: Annotated[dict[Word, Interval], Field(max_length=64)] = {}  # noqa: RUF012 - pydantic copies it
    """Confidence interval of each of them that is a mean or made of sums over samples (`spec.evaluation.intervals`)."""


TrackingUrls = Annotated[dict[Word, Path], Field(max_length=4)]


class JobStatus(ApiModel):
    """What has happened so far."""

    phase: Phase = Phase.PENDING
    """Where the job stands, in one word for people; conditions are the truth."""
    conditions: Annotated[tuple[Condition, ...], Field(max_length=8), Unique("type")] = ()
    """Accepted, Suspended, Running, Stalled, Succeeded, Failed."""
    observed_generation: Count = 0
    """Generation of the spec that this status speaks of."""
    start_time: datetime | None = None
    """When the first attempt was launched."""
    completion_time: datetime | None = None
    """When the job succeeded or failed."""
    progress: Progress | None = None
    """How far the run is."""
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """Latest value of every metric: training loss, and the last evaluation's."""
    best: Best | None = None
    """The best evaluation so far."""
    evaluations: Evaluations = ()
    """The watched metric's course, oldest first. When it is full every second one is left out."""
    early_stopping: EarlyStoppingStatus | None = None
    """How near early stopping is."""
    last_checkpoint: LastCheckpoint | None = None
    """The newest complete checkpoint."""
    resumed_from_step: Steps | None = None
    """The step that the latest attempt resumed from."""
    lost_steps: Steps = 0
    """Steps that had to be trained again, over all restarts."""
    attempts: Annotated[tuple[Attempt, ...], Field(max_length=20)] = ()
    """The latest 20 attempts, oldest first."""
    restarts: Annotated[dict[Word, Count], Field(max_length=8)] = {}  # noqa: RUF012 - pydantic copies it
    """Restarts by cause, all in all."""
    restarts_since_progress: Annotated[dict[Word, Count], Field(max_length=8)] = {}  # noqa: RUF012 - pydantic copies it
    """Restarts by cause since a newer checkpoint last landed; what the budgets are compared with."""
    running_seconds: NonNegativeFloat = 0
    """Seconds that ended attempts ran, all in all; what `activeDeadlineSeconds` counts, with the present attempt's."""
    tracking_urls: TrackingUrls = {}  # noqa: RUF012 - pydantic copies it
    """Pages of the run by tracker (`mlflow`, `wandb`)."""
    result: Result | None = None
    """What the run came to."""


class Stage(StrEnum):
    """What a trainer is doing."""

    PREPARING = "Preparing"
    """It reads, divides and tokenizes the data, and loads the model."""
    TRAINING = "Training"
    """It takes optimizer steps."""
    EVALUATING = "Evaluating"
    """It measures the validation or test set."""
    EXPORTING = "Exporting"
    """It writes the trained model and the report."""
    DONE = "Done"
    """The run is finished."""


class ProgressReport(ApiModel):
    """What rank 0 serves at `/progress`."""

    stage: Stage
    """What it is doing."""
    attempt: Annotated[int, Field(ge=1)]
    """The attempt that this is."""
    stage_percent: Percent | None = None
    """How far the stage is, where it can tell (preparing, evaluating)."""
    progress: Progress | None = None
    """How far the run is; unset until training starts."""
    metrics: Metrics = {}  # noqa: RUF012 - pydantic copies it
    """Latest value of every metric."""
    best: Best | None = None
    """The best evaluation so far."""
    evaluations: Evaluations = ()
    """The watched metric's course, oldest first."""
    early_stopping: EarlyStoppingStatus | None = None
    """How near early stopping is; unset if it was not asked for."""
    last_checkpoint: LastCheckpoint | None = None
    """The newest complete checkpoint."""
    resumed_from_step: Steps = 0
    """The step this attempt started from."""
    lost_steps: Steps = 0
    """Steps beyond it that earlier attempts had trained, and that are trained again."""
    tracking_urls: TrackingUrls = {}  # noqa: RUF012 - pydantic copies it
    """Pages of the run by tracker."""


TERMINATION_MESSAGE_BYTES = 4096
"""Kubernetes keeps this much of a termination message."""


class TerminationMessage(ApiModel):
    """What a worker leaves behind when it ends: a JSON object of at most 4,096 bytes."""

    exit_code: Annotated[int, Field(ge=0, le=255)]
    """How it ended."""
    cause: Cause | None = None
    """Why it ended before the run was finished; unset when it finished."""
    message: Sentence = ""
    """What happened, in a sentence that names the field or file and says what to do."""
    step: Steps = 0
    """The last step that was trained."""
    result: Result | None = None
    """What the run came to (worker 0 of a finished run)."""
    report: ProgressReport | None = None
    """The last progress of rank 0 (worker 0)."""
