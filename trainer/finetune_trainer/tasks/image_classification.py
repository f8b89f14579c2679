"""Which class an image belongs to."""

from finetune_api.job import JobSpec
from finetune_trainer.tasks.base import Target, Task, one_per_sample
from finetune_trainer.tasks.text_classification import class_losses


def build(_spec: JobSpec) -> Task:
    """One class of two or more."""
    return Task(
        name="image-classification",
        reads="image",
        target=Target.CLASS,
        auto_class="AutoModelForImageClassification",
        pipeline="image-classification",
        metrics=("accuracy", "f1"),
        monitor="accuracy",
        losses=class_losses,
        counts=one_per_sample,
    )
