"""TensorBoard, Weights & Biases and MLflow, as Accelerate's trackers; a resumed run goes on in the same one."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.tracking import GeneralTracker, TensorBoardTracker, WandBTracker

from finetune_trainer.context import Context
from finetune_trainer.mlflow_tracker import MlflowTracker, Server

LAST_WORDS_SECONDS = 3.0
"""For trackers to write what they hold when a run fails; its launcher waits five before it kills."""


@contextmanager
def last_words(accelerator: Accelerator) -> Iterator[None]:
    """Within: an error does not cost the trackers what they have not written yet."""
    try:
        yield
    except BaseException:
        thread = threading.Thread(target=_finish, args=(accelerator,), name="trackers", daemon=True)
        thread.start()
        thread.join(LAST_WORDS_SECONDS)
        raise


def _finish(accelerator: Accelerator) -> None:
    for tracker in accelerator.trackers:
        tracker.fail() if isinstance(tracker, MlflowTracker) else tracker.finish()


def make_trackers(context: Context) -> list[GeneralTracker]:
    """The trackers that the spec asks for, not yet started.

    Made here, for Accelerate would give all of them one name: TensorBoard's folder would be called as the W&B project.
    """
    name, asked, folder = context.job.metadata.name, context.job.spec.tracking, str(context.run.trackers)
    trackers: list[GeneralTracker] = [TensorBoardTracker(name, folder)] if asked.tensorboard else []
    if asked.wandb is not None:
        identity = {"name": name, "entity": asked.wandb.entity, "id": _run_id(context), "resume": "allow"}
        trackers.append(WandBTracker(asked.wandb.project, **identity, mode=asked.wandb.mode, dir=folder))
    if asked.mlflow is not None:
        server, experiment = Server(asked.mlflow.tracking_uri), asked.mlflow.experiment or name
        remembered, parameters = context.run.trackers / "mlflow.json", context.job.spec.to_wire()
        trackers.append(MlflowTracker(server, experiment, name, remembered=remembered, parameters=parameters))
    return trackers


def start_trackers(accelerator: Accelerator, context: Context) -> dict[str, str]:
    """Start the trackers that ``accelerator`` was made with, on rank 0; returns the links of those that have one.

    Raises:
        PlatformError: MLflow's server cannot be reached.
        Denied: It refuses access.
    """
    if not accelerator.log_with:
        return {}
    if context.is_main:
        context.run.trackers.mkdir(parents=True, exist_ok=True)
    accelerator.init_trackers(context.job.metadata.name)
    links = {tracker.name: _link(tracker) for tracker in accelerator.trackers} if context.is_main else {}
    return {name: link for name, link in links.items() if link}


def _link(tracker: GeneralTracker) -> str | None:
    """The page of the run; None for a tracker that has none (TensorBoard, W&B offline)."""
    if isinstance(tracker, MlflowTracker):
        return tracker.url
    return getattr(tracker.tracker, "url", None) if isinstance(tracker, WandBTracker) else None


def _run_id(context: Context) -> str:
    """The same over attempts, different between jobs: namespace and name."""
    return f"{context.job.metadata.namespace}-{context.job.metadata.name}"
