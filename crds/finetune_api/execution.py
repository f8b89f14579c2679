"""How a run is carried out: checkpoints, workers, restarts and trackers."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, StringConstraints

from finetune_api.base import (
    DATA_KEY,
    WEB_ADDRESS,
    ApiModel,
    ObjectName,
    Quantity,
    Rule,
    Word,
    exactly_one,
    requires,
)
from finetune_api.training import Every


class Volume(ApiModel):
    """Where checkpoints and the result are kept in a cluster; every worker mounts it."""

    claim_name: ObjectName | None = None
    """A PersistentVolumeClaim of yours in the job's namespace."""
    size: Quantity | None = None
    """Size of a claim to make for this job; it goes when the job goes."""
    storage_class_name: ObjectName | None = None
    """Storage class of the claim to make. Unset: the cluster's default."""
    access_mode: Literal["ReadWriteOnce", "ReadWriteMany"] | None = None
    """Access mode of the claim to make; ReadWriteOnce holds all workers on one node. Unset: ReadWriteOnce for a single
    worker, ReadWriteMany for several."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("claimName", "size"),
        requires("storageClassName", "size"),
    )


class Checkpoint(ApiModel):
    """When the state of the run is saved, and how much of it is kept."""

    every: Every = Every(epochs=1)
    """Interval; an evaluation that improved, a stop and the end are always saved."""
    keep_last: Annotated[int, Field(ge=2, le=1000)] = 2
    """Newest complete checkpoints to keep, 2 at least: should one fail its verification when read, the next is used."""
    keep_best: bool = True
    """Keep the best checkpoint as well, and export it at the end."""
    volume: Volume | None = None
    """Where to keep them in a cluster. Unset: the runtime's default."""


class Resources(ApiModel):
    """What one worker needs."""

    cpu: Quantity | None = None
    """CPU cores of a worker, for example `4` or `500m`. Its processes share them, a thread for each whole core."""
    memory: Quantity | None = None
    """Memory of a worker, for example `16Gi`."""
    gpus: Annotated[int, Field(ge=0, le=64)] | None = None
    """GPUs of a worker; one process drives each."""


class Distributed(ApiModel):
    """On how many workers (pods) and processes the run is spread."""

    workers: Annotated[int, Field(ge=1, le=1024)] = 1
    """Workers: pods in a cluster, groups of processes on one machine."""
    processes_per_worker: Annotated[int, Field(ge=1, le=64)] | None = None
    """Processes of a worker. Unset: one a GPU, or one."""
    strategy: Literal["ddp", "fsdp"] = "ddp"
    """`ddp` holds the whole model in every process; `fsdp` (FSDP2) shards weights, gradients and optimizer."""
    resources: Resources = Resources()
    """What one worker needs. Unset, each of them: the runtime's default."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="!has(self.processesPerWorker) || !has(self.resources) || !has(self.resources.gpus)"
            " || self.resources.gpus == 0 || self.resources.gpus == self.processesPerWorker",
            check=lambda spread: (
                spread.processes_per_worker is None or spread.resources.gpus in (None, 0, spread.processes_per_worker)
            ),
            message="must equal resources.gpus: one process drives one GPU",
            field="processesPerWorker",
        ),
    )

    @property
    def processes(self) -> int:
        """Processes of one worker."""
        return self.processes_per_worker or self.resources.gpus or 1

    @property
    def world_size(self) -> int:
        """Processes of the whole run."""
        return self.workers * self.processes


class MaxRestarts(ApiModel):
    """Restarts by cause. A budget is given back whole when a newer checkpoint has landed since the last restart."""

    infrastructure: Annotated[int, Field(ge=0, le=1000)] = 10
    """A node, a peer or the network was lost."""
    out_of_memory: Annotated[int, Field(ge=0, le=1000)] = 2
    """The memory limit was hit."""
    application: Annotated[int, Field(ge=0, le=1000)] = 2
    """An error that nobody foresaw."""
    stalled: Annotated[int, Field(ge=0, le=1000)] = 3
    """Nothing progressed for `stallTimeoutSeconds`."""


class Recovery(ApiModel):
    """What happens when an attempt fails."""

    max_restarts: MaxRestarts = MaxRestarts()
    """Restarts by cause."""
    stall_timeout_seconds: Annotated[int, Field(ge=5, le=86_400)] = 600
    """Seconds without a step, an evaluated batch or a prepared chunk after which the attempt counts as stalled."""


class SecretKey(ApiModel):
    """One key of a Secret in the job's namespace."""

    name: ObjectName
    """The Secret's name."""
    key: Annotated[str, StringConstraints(min_length=1, max_length=253, pattern=DATA_KEY)]
    """The key in it: letters, digits, dashes, underscores and dots."""


class Hub(ApiModel):
    """The Hugging Face hub, from which `hf://` sources are downloaded."""

    secret_ref: SecretKey
    """Where its access token lies in a cluster. On one machine: the variable HF_TOKEN."""


class WandbTracking(ApiModel):
    """Weights & Biases."""

    project: Word
    """Project to log to."""
    entity: Word | None = None
    """User or team that owns the project."""
    mode: Literal["online", "offline"] = "online"
    """`offline` writes the run into the output folder, to be sent later with `wandb sync`."""
    secret_ref: SecretKey | None = None
    """Where the API key lies in a cluster. On one machine: the variable WANDB_API_KEY."""


class MlflowTracking(ApiModel):
    """MLflow."""

    tracking_uri: Annotated[str, StringConstraints(min_length=8, max_length=1024, pattern=WEB_ADDRESS)]
    """The tracking server, `http://…` or `https://…`, without name and password."""
    experiment: Word | None = None
    """Experiment to log to; made if there is none of this name. Unset: the job's name."""
    secret_ref: SecretKey | None = None
    """Where the server's access token lies in a cluster, if it wants one. On one machine: the variable
    MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD."""


class Tracking(ApiModel):
    """Trackers that the run reports to, beside its own report."""

    tensorboard: bool = False
    """Write TensorBoard event files into the output folder."""
    wandb: WandbTracking | None = None
    """Report to Weights & Biases."""
    mlflow: MlflowTracking | None = None
    """Report to MLflow."""
