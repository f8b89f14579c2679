"""``finetune estimate``: what a job takes of memory, measured by the trainer in a process of its own.

Invariant: nothing is trained and no run's folder is touched; prepared data goes into the cache, where the run finds it.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from finetune_api.errors import SpecError
from finetune_api.estimate import ESTIMATE_FILE, Activations, Estimate, Fit
from finetune_api.job import FineTuneJob
from finetune_api.load import read_job
from finetune_api.outcomes import ExitCode
from finetune_api.wiring import Variable
from finetune_cli.printing import say
from finetune_operator.quantity import parse_quantity

ESTIMATOR = (sys.executable, "-m", "finetune_trainer.estimate")


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    file: Path
    overrides: tuple[str, ...] = ()
    gpu_memory: str | None = None
    """A quantity, ``80Gi``."""
    output: str = "text"
    """``text`` or ``json``."""
    cache: Path | None = None
    volumes: Path | None = None


def estimate(options: Options) -> int:
    """Estimate the job and print what was found; returns the command's exit code."""
    if not options.file.exists():
        return _refuse(ExitCode.NOT_FOUND, [f"{options.file}: is not there"])
    try:
        room = int(parse_quantity(options.gpu_memory)) if options.gpu_memory is not None else None
        job = read_job(options.file, options.overrides)
    except SpecError as error:
        return _refuse(ExitCode.BAD_SPEC, [str(one) if one.path else f"{options.file}: {one}" for one in error.faults])
    except ValueError as error:
        return _refuse(2, [f"--gpu-memory: {error}"])
    with tempfile.TemporaryDirectory(prefix="finetune-estimate-") as folder:
        return _measure(job, options, room, Path(folder))


def _measure(job: FineTuneJob, options: Options, room: int | None, folder: Path) -> int:
    (folder / "job.json").write_text(json.dumps(job.model_copy(update={"status": None}).to_wire()))
    command = [*ESTIMATOR, *([str(room)] if room is not None else [])]
    done = subprocess.run(command, env=os.environ | _variables(options, folder), check=False, stdout=sys.stderr)
    if done.returncode:
        return done.returncode if done.returncode > 0 else ExitCode.KILLED
    text = (folder / ESTIMATE_FILE).read_text()
    found = Estimate.model_validate_json(text)
    say(json.dumps(found.to_wire(), indent=1) if options.output == "json" else "\n".join(lines_of(found)))
    return ExitCode.DONE


def _variables(options: Options, folder: Path) -> dict[str, str]:
    places = {Variable.JOB: folder / "job.json", Variable.RUN: folder, Variable.SCRATCH: folder}
    asked = {Variable.CACHE: options.cache, Variable.VOLUMES: options.volumes}
    given = {name: path.resolve() for name, path in asked.items() if path is not None}
    return {name.value: str(path) for name, path in (places | given).items()}


def lines_of(found: Estimate) -> list[str]:
    """The estimate for people, a line each."""
    share = 100 * found.parameters.trained / max(1, found.parameters.total)
    memory = found.memory
    held = f"weights {size(memory.weights)}, gradients {size(memory.gradients)}, optimizer {size(memory.optimizer)}"
    where = f"each of {found.processes} processes" if found.processes > 1 else "the process"
    lines = [
        f"parameters    {found.parameters.total:,}, of which {found.parameters.trained:,} are trained ({share:.3g} %)",
        f"held          {held}",
        f"activations   {_activations(found.activations)}, in {found.precision}",
        f"this job      {found.samples_per_pass:,} samples a pass at most: {size(found.peak)} at the peak of {where}",
    ]
    return [*lines, *_fit_lines(found.fit)] if found.fit is not None else lines


def _activations(one: Activations) -> str:
    length = f" of {one.tokens} tokens" if one.tokens is not None else ""
    return f"{size(one.per_sample)} for each sample{length}, {size(one.fixed)} beside"


def _fit_lines(fit: Fit) -> list[str]:
    gpu = size(fit.gpu_memory)
    if not fit.samples_per_pass:
        return [
            f"on {gpu:<11}nothing fits; try spec.strategy.lora, gradientCheckpointing, a shorter spec.data.maxLength"
        ]
    tokens = f", or tokensPerBatch {fit.tokens_per_batch:,}" if fit.tokens_per_batch is not None else ""
    return [
        f"on {gpu:<11}{fit.samples_per_pass:,} samples a pass: batchSize {fit.batch_size:,}{tokens} at most",
        f"{'':14}the job's own batch needs gradientAccumulation {fit.gradient_accumulation}",
    ]


def size(count: int) -> str:
    """Bytes as people read them: ``640 KiB``, ``12.4 MiB``, ``80 GiB``."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}" if count < 1000 * scale else f"{count / scale:,.0f} {unit}"
    return f"{count} B"


def _refuse(code: int, faults: Sequence[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    return code
