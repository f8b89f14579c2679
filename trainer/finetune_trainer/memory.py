"""What training takes of a device's memory: what is held all the time, and what a forward and backward pass adds.

Parts that are held are counted; a pass is run and its peak measured. A pass's peak grows in a line with its samples, so
two small passes tell of any larger one (``PassMemory``).
"""

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

from finetune_trainer.data.dataset import Batch, map_tensors
from finetune_trainer.export import output_tensors
from finetune_trainer.task import Objective

OPTIMIZER_SLOTS = 2
"""AdamW keeps a mean and a variance of each trained parameter."""
SMALL, LARGER = 2, 4
"""Samples of the passes that are measured: batch norms want more than one."""


@dataclass(frozen=True)
class HeldMemory:
    """Bytes that a process holds from its first step on."""

    weights: int
    gradients: int
    optimizer: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.optimizer


@dataclass(frozen=True)
class PassMemory:
    """Bytes at the peak of a forward and backward pass, beside what is held: ``fixed + samples · per_sample``."""

    fixed: int
    per_sample: int

    def at(self, samples: int) -> int:
        """Bytes of a pass of so many samples."""
        return self.fixed + samples * self.per_sample

    def most(self, room: int) -> int:
        """The largest pass in ``room`` bytes, in samples; 0 if none fits."""
        return max(0, (room - self.fixed) // max(1, self.per_sample))


def held_memory(model: nn.Module, beside: int = 0) -> HeldMemory:
    """What ``model`` holds under AdamW, and ``beside`` it (bytes of a teacher); a shared storage counts once."""
    trained = sum(value.nbytes for value in model.parameters() if value.requires_grad)
    storages = {value.untyped_storage() for value in (*model.parameters(), *model.buffers())}
    return HeldMemory(beside + sum(storage.nbytes() for storage in storages), trained, OPTIMIZER_SLOTS * trained)


def measure_passes(model: nn.Module, run: Callable[[int], None]) -> PassMemory:
    """The memory of ``run(samples)``, one forward and backward pass of ``model``, from two small ones."""
    small, larger = (_peak_of(model, partial(run, samples)) for samples in (SMALL, LARGER))
    per_sample = max(0, larger - small) // (LARGER - SMALL)
    return PassMemory(max(0, small - SMALL * per_sample), per_sample)


def _peak_of(model: nn.Module, run: Callable[[], None]) -> int:
    """Bytes at the peak of ``run``, beside weights and gradients, which are there before it."""
    trained = [value for value in model.parameters() if value.requires_grad]
    with unchanged(model):
        for value in trained:
            value.grad = torch.zeros_like(value)
        if trained and trained[0].is_cuda:
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            run()
            return int(torch.cuda.max_memory_allocated()) - before
        memory = LiveMemory(model)
        with memory:
            run()
        return memory.peak


@contextlib.contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """Within: passes may be run for their cost alone; what they change (batch norms' statistics) is put back."""
    buffers = {name: value.clone() for name, value in model.named_buffers()}
    state = torch.get_rng_state()
    try:
        yield
    finally:
        for parameter in model.parameters():
            parameter.grad = None
        for name, value in model.named_buffers():
            value.copy_(buffers[name])
        torch.set_rng_state(state)


def run_pass(
    model: nn.Module, objective: Objective, batch: Batch, autocast: contextlib.AbstractContextManager[Any]
) -> None:
    """One forward and backward pass as the loop makes it, but with a process's own samples alone."""
    with autocast:
        outputs = objective.forward(model, batch)
        if objective.is_joint:  # its loss wants the whole batch, of all processes; what costs is the model
            loss = torch.stack([value.float().sum() for value in output_tensors(outputs).values()]).sum()
        else:
            loss = objective.losses(outputs, batch).sum()
    loss.backward()  # type: ignore[no-untyped-call]


class LiveMemory(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the bytes of all tensors that come and go on the CPU, those of autograd included.

    Storages are followed by weak references, as torch.distributed._tools.mem_tracker does. What a kernel takes and
    gives back inside is not seen.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.peak = 0
        """Most bytes at once, beside the model's weights and gradients."""
        self.now = 0
        """Bytes at present."""
        self._known = {value.untyped_storage()._cdata for value in _held(model)}  # noqa: SLF001 - its identity

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``function`` and note what it makes."""
        made = function(*args, **(kwargs or {}))
        tree_map_only(Tensor, self._note, made)
        return made

    def _note(self, tensor: Tensor) -> Tensor:
        if tensor.layout != torch.strided:  # rows of an embedding's gradient, which are noted as what they are made of
            return tensor
        storage = tensor.untyped_storage()
        identity, size = storage._cdata, storage.nbytes()  # noqa: SLF001 - its identity
        if identity not in self._known:
            self._known.add(identity)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._freed, identity, size)
        return tensor

    def _freed(self, identity: int, size: int) -> None:
        self._known.discard(identity)
        self.now -= size


def _held(model: nn.Module) -> Iterator[Tensor]:
    for parameter in model.parameters():
        yield parameter
        if parameter.grad is not None:
            yield parameter.grad
    yield from model.buffers()


class AsOnGpu(TorchFunctionMode):
    """Within: operations keep for the backward pass what they keep on a GPU under autocast.

    There norms and softmax compute in fp32 (https://docs.pytorch.org/docs/stable/amp.html), and attention with dropout
    has a kernel that keeps no matrix of all pairs of positions.
    """

    _IN_FP32 = frozenset(
        {nn.functional.layer_norm, nn.functional.group_norm, nn.functional.softmax, torch.softmax, Tensor.softmax}
    )

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Call ``function`` as a GPU has it."""
        kwargs = dict(kwargs or {})
        if function in self._IN_FP32 and torch.is_autocast_enabled("cpu"):
            args = tuple(map_tensors(_wide, value) for value in args)
        if function is nn.functional.scaled_dot_product_attention:
            kwargs["dropout_p"] = 0.0
            args = args[:4]
        return function(*args, **kwargs)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value
