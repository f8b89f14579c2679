"""FineTuneRuntime: what the platform team decides for jobs: images, ceilings, placement, volumes, consent."""

from typing import Annotated, ClassVar, Literal

from pydantic import ConfigDict, Field

from finetune_api.base import (
    API_VERSION,
    UNIQUE,
    ApiModel,
    Name,
    ObjectName,
    Quantity,
    Rule,
    Text,
    Unique,
    Word,
    exactly_one,
)
from finetune_api.execution import Resources, Volume

LabelValue = Annotated[str, Field(max_length=63)]


class EnvironmentVariable(ApiModel):
    """A variable of every trainer process; a literal value only, for secrets go by `secretRef` of the job."""

    name: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
    """Its name."""
    value: Annotated[str, Field(max_length=4096)] = ""
    """Its value."""


class Toleration(ApiModel):
    """A taint of nodes that pods tolerate (core/v1 Toleration)."""

    key: Word | None = None
    """The taint's key; unset matches every key."""
    operator: Literal["Equal", "Exists"] = "Equal"
    """How `value` is compared."""
    value: Annotated[str, Field(max_length=253)] | None = None
    """The taint's value."""
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    """The taint's effect; unset matches every effect."""


class Placement(ApiModel):
    """On which nodes pods run."""

    node_selector: Annotated[dict[Word, LabelValue], Field(max_length=32)] = {}  # noqa: RUF012 - pydantic copies it
    """Labels that a node must have."""
    tolerations: Annotated[tuple[Toleration, ...], Field(max_length=32)] = ()
    """Taints that pods tolerate."""
    scheduler_name: ObjectName | None = None
    """Scheduler of the pods. Unset: the cluster's default."""
    spread: Literal["pack", "spread", "any"] = "any"
    """`pack` workers onto few nodes, `spread` them over many, or leave it to the scheduler."""


class Ceilings(ApiModel):
    """The most that one job may ask for."""

    workers: Annotated[int, Field(ge=1, le=1024)] | None = None
    """Workers of a job. Unset: 1,024."""
    resources: Resources | None = None
    """CPU, memory and GPUs of a worker. Unset, each of them: no limit but the cluster's."""
    volume_size: Quantity | None = None
    """Size of the claim that is made for a job. Unset: no limit but the cluster's."""
    priority_classes: Annotated[tuple[ObjectName, ...], Field(max_length=64), UNIQUE] | None = None
    """PriorityClasses that a job may name. Unset: all but the cluster's own, whose names begin with `system-`."""


class NamespaceRule(ApiModel):
    """Which namespaces may use the runtime: by name or by label."""

    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)] | None = None
    """Names of namespaces."""
    match_labels: Annotated[dict[Word, LabelValue], Field(min_length=1, max_length=16)] | None = None
    """Labels that a namespace must have."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one("names", "matchLabels"),)


class RuntimeSpec(ApiModel):
    """What holds for every job of this runtime."""

    description: Text = ""
    """What it is for, in a sentence."""
    image: Annotated[str, Field(min_length=1, max_length=512)]
    """Trainer image; pin it by digest."""
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    """When the image is pulled."""
    resources: Resources = Resources(cpu="2", memory="4Gi")
    """What a worker gets, for each of them, if its job asks for nothing; never more than the ceiling."""
    ceilings: Ceilings = Ceilings()
    """The most that one job may ask for."""
    placement: Placement = Placement()
    """On which nodes pods run."""
    env: Annotated[tuple[EnvironmentVariable, ...], Field(max_length=64), Unique("name")] = ()
    """Variables of every trainer process, NCCL's among them. Those that wire a run up cannot be set."""
    shared_memory: Quantity = "1Gi"
    """Size of /dev/shm."""
    volume: Volume = Volume(size="20Gi")
    """Checkpoint volume of a job that names none."""
    model_cache: ObjectName | None = None
    """Claim (in each namespace that uses the runtime) that keeps downloaded models, so that jobs share one download."""
    queue: Name | None = None
    """LocalQueue of a job that names none."""
    egress: Literal["none", "dns", "all"] = "all"
    """What workers may reach beside each other: nothing, DNS, or everything (a hub or a tracker needs it)."""
    namespaces: NamespaceRule | None = None
    """Which namespaces may use it. Unset: all."""
    allow_trust_remote_code: bool = False
    """Consent to run Python code that comes with a checkpoint."""


class RuntimeMetadata(ApiModel):
    """Kubernetes object metadata."""

    model_config = ConfigDict(extra="allow")

    name: ObjectName
    """Name of the runtime; jobs name it in `spec.runtime`."""


class FineTuneRuntime(ApiModel):
    """Where and with what the jobs that name it run; cluster-scoped, the platform team's."""

    api_version: Literal["finetune.dev/v1alpha1"] = API_VERSION  # type: ignore[assignment]
    """`finetune.dev/v1alpha1`"""
    kind: Literal["FineTuneRuntime"] = "FineTuneRuntime"
    """`FineTuneRuntime`"""
    metadata: RuntimeMetadata
    """Name and labels."""
    spec: RuntimeSpec
    """What holds for every job of this runtime."""
