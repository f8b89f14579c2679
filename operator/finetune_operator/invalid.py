"""What is said of a job that does not parse: its faults, and nothing else is touched.

The API server refuses such jobs by the same rules; one can be stored all the same, by an older or a newer CRD, or where
a rule cannot be told in a schema.
"""

import json
from datetime import datetime

from pydantic import ValidationError

from finetune_api.errors import Fault
from finetune_api.job import FineTuneJob
from finetune_api.load import parse_job
from finetune_api.status import JobStatus, Phase, Reason
from finetune_operator.actions import Event, Plan
from finetune_operator.conditions import Situation, with_situation


def parse_stored(document: bytes) -> FineTuneJob:
    """The job.

    Raises:
        SpecError: It is not valid.
    """
    try:
        return FineTuneJob.model_validate_json(document)
    except ValidationError:
        return parse_job(json.loads(document))


def plan_invalid(document: bytes, faults: tuple[Fault, ...], now: datetime) -> Plan:
    """Tell the faults, once."""
    stored = json.loads(document)
    before = _status_of(stored)
    situation = Situation(Phase.PENDING, Reason.INVALID, "; ".join(str(fault) for fault in faults))
    after = with_situation(before, situation, now, int(stored["metadata"].get("generation") or 0))
    if after == before:
        return Plan()
    return Plan(status=after, events=(Event("Warning", Reason.INVALID, situation.message),))


def _status_of(stored: dict[str, object]) -> JobStatus:
    """The status as stored; that of a new job if it is what does not parse."""
    try:
        return JobStatus.model_validate_json(json.dumps(stored.get("status") or {}))
    except ValidationError:
        return JobStatus()
