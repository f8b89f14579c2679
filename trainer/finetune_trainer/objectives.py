"""What a run minimises: its task's objective, and what is laid over it: another loss, mixed samples, a teacher."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from finetune_api.job import JobSpec
from finetune_trainer.cleaning.weighting import weighted_objective
from finetune_trainer.context import Context
from finetune_trainer.data.augment.mixing import mixed_objective
from finetune_trainer.data.dataset import Part
from finetune_trainer.data.prepare import TRAIN, Prepared
from finetune_trainer.distillation import Teach, taught_objective
from finetune_trainer.distributed import Group
from finetune_trainer.losses import Classes, chosen_objective
from finetune_trainer.task import Objective, Target, Task


@dataclass(frozen=True)
class Setting:
    """What an objective depends upon."""

    spec: JobSpec
    context: Context
    task: Task
    prepared: Prepared
    train: Part
    config: Any
    """The student's configuration."""
    companion: Any
    max_length: int | None
    group: Group
    device: torch.device
    beat: Callable[[], None]


def make_objective(given: Setting) -> Objective:
    """The objective of training; evaluations keep to the task's own, so that runs can be compared.

    Raises:
        SpecFault: Loss or teacher do not fit task, classes or model.
    """
    spec, loss = given.spec, given.spec.training.loss
    objective = chosen_objective(given.task, loss, classes_of(given.prepared, given.task))
    image = spec.data.augmentation.image if spec.data.augmentation else None
    if image is not None and image.mixes:
        objective = mixed_objective(objective)
    asked, piece = spec.strategy.distillation, given.prepared.slices[TRAIN]
    if asked is None:
        return weighted_objective(objective, piece.weights, piece.rows)
    is_weighted = loss is not None and (loss.balanced or loss.class_weights is not None)
    is_weighted = bool(is_weighted) and given.task.target == Target.CLASS
    taught = taught_objective(objective, given.task, asked, _teach(given), is_weighted=is_weighted)
    return weighted_objective(taught, piece.weights, piece.rows)


def classes_of(prepared: Prepared, task: Task) -> Classes | None:
    """The training samples by class; None where a sample has no class."""
    if prepared.labels is None or task.target not in (Target.CLASS, Target.CLASSES):
        return None
    piece, is_multi = prepared.slices[TRAIN], task.target == Target.CLASSES
    values = piece.values[piece.rows]
    counts = values.sum(axis=0) if is_multi else np.bincount(values, minlength=len(prepared.labels))
    return Classes(prepared.labels, counts.astype(np.int64), len(values), is_multi)


def _teach(given: Setting) -> Teach:
    """The teacher, or what is kept of it."""
    from finetune_trainer.teacher import Student, find_teacher, hire, load_teacher_config
    from finetune_trainer.teacher_cache import Plan, digest_of, identity_of, kept_outputs

    spec, asked = given.spec, given.spec.strategy.distillation
    assert asked is not None
    channels = getattr(given.config, "num_channels", 3)
    student = Student(given.task, given.prepared.labels, given.companion, given.max_length, channels)
    folders = find_teacher(asked, given.context)
    config = load_teacher_config(folders, spec, student)
    if not asked.cache_teacher:
        return hire(spec, student, folders, config, given.device)
    is_tokens = given.task.target == Target.TOKENS
    samples = given.prepared.slices[TRAIN].samples.key
    names = [folder for folder in (folders.model, folders.adapter) if folder is not None]
    key = {
        "teacher": given.group.broadcast(digest_of(names) if given.context.is_main else ""),
        "precision": asked.precision if given.device.type == "cpu" else f"{asked.precision} on a GPU",
        "samples": identity_of(given.train, samples, given.companion),
    }
    width = len(student.labels or ())
    if is_tokens:
        width = min(len(given.companion), int(config.get_text_config().vocab_size))
    plan = Plan(given.train, width, is_tokens, key)
    return kept_outputs(
        plan,
        lambda: hire(spec, student, folders, config, given.device),
        given.group,
        given.context,
        given.beat,
        given.device,
    )
