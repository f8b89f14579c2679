"""A number for a text or a pair of texts: similarity, rating, price."""

from typing import Any

from torch import Tensor

from finetune_api.job import JobSpec
from finetune_trainer.data.dataset import Batch
from finetune_trainer.materials import text_material
from finetune_trainer.task import Objective, Target, Task
from finetune_trainer.tasks.text_classification import labelled_text


def build(_spec: JobSpec) -> Task:
    """One number a sample, by mean squared error."""
    return Task(
        name="text-regression",
        target=Target.NUMBER,
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        metrics=("mse", "mae", "r2"),
        monitor="mse",
        objective=Objective(squared_errors),
        roles=labelled_text,
        material=text_material,
        problem_type="regression",
    )


def squared_errors(outputs: Any, batch: Batch) -> Tensor:
    """Squared error of each sample: (n,). logits: (n, 1), target: (n,)."""
    errors: Tensor = outputs.logits.squeeze(-1).float() - batch.target
    return errors.square()
