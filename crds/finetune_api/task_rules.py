"""What goes with which task, where that is a rule of columns, labels and heads."""

from finetune_api.base import Rule, cel_list

IMAGE_TASKS = ("image-classification", "object-detection", "image-captioning", "image-text-matching")
"""Tasks whose batches are counted in images."""

TASK_RULES = (
    Rule(
        cel=f"!has(self.training) || !has(self.training.tokensPerBatch) || !(self.task in {cel_list(IMAGE_TASKS)})",
        check=lambda spec: spec.training.tokens_per_batch is None or spec.task not in IMAGE_TASKS,
        message="counts text tokens; use batchSize for images",
        field="training.tokensPerBatch",
    ),
    Rule(
        cel="!has(self.data.labels) || size(self.data.labels) > 1 || self.task == 'object-detection'",
        check=lambda spec: spec.data.labels is None or len(spec.data.labels) > 1 or spec.task == "object-detection",
        message="must name two classes at least",
        field="data.labels",
    ),
    Rule(
        cel=(
            "!has(self.data.columns) || self.task == 'causal-lm'"
            " || (!has(self.data.columns.messages) && !has(self.data.columns.prompt))"
        ),
        check=lambda spec: (
            spec.task == "causal-lm" or (spec.data.columns.messages is None and spec.data.columns.prompt is None)
        ),
        message="messages and prompt go with task causal-lm only",
        field="data.columns",
    ),
    Rule(
        cel="!has(self.strategy) || self.strategy.trainable != 'head' || self.task != 'sequence-to-sequence'",
        check=lambda spec: spec.strategy.trainable != "head" or spec.task != "sequence-to-sequence",
        message="must not be head for sequence-to-sequence: its output layer is the embeddings; use lastLayers or lora",
        field="strategy.trainable",
    ),
)
"""Rules of ``JobSpec``."""
