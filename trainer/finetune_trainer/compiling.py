"""torch.compile, refused at the start where it would fail at the first step."""

import os
import shlex
import shutil

import torch
from torch import nn

from finetune_trainer.errors import PlatformError


def compile_model(model: nn.Module, device: torch.device) -> None:
    """Have the model compiled when it is first called, for any length of its batches.

    torch writes C++ for a CPU; for a GPU Triton builds a launcher in C. Both take what CXX and CC name, else GCC
    (Triton Clang as well).

    Raises:
        PlatformError: there is no such compiler.
    """
    variable, usual = ("CXX", ("g++",)) if device.type == "cpu" else ("CC", ("gcc", "clang"))
    named = os.environ.get(variable)
    wanted = shlex.split(named)[:1] if named else usual
    if not any(map(shutil.which, wanted)):
        raise PlatformError(
            f"spec.training.compile: compiling for {device.type} needs {' or '.join(wanted)}, which this image has "
            f"not; take an image that has it, name another in {variable}, or leave spec.training.compile out"
        )
    model.compile(dynamic=True)
