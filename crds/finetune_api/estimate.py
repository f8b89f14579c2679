"""What ``finetune estimate`` says of a job: made by the trainer, told by the command."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel

ESTIMATE_FILE = "estimate.json"
"""Where the trainer leaves it in its scratch folder."""
Bytes = Annotated[int, Field(ge=0)]
Number = Annotated[int, Field(ge=0)]


class Parameters(ApiModel):
    """Numbers of parameters."""

    total: Number
    """All of them, an adapter's included."""
    trained: Number
    """Those that are not frozen."""


class Memory(ApiModel):
    """Bytes that each process holds."""

    weights: Bytes
    """The model."""
    gradients: Bytes
    """Of what is trained."""
    optimizer: Bytes
    """Mean and variance of what is trained (AdamW)."""


class Activations(ApiModel):
    """Bytes at the peak of a forward and backward pass: `fixed + samples × perSample`."""

    per_sample: Bytes
    """For each of the longest samples."""
    fixed: Bytes
    """Whatever is in it."""
    tokens: Number | None = None
    """Tokens of the longest sample; unset for images."""


class Fit(ApiModel):
    """What a GPU has room for."""

    gpu_memory: Bytes
    """Of each GPU."""
    samples_per_pass: Number
    """The largest pass of the longest samples; 0 if none fits."""
    batch_size: Number
    """`spec.training.batchSize` at most, with gradientAccumulation 1, over all processes."""
    tokens_per_batch: Number | None = None
    """`spec.training.tokensPerBatch` at most; unset for images."""
    gradient_accumulation: Number | None = None
    """`spec.training.gradientAccumulation` at least, for the job's own batch; unset if nothing fits."""


class Estimate(ApiModel):
    """What a job takes of memory, on each of its processes."""

    parameters: Parameters
    """Numbers of parameters."""
    processes: Number
    """Processes of the run."""
    precision: str
    """Arithmetic of forward and backward."""
    memory: Memory
    """What is held."""
    activations: Activations
    """What a pass adds."""
    samples_per_pass: Number
    """The largest pass of the job as it is, if it is padded to the longest sample."""
    peak: Bytes
    """Bytes at the peak of a process, of the job as it is."""
    fit: Fit | None = None
    """What the GPU asked for has room for."""
