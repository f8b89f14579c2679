"""How a run trains: what is trainable at which rates, the optimization, and when it is judged and stopped."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from finetune_api.base import (
    UNIQUE,
    ApiModel,
    Count,
    CountOr,
    Fraction,
    NonNegativeFloat,
    PositiveCount,
    Rule,
    Word,
    exactly_one,
    requires,
)
from finetune_api.intervals import Intervals
from finetune_api.matching import Matching
from finetune_api.objective import Distillation, Loss

LARGEST_BATCH = 1_048_576
DEFAULT_BATCH_SIZE = 32


class LearningRate(ApiModel):
    """One rate; or one rate a layer: `bottom` and `top`, or `value` with `layerDecay`."""

    value: Annotated[float, Field(gt=0, le=10)] | None = None
    """The rate of every parameter, or with `layerDecay` that of the head."""
    bottom: Annotated[float, Field(gt=0, le=10)] | None = None
    """Rate of the embeddings; those of the layers lie between `bottom` and `top` at equal distances."""
    top: Annotated[float, Field(gt=0, le=10)] | None = None
    """Rate of the head."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] | None = None
    """Each layer's rate is this factor times that of the layer above it (ELECTRA's layer-wise decay)."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("value", "top"),
        requires("bottom", "top"),
        requires("top", "bottom"),
        requires("layerDecay", "value"),
    )


class Freeze(ApiModel):
    """Parts that are not trained."""

    bottom_layers: PositiveCount | None = None
    """Freeze this many layers, counted from the input, and the embeddings below them."""
    embeddings: bool = False
    """Freeze the embeddings."""


class Lora(ApiModel):
    """Low-rank adaptation (https://arxiv.org/abs/2106.09685): the base is frozen, small matrices beside it train."""

    r: Annotated[int, Field(ge=1, le=1024)] = 16
    """Rank of the update."""
    alpha: Annotated[float, Field(gt=0, le=4096)] = 32
    """Scale: the update is multiplied by alpha / r."""
    dropout: Fraction = 0.1
    """Dropout on the adapter's input."""
    target_modules: Annotated[tuple[Word, ...], Field(min_length=1, max_length=64), UNIQUE] | None = None
    """Ends of the names of the modules to adapt (`query`, `mlp.fc1`). Unset: every projection and convolution in the
    model's layers, found by its structure; never one that shares its weight, for it could not be merged."""
    use_dora: bool = False
    """Train the length of each weight's columns apart from their direction (DoRA, https://arxiv.org/abs/2402.09353):
    often better at a small `r`, slower."""
    use_rslora: bool = False
    """Scale by alpha / √r instead of alpha / r (rsLoRA, https://arxiv.org/abs/2312.03732): steadier at a large `r`."""
    base_bits: Literal[4, 8] | None = None
    """Hold the frozen base in 4 (NF4) or 8 bits (https://arxiv.org/abs/2305.14314). Needs a GPU and the library
    bitsandbytes. The adapter is merged into the base in full precision. Unset: fp32."""


class Strategy(ApiModel):
    """What is trained, and how fast."""

    trainable: Literal["all", "head", "lastLayers"] = "all"
    """Everything; only the head; or the head and the last `lastLayers` layers."""
    last_layers: PositiveCount | None = None
    """How many layers, counted from the head, are trained (with `trainable: lastLayers`)."""
    freeze: Freeze | None = None
    """Parts to leave as they are (with `trainable: all`)."""
    learning_rate: LearningRate = LearningRate(value=2e-5)
    """Learning rates at their peak."""
    lora: Lora | None = None
    """Train an adapter instead of the model's own weights."""
    distillation: Distillation | None = None
    """Learn from a teacher as well."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            cel="has(self.lastLayers) == (self.trainable == 'lastLayers')",
            check=lambda strategy: (strategy.last_layers is not None) == (strategy.trainable == "lastLayers"),
            message="must be given with trainable: lastLayers, and only with it",
            field="lastLayers",
        ),
        Rule(
            cel="!has(self.freeze) || self.trainable == 'all'",
            check=lambda strategy: strategy.freeze is None or strategy.trainable == "all",
            message="goes with trainable: all only",
            field="freeze",
        ),
        Rule(
            cel="!has(self.lora) || (self.trainable == 'all' && !has(self.freeze))",
            check=lambda strategy: strategy.lora is None or (strategy.trainable == "all" and strategy.freeze is None),
            message="trains the adapter and the head alone; remove trainable and freeze",
            field="lora",
        ),
        Rule(
            cel="!has(self.lora) || (!has(self.learningRate.bottom) && !has(self.learningRate.layerDecay))",
            check=lambda strategy: (
                strategy.lora is None
                or (strategy.learning_rate.bottom is None and strategy.learning_rate.layer_decay is None)
            ),
            message="takes one learningRate.value",
            field="lora",
        ),
    )


class Every(ApiModel):
    """An interval, in epochs (fractions allowed) or in optimizer steps."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """Interval in epochs; 0.5 is twice an epoch."""
    steps: PositiveCount | None = None
    """Interval in optimizer steps."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one("epochs", "steps"),)


class Warmup(ApiModel):
    """The first steps, in which the rate rises from 0."""

    ratio: Fraction | None = None
    """Share of all steps."""
    steps: Count | None = None
    """Number of optimizer steps."""

    rules: ClassVar[tuple[Rule, ...]] = (exactly_one("ratio", "steps"),)


class Training(ApiModel):
    """The optimization. A batch is what one optimizer step sees over all processes: hardware does not matter."""

    epochs: Annotated[float, Field(gt=0, le=10_000)] | None = None
    """How often every sample is seen. Unset, and `maxSteps` unset: 3."""
    max_steps: PositiveCount | None = None
    """Length of the run in optimizer steps, instead of `epochs`."""
    batch_size: Annotated[int | Literal["auto"], CountOr("auto", 1, LARGEST_BATCH)] | None = None
    """Samples an optimizer step, over all processes. `auto`: an optimizer step takes `effectiveBatchSize`, in passes as
    large as memory allows, which are found at the start. Unset, and `tokensPerBatch` unset: 32."""
    effective_batch_size: Annotated[int, Field(ge=1, le=LARGEST_BATCH)] | None = None
    """With `batchSize: auto`: samples an optimizer step, over all processes, whatever fits at once. Unset: 32."""
    tokens_per_batch: Annotated[int, Field(ge=16, le=2**31 - 1)] | None = None
    """Instead of `batchSize`: tokens (padding counted) an optimizer step at most, over all processes. Short texts then
    fill larger batches, so that every step costs about the same."""
    gradient_accumulation: Annotated[int, Field(ge=1, le=65_536)] = 1
    """Forward passes of each batch, at least: more of them take less memory. The gradient stays the same."""
    matching: Matching | None = None
    """The parts of the loss of image-text-matching. Unset: both, each with weight 1."""
    loss: Loss | None = None
    """What is minimised. Unset: the task's own loss."""
    optimizer: Literal["adamw"] = "adamw"
    """AdamW (https://arxiv.org/abs/1711.05101), betas 0.9 and 0.999, epsilon 1e-8."""
    scheduler: Literal["linear", "cosine", "constant"] = "linear"
    """Course of the learning rate after the warm-up: falling to 0 in a line or half a cosine, or constant."""
    warmup: Warmup = Warmup(ratio=0.06)
    """Steps in which the learning rate rises."""
    weight_decay: Annotated[float, Field(ge=0, le=10)] = 0.01
    """Decoupled weight decay of every weight matrix; biases and norms have none."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Arithmetic of forward and backward; weights and optimizer stay in fp32. `auto`: bf16 where a GPU has it, else
    fp32."""
    max_grad_norm: Annotated[float, Field(ge=0, le=1e6)] = 1
    """Gradients are scaled down to this norm; 0 for no limit."""
    seed: Count = 0
    """Seed of sample order, dropout, augmentation and of new weights."""
    compile: bool = False
    """Compile the model with torch.compile: slow to start, faster a step."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, about a third more time."""

    rules: ClassVar[tuple[Rule, ...]] = (
        exactly_one("epochs", "maxSteps", required=False),
        exactly_one("batchSize", "tokensPerBatch", required=False),
        Rule(
            cel="!has(self.effectiveBatchSize) || (has(self.batchSize) && type(self.batchSize) == string)",
            check=lambda training: training.effective_batch_size is None or training.batch_size == "auto",
            message="goes with batchSize: auto only",
            field="effectiveBatchSize",
        ),
    )

    @property
    def samples_per_batch(self) -> int | None:
        """Samples that an optimizer step takes; None if it takes a number of tokens."""
        if self.tokens_per_batch is not None:
            return None
        asked = self.effective_batch_size if self.batch_size == "auto" else self.batch_size
        return asked or DEFAULT_BATCH_SIZE


class Evaluation(ApiModel):
    """When and by what the model is judged on the validation set."""

    every: Every = Every(epochs=1)
    """Interval; the end of the run is always evaluated."""
    batch_size: Annotated[int, Field(ge=1, le=1_048_576)] | None = None
    """Samples a forward pass, a process. Unset: as in training."""
    metrics: Annotated[tuple[Word, ...], Field(min_length=1, max_length=16), UNIQUE] | None = None
    """Metrics to compute, beside the loss. Unset: the task's own. The guide has a table of each task's metrics."""
    intervals: Intervals = Intervals()
    """Confidence intervals of the test metrics."""


class EarlyStopping(ApiModel):
    """Stop when the validation metric no longer improves; then, with `checkpoint.keepBest`, go back to the best one."""

    metric: Word | None = None
    """The metric to watch. Unset: the task's own."""
    mode: Literal["max", "min"] | None = None
    """Whether more or less is better. Unset: as the metric has it."""
    patience: Annotated[int, Field(ge=1, le=10_000)] = 3
    """Evaluations without improvement after which the run stops."""
    min_delta: NonNegativeFloat = 0
    """Least gain that counts as an improvement, in the metric's unit."""
