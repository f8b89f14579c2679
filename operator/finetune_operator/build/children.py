"""All objects of a job, in the order in which they are made: what a pod needs is there before it."""

from typing import Any

from finetune_operator.build.job import build_job
from finetune_operator.build.network_policy import build_network_policy
from finetune_operator.build.service import build_service
from finetune_operator.build.volume_claim import build_volume_claim
from finetune_operator.resolved import Resolved


def build_children(resolved: Resolved, attempt: int, progress_readers: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """The objects that attempt number ``attempt`` needs: those of the job, then the attempt's own.

    Args:
        resolved: The job.
        attempt: 1 for the first.
        progress_readers: Namespaces that may read the workers' progress.
    """
    return (*build_lasting(resolved, progress_readers), build_job(resolved, attempt))


def build_lasting(resolved: Resolved, progress_readers: tuple[str, ...]) -> tuple[dict[str, Any], ...]:
    """The objects that all attempts share.

    A worker that is alone needs no name, so the Service is for jobs with several.
    """
    claim = build_volume_claim(resolved)
    several = resolved.spec.distributed.workers > 1
    return (
        *([claim] if claim else []),
        *([build_service(resolved.namespace, resolved.name)] if several else []),
        build_network_policy(resolved, progress_readers),
    )
