"""What is said of an experiment whose fields do not parse: its faults; nothing else is touched (see ``invalid``)."""

import json
from datetime import datetime

from pydantic import ValidationError

from finetune_api.errors import Fault
from finetune_api.experiment import ExperimentPhase, ExperimentReason, ExperimentStatus, FineTuneExperiment
from finetune_api.load import parse_experiment_fields
from finetune_operator.experiments.standing import Standing, with_standing


def parse_stored_experiment(document: bytes) -> FineTuneExperiment:
    """The experiment, each of its fields checked on its own.

    Raises:
        SpecError: One is not valid.
    """
    try:
        return FineTuneExperiment.model_validate_json(document)
    except ValidationError:
        return parse_experiment_fields(json.loads(document))


def invalid_status(
    document: bytes, faults: tuple[Fault, ...], now: datetime
) -> tuple[ExperimentStatus, ExperimentStatus]:
    """The status as stored (a new one if it is what does not parse), and the one that tells the faults."""
    stored = json.loads(document)
    before = _status_of(stored)
    standing = Standing(ExperimentPhase.PENDING, ExperimentReason.INVALID, "; ".join(str(fault) for fault in faults))
    return before, with_standing(before, standing, now, int(stored["metadata"].get("generation") or 0))


def _status_of(stored: dict[str, object]) -> ExperimentStatus:
    try:
        return ExperimentStatus.model_validate_json(json.dumps(stored.get("status") or {}))
    except ValidationError:
        return ExperimentStatus()
