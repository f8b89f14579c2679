"""``python -m finetune_trainer.estimate``: what a job takes of memory, and the largest batch that fits a device.

Reads the job, its data and its model as a run does, measures two small passes, and leaves ESTIMATE_FILE in the scratch
folder for ``finetune estimate``. Trains nothing.
"""

import contextlib
import json
import logging
import os
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn

from finetune_api.estimate import ESTIMATE_FILE, Activations, Estimate, Fit, Memory, Parameters
from finetune_api.job import JobSpec
from finetune_trainer.adapters import adaptable, layer_lists
from finetune_trainer.context import read_context
from finetune_trainer.data.dataset import Part
from finetune_trainer.data.order import Indices
from finetune_trainer.data.prepare import TRAIN
from finetune_trainer.distributed import Group, is_sharded
from finetune_trainer.first_token import compute_what_is_read
from finetune_trainer.kernels import make_fast, use_one_gelu
from finetune_trainer.memory import AsOnGpu, HeldMemory, LiveMemory, PassMemory, held_memory, measure_passes, run_pass
from finetune_trainer.quantized import bits_of, without_bits
from finetune_trainer.strategies import set_training
from finetune_trainer.task import Objective

if TYPE_CHECKING:
    from finetune_trainer.run import Process

GPU_RESERVE = 1 << 30
"""Bytes of a GPU that its driver and libraries take (CUDA's context, cuBLAS' and NCCL's buffers)."""
USABLE = 0.92
"""Share of the rest that tensors can take: the allocator's blocks never fit exactly."""
_BYTES_PER_WEIGHT = {4: 0.5 + 4 / 64, 8: 1.0}
"""NF4 has a scale of 4 bytes for every 64 weights."""


@dataclass(frozen=True)
class Subject:
    """What an estimate is of."""

    spec: JobSpec
    model: nn.Module
    """As training has it, on the CPU."""
    objective: Objective
    part: Part
    """The training set."""
    beside: int = 0
    """Bytes that the objective holds: a teacher."""


def estimate(subject: Subject, *, gpu_memory: int | None, has_gpu: bool = False) -> Estimate:
    """The estimate of a job, for each of its processes.

    Args:
        subject: The job.
        gpu_memory: Bytes of a GPU to fit into; None for a run on the CPU.
        has_gpu: The run will have one, though nobody says how large.
    """
    spec, model = subject.spec, subject.model
    on_gpu = has_gpu or gpu_memory is not None
    precision = precision_on(spec, on_gpu=on_gpu)
    held = shared_out(held_memory(model, subject.beside), spec, model)
    passes = measure(subject, precision, on_gpu=on_gpu)
    longest = longest_tokens(subject.part)
    trained = sum(value.numel() for value in model.parameters() if value.requires_grad)
    samples = samples_per_pass(spec, longest)
    return Estimate(
        parameters=Parameters(total=sum(value.numel() for value in model.parameters()), trained=trained),
        processes=spec.distributed.world_size,
        precision=precision,
        memory=Memory(weights=held.weights, gradients=held.gradients, optimizer=held.optimizer),
        activations=Activations(per_sample=passes.per_sample, fixed=passes.fixed, tokens=longest),
        samples_per_pass=samples,
        peak=held.total + passes.at(samples),
        fit=fit(spec, held, passes, longest, gpu_memory) if gpu_memory is not None else None,
    )


def measure(subject: Subject, precision: str, *, on_gpu: bool) -> PassMemory:
    """The memory of passes of the longest samples, measured on the CPU."""
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=precision != "fp32")
    if on_gpu:
        compute_what_is_read(subject.model)
        use_one_gelu(subject.model)
    else:
        make_fast(subject.model, torch.device("cpu"))
    set_training(subject.model)

    def run(samples: int) -> None:
        batch = subject.part.batch(0, longest_samples(subject.part, samples), is_counted=True)
        with AsOnGpu() if on_gpu else contextlib.nullcontext():
            run_pass(subject.model, subject.objective, batch, autocast)

    return measure_passes(subject.model, run)


def precision_on(spec: JobSpec, *, on_gpu: bool) -> str:
    """The arithmetic that the spec has on a GPU or on a CPU: fp32, bf16 or fp16."""
    asked = spec.training.precision
    return asked if asked != "auto" else "bf16" if on_gpu else "fp32"


def shared_out(held: HeldMemory, spec: JobSpec, model: nn.Module) -> HeldMemory:
    """What one process holds: its shard of all under FSDP; a frozen base in fewer bits if asked for."""
    bits = bits_of(spec)
    if bits is not None:
        saved = quantized_parameters(model) * (4 - _BYTES_PER_WEIGHT[bits])
        held = HeldMemory(held.weights - int(saved), held.gradients, held.optimizer)
    if not is_sharded(spec, spec.distributed.world_size):
        return held
    world = spec.distributed.world_size
    return HeldMemory(-(-held.weights // world), -(-held.gradients // world), -(-held.optimizer // world))


def quantized_parameters(model: nn.Module) -> int:
    """Weights of the frozen linear layers, which bitsandbytes holds in few bits."""
    modules = dict(model.named_modules())
    lists = layer_lists(model)
    frozen = [modules[name].weight for name in adaptable(model) if any(name.startswith(f"{path}.") for path in lists)]
    return sum(weight.numel() for weight in frozen if weight.dim() == 2 and not weight.requires_grad)  # noqa: PLR2004


def longest_tokens(part: Part) -> int | None:
    """Tokens of the longest sample, padded; None for images."""
    return None if part.padded_lengths is None else int(part.padded_lengths.max())


def longest_samples(part: Part, count: int) -> Indices:
    """The ``count`` longest samples (count,), some of them more than once if the part has fewer."""
    lengths = part.padded_lengths
    order = np.arange(len(part)) if lengths is None else np.argsort(-lengths, kind="stable")
    return np.resize(order[:count], count)


def samples_per_pass(spec: JobSpec, longest: int | None) -> int:
    """Samples that one process computes at once in the largest pass of a run on a GPU."""
    parts = spec.training.gradient_accumulation * spec.distributed.world_size
    tokens = spec.training.tokens_per_batch
    whole = spec.training.samples_per_batch or max(1, (tokens or 1) // (longest or 1))
    return max(1, -(-whole // parts))


def fit(spec: JobSpec, held: HeldMemory, passes: PassMemory, longest: int | None, gpu_memory: int) -> Fit:
    """The largest batch that GPUs of ``gpu_memory`` bytes take in one pass, and how to cut the spec's own."""
    room = int((gpu_memory - GPU_RESERVE) * USABLE) - held.total
    most = passes.most(room)
    world = spec.distributed.world_size
    whole = samples_per_pass(spec, longest) * spec.training.gradient_accumulation
    return Fit(
        gpu_memory=gpu_memory,
        samples_per_pass=most,
        batch_size=most * world,
        tokens_per_batch=most * longest * world if longest else None,
        gradient_accumulation=-(-whole // most) if most else None,
    )


def subject_of(process: "Process") -> Subject:
    """The job of a process, read as a run reads it."""
    from finetune_trainer.run import build_model, objective_of, prepare

    context = process.context
    material = prepare(process)
    model, _ = build_model(without_bits(context.job.spec), material)
    with LiveMemory(model) as memory:
        objective = objective_of(process, material, Group(context, has_gpu=False), torch.device("cpu"))
    return Subject(context.job.spec, model, objective, material.parts[TRAIN], memory.now)


def main(arguments: list[str]) -> int:
    """Estimate the job that the environment names; returns the exit code."""
    from finetune_trainer.__main__ import explain
    from finetune_trainer.heartbeat import Heartbeat
    from finetune_trainer.progress import Reporter
    from finetune_trainer.run import Process
    from finetune_trainer.signals import StopRequest

    logging.basicConfig(level=logging.WARNING)
    os.environ |= {"TRANSFORMERS_VERBOSITY": "error", "HF_HUB_DISABLE_PROGRESS_BARS": "1"} | os.environ
    gpu_memory = int(arguments[0]) if arguments else None
    try:
        context = read_context()
        process = Process(context, Reporter(context.job.spec, context.attempt), Heartbeat(None), StopRequest())
        found = estimate(
            subject_of(process), gpu_memory=gpu_memory, has_gpu=bool(context.job.spec.distributed.resources.gpus)
        )
    except Exception as error:  # noqa: BLE001 - the edge: an error becomes a sentence and a code
        told = explain(error)
        print(told.message, file=sys.stderr)
        return told.exit_code
    (context.scratch / ESTIMATE_FILE).write_text(json.dumps(found.to_wire()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
