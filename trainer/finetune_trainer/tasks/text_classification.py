"""Which class, or which classes, a text or a pair of texts belongs to."""

from typing import Any

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune_api.job import Columns, JobSpec
from finetune_trainer.data.dataset import Batch
from finetune_trainer.materials import text_material
from finetune_trainer.task import Objective, Target, Task


def build(spec: JobSpec) -> Task:
    """One class of two or more, or (``data.multiLabel``) any of them."""
    is_multi = spec.data.multi_label
    return Task(
        name="text-classification",
        target=Target.CLASSES if is_multi else Target.CLASS,
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        metrics=("accuracy", "f1", "auroc"),
        monitor="f1" if is_multi else "accuracy",
        objective=Objective(multi_label_losses if is_multi else class_losses),
        roles=labelled_text,
        material=text_material,
        problem_type="multi_label_classification" if is_multi else "single_label_classification",
    )


def labelled_text(columns: Columns) -> dict[str, str]:
    """A text, perhaps a second one, and what is to be said of them."""
    pair = {"text_pair": columns.text_pair} if columns.text_pair is not None else {}
    return {"text": columns.text, **pair, "label": columns.label}


def class_losses(outputs: Any, batch: Batch) -> Tensor:
    """Cross-entropy of each sample: (n,). logits: (n, C), target: (n,) int64."""
    return cross_entropy(outputs.logits.float(), batch.target, reduction="none")


def multi_label_losses(outputs: Any, batch: Batch) -> Tensor:
    """Binary cross-entropy of each sample, its mean over the classes: (n,). logits, target: (n, C)."""
    return binary_cross_entropy_with_logits(outputs.logits.float(), batch.target, reduction="none").mean(dim=1)
