"""Variables of a worker.

Invariant: each name stands once. The runtime's variables may replace those that are a mere convenience, never those
that wire the run up or bring a secret.
"""

from typing import Any

from finetune_api.execution import SecretKey
from finetune_api.wiring import Variable
from finetune_operator.build.mounts import CLAIMS, MODELS, RUN, SCRATCH, SHARED_CACHE, SPEC, SPEC_FILE
from finetune_operator.names import ANNOTATION_INDEX, PROGRESS_PORT, RENDEZVOUS_PORT, first_worker_address
from finetune_operator.resolved import Resolved

TERMINATION_LOG = "/dev/termination-log"
_CACHE = f"{RUN}/cache"
"""With the run, so that its workers make ready what they share once, and a restart finds it; of a trial, with the
experiment, so that the next trial finds it, too."""


def build_environment(resolved: Resolved, attempt: int) -> list[dict[str, Any]]:
    """The container's variables."""
    values = {
        **_conveniences(resolved),
        **{variable.name: variable.value for variable in resolved.runtime.env},
        **_wiring(resolved, attempt),
    }
    secrets = _secrets(resolved)
    literals = [_literal(name, value) for name, value in values.items() if name not in secrets]
    return [*literals, _index(), *(_from_secret(name, key) for name, key in secrets.items())]


def _conveniences(resolved: Resolved) -> dict[str, str]:
    """What libraries want to know of a read-only machine with nobody's home on it."""
    hub = MODELS if resolved.runtime.model_cache else f"{_cache(resolved)}/huggingface"
    # A hub that cannot be reached is then said at once, instead of after minutes of trying.
    offline = {} if resolved.runtime.egress == "all" else {"HF_HUB_OFFLINE": "1"}
    return {"HOME": SCRATCH, "HF_HOME": hub, **offline}


def _wiring(resolved: Resolved, attempt: int) -> dict[str, str]:
    """``finetune_api.wiring``, but for the worker's number, which is no literal."""
    alone = resolved.spec.distributed.workers == 1
    first = "127.0.0.1" if alone else first_worker_address(resolved.name, attempt, resolved.namespace)
    return {
        Variable.JOB.value: f"{SPEC}/{SPEC_FILE}",
        Variable.RUN.value: RUN,
        Variable.ATTEMPT.value: str(attempt),
        Variable.MASTER_ADDRESS.value: first,
        Variable.MASTER_PORT.value: str(RENDEZVOUS_PORT),
        Variable.SCRATCH.value: SCRATCH,
        Variable.TERMINATION_LOG.value: TERMINATION_LOG,
        Variable.PROGRESS_ADDRESS.value: f"0.0.0.0:{PROGRESS_PORT}",
        Variable.CACHE.value: _cache(resolved),
        Variable.VOLUMES.value: CLAIMS,
    }


def _cache(resolved: Resolved) -> str:
    return _CACHE if resolved.cache_claim is None else SHARED_CACHE


def _index() -> dict[str, Any]:
    field = {"fieldPath": f"metadata.annotations['{ANNOTATION_INDEX}']"}
    return {"name": Variable.WORKER.value, "valueFrom": {"fieldRef": field}}


def _secrets(resolved: Resolved) -> dict[str, SecretKey]:
    """Variables whose values the kubelet reads from Secrets of the job's namespace; the operator never does."""
    hub, wandb, mlflow = resolved.spec.hub, resolved.spec.tracking.wandb, resolved.spec.tracking.mlflow
    return {
        **({"HF_TOKEN": hub.secret_ref} if hub else {}),
        **({"WANDB_API_KEY": wandb.secret_ref} if wandb and wandb.secret_ref else {}),
        **({"MLFLOW_TRACKING_TOKEN": mlflow.secret_ref} if mlflow and mlflow.secret_ref else {}),
    }


def _literal(name: str, value: str) -> dict[str, Any]:
    return {"name": name, "value": value} if value else {"name": name}


def _from_secret(name: str, key: SecretKey) -> dict[str, Any]:
    return {"name": name, "valueFrom": {"secretKeyRef": {"name": key.name, "key": key.key}}}
