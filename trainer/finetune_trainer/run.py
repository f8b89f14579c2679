"""One process's run, from the first file read to the last file written: prepare, join, train, judge, export, report."""

import datetime as dt
import gc
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn

from finetune_api.cgroups import cores_for_each
from finetune_api.job import JobSpec
from finetune_api.status import LastCheckpoint, Result, Stage
from finetune_trainer import checkpoint
from finetune_trainer.attempts import record_start
from finetune_trainer.augmented import augmented_samples
from finetune_trainer.batch_finder import Search, check_auto, within_memory
from finetune_trainer.context import Context
from finetune_trainer.course import RunState, make_course
from finetune_trainer.data.dataset import Part
from finetune_trainer.data.order import BatchSize, epoch_batches
from finetune_trainer.data.passes import CPU_COST, GPU_COST, PassCost, Share
from finetune_trainer.data.prepare import (
    TRAIN,
    VALIDATION,
    Prepared,
    describe,
    prepare_slices,
    require_parts,
)
from finetune_trainer.distributed import Group, is_sharded, make_accelerator, share_model
from finetune_trainer.errors import Preempted
from finetune_trainer.evaluate import Judge
from finetune_trainer.finish import Ending, finish
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.history import History
from finetune_trainer.kernels import make_fast
from finetune_trainer.layers import find_layers
from finetune_trainer.loop import Loop
from finetune_trainer.materials import Ingredients
from finetune_trainer.metrics import check_metric, choose_metrics
from finetune_trainer.models import load_config, load_model, model_folder
from finetune_trainer.objectives import Setting, make_objective
from finetune_trainer.optimizer import build_optimizer
from finetune_trainer.progress import Reporter
from finetune_trainer.quantized import check_bits, without_bits
from finetune_trainer.signals import StopRequest
from finetune_trainer.snapshot import Checkpointer, load_tensors
from finetune_trainer.strategies import Rate, apply_strategy
from finetune_trainer.task import Objective, Task
from finetune_trainer.tasks import task_of
from finetune_trainer.tracking import last_words, start_trackers

log = logging.getLogger(__name__)

IMAGE_LOADERS = 8
"""Processes at most that read images ahead for one GPU."""
GC_THRESHOLD = 700
"""New containers before the collector runs, in training: Python's own, so that a cycle with tensors is found soon."""


@dataclass(frozen=True)
class Process:
    """What this process is given: where it is, and the ways in which it hears and speaks."""

    context: Context
    reporter: Reporter
    heartbeat: Heartbeat
    stop: StopRequest

    @property
    def spec(self) -> JobSpec:
        """The job's spec."""
        return self.context.job.spec

    def check_in(self) -> None:
        """Say that something progressed; raises Preempted if the launcher is gone."""
        self.heartbeat.beat()
        if self.stop.is_set:
            raise Preempted("asked to leave before the first step")


@dataclass(frozen=True)
class Material:
    """What is trained on what."""

    task: Task
    folder: Path | None
    """The checkpoint's folder; None for a new model."""
    config: Any
    companion: Any
    """Tokenizer or image processor."""
    prepared: Prepared
    parts: Mapping[str, Part]
    max_length: int | None

    @property
    def classes(self) -> int:
        """Number of outputs that metrics tell apart."""
        if self.prepared.labels:
            return len(self.prepared.labels)
        return int(getattr(self.config.get_text_config(), "vocab_size", 1))


def run(process: Process) -> Result | None:
    """Train, judge, export and report; the result on rank 0, None on the others.

    Raises:
        TrainerError: Whatever ends a run early.
    """
    material = prepare(process)
    group = Group(process.context, has_gpu=torch.cuda.is_available(), while_waiting=process.check_in)
    with process.heartbeat.pulse():
        inner, rates = build_model(process.spec, material)
        loop, state = assemble(process, group, material, inner, rates)
    gc.set_threshold(GC_THRESHOLD)
    process.stop.defer()
    with last_words(loop.accelerator):
        state = loop.run(state)
        ending = Ending(process.context, material.task, material.prepared, material.parts, material.companion)
        result = finish(ending, loop, state, build=lambda: build_model(without_bits(process.spec), material)[0])
    with process.heartbeat.pulse():
        group.wait()
        loop.accelerator.end_training()
        if loop.history is not None:
            loop.history.close()
    return result


def prepare(process: Process) -> Material:
    """Read and encode the data; check what can be checked before the model is loaded."""
    context, spec, beat = process.context, process.spec, process.check_in
    beat()
    task = task_of(spec)
    choose_metrics(task, spec.evaluation.metrics)
    if spec.early_stopping and spec.early_stopping.metric:
        check_metric(task, spec.early_stopping.metric, field="spec.earlyStopping.metric")
    check_bits(spec, has_gpu=torch.cuda.is_available())
    check_auto(spec, context.world_size)
    folder = model_folder(spec.model, context)
    prepared = prepare_slices(spec, task, context, beat)
    require_parts(prepared)
    config = load_config(spec.model, folder, task, prepared.labels)
    ready = task.material(
        task, Ingredients(spec, context, folder, config, prepared, beat, has_gpu=torch.cuda.is_available())
    )
    return Material(ready.task or task, folder, config, ready.companion, prepared, ready.parts, ready.max_length)


def objective_of(process: Process, material: Material, group: Group, device: torch.device) -> Objective:
    """What training minimises: the task's objective, and what the spec wraps around it."""
    return make_objective(
        Setting(
            spec=process.spec,
            context=process.context,
            task=material.task,
            prepared=material.prepared,
            train=material.parts[TRAIN],
            config=material.config,
            companion=material.companion,
            max_length=material.max_length,
            group=group,
            device=device,
            beat=process.heartbeat.beat,
        )
    )


def build_model(spec: JobSpec, material: Material) -> tuple[nn.Module, tuple[Rate, ...]]:
    """The model as it starts, with its strategy applied, on the CPU; the same on every rank."""
    model = load_model(spec, material.folder, material.config, material.task)
    torch.manual_seed(spec.training.seed)
    has_new_head = material.task.has_new_head
    return apply_strategy(model, spec.strategy, has_new_head=has_new_head, revision=spec.model.revision)


def assemble(
    process: Process, group: Group, material: Material, inner: nn.Module, rates: tuple[Rate, ...]
) -> tuple[Loop, RunState]:
    """The loop, and the state of the newest checkpoint (or of a fresh start)."""
    context, spec, task = process.context, process.spec, material.task
    if context.is_main:
        describe_run(context, material, inner, rates)
    accelerator = make_accelerator(spec, context)
    make_fast(inner, accelerator.device, compiled=spec.training.compile)
    objective = objective_of(process, material, group, accelerator.device)
    cost = pass_cost(accelerator.device, sharded=is_sharded(spec, group.size))
    if spec.training.batch_size == "auto":
        cost = within_memory(
            cost,
            Search(
                spec=spec,
                model=inner.to(accelerator.device),
                objective=objective,
                part=material.parts[TRAIN],
                device=accelerator.device,
                autocast=accelerator.autocast,
                group=group,
                local_processes=context.local_world_size,
                beat=process.heartbeat.beat,
            ),
            context.run.passes,
            context.run.attempts,
        )
    model = share_model(inner, find_layers(inner).modules, spec, accelerator)
    optimizer = accelerator.prepare_optimizer(build_optimizer(inner, rates, spec.training))
    state = resume(process, group, accelerator, inner, optimizer)
    train, size = material.parts[TRAIN], batch_size_of(spec)
    epoch = epoch_batches(len(train), train.at(0).padded_lengths, size, seed=spec.training.seed, epoch=0)
    watched = (spec.early_stopping.metric if spec.early_stopping else None) or task.monitor
    workers = _loader_workers(context, task)
    history = History(context.run.history, resumed_step=state.step) if context.is_main else None
    if history is not None:
        process.reporter.set(lost_steps=history.lost_steps)
    process.reporter.set(tracking_urls=start_trackers(accelerator, context))
    loop = Loop(
        spec=spec,
        objective=objective,
        model=model,
        inner=inner,
        optimizer=optimizer,
        accelerator=accelerator,
        group=group,
        train_part=train,
        validation_part=material.parts[VALIDATION],
        batch_size=size,
        share=Share(group.rank, group.size, spec.training.gradient_accumulation, cost),
        course=make_course(spec.training, spec.evaluation.every, spec.checkpoint.every, len(epoch)),
        judge=Judge(
            task=task,
            metrics=tuple(dict.fromkeys((*choose_metrics(task, spec.evaluation.metrics), watched))),
            classes=material.classes,
            accelerator=accelerator,
            group=group,
            size=evaluation_size(spec, size, group.size),
            share=Share(group.rank, group.size, cost=cost),
            workers=workers,
            beat=process.heartbeat.beat,
            is_stopped=lambda: process.stop.is_set,
            companion=material.companion,
        ),
        watched=watched,
        checkpointer=_checkpointer(process, group, history),
        reporter=process.reporter,
        heartbeat=process.heartbeat,
        stop=process.stop,
        history=history,
        loader_workers=workers,
    )
    process.reporter.course, process.reporter.watched = loop.course, watched
    process.reporter.set(stage=Stage.TRAINING, state=state)
    return loop, state


def resume(
    process: Process, group: Group, accelerator: Accelerator, inner: nn.Module, optimizer: torch.optim.Optimizer
) -> RunState:
    """Bring model and optimizer to the newest checkpoint that verifies; every rank takes the one that rank 0 found."""
    context = process.context
    saved = None
    if context.is_main:
        checkpoint.clear_leftovers(context.run.checkpoints)
        saved = checkpoint.newest_verified(context.run.checkpoints)
    saved = group.broadcast(saved)
    state = RunState()
    if saved is not None:
        load_tensors(saved, inner, optimizer)
        state = RunState.from_json(saved.state)
        if accelerator.scaler is not None and state.loss_scaling:
            accelerator.scaler.load_state_dict(dict(state.loss_scaling))
        last = LastCheckpoint(step=state.step, path=str(saved.folder), time=checkpoint.time_of(saved))
        process.reporter.set(resumed_from_step=state.step, last_checkpoint=last)
        log.info("resumed from the checkpoint of step %d", state.step)
    if context.is_main:
        record_start(context.run.attempts, attempt=context.attempt, from_step=state.step, world_size=group.size)
    return state


def batch_size_of(spec: JobSpec) -> BatchSize:
    """What one optimizer step takes, over all processes."""
    return BatchSize(spec.training.samples_per_batch, spec.training.tokens_per_batch)


def evaluation_size(spec: JobSpec, training: BatchSize, world_size: int) -> BatchSize:
    """What all processes judge at once: what is asked for, or as much as one forward pass of training takes."""
    if spec.evaluation.batch_size is not None:
        return BatchSize(spec.evaluation.batch_size * world_size, None)
    parts = spec.training.gradient_accumulation
    if training.tokens is not None:
        return BatchSize(None, max(1, training.tokens // parts))
    return BatchSize(max(1, (training.samples or 1) // parts), None)


def pass_cost(device: torch.device, *, sharded: bool) -> PassCost:
    """What a pass costs on this device; a sharded model is gathered anew for each."""
    return CPU_COST if device.type == "cpu" and not sharded else GPU_COST


def _checkpointer(process: Process, group: Group, history: History | None) -> Checkpointer:
    context, spec = process.context, process.spec

    def tell(step: int, path: Path) -> None:
        process.reporter.set(last_checkpoint=LastCheckpoint(step=step, path=str(path), time=dt.datetime.now(dt.UTC)))

    return Checkpointer(
        context.run.checkpoints,
        rank=context.rank,
        world_size=group.size,
        is_sharded=is_sharded(spec, group.size),
        keep_last=spec.checkpoint.keep_last,
        before_publish=history.sync if history else lambda: None,
        on_saved=tell,
    )


def _loader_workers(context: Context, task: Task) -> int:
    """Processes that read ahead: worth it for images on a GPU; texts are ready, and a CPU run has no core to spare."""
    if not task.reads_images or not torch.cuda.is_available():
        return 0
    return min(IMAGE_LOADERS, cores_for_each(context.local_world_size) - 1)


def describe_run(context: Context, material: Material, inner: nn.Module, rates: tuple[Rate, ...]) -> None:
    """Write preparation.json: what is trained, on what, at which rates."""
    named = dict(inner.named_parameters())
    trainable = sum(parameter.numel() for parameter in named.values() if parameter.requires_grad)
    total = sum(parameter.numel() for parameter in named.values())
    described = describe(material.prepared, material.parts)
    described["parameters"] = {"total": total, "trainable": trainable}
    described["rates"] = [
        {
            "group": rate.group,
            "learningRate": rate.learning_rate,
            "parameters": sum(named[name].numel() for name in rate.parameters),
        }
        for rate in rates
    ]
    described["augmented"] = augmented_samples(
        material.parts[TRAIN], material.prepared.slices[TRAIN], material.companion
    )
    context.run.root.mkdir(parents=True, exist_ok=True)
    context.run.preparation.write_text(json.dumps(described, indent=1))
    log.info("samples %s; %d of %d parameters are trained", described["samples"], trainable, total)
