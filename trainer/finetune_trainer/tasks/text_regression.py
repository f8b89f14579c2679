"""A number for a text or a pair of texts: similarity, rating, price."""

from torch import Tensor

from finetune_api.job import JobSpec
from finetune_trainer.tasks.base import Target, Task, one_per_sample


def build(_spec: JobSpec) -> Task:
    """One number a sample, by mean squared error."""
    return Task(
        name="text-regression",
        reads="text",
        target=Target.NUMBER,
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        metrics=("mse", "mae", "r2"),
        monitor="mse",
        losses=squared_errors,
        counts=one_per_sample,
        problem_type="regression",
    )


def squared_errors(logits: Tensor, target: Tensor) -> Tensor:
    """Squared error of each sample. logits: (n, 1), target: (n,)."""
    return (logits.squeeze(-1).float() - target).square()
