"""The task registry: ``spec.task`` → Task. A new task is one file here, one line below and one name in the API."""

from collections.abc import Callable

from finetune_api.job import JobSpec
from finetune_trainer.task import IGNORED, Objective, Target, Task
from finetune_trainer.tasks import (
    causal_lm,
    image_captioning,
    image_classification,
    image_text_matching,
    object_detection,
    sequence_to_sequence,
    text_classification,
    text_regression,
    token_classification,
)

__all__ = ["IGNORED", "TASKS", "Objective", "Target", "Task", "task_of"]

TASKS: dict[str, Callable[[JobSpec], Task]] = {
    "text-classification": text_classification.build,
    "text-regression": text_regression.build,
    "image-classification": image_classification.build,
    "causal-lm": causal_lm.build,
    "object-detection": object_detection.build,
    "image-captioning": image_captioning.build,
    "image-text-matching": image_text_matching.build,
    "token-classification": token_classification.build,
    "sequence-to-sequence": sequence_to_sequence.build,
}


def task_of(spec: JobSpec) -> Task:
    """The task that a spec asks for."""
    return TASKS[spec.task](spec)
