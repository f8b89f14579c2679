"""The training state between memory and checkpoint: copied while the next forward pass runs, written behind it.

Weights and optimizer change in one place only, the optimizer step. So a save starts a copy in a thread, training goes
on with the next forward and backward pass, and ``before_update`` (called right before the optimizer step) waits for
what is left of the copy. Buffers that a forward pass changes (batch norm's statistics) are copied at once.

Invariant: the bytes of a checkpoint are those of one moment, the call of ``save``. Host memory: one copy of the state.
"""

import contextlib
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from finetune_trainer import checkpoint
from finetune_trainer.checkpoint import Rows, Saved
from finetune_trainer.errors import PlatformError

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def state_tensors(model: nn.Module, optimizer: torch.optim.Optimizer, *, whole: bool) -> dict[str, Tensor]:
    """Everything that training changes, by name: ``model/<parameter or buffer>``, ``optimizer/<slot>/<parameter>``.

    Args:
        model: Unwrapped model.
        optimizer: Its optimizer.
        whole: Frozen parameters too (a model that was made at random cannot be loaded again).
    """
    reshard(model)
    parameters = dict(model.named_parameters())
    tensors: dict[str, Tensor] = {
        f"model/{name}": value for name, value in parameters.items() if whole or value.requires_grad
    }
    persistent = _persistent(model)
    tensors |= {f"model/{name}": value for name, value in model.named_buffers() if name in persistent}
    for name, parameter in parameters.items():
        slots = optimizer.state.get(parameter, {})
        tensors |= {f"optimizer/{slot}/{name}": value for slot, value in slots.items()}
    return tensors


def reshard(model: nn.Module) -> None:
    """Free what FSDP2 has gathered: after a forward pass alone the outermost weights are still whole, not shards."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def _persistent(model: nn.Module) -> set[str]:
    return set(model.state_dict(keep_vars=True)) - {name for name, _ in model.named_parameters(remove_duplicate=False)}


def load_tensors(saved: Saved, model: nn.Module, optimizer: torch.optim.Optimizer | None) -> None:
    """Copy a verified checkpoint into ``model`` and, if given, ``optimizer``, whatever number of processes wrote it."""
    reshard(model)
    with contextlib.ExitStack() as stack:
        reader = _Reader(saved, stack)
        targets = dict(model.named_parameters()) | dict(model.named_buffers())
        with torch.no_grad():
            for key in saved.tensors:
                kind, _, name = key.partition("/")
                if kind == "model":
                    reader.copy_into(key, targets[name])
            if optimizer is not None:
                _load_optimizer(reader, model, optimizer)


def _load_optimizer(reader: "_Reader", model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    parameters = dict(model.named_parameters())
    for key, tensor in reader.saved.tensors.items():
        kind, _, rest = key.partition("/")
        if kind != "optimizer":
            continue
        slot, _, name = rest.partition("/")
        like = parameters[name]
        value = torch.zeros_like(like) if tensor["shape"] else torch.zeros((), device=like.device)
        reader.copy_into(key, value)
        optimizer.state[like][slot] = value


class _Reader:
    """Rows of a checkpoint's tensors, whichever files they lie in."""

    def __init__(self, saved: Saved, stack: contextlib.ExitStack) -> None:
        self.saved = saved
        self._stack = stack
        self._files: dict[str, Any] = {}

    def copy_into(self, key: str, target: Tensor) -> None:
        """Copy the rows that ``target`` (or this process's part of it) holds."""
        entry = self.saved.tensors[key]
        if not entry["shape"]:
            target.copy_(self._open(entry["parts"][0][0]).get_tensor(key))
            return
        local, offset = local_rows(target)
        for file, start, rows in entry["parts"]:
            low, high = max(start, offset), min(start + rows, offset + len(local))
            if low < high:
                part = self._open(file).get_slice(key)[low - start : high - start]
                local[low - offset : high - offset].copy_(part)

    def _open(self, name: str) -> Any:
        if name not in self._files:
            self._files[name] = self._stack.enter_context(safe_open(self.saved.folder / name, framework="pt"))
        return self._files[name]


def local_rows(tensor: Tensor) -> tuple[Tensor, int]:
    """This process's rows of ``tensor`` and the index of the first: all of it, or FSDP2's share (``torch.chunk``'s)."""
    if not isinstance(tensor, DTensor):
        return tensor.detach(), 0
    size = -(-tensor.shape[0] // tensor.device_mesh.size())
    return tensor.to_local().detach(), min(size * tensor.device_mesh.get_local_rank(), tensor.shape[0])


@dataclass(frozen=True)
class Writing:
    """A checkpoint on its way."""

    copied: threading.Event
    thread: threading.Thread


class Checkpointer:
    """Saves the state in the background; one checkpoint is under way at a time.

    Args:
        folder: Folder of the run's checkpoints.
        rank: This process.
        world_size: Number of processes.
        is_sharded: Every process holds a part (FSDP), so that every process writes; else rank 0 writes all.
        keep_last: Newest checkpoints to keep.
        before_publish: Called (in the writing thread of rank 0) before a checkpoint gets its name: what it speaks of
            must be on the disk first.
        on_saved: Called (in the writing thread of rank 0) with step and folder when a checkpoint is complete.
    """

    def __init__(
        self,
        folder: Path,
        *,
        rank: int,
        world_size: int,
        is_sharded: bool,
        keep_last: int,
        before_publish: Callable[[], None],
        on_saved: Callable[[int, Path], None],
    ) -> None:
        self._folder = folder
        self._rank = rank
        self._writers = world_size if is_sharded else 1
        self._keep_last = keep_last
        self._before_publish = before_publish
        self._on_saved = on_saved
        self._buffers: dict[str, Tensor] = {}
        self._writing: Writing | None = None
        self._failure: BaseException | None = None

    def save(self, state: Mapping[str, Any], tensors: Mapping[str, Tensor], *, best_step: int | None) -> None:
        """Start a checkpoint of ``tensors`` as they are now; ``state["step"]`` names it. Waits for one under way."""
        self.wait()
        if self._rank >= self._writers:
            return
        parts = {name: local_rows(tensor) for name, tensor in tensors.items()}
        parts = {name: part for name, part in parts.items() if part[0].numel()}
        buffers = {name for name, tensor in tensors.items() if _is_buffer(name, tensor)}
        copy = _Copy(parts, self._buffers, at_once=buffers)
        copied = threading.Event()
        work = _Work(self, dict(state), {name: tuple(tensors[name].shape) for name in parts}, copy, copied, best_step)
        thread = threading.Thread(target=work.run, name=f"checkpoint-{state['step']}", daemon=True)
        self._writing = Writing(copied, thread)
        thread.start()

    def before_update(self) -> None:
        """Wait until the state may change. Call right before the optimizer step."""
        if self._writing is not None:
            self._writing.copied.wait()
        self._raise_failure()

    def wait(self) -> None:
        """Wait until the checkpoint under way is complete.

        Raises:
            PlatformError: The volume did not take it.
        """
        if self._writing is not None:
            self._writing.thread.join()
            self._writing = None
        self._raise_failure()

    def _raise_failure(self) -> None:
        failure, self._failure = self._failure, None
        if isinstance(failure, OSError):
            raise _explain(failure, self._folder) from failure
        if failure is not None:
            raise failure

    def write(self, state: Mapping[str, Any], tensors: Mapping[str, Rows], best_step: int | None) -> None:
        """Write, publish and prune; runs in the writing thread."""
        step = state["step"]
        try:
            checkpoint.write_shard(self._folder, step, self._rank, tensors)
            if self._rank == 0:
                self._before_publish()
                path = checkpoint.publish(self._folder, step, world_size=self._writers, state=state)
                self._on_saved(step, path)
                checkpoint.prune(self._folder, keep_last=self._keep_last, best_step=best_step)
        except Exception as error:  # noqa: BLE001 - raised again by the training loop
            checkpoint.discard(self._folder, step)
            self.failed(error)

    def failed(self, failure: BaseException) -> None:
        """Remember a failure of the writing thread; the training loop raises it."""
        self._failure = failure


def _explain(failure: BaseException, folder: Path) -> PlatformError:
    kept = checkpoint.steps_in(folder)
    intact = f"the checkpoint of step {kept[0]} is intact" if kept else "there is no earlier checkpoint"
    return PlatformError(
        f"spec.checkpoint.volume: a checkpoint could not be written to {folder}: {failure}; {intact}."
        " Make room (a larger volume, a smaller spec.checkpoint.keepLast) and start the job again: it resumes"
    )


class _Copy:
    """Copies tensors into host buffers, kept from save to save (fresh memory costs a page fault every 4 KiB)."""

    def __init__(
        self, parts: Mapping[str, tuple[Tensor, int]], buffers: dict[str, Tensor], *, at_once: set[str]
    ) -> None:
        self.parts = parts
        self.buffers = buffers
        now, later = parts.keys() & at_once, parts.keys() - at_once
        self._later = [name for name in later if not parts[name][0].is_cuda]
        self._copy_on_cpu([name for name in now if not parts[name][0].is_cuda])
        self._event: torch.cuda.Event | None = None
        if any(part.is_cuda for part, _ in parts.values()):
            # What the next pass changes is copied before it, in the queue that computes; the rest beside it.
            self._copy_from_gpu(now)
            self._event = self._copy_on_stream(later)

    def finish(self) -> None:
        """Copy what is on the CPU (by numpy: one thread, without the interpreter's lock); wait for what is on a GPU."""
        self._copy_on_cpu(self._later)
        if self._event is not None:
            self._event.synchronize()

    def _copy_on_cpu(self, names: list[str]) -> None:
        for name in names:
            part, _ = self.parts[name]
            np.copyto(_bytes(self._buffer(name, part)), _bytes(part))

    def _copy_on_stream(self, names: Collection[str]) -> torch.cuda.Event:
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._copy_from_gpu(names)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(stream)
        return event

    def _copy_from_gpu(self, names: Collection[str]) -> None:
        for name in names:
            part, _ = self.parts[name]
            if part.is_cuda:
                self._buffer(name, part).copy_(part, non_blocking=True)

    def _buffer(self, name: str, part: Tensor) -> Tensor:
        if name not in self.buffers:
            self.buffers[name] = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
        return self.buffers[name]


@dataclass(frozen=True)
class _Work:
    """What the writing thread does."""

    owner: Checkpointer
    state: Mapping[str, Any]
    shapes: Mapping[str, tuple[int, ...]]
    copy: _Copy
    copied: threading.Event
    best_step: int | None

    def run(self) -> None:
        try:
            self.copy.finish()
        except BaseException as failure:  # noqa: BLE001 - raised again by the training loop
            self.owner.failed(failure)
            return
        finally:
            self.copied.set()
        self.owner.write(self.state, dict(self._rows()), self.best_step)

    def _rows(self) -> Iterator[tuple[str, Rows]]:
        for name, (part, offset) in self.copy.parts.items():
            host = self.copy.buffers[name]
            rows = len(part) if part.dim() else 1
            yield name, Rows(_bytes(host), _DTYPES[part.dtype], self.shapes[name], offset, rows)


def _is_buffer(name: str, tensor: Tensor) -> bool:
    return name.startswith("model/") and not isinstance(tensor, nn.Parameter)


def _bytes(tensor: Tensor) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    """The memory of a contiguous CPU tensor as bytes (n,), without a copy."""
    return tensor.contiguous().reshape(-1).view(torch.uint8).numpy()
