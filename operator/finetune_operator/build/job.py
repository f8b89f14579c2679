"""The Indexed Job of an attempt: one pod a worker, all of them or none.

Invariant: Kubernetes starts each worker once. Whether there is another try, and when, is the operator's decision: a
failed worker fails the Job, and nothing replaces a pod.

A Job is made once and never applied again. Its pods' template cannot change anyway, and ``suspend`` belongs to whoever
admits it (Kueue, a person) from the moment that it is made.
"""

from typing import Any

from finetune_operator.build.metadata import build_metadata
from finetune_operator.build.pod import build_pod_template
from finetune_operator.names import LABEL_QUEUE, attempt_labels, attempt_name
from finetune_operator.resolved import Resolved


def build_job(resolved: Resolved, attempt: int) -> dict[str, Any]:
    """The Job of attempt number ``attempt``; suspended from the start if a queue is to admit it."""
    workers, queue = resolved.spec.distributed.workers, resolved.spec.queue
    labels = attempt_labels(resolved.name, resolved.uid, attempt)
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": build_metadata(
            resolved, attempt_name(resolved.name, attempt), labels | ({LABEL_QUEUE: queue} if queue else {})
        ),
        "spec": {
            **({"suspend": True} if queue else {}),
            "completionMode": "Indexed",
            "completions": workers,
            "parallelism": workers,
            "backoffLimit": 0,
            # A pod that is being deleted counts as alive until it is gone: it may still write a checkpoint.
            "podReplacementPolicy": "Failed",
            "template": build_pod_template(resolved, attempt),
        },
    }
