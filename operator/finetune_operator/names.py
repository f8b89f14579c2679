"""Names, labels and the like of what a job owns: what builders write and observers look for.

Invariant: a name is a function of the job's name and the attempt's number, so that a repeated write hits the same.
"""

from zlib import crc32

from finetune_api.base import GROUP

MANAGER = "finetune-operator"
LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
"""On everything that the operator makes; its value is MANAGER, so one selector watches all of it."""
LABEL_COMPONENT = "app.kubernetes.io/component"
"""On pods; its value is WORKER, by which the Service finds them."""
WORKER = "worker"
LABEL_JOB = f"{GROUP}/job"
"""Name of the job that an object belongs to."""
LABEL_ATTEMPT = f"{GROUP}/attempt"
"""Number of the attempt that an object belongs to."""
LABEL_UID = f"{GROUP}/job-uid"
"""On attempts and their pods: uid of the job, which tells them from what a deleted namesake has left behind."""
ANNOTATION_SPEC = f"{GROUP}/spec"
"""On pods: the job as the trainer reads it (see trainer_spec)."""

LABEL_QUEUE = "kueue.x-k8s.io/queue-name"
"""Kueue's: the LocalQueue that admits a Job (https://kueue.sigs.k8s.io/docs/tasks/run/jobs/)."""
ANNOTATION_INDEX = "batch.kubernetes.io/job-completion-index"
"""Kubernetes' own: the index of a pod in its Indexed Job."""
LABEL_INDEX = ANNOTATION_INDEX
"""Likewise, on pods, from 1.28 on."""

TRAINER_CONTAINER = "trainer"
PROGRESS_PORT = 8080
"""Where worker 0 serves /progress and /metrics."""
PROGRESS_PORT_NAME = "progress"
RENDEZVOUS_PORT = 29400
"""Where worker 0 listens for the others."""
SERVICES = 32
"""Headless Services of a namespace, at most, which share its jobs (see ``build.service``)."""


def attempt_name(job: str, number: int) -> str:
    """Name of everything that runs attempt ``number``; a pod's host name adds ``-<worker>`` to it.

    A job's name has 52 characters at most and a worker's index 4 digits, so a host name stays a DNS label up to attempt
    99,999.
    """
    return f"{job}-{number}"


def first_worker_address(job: str, number: int, namespace: str) -> str:
    """DNS name of worker 0, through the job's Service; known as soon as its pod has an address."""
    return f"{attempt_name(job, number)}-0.{service_name(job)}.{namespace}.svc"


def service_name(job: str) -> str:
    """Name of the headless Service that gives the job's first worker its DNS name."""
    return f"finetune-workers-{crc32(job.encode()) % SERVICES}"


def service_label(service: str) -> str:
    """Key of the label by which a Service finds its pods (see ``build.service``)."""
    return f"address.{GROUP}/{service}"


def network_policy_name(job: str) -> str:
    """Name of the job's NetworkPolicy."""
    return job


def volume_claim_name(job: str) -> str:
    """Name of the claim that is made for a job; it is not the job's own name, which may be that of a user's claim."""
    return f"{job}-checkpoints"


def managed_labels() -> dict[str, str]:
    """Labels of everything that the operator makes."""
    return {LABEL_MANAGED_BY: MANAGER}


def job_labels(job: str) -> dict[str, str]:
    """Labels of everything that belongs to a job."""
    return {**managed_labels(), LABEL_JOB: job}


def attempt_labels(job: str, uid: str | None, number: int) -> dict[str, str]:
    """Labels of everything that belongs to an attempt; no uid where no cluster has given one."""
    return {**job_labels(job), LABEL_ATTEMPT: str(number), **({LABEL_UID: uid} if uid else {})}
