"""The pod of a worker.

Invariant: it meets Pod Security's ``restricted`` level
(https://kubernetes.io/docs/concepts/security/pod-security-standards/), holds no token of the API server, and differs
from worker to worker in nothing but its index.
"""

from typing import Any

from finetune_operator.build.environment import TERMINATION_LOG, build_environment
from finetune_operator.build.mounts import build_mounts, build_volumes
from finetune_operator.build.placement import build_placement
from finetune_operator.names import (
    ANNOTATION_SPEC,
    LABEL_COMPONENT,
    PROGRESS_PORT,
    PROGRESS_PORT_NAME,
    TRAINER_CONTAINER,
    WORKER,
    attempt_labels,
    service_label,
    service_name,
)
from finetune_operator.quantity import canonical_quantity
from finetune_operator.resolved import Resolved

USER = 65532
"""User and group of the trainer, as the image has them (distroless' "nonroot")."""
GRACE_SECONDS = 120
"""From SIGTERM to SIGKILL: for the step at hand and a checkpoint. A process that hangs holds the next attempt up for as
long, because that starts only when the last of its predecessor is gone."""


def build_pod_template(resolved: Resolved, attempt: int) -> dict[str, Any]:
    """The template of an attempt's pods."""
    service = None if resolved.spec.distributed.workers == 1 else service_name(resolved.name)
    return {
        "metadata": {
            "labels": {
                **attempt_labels(resolved.name, resolved.uid, attempt),
                LABEL_COMPONENT: WORKER,
                **({} if service is None else {service_label(service): ""}),
            },
            "annotations": {ANNOTATION_SPEC: resolved.trainer_spec},
        },
        "spec": {
            "restartPolicy": "Never",
            "terminationGracePeriodSeconds": GRACE_SECONDS,
            "automountServiceAccountToken": False,
            # Variables for each Service of the namespace: thousands of them in one with as many Services.
            "enableServiceLinks": False,
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": USER,
                "runAsGroup": USER,
                "fsGroup": USER,
                # Else the kubelet walks over every file of every checkpoint before each start.
                "fsGroupChangePolicy": "OnRootMismatch",
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({} if service is None else {"subdomain": service}),
            **build_placement(resolved, attempt),
            "containers": [_build_container(resolved, attempt)],
            "volumes": build_volumes(resolved),
        },
    }


def _build_container(resolved: Resolved, attempt: int) -> dict[str, Any]:
    resources = _build_resources(resolved)
    return {
        "name": TRAINER_CONTAINER,
        "image": resolved.runtime.image,
        "imagePullPolicy": resolved.runtime.image_pull_policy,
        "command": ["python", "-m", "finetune_trainer.launch"],
        "env": build_environment(resolved, attempt),
        "ports": [{"name": PROGRESS_PORT_NAME, "containerPort": PROGRESS_PORT, "protocol": "TCP"}],
        **({"resources": resources} if resources else {}),
        "volumeMounts": build_mounts(resolved),
        "terminationMessagePath": TERMINATION_LOG,
        # The end of the log where the worker could not even write its message (a broken image).
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _build_resources(resolved: Resolved) -> dict[str, Any]:
    """Limits that equal the requests: a worker that is throttled or killed for its neighbours holds up all others."""
    asked = resolved.spec.distributed.resources
    amounts = {
        **({"cpu": canonical_quantity(asked.cpu)} if asked.cpu else {}),
        **({"memory": canonical_quantity(asked.memory)} if asked.memory else {}),
        **({"nvidia.com/gpu": str(asked.gpus)} if asked.gpus else {}),
    }
    return {"requests": amounts, "limits": dict(amounts)} if amounts else {}
