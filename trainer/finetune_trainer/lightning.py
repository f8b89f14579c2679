"""For Lightning users: a spec's task as a LightningModule and a LightningDataModule, trained by Lightning's Trainer.

    module, data = from_job(read_job(Path("job.yaml")), out=Path("runs/reviews"))
    lightning.Trainer(**trainer_options(module)).fit(module, data)
    module.export(Path("runs/reviews"))

No second engine: samples, order, objective, optimizer, rates, clipping and metrics are those of ``loop``, so a step's
loss is the same as there. What Lightning has its own way for is Lightning's: checkpoints, loggers, devices.
"""

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from finetune_api.job import FineTuneJob
from finetune_api.wiring import RunFolder
from finetune_trainer.clip import clip_gradients
from finetune_trainer.context import Context
from finetune_trainer.contrastive import backward_jointly
from finetune_trainer.course import RunState, advance, make_course
from finetune_trainer.data.dataset import Batch, Part
from finetune_trainer.data.order import BatchSize, Indices, epoch_batches, ordered_batches
from finetune_trainer.data.passes import Passes, Share
from finetune_trainer.data.prepare import TRAIN, VALIDATION
from finetune_trainer.distributed import Group, precision_of
from finetune_trainer.errors import SpecFault
from finetune_trainer.export import Exported, export
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.kernels import make_fast
from finetune_trainer.loop import seed_step
from finetune_trainer.metrics import Scores, choose_metrics
from finetune_trainer.optimizer import build_optimizer, set_rates
from finetune_trainer.progress import Reporter
from finetune_trainer.run import (
    Material,
    Process,
    batch_size_of,
    build_model,
    evaluation_size,
    objective_of,
    pass_cost,
    prepare,
)
from finetune_trainer.signals import StopRequest
from finetune_trainer.strategies import set_training

_PRECISIONS = {"fp32": "32-true", "bf16": "bf16-mixed"}


def from_job(
    job: FineTuneJob, *, out: Path, cache: Path | None = None, volumes: Path = Path("/volumes")
) -> tuple["FineTuneModule", "FineTuneData"]:
    """What a job trains, and on what. Reads the data and loads the model.

    Args:
        job: The job; its ``distributed``, ``recovery``, ``tracking``, ``checkpoint`` and ``earlyStopping`` are left to
            Lightning.
        out: Folder for what is written on the way.
        cache: Folder of prepared data. None: in ``out``.
        volumes: Where pvc:// sources lie.

    Raises:
        TrainerError: The spec, the data or the model is at fault; the message names the field or the file.
    """
    if job.spec.training.precision == "fp16":
        raise SpecFault("spec.training.precision: fp16 does not go with Lightning here; use bf16 or fp32")
    if job.spec.training.batch_size == "auto":
        raise SpecFault("spec.training.batchSize: auto does not go with Lightning; set a number")
    out.mkdir(parents=True, exist_ok=True)
    process = _process_in(job, out, cache or out / "cache", volumes)
    material = prepare(process)
    return FineTuneModule(process, material), FineTuneData(process, material)


def _process_in(job: FineTuneJob, out: Path, cache: Path, volumes: Path) -> Process:
    context = Context(
        job=job,
        run=RunFolder(out),
        scratch=out,
        cache=cache,
        volumes=volumes,
        attempt=1,
        rank=0,
        local_rank=0,
        world_size=1,
        local_world_size=1,
        progress_address=("127.0.0.1", 0),
    )
    return Process(context, Reporter(job.spec, 1), Heartbeat(None), StopRequest())


def trainer_options(module: "FineTuneModule") -> dict[str, Any]:
    """What ``lightning.Trainer`` is to be given so that a run is as long and as precise as the spec says."""
    return {
        "max_steps": module.course.total_steps,
        "max_epochs": -1,
        "precision": _PRECISIONS[precision_of(module.job.spec)],
        "use_distributed_sampler": False,  # every process takes its share of a batch already
    }


@dataclass(frozen=True)
class Step:
    """What one call of ``training_step`` or ``validation_step`` gets."""

    passes: list[Batch]
    """Ours."""
    samples: int
    """In the whole batch."""
    batches: int
    """In the epoch."""


class Steps(Dataset[Step]):
    """The batches of a part; a key is (epoch, number of the batch)."""

    def __init__(self, part: Part, size: BatchSize, share: Share, seed: int | None) -> None:
        """Prepare; ``seed`` None takes the samples in the order of an evaluation."""
        self._part, self._size, self._share, self._seed = part, size, share, seed
        self._known: tuple[int, list[Indices]] = (-1, [])

    def batches(self, epoch: int) -> list[Indices]:
        """All batches of an epoch."""
        if self._known[0] != epoch:
            part, size = self._part.at(epoch), self._size
            if self._seed is None:
                batches = ordered_batches(len(part), part.padded_lengths, size)
            else:
                batches = epoch_batches(len(part), part.padded_lengths, size, seed=self._seed, epoch=epoch)
            self._known = (epoch, batches)
        return self._known[1]

    def __getitem__(self, key: tuple[int, int]) -> Step:
        epoch, number = key
        batches, part = self.batches(epoch), self._part.at(epoch)
        chosen = batches[number : number + 1]
        (keys,) = Passes(chosen, part.padded_lengths, self._size, self._share, epoch)
        return Step(part.__getitems__(keys), len(chosen[0]), len(batches))


class EpochOrder(Sampler[tuple[int, int]]):
    """Keys of ``Steps``, in order; Lightning says which epoch it is."""

    def __init__(self, steps: Steps) -> None:
        self._steps = steps
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Go on with this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._steps.batches(self._epoch))

    def __iter__(self) -> Iterator[tuple[int, int]]:
        return iter([(self._epoch, number) for number in range(len(self))])


class FineTuneData(LightningDataModule):
    """A job's training and validation sets."""

    def __init__(self, process: Process, material: Material) -> None:
        super().__init__()
        self._process, self._material = process, material

    def train_dataloader(self) -> DataLoader[Step]:
        """A step an item, in the order that a run of ours has."""
        spec = self._process.spec
        return self._loader(TRAIN, batch_size_of(spec), spec.training.gradient_accumulation, spec.training.seed)

    def val_dataloader(self) -> DataLoader[Step]:
        """The validation set."""
        spec = self._process.spec
        return self._loader(VALIDATION, evaluation_size(spec, batch_size_of(spec), self._world[1]), 1, None)

    def transfer_batch_to_device(self, batch: Step, device: torch.device, dataloader_idx: int) -> Step:  # noqa: ARG002
        """The same step on ``device``."""
        return Step([one.to(device) for one in batch.passes], batch.samples, batch.batches)

    @property
    def _world(self) -> tuple[int, int]:
        return (self.trainer.global_rank, self.trainer.world_size) if self.trainer is not None else (0, 1)

    def _loader(self, part: str, size: BatchSize, parts: int, seed: int | None) -> DataLoader[Step]:
        device = self.trainer.strategy.root_device if self.trainer is not None else torch.device("cpu")
        share = Share(*self._world, parts, pass_cost(device, sharded=False))
        steps = Steps(self._material.parts[part], size, share, seed)
        return DataLoader(steps, sampler=EpochOrder(steps), batch_size=None, collate_fn=_same)  # type: ignore[arg-type]


def _same(step: Step) -> Step:
    return step


class FineTuneModule(LightningModule):
    """A job's model, trained as ``Loop`` trains it."""

    def __init__(self, process: Process, material: Material) -> None:
        super().__init__()
        self.automatic_optimization = (
            False  # a batch is several passes, whose share in the gradient is by their targets
        )
        spec = process.spec
        self.job, self.material = process.context.job, material
        self.model, self._rates = build_model(spec, material)
        group = Group(process.context, has_gpu=False)
        self.objective = objective_of(process, material, group, torch.device("cpu"))
        train = material.parts[TRAIN]
        size = batch_size_of(spec)
        first = epoch_batches(len(train), train.at(0).padded_lengths, size, seed=spec.training.seed, epoch=0)
        self.course = make_course(spec.training, spec.evaluation.every, spec.checkpoint.every, len(first))
        self.state = RunState()
        self._scores: Scores | None = None

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW over the depths of the model."""
        return build_optimizer(self.model, self._rates, self.job.spec.training)

    def on_fit_start(self) -> None:
        """Compiled, or by the kernels of a run of ours."""
        make_fast(self.model, self.device, compiled=self.job.spec.training.compile)

    def training_step(self, batch: Step, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """One optimizer step; see ``Loop``."""
        set_training(self.model)
        training = self.job.spec.training
        optimizer = self.optimizers()
        counts = self._sum(self._counts(batch))
        seed_step(training.seed, self.state.step, self.global_rank)
        sums = self._sum(self._backward(batch.passes, counts))
        clip_gradients(self.model.parameters(), training.max_grad_norm or math.inf)
        set_rates(optimizer, self.course.factor(self.state))  # type: ignore[arg-type]
        optimizer.step()  # type: ignore[union-attr]
        optimizer.zero_grad()  # type: ignore[union-attr]
        self.state = advance(self.state, batch.samples, batch.batches)
        self.log("train/loss", (sums / counts.clamp(min=1e-12)).sum(), prog_bar=True, batch_size=batch.samples)

    def _counts(self, step: Step) -> Tensor:
        counts = [self.objective.counts(one).double().sum(0).reshape(-1) * one.is_counted for one in step.passes]
        return torch.stack(counts).sum(0).to(self.device, torch.float64)

    def _backward(self, passes: list[Batch], counts: Tensor) -> Tensor:
        """Forward and backward of every pass; returns the sum of each part of the loss: (K,)."""
        scales = (self.trainer.world_size / counts.clamp(min=1e-12)).float()
        if self.objective.is_joint and len(passes) > 1:
            told = backward_jointly(self.objective, self.model, passes, scales, _Precision(self))
            return torch.tensor(told, dtype=torch.float64, device=self.device)
        total = torch.zeros_like(scales)
        for one in passes:
            outputs = self.objective.forward(self.model, one)
            sums = self.objective.losses(outputs, one).sum(0).reshape(-1) * float(one.is_counted)
            self.manual_backward((sums * scales).sum())
            total += sums.detach()
        return total.double()

    def _sum(self, numbers: Tensor) -> Tensor:
        """Over all processes."""
        if self.trainer.world_size == 1:
            return numbers
        summed: Tensor = self.trainer.strategy.reduce(numbers, reduce_op="sum")
        return summed

    def on_validation_epoch_start(self) -> None:
        """Begin to score."""
        names = tuple(dict.fromkeys((*choose_metrics(self.material.task, self.job.spec.evaluation.metrics), "loss")))
        self._scores = Scores(self.material.task, names, self.material.classes, self.device)

    def validation_step(self, batch: Step, batch_idx: int) -> None:  # noqa: ARG002 - Lightning's signature
        """Score one batch."""
        assert self._scores is not None
        task = self.material.task
        for one in batch.passes:
            outputs = task.objective.forward(self.model, one)
            losses, counts = task.objective.losses(outputs, one), task.objective.counts(one)
            if not one.is_counted:
                continue
            self._scores.add_loss(losses, counts)
            self._scores.update(*task.judged(outputs, one, self.material.companion))
            if self._scores.reads_texts and task.write is not None:
                self._scores.update_texts(*task.write(self.model, one, self.material.companion))

    def on_validation_epoch_end(self) -> None:
        """Say what was scored: ``validation/<metric>``."""
        assert self._scores is not None
        values = self._scores.compute(lambda sums: list(self._sum(torch.tensor(sums, device=self.device)).tolist()))
        self.log_dict({f"validation/{name}": value for name, value in values.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep where the run stands."""
        checkpoint["finetune"] = self.state.to_json()

    def on_load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Go on from there."""
        self.state = RunState.from_json(checkpoint["finetune"])

    def export(self, folder: Path) -> Exported:
        """Write ``folder``/model, which transformers loads (and ``folder``/adapter), as a run of ours does."""
        part = self.material.parts[VALIDATION]
        probe = part.batch(0, np.arange(min(4, len(part))), is_counted=True).inputs
        companions = [self.material.companion]
        return export(self.model.to("cpu"), companions, to=folder / "model", adapter_to=folder / "adapter", probe=probe)


@dataclass(frozen=True)
class _Precision:
    """What ``backward_jointly`` asks of an Accelerator: Lightning has the step in its precision already."""

    module: FineTuneModule

    @property
    def device(self) -> torch.device:
        return self.module.device

    def autocast(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def backward(self, loss: Tensor) -> None:
        self.module.manual_backward(loss)
