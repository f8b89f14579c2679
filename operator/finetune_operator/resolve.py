"""What a job runs with: its own wishes within its runtime's bounds, and the runtime's settings where it has none.

Invariant: what comes back as ``Resolved`` may run as it is; a refusal says all that has to be changed before it may.
"""

from collections.abc import Mapping

from finetune_api.errors import Fault
from finetune_api.execution import Resources
from finetune_api.job import FineTuneJob
from finetune_api.runtime import FineTuneRuntime, RuntimeSpec
from finetune_api.status import Reason
from finetune_operator.observed import Refusal
from finetune_operator.permissions import PERMISSIONS, VALIDATIONS, Request
from finetune_operator.quantity import parse_quantity
from finetune_operator.resolved import Resolved


def resolve(
    job: FineTuneJob, runtime: FineTuneRuntime | None, namespace_labels: Mapping[str, str]
) -> Resolved | Refusal:
    """The job with everything that its runtime decides, or why it may not run.

    Args:
        job: The job.
        runtime: The runtime that ``spec.runtime`` names; None if there is none of that name.
        namespace_labels: Labels of the job's namespace.
    """
    if runtime is None:
        missing = Fault("spec.runtime", f"there is no FineTuneRuntime {job.spec.runtime}; name one that exists")
        return Refusal(Reason.RUNTIME_NOT_FOUND, str(missing))
    resolved = Resolved(_filled_in(job, runtime.spec), runtime.spec)
    request = Request(resolved, runtime, namespace_labels)
    for reason, checks in ((Reason.FORBIDDEN, PERMISSIONS), (Reason.INVALID, VALIDATIONS)):
        faults = [str(fault) for check in checks for fault in check(request)]
        if faults:
            return Refusal(reason, "; ".join(faults))
    return resolved


def _filled_in(job: FineTuneJob, runtime: RuntimeSpec) -> FineTuneJob:
    spec = job.spec
    distributed = spec.distributed.model_copy(update={"resources": _resources(spec.distributed.resources, runtime)})
    checkpoint = spec.checkpoint.model_copy(update={"volume": spec.checkpoint.volume or runtime.volume})
    queue = spec.queue or runtime.queue
    update = {"distributed": distributed, "checkpoint": checkpoint, "queue": queue}
    return job.model_copy(update={"spec": spec.model_copy(update=update)})


def _resources(asked: Resources, runtime: RuntimeSpec) -> Resources:
    default, ceiling = runtime.resources, runtime.ceilings.resources or Resources()
    return Resources(
        cpu=asked.cpu or _least(default.cpu, ceiling.cpu),
        memory=asked.memory or _least(default.memory, ceiling.memory),
        gpus=asked.gpus if asked.gpus is not None else _fewest(default.gpus or 0, ceiling.gpus),
    )


def _fewest(default: int, ceiling: int | None) -> int:
    return default if ceiling is None else min(default, ceiling)


def _least(default: str | None, ceiling: str | None) -> str | None:
    """Where the runtime has no default, the ceiling itself: a worker without a limit would have none."""
    return min((one for one in (default, ceiling) if one is not None), key=parse_quantity, default=None)
