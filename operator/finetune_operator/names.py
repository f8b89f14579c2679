"""Names and labels of what a job owns.

Invariant: a name is a function of the job's name and the attempt's number, so that a repeated write hits the same.
"""

from finetune_api.base import GROUP

LABEL_JOB = f"{GROUP}/job"
"""Name of the job that an object belongs to."""
LABEL_ATTEMPT = f"{GROUP}/attempt"
"""Number of the attempt that an object belongs to."""


def attempt_name(job: str, number: int) -> str:
    """Name of everything that runs attempt ``number``; a pod's name adds ``-<worker>-<5 letters>`` to it.

    A job's name has 52 characters at most, so this stays a DNS label up to attempt 9,999,999,999.
    """
    return f"{job}-{number}"
