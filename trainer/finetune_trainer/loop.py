"""The training loop, one for every task: it reads from top to bottom.

Invariants:
- The gradient of a step is that of the mean loss over the whole batch, however it is cut into passes and shared by
  processes: a pass's loss is its sum times world size over the batch's target count, and processes average. Of a loss
  of several parts, each has its own count.
- Randomness inside a step (dropout) is seeded by (seed, step, rank), so that a resumed run needs no generator's state.
- Nobody waits for a process that has left: flags are reduced over all ranks before each step.
"""

import hashlib
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from torch import nn

from finetune_api.job import JobSpec
from finetune_api.status import Stage
from finetune_trainer.clip import clip_gradients
from finetune_trainer.contrastive import backward_jointly
from finetune_trainer.course import Course, RunState, advance, evaluated, saved
from finetune_trainer.data.dataset import Batch, Part, load_batches
from finetune_trainer.data.order import BatchSize, epoch_batches
from finetune_trainer.data.passes import Share
from finetune_trainer.distributed import Group, gradient_sync
from finetune_trainer.errors import Diverged, Preempted
from finetune_trainer.evaluate import Judge
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.history import History
from finetune_trainer.metrics import METRICS, is_better, summary
from finetune_trainer.optimizer import set_rates
from finetune_trainer.progress import Reporter
from finetune_trainer.signals import StopRequest
from finetune_trainer.snapshot import Checkpointer, state_tensors
from finetune_trainer.strategies import set_training
from finetune_trainer.task import Objective

log = logging.getLogger(__name__)

MAX_SKIPPED_STEPS = 50
"""Steps in a row that fp16's loss scaling may skip, halving the scale each time, before the run counts as diverged."""


@dataclass
class Loop:
    """One run's training, from a state to the end."""

    spec: JobSpec
    objective: Objective
    """What is minimised."""
    model: nn.Module
    """As it is called: compiled, wrapped for DDP or FSDP."""
    inner: nn.Module
    """The same without wrapping."""
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    group: Group
    train_part: Part
    validation_part: Part
    batch_size: BatchSize
    share: Share
    course: Course
    judge: Judge
    watched: str
    checkpointer: Checkpointer
    reporter: Reporter
    heartbeat: Heartbeat
    stop: StopRequest
    history: History | None
    """Rank 0 only."""
    loader_workers: int
    _skipped: int = 0

    def run(self, state: RunState) -> RunState:
        """Train from ``state`` to the end of the course; the last checkpoint is complete when this returns.

        Raises:
            Preempted: A process was asked to leave; the state is saved.
            Diverged: Loss or gradient is not finite.
            PlatformError: A checkpoint could not be written.
        """
        set_training(self.model)
        try:
            state = self._settle(state)
            batches = self._batches(state)
            while not self.course.is_finished(state):
                passes, samples, batches_in_epoch = next(batches)
                state = self._step(state, passes, samples, batches_in_epoch)
                state = self._settle(state)
        except Preempted:
            self._save(state)
            with self.heartbeat.pulse():
                self.checkpointer.wait()
                self.group.wait()  # who leaves first is followed by a launcher that ends the others
            told = f"; step {state.step} is saved" if state.step else " before the first step"
            raise Preempted(f"asked to leave{told}") from None
        self.checkpointer.wait()
        return state

    def _batches(self, state: RunState) -> Iterator[tuple[list[Batch], int, int]]:
        """From the state's position on: our passes of a batch, samples in the whole batch, batches an epoch."""
        size, seed = self.batch_size, self.spec.training.seed
        pin = self.accelerator.device.type == "cuda"
        epoch, start = state.epoch, state.batch
        while True:
            part = self.train_part.at(epoch)
            batches = epoch_batches(len(part), part.padded_lengths, size, seed=seed, epoch=epoch)
            rest = batches[start:]
            loader = load_batches(part, rest, size, self.share, epoch=epoch, workers=self.loader_workers, pin=pin)
            for batch, passes in zip(rest, loader, strict=True):
                yield passes, len(batch), len(batches)
            epoch, start = epoch + 1, 0

    def _step(self, state: RunState, passes: list[Batch], samples: int, batches_in_epoch: int) -> RunState:
        """One optimizer step."""
        *counts, asked_to_leave = self.group.sum([*self._counts(passes), float(self.stop.is_set)])
        if asked_to_leave:
            raise Preempted
        seed_step(self.spec.training.seed, state.step, self.group.rank)
        sums = self.group.sum(self._backward(passes, counts))
        loss = sum(total / (count or 1.0) for total, count in zip(sums, counts, strict=True))
        norm = self._clip()
        self._check_finite(state, loss, norm)
        set_rates(self.optimizer, self.course.factor(state))
        self.checkpointer.before_update()
        self.optimizer.step()
        self.optimizer.zero_grad()
        state = advance(state, samples, batches_in_epoch)
        self._tell(state, loss, norm, samples)
        return state

    def _counts(self, passes: list[Batch]) -> list[float]:
        """Targets in our passes, of each part of the loss: (K,)."""
        counts = [self.objective.counts(one).double().sum(0).reshape(-1) * one.is_counted for one in passes]
        return list(torch.stack(counts).sum(0).tolist())

    def _backward(self, passes: list[Batch], counts: list[float]) -> list[float]:
        """Forward and backward of every pass; returns the sum of each part of the loss: (K,)."""
        device = self.accelerator.device
        total = torch.zeros(len(counts), device=device)
        scales = torch.tensor([self.group.size / (count or 1.0) for count in counts], device=device)
        if self.objective.is_joint and len(passes) > 1:
            batches = [one.to(device) for one in passes]
            return backward_jointly(self.objective, self.model, batches, scales, self.accelerator)
        for number, one in enumerate(passes, 1):
            batch = one.to(device)
            with gradient_sync(self.model, is_last=number == len(passes)):
                with self.accelerator.autocast():
                    outputs = self.objective.forward(self.model, batch)
                    sums = self.objective.losses(outputs, batch).sum(0).reshape(-1)
                if not batch.is_counted:
                    sums = sums * 0
                self.accelerator.backward((sums * scales).sum())
            total += sums.detach()
        return list(total.tolist())

    def _clip(self) -> float:
        """Scale the gradient to ``maxGradNorm``; returns its norm before, the same on every rank."""
        self.accelerator.unscale_gradients()
        return clip_gradients(self.inner.parameters(), self.spec.training.max_grad_norm or math.inf)

    def _check_finite(self, state: RunState, loss: float, norm: float) -> None:
        if math.isfinite(norm) and math.isfinite(loss):
            self._skipped = 0
            return
        self._skipped += 1
        if self.accelerator.scaler is not None and self._skipped <= MAX_SKIPPED_STEPS:
            return
        self.checkpointer.wait()
        raise diverged(f"loss {loss:g} with gradient norm {norm:g} at step {state.step + 1}", state)

    def _tell(self, state: RunState, loss: float, norm: float, samples: int) -> None:
        rate = max(group["lr"] for group in self.optimizer.param_groups)
        self.heartbeat.beat()
        self.reporter.step(state, loss=loss, learning_rate=rate, grad_norm=norm)
        if self.history is not None:
            line = {"kind": "step", "step": state.step, "epoch": state.position, "loss": loss}
            self.history.write(line | {"learningRate": rate, "gradNorm": norm, "samples": samples})
        if self.accelerator.trackers:
            self.accelerator.log(
                {"train/loss": loss, "train/learningRate": rate, "train/gradNorm": norm}, step=state.step
            )

    def _settle(self, state: RunState) -> RunState:
        """Between two steps: evaluate and save if that is due."""
        if self.course.is_evaluation_due(state):
            state = self._evaluate(state)
        if self.course.is_save_due(state):
            state = self._save(state)
        return state

    def _evaluate(self, state: RunState) -> RunState:
        self.reporter.pause()
        self.reporter.set(stage=Stage.EVALUATING, stage_percent=0.0)
        metrics = self.judge.evaluate(self.model, self.validation_part, progress=self._tell_percent)
        if not math.isfinite(metrics["loss"]):
            self.checkpointer.wait()
            raise diverged(f"loss {metrics['loss']:g} on the validation set after step {state.step}", state)
        stopping = self.spec.early_stopping
        mode = (stopping.mode if stopping else None) or METRICS[self.watched].mode
        after = evaluated(
            state,
            self.course,
            metrics,
            watched=self.watched,
            improves=lambda value, best: is_better(
                value, best, mode=mode, min_delta=stopping.min_delta if stopping else 0
            ),
            patience=stopping.patience if stopping else None,
        )
        self._tell_evaluation(after)
        return after

    def _tell_percent(self, percent: float) -> None:
        self.reporter.set(stage_percent=percent)

    def _tell_evaluation(self, state: RunState) -> None:
        improved = state.without_improvement == 0
        self.reporter.set(stage=Stage.TRAINING, stage_percent=None, state=state)
        if self.history is not None:
            line = {"kind": "evaluation", "step": state.step, "epoch": state.position, "metrics": dict(state.metrics)}
            self.history.write(line | {"improved": improved})
            log.info("step %d: %s%s", state.step, summary(state.metrics), " (best)" if improved else "")
        if self.accelerator.trackers:
            self.accelerator.log(
                {f"validation/{name}": value for name, value in state.metrics.items()}, step=state.step
            )

    def _save(self, state: RunState) -> RunState:
        if state.step in (0, state.saved_step):
            return state
        state = replace(saved(state, self.course), loss_scaling=self._loss_scaling())
        tensors = state_tensors(self.inner, self.optimizer, whole=self.spec.model.source is None)
        best = state.best.step if state.best and self.spec.checkpoint.keep_best else None
        self.checkpointer.save(state.to_json(), tensors, best_step=best)
        return state

    def _loss_scaling(self) -> dict[str, float]:
        return dict(self.accelerator.scaler.state_dict()) if self.accelerator.scaler is not None else {}


def diverged(what: str, state: RunState) -> Diverged:
    """The error that a number is not finite, with what is saved and what to do."""
    kept = f"the checkpoint of step {state.saved_step} is intact" if state.saved_step > 0 else "nothing was saved yet"
    return Diverged(
        f"{what}; {kept}. Lower spec.strategy.learningRate, set spec.training.maxGradNorm,"
        " or look for extreme values in the data"
    )


def seed_step(seed: int, step: int, rank: int) -> None:
    """Seed torch's generators for one step of one process."""
    digest = hashlib.blake2b(f"{seed} {step} {rank}".encode(), digest_size=8).digest()
    torch.manual_seed(int.from_bytes(digest, "little") >> 1)
