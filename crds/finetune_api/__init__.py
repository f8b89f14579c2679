"""The API of finetune-operator: the only definition of FineTuneJob and FineTuneRuntime.

CRDs, the reference and the editors' schema are generated from these models (``make generate``).
"""

from finetune_api.base import API_VERSION, GROUP, VERSION
from finetune_api.errors import Fault, SpecError
from finetune_api.job import FineTuneJob, JobSpec, immutable_changes
from finetune_api.load import parse_job, parse_runtime, read_job, read_runtime
from finetune_api.outcomes import Cause, ExitCode, cause_of
from finetune_api.runtime import FineTuneRuntime
from finetune_api.status import JobStatus, Phase, ProgressReport, TerminationMessage

__all__ = [
    "API_VERSION",
    "GROUP",
    "VERSION",
    "Cause",
    "ExitCode",
    "Fault",
    "FineTuneJob",
    "FineTuneRuntime",
    "JobSpec",
    "JobStatus",
    "Phase",
    "ProgressReport",
    "SpecError",
    "TerminationMessage",
    "cause_of",
    "immutable_changes",
    "parse_job",
    "parse_runtime",
    "read_job",
    "read_runtime",
]
