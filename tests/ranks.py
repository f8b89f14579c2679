"""What the ranks of a group run in tests; here because a process that was started anew can import it."""

import ctypes
import gc
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import nn
from torch.distributed.tensor import DTensor

import tiny
from finetune_api.job import Columns
from finetune_trainer.checkpoint import verify
from finetune_trainer.data.dataset import Encoded, TextPart
from finetune_trainer.data.order import BatchSize
from finetune_trainer.data.passes import Share
from finetune_trainer.distributed import Group, _shard
from finetune_trainer.entities import scheme_of
from finetune_trainer.evaluate import Details, Judge
from finetune_trainer.metrics import choose_metrics
from finetune_trainer.snapshot import Checkpointer, load_tensors, state_tensors
from finetune_trainer.tasks import TASKS, Target
from finetune_trainer.tasks.token_classification import judged

DATA = SimpleNamespace(multi_label=False, columns=Columns())


def train_all(rank: int, world_size: int, runs: dict[Path, tuple[str, dict[str, Any]]]) -> None:
    """Train each run: folder → (kind, spec)."""
    for run, (kind, spec) in runs.items():
        wanted = tiny.job(run.parent, kind, spec)
        tiny.trained(tiny.process_of(wanted, run, rank=rank, world_size=world_size))


class Uneven(nn.Module):
    """Rows that 2 and 3 processes cannot share evenly; of a single row, some have none."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.ModuleList([nn.Linear(5, 5), nn.Linear(5, 5)])
        self.one = nn.Parameter(torch.randn(1, 5))
        self.head = nn.Linear(5, 7)
        self.norm = nn.BatchNorm1d(7)

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            inputs = layer(inputs)
        return self.norm(self.head(inputs + self.one))


def sharded(world_size: int, seed: int, steps: int) -> tuple[nn.Module, torch.optim.Optimizer]:
    """An uneven model, sharded if there is more than one process, after ``steps`` optimizer steps."""
    model = Uneven(seed)
    if world_size > 1:
        _shard(model, list(model.layers), "fp32", torch.device("cpu"))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    torch.manual_seed(0)
    for _ in range(steps):
        model(torch.randn(4, 5)).square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All that a checkpoint keeps, unsharded."""
    tensors = state_tensors(model, optimizer, whole=True)
    return {
        name: (value.full_tensor() if isinstance(value, DTensor) else value).detach().clone()
        for name, value in tensors.items()
    }


def write_sharded(rank: int, world_size: int, folder: Path) -> dict[str, torch.Tensor]:
    """Save a sharded model; returns what it held."""
    model, optimizer = sharded(world_size, seed=1, steps=3)
    saver = Checkpointer(
        folder,
        rank=rank,
        world_size=world_size,
        is_sharded=world_size > 1,
        keep_last=2,
        before_publish=lambda: None,
        on_saved=lambda _step, _path: None,
    )
    saver.save({"step": 3}, state_tensors(model, optimizer, whole=True), best_step=None)
    saver.wait()
    return whole(model, optimizer)


def read_sharded(_rank: int, world_size: int, folder: Path) -> dict[str, torch.Tensor]:
    """Load it into a model of other weights; returns what that holds then."""
    model, optimizer = sharded(world_size, seed=2, steps=1)
    load_tensors(verify(folder / "step-000000000003"), model, optimizer)
    return whole(model, optimizer)


class Guess(nn.Module):
    """A model that costs next to nothing: its logits are an embedding of the tokens."""

    def __init__(self, target: Target, classes: int) -> None:
        super().__init__()
        self.target = target
        self.embedding = nn.Embedding(100, classes)

    def forward(self, input_ids: torch.Tensor, **_: Any) -> SimpleNamespace:
        logits = self.embedding(input_ids)
        return SimpleNamespace(logits=logits.sum(1) if self.target == Target.CLASS else logits)


def texts(count: int, target: Target, classes: int) -> TextPart:
    """``count`` texts of 16 tokens each."""
    random = np.random.default_rng(0)
    ids = random.integers(0, 100, 16 * count, np.int32)
    tags = random.integers(0, classes, 16 * count, np.int32) if target == Target.TAGS else None
    encoded = Encoded(ids, np.arange(count + 1) * 16, None, targets=tags)
    targets = torch.from_numpy(random.integers(0, classes, count)) if target == Target.CLASS else None
    return TextPart(np.arange(count), encoded, targets, pad_id=0)


TASK_OF = {
    Target.CLASS: "text-classification",
    Target.TOKENS: "causal-lm",
    Target.TAGS: "token-classification",
}


def evaluation_peaks(_rank: int, _world_size: int, target: Target) -> tuple[int, int, int]:
    """Most bytes in use while 1x and 10x the data are evaluated, and the size of 10x the logits."""
    classes, count = (500, 3000) if target == Target.CLASS else (400, 300)
    task = TASKS[TASK_OF[target]](SimpleNamespace(data=DATA))
    if target == Target.TAGS:
        task = replace(task, judged=partial(judged, scheme_of([f"B-{number}" for number in range(classes)])))
    judge = Judge(
        task=task,
        metrics=choose_metrics(task, None),
        classes=classes,
        accelerator=Accelerator(cpu=True),
        group=Group(SimpleNamespace(rank=0, world_size=1), has_gpu=False),
        size=BatchSize(30, None),
        share=Share(0, 1),
        workers=0,
        beat=lambda: None,
        is_stopped=lambda: False,
    )
    model, parts = Guess(target, classes), [texts(each * count, target, classes) for each in (1, 10)]

    def evaluate(part: TextPart, tell: Callable[[float], None]) -> None:
        judge.evaluate(model, part, details=Details(task, classes), progress=tell)

    evaluate(parts[0], lambda _percent: None)  # imports, and what is made once
    peaks = [most_in_use(partial(evaluate, part)) for part in parts]
    outputs = 10 * count * classes * 4 * (1 if target == Target.CLASS else 16)
    return peaks[0], peaks[1], outputs


class MallocCounts(ctypes.Structure):
    """glibc's struct mallinfo2 (https://man7.org/linux/man-pages/man3/mallinfo.3.html)."""

    NAMES = "arena", "ordblks", "smblks", "hblks", "hblkhd", "usmblks", "fsmblks", "uordblks", "fordblks", "keepcost"
    _fields_ = tuple((name, ctypes.c_size_t) for name in NAMES)


def most_in_use(work: Callable[[Callable[[float], None]], None]) -> int:
    """Most bytes that were allocated and not freed whenever ``work`` called what it is given.

    Counted, not taken from the resident set: that also holds what is free in the heap, which depends on what ran before
    and on how busy the machine is. malloc has the tensors (of any thread's if they are large), tracemalloc Python's
    objects; what is in both counts twice.
    """
    count = ctypes.CDLL(None).mallinfo2
    count.restype = MallocCounts
    seen: list[int] = []

    def look(_percent: float) -> None:
        counts = count()
        seen.append(counts.uordblks + counts.hblkhd + tracemalloc.get_traced_memory()[0])

    gc.collect()
    tracemalloc.start()
    try:
        work(look)
    finally:
        tracemalloc.stop()
    return max(seen)
