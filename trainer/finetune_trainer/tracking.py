"""TensorBoard and Weights & Biases, through Accelerate's trackers; a resumed run goes on in the same one."""

import os

from accelerate import Accelerator

from finetune_trainer.context import Context


def start_trackers(accelerator: Accelerator, context: Context) -> None:
    """Start the trackers that the spec asks for, on rank 0."""
    if not accelerator.log_with:
        return
    name, spec = context.job.metadata.name, context.job.spec
    folder = context.run.trackers
    if context.is_main:
        folder.mkdir(parents=True, exist_ok=True)
    options = {}
    project = name
    if spec.tracking.wandb is not None:
        wandb = spec.tracking.wandb
        os.environ["WANDB_MODE"] = wandb.mode
        project = wandb.project
        identity = {"name": name, "entity": wandb.entity, "id": _run_id(context), "resume": "allow"}
        options["wandb"] = {**identity, "dir": str(folder)}
    accelerator.init_trackers(project, config=None, init_kwargs=options)


def _run_id(context: Context) -> str:
    """The same over attempts, different between jobs: namespace and name."""
    return f"{context.job.metadata.namespace}-{context.job.metadata.name}"
