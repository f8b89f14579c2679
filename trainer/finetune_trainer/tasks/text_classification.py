"""Which class, or which classes, a text or a pair of texts belongs to."""

from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy

from finetune_api.job import JobSpec
from finetune_trainer.tasks.base import Target, Task, one_per_sample


def build(spec: JobSpec) -> Task:
    """One class of two or more, or (``data.multiLabel``) any of them."""
    is_multi = spec.data.multi_label
    return Task(
        name="text-classification",
        reads="text",
        target=Target.CLASSES if is_multi else Target.CLASS,
        auto_class="AutoModelForSequenceClassification",
        pipeline="text-classification",
        metrics=("accuracy", "f1", "auroc"),
        monitor="f1" if is_multi else "accuracy",
        losses=multi_label_losses if is_multi else class_losses,
        counts=one_per_sample,
        problem_type="multi_label_classification" if is_multi else "single_label_classification",
    )


def class_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy of each sample. logits: (n, C), target: (n,) int64."""
    return cross_entropy(logits.float(), target, reduction="none")


def multi_label_losses(logits: Tensor, target: Tensor) -> Tensor:
    """Binary cross-entropy of each sample, its mean over the classes. logits, target: (n, C)."""
    return binary_cross_entropy_with_logits(logits.float(), target, reduction="none").mean(dim=1)
