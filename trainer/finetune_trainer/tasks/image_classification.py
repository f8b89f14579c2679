"""Which class an image belongs to."""

from finetune_api.job import Columns, JobSpec
from finetune_trainer.materials import image_material
from finetune_trainer.task import Objective, Target, Task
from finetune_trainer.tasks.text_classification import class_losses


def build(_spec: JobSpec) -> Task:
    """One class of two or more."""
    return Task(
        name="image-classification",
        target=Target.CLASS,
        auto_class="AutoModelForImageClassification",
        pipeline="image-classification",
        metrics=("accuracy", "f1"),
        monitor="accuracy",
        objective=Objective(class_losses),
        roles=roles,
        material=image_material,
        reads_images=True,
    )


def roles(columns: Columns) -> dict[str, str]:
    """An image and its class."""
    return {"image": columns.image, "label": columns.label}
