"""``batchSize: auto``: the largest pass that a process has memory for, found before the first step.

Invariant: what is found decides how a batch is cut, never what is in it: the effective batch stays, and with it the
gradient (see ``data.passes``). What was found is kept in the run's folder, so a resumed run cuts as the run before did,
dropout included, unless that one ran out of memory.
"""

import contextlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_api.cgroups import ROOT, cgroup_folders, read_or_nothing
from finetune_api.job import JobSpec
from finetune_api.outcomes import Cause
from finetune_trainer.data.dataset import Part
from finetune_trainer.data.passes import PassCost
from finetune_trainer.distributed import Group
from finetune_trainer.errors import PlatformError, SpecFault
from finetune_trainer.estimate import USABLE, longest_samples, longest_tokens, samples_per_pass
from finetune_trainer.memory import OPTIMIZER_SLOTS, held_memory, measure_passes, run_pass, unchanged
from finetune_trainer.strategies import set_training
from finetune_trainer.task import Objective

log = logging.getLogger(__name__)

FIELD = "spec.training.batchSize"
_LIMITS = (("memory.max", "memory.current"), ("memory.limit_in_bytes", "memory.usage_in_bytes"))
"""Files that tell what a cgroup may take and what it takes, v2 and v1."""


@dataclass(frozen=True)
class PassSize:
    """What one process computes at once."""

    samples: int
    tokens: int | None
    """Padded; None for images."""
    world_size: int
    """Processes of the run that it was found for."""


@dataclass(frozen=True)
class Search:
    """What a pass is made of, and where."""

    spec: JobSpec
    model: nn.Module
    """On its device, not yet shared by processes."""
    objective: Objective
    part: Part
    device: torch.device
    autocast: Callable[[], contextlib.AbstractContextManager[Any]]
    group: Group
    local_processes: int
    """Processes on this machine, which share its memory."""
    beat: Callable[[], None]

    def run(self, samples: int) -> None:
        """One pass of the longest samples."""
        batch = self.part.batch(0, longest_samples(self.part, samples), is_counted=True)
        run_pass(self.model, self.objective, batch.to(self.device), self.autocast())
        self.beat()


def check_auto(spec: JobSpec, world_size: int) -> None:
    """Raise SpecFault if the largest pass is asked for where trying one would leave the other processes waiting."""
    if spec.training.batch_size == "auto" and spec.distributed.strategy == "fsdp" and world_size > 1:
        raise SpecFault(f"{FIELD}: auto goes with spec.distributed.strategy ddp; with fsdp, `finetune estimate` tells")


def within_memory(cost: PassCost, search: Search, kept: Path, attempts: Path) -> PassCost:
    """``cost`` with passes no larger than memory allows.

    Args:
        cost: What a pass costs otherwise.
        search: What is tried.
        kept: File that remembers what was found.
        attempts: The run's attempts.jsonl.

    Raises:
        PlatformError: There is no memory for a pass of one sample.
    """
    found = search.group.broadcast(_recall(kept, attempts, search.group.size) if search.group.rank == 0 else None)
    if found is None:
        found = _find(search)
    if search.group.rank == 0:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(asdict(found)))
        log.info("passes of %d samples at most fit into memory", found.samples)
    limits = [limit for limit in (cost.most_tokens, found.tokens) if limit is not None]
    return replace(cost, most_tokens=min(limits, default=None), most_samples=None if found.tokens else found.samples)


def _recall(kept: Path, attempts: Path, world_size: int) -> PassSize | None:
    """What an attempt before this one found; half of it if memory then ran out all the same."""
    if not kept.exists():
        return None
    found = PassSize(**json.loads(kept.read_text()))
    if found.world_size != world_size:
        return None
    if _last_cause(attempts) != Cause.OUT_OF_MEMORY:
        return found
    return replace(found, samples=max(1, found.samples // 2), tokens=found.tokens and max(1, found.tokens // 2))


def _last_cause(attempts: Path) -> str | None:
    lines = [json.loads(line) for line in attempts.read_text().splitlines()] if attempts.exists() else []
    ends = [line for line in lines if line["event"] == "end"]
    return ends[-1]["cause"] if ends else None


def _find(search: Search) -> PassSize:
    most = samples_per_pass(search.spec, longest_tokens(search.part))
    set_training(search.model)
    samples = _by_trial(search, most) if search.device.type == "cuda" else _by_estimate(search, most)
    longest = longest_tokens(search.part)
    return PassSize(samples, None if longest is None else samples * longest, search.group.size)


def _by_estimate(search: Search, most: int) -> int:
    """On a CPU, where too large a pass would have the kernel kill the process: what the estimate has room for."""
    held = held_memory(search.model)
    room = int(available_memory() / search.local_processes * USABLE) - held.gradients - held.optimizer
    ours = [0.0] * search.group.size
    ours[search.group.rank] = measure_passes(search.model, search.run).most(room)
    samples = int(min(search.group.sum(ours)))
    if not samples:
        raise _no_room(f"{max(0, room) >> 20} MiB are left for a pass")
    return min(samples, most)


def _by_trial(search: Search, most: int) -> int:
    """On a GPU: the largest pass that runs, halved from ``most`` until every process has room for it."""
    samples = most
    while search.group.sum([float(not _fits(search, samples))])[0]:
        if samples == 1:
            raise _no_room("the GPU has no room for a pass of one sample")
        samples = -(-samples // 2)
    return samples


def _fits(search: Search, samples: int) -> bool:
    trained = [value for value in search.model.parameters() if value.requires_grad]
    try:
        with unchanged(search.model):
            for value in trained:
                value.grad = torch.zeros_like(value)
            optimizer = [torch.zeros_like(value) for value in trained for _ in range(OPTIMIZER_SLOTS)]
            search.run(samples)
            del optimizer
    except torch.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def _no_room(what: str) -> PlatformError:
    return PlatformError(
        f"{FIELD}: {what}; ask for more memory (spec.distributed.resources), or set spec.strategy.lora,"
        " spec.training.gradientCheckpointing or a shorter spec.data.maxLength"
    )


def available_memory(root: Path = ROOT) -> int:
    """Bytes that this process and those beside it may still take: of the machine, and of the cgroups that it is in.

    https://docs.kernel.org/admin-guide/cgroup-v2.html (memory.max, memory.current; the page cache gives way) and
    https://docs.kernel.org/admin-guide/cgroup-v1/memory.html.
    """
    lines = (root / "proc/meminfo").read_text().splitlines()
    room = [1024 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])]
    for folder in cgroup_folders("memory", root):
        for limit, used in _LIMITS:
            most, now = read_or_nothing(folder / limit).strip(), read_or_nothing(folder / used).strip()
            if most.isdecimal() and now.isdecimal():
                room.append(int(most) - int(now) + _page_cache(folder))
    return max(0, min(room))


def _page_cache(folder: Path) -> int:
    """Bytes of files that nobody has read lately: the kernel gives them up first."""
    lines = [line.split() for line in read_or_nothing(folder / "memory.stat").splitlines()]
    return next((int(value) for name, value in lines if name == "inactive_file"), 0)
