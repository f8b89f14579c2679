"""The job as the trainer reads it: JSON in an annotation of the pod, which the kubelet writes into a file.

Why an annotation: a ConfigMap would cost each job a request to make and each node one to read and one to watch, and the
API server is what limits scale. In the pod's template it comes with the Job itself, and stays what it was for as long
as the attempt lives. The price is its size in every pod, so what need not be said is left out: the trainer fills in
defaults as the API server does, which also lets it be a version older than the operator.

Invariant: no mutable field is in it, so it is a function of what is fixed for the life of the job.
"""

import json

from finetune_api.job import MUTABLE_FIELDS, FineTuneJob

MAX_BYTES = 192 * 1024
"""Kubernetes allows 256 KiB for all annotations of a pod; the rest is left to others (networks, Kueue)."""


def trainer_spec(job: FineTuneJob) -> str:
    """The job without status, mutable fields and defaults, as JSON on one line of ASCII."""
    spec = job.spec.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    return json.dumps(
        {
            "apiVersion": job.api_version,
            "kind": job.kind,
            "metadata": {"name": job.metadata.name, "namespace": job.metadata.namespace},
            "spec": {name: value for name, value in spec.items() if name not in MUTABLE_FIELDS},
        },
        separators=(",", ":"),
    )
