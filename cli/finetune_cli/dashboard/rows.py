"""What the list shows of an object: a small map of JSON types, the same for a cluster and for local runs."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from finetune_api.experiment import ExperimentStatus
from finetune_api.experiment_checks import LABEL_EXPERIMENT
from finetune_api.status import ConditionType, JobStatus, Phase
from finetune_cli import words
from finetune_cli.cluster.experiments import KnownExperiment
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.cluster.screen import UNSEEN, headline, printable
from finetune_cli.dashboard.board import Document
from finetune_operator.conditions import holds
from finetune_operator.experiments.standing import answer

JOB, EXPERIMENT = "FineTuneJob", "FineTuneExperiment"
_MESSAGE_CHARACTERS = 300
"""Of a message in the list; the object's own page has all of it."""
_STALLED = "stalled, nothing has progressed within spec.recovery.stallTimeoutSeconds; "

_BARE: Document = {"experiment": None, "best": "", "restarts": 0, "percent": None, "told": ""}
"""What is not known of every object."""


def job_row(known: KnownJob, experiment: Document | None = None) -> Document:
    """A job in the list; ``experiment`` is that which it is a trial of (see ``experiment_of``)."""
    status = known.status
    return {
        **_identity(JOB, known),
        "phase": status.phase.value,
        "tone": headline(known)[1],
        "message": _shortened(_message(known)),
        "experiment": experiment,
        "best": f"{printable(status.best.metric)} {words.number(status.best.value)}" if status.best else "",
        "restarts": sum(status.restarts.values()),
        "percent": status.progress.percent if status.progress else None,
        "told": _told(status),
    }


def loss_of(status: JobStatus) -> tuple[int, float] | None:
    """The step, and the training loss there."""
    loss = status.metrics.get("trainLoss")
    return (status.progress.step, loss) if status.progress and loss is not None else None


def experiment_row(known: KnownExperiment) -> Document:
    """An experiment in the list."""
    status, counted = known.status, known.status.trials
    ended = counted.succeeded + counted.pruned + counted.failed
    return {
        **_BARE,
        **_identity(EXPERIMENT, known),
        "phase": status.phase.value,
        "tone": {"Succeeded": "good", "Running": "good", "Failed": "bad"}.get(status.phase.value, "plain"),
        "message": _shortened(experiment_message(status)),
        "best": f"{printable(status.best.variant)} {words.number(status.best.value)}" if status.best else "",
        "percent": 100 * ended / counted.total if counted.total else None,
        "told": f"{ended} of {counted.total} trials" if counted.total else "",
    }


def unknown_row(kind: str, metadata: Mapping[str, Any], message: str) -> Document:
    """An object whose status is of another version."""
    return {
        **_BARE,
        "kind": kind,
        "namespace": metadata["namespace"],
        "name": metadata["name"],
        "uid": metadata["uid"],
        "version": metadata["resourceVersion"],
        "created": metadata.get("creationTimestamp"),
        "phase": "Unknown",
        "tone": "bad",
        "message": _shortened(message),
    }


def experiment_message(status: ExperimentStatus) -> str:
    """Where an experiment stands, in a sentence."""
    return answer(status) if status.conditions else UNSEEN


def experiment_of(metadata: Mapping[str, Any]) -> Document | None:
    """Namespace and name of the experiment that a job of a cluster is a trial of."""
    name = (metadata.get("labels") or {}).get(LABEL_EXPERIMENT)
    return {"namespace": metadata["namespace"], "name": name} if name else None


def wire_time(time: datetime | None) -> str | None:
    """As JavaScript reads it."""
    return time.isoformat() if time else None


def _identity(kind: str, known: KnownJob | KnownExperiment) -> Document:
    return {
        "kind": kind,
        "namespace": known.namespace,
        "name": known.name,
        "uid": known.uid,
        "version": known.version,
        "created": wire_time(known.created),
    }


def _told(status: JobStatus) -> str:
    """Time left of what runs, else how many steps were trained."""
    progress = status.progress
    if progress is None:
        return ""
    if status.phase is Phase.RUNNING and progress.eta_seconds is not None:
        return f"{words.duration(progress.eta_seconds)} left"
    return f"step {progress.step}"


def _message(known: KnownJob) -> str:
    if known.deciding is None:
        return UNSEEN
    stalled = known.status.phase is not Phase.FAILED and holds(known.status, ConditionType.STALLED)
    return f"{_STALLED if stalled else ''}{known.deciding.message}"


def _shortened(text: str) -> str:
    text = printable(text)
    return text if len(text) <= _MESSAGE_CHARACTERS else f"{text[: _MESSAGE_CHARACTERS - 1]}…"
