"""The task registry: ``spec.task`` → Task. A new task is one file here, one line below and one name in the API."""

from collections.abc import Callable

from finetune_api.job import JobSpec
from finetune_trainer.tasks import causal_lm, image_classification, text_classification, text_regression
from finetune_trainer.tasks.base import IGNORED, Target, Task

__all__ = ["IGNORED", "TASKS", "Target", "Task", "task_of"]

TASKS: dict[str, Callable[[JobSpec], Task]] = {
    "text-classification": text_classification.build,
    "text-regression": text_regression.build,
    "image-classification": image_classification.build,
    "causal-lm": causal_lm.build,
}


def task_of(spec: JobSpec) -> Task:
    """The task that a spec asks for."""
    return TASKS[spec.task](spec)
