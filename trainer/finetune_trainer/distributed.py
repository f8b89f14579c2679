"""The processes of a run: joining them, agreeing on small numbers, wrapping the model so that gradients are shared.

Small numbers (counts, flags) are reduced over gloo on the CPU, also on GPU runs: not through the GPU's queue. A
step waits for that queue to read its loss and the norm of its gradient, and for nothing else.
"""

import contextlib
import datetime as dt
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.nn.modules.batchnorm import _BatchNorm

from finetune_api.job import JobSpec
from finetune_trainer.context import Context
from finetune_trainer.errors import PeerLostError, PlatformError
from finetune_trainer.tracking import make_trackers

T = TypeVar("T")

JOIN_TIMEOUT = dt.timedelta(minutes=30)
"""For the slowest worker to pull its image and to prepare data."""
_JOIN_POLL_SECONDS = 0.1


class Group:
    """All processes of the run."""

    def __init__(self, context: Context, *, has_gpu: bool, while_waiting: Callable[[], None] = lambda: None) -> None:
        """Join.

        Args:
            context: Which process this is, of how many.
            has_gpu: Each process drives one.
            while_waiting: Called ten times a second until all have come.

        Raises:
            PeerLostError: Not all have come in JOIN_TIMEOUT.
        """
        self.rank = context.rank
        self.size = context.world_size
        self._control: Any = None
        if self.size > 1:
            if has_gpu:
                torch.cuda.set_device(context.local_rank)
            _join("nccl" if has_gpu else "gloo", while_waiting)
            self._control = dist.new_group(backend="gloo", timeout=JOIN_TIMEOUT)

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sum of each number over all ranks. Exact for integers up to 2⁵³."""
        if self.size == 1:
            return list(numbers)
        tensor = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(tensor, group=self._control)
        return tensor.tolist()

    def add_up(self, tensor: torch.Tensor) -> None:
        """Make ``tensor``, on the CPU, its sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(tensor, group=self._control)

    def gather(self, value: T) -> list[T]:
        """Every rank's value (anything picklable, among our own processes), in the order of the ranks."""
        gathered: list[Any] = [value] * self.size
        if self.size > 1:
            dist.all_gather_object(gathered, value, group=self._control)
        return gathered

    def broadcast(self, value: T) -> T:
        """Rank 0's value (anything picklable, among our own processes), on every rank."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, group=self._control)
        return box[0]

    def wait(self) -> None:
        """Wait for every rank. Before leaving: a process that just exits looks like a lost peer."""
        if self.size > 1:
            dist.barrier(group=self._control)


def _join(backend: str, while_waiting: Callable[[], None]) -> None:
    """Meet the others, in a thread: torch hears no signal while it waits, and this wait may be long."""
    failures: list[Exception] = []

    def join() -> None:
        try:
            dist.init_process_group(backend, timeout=JOIN_TIMEOUT)
        except Exception as failure:  # noqa: BLE001 - raised below
            failures.append(failure)

    thread = threading.Thread(target=join, name="join", daemon=True)
    thread.start()
    while thread.is_alive():
        while_waiting()
        thread.join(_JOIN_POLL_SECONDS)
    if failures:
        master, size = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}", os.environ["WORLD_SIZE"]
        raise PeerLostError(
            f"the {size} processes of the run did not all meet at {master} within {JOIN_TIMEOUT}: "
            + str(failures[0]).strip().partition("\n")[0]
        ) from failures[0]


def make_accelerator(spec: JobSpec, context: Context) -> Accelerator:
    """Accelerate's view of this process: device, precision, loss scaling, trackers.

    Raises:
        PlatformError: The precision asked for is not to be had on this device.
    """
    has_gpu = torch.cuda.is_available()
    if spec.training.precision == "fp16" and not has_gpu:
        raise PlatformError("spec.training.precision: fp16 needs a GPU, and there is none; use bf16, fp32 or auto")
    if context.world_size == 1:
        os.environ.pop("LOCAL_RANK", None)  # or Accelerate makes a group of one, with a port that may be taken
    return Accelerator(
        cpu=not has_gpu,
        mixed_precision={"fp32": "no"}.get(precision := precision_of(spec), precision),
        log_with=make_trackers(context) or None,
        project_dir=str(context.run.trackers),
        step_scheduler_with_optimizer=False,
    )


def precision_of(spec: JobSpec) -> str:
    """fp32, bf16 or fp16: what is asked for, or for ``auto`` bf16 on a GPU that has it."""
    if spec.training.precision != "auto":
        return spec.training.precision
    return "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "fp32"


def is_sharded(spec: JobSpec, world_size: int) -> bool:
    """Whether each process holds only its part of weights and optimizer (FSDP2)."""
    return spec.distributed.strategy == "fsdp" and world_size > 1


def share_model(model: nn.Module, layers: Sequence[nn.Module], spec: JobSpec, accelerator: Accelerator) -> nn.Module:
    """The model whose backward pass averages gradients over all processes (DDP or FSDP2)."""
    model.to(accelerator.device)
    if accelerator.num_processes == 1:
        return model
    if is_sharded(spec, accelerator.num_processes):
        return _shard(model, layers, precision_of(spec), accelerator.device)
    return nn.parallel.DistributedDataParallel(
        model,
        device_ids=[accelerator.device.index] if accelerator.device.type == "cuda" else None,
        gradient_as_bucket_view=True,
        # Batch norm's statistics are rank 0's everywhere, as in its checkpoints; other buffers never change.
        forward_sync_buffers=any(isinstance(module, _BatchNorm) for module in model.modules()),
    )


def _shard(model: nn.Module, layers: Sequence[nn.Module], precision: str, device: torch.device) -> nn.Module:
    mesh = init_device_mesh(device.type, (dist.get_world_size(),))
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32) if dtype else MixedPrecisionPolicy()
    for layer in layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    return model


@contextlib.contextmanager
def gradient_sync(model: nn.Module, *, is_last: bool) -> Iterator[None]:
    """Within: backward sums gradients locally, and shares them only if this is the batch's last pass."""
    if isinstance(model, FSDPModule):
        model.set_requires_gradient_sync(is_last)
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
    else:
        yield
