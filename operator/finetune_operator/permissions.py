"""What a runtime does not allow, and what could not run: one check each, over the job as its runtime fills it in.

Invariant: a check yields faults and raises nothing; each fault names the field, what it asks for and what is allowed.
None tells a tenant of namespaces other than its own.
"""

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from finetune_api.base import DNS_SUBDOMAIN
from finetune_api.errors import Fault
from finetune_api.execution import Resources
from finetune_api.runtime import FineTuneRuntime
from finetune_operator.quantity import parse_quantity
from finetune_operator.resolved import Resolved, claim_of
from finetune_operator.trainer_spec import MAX_BYTES


@dataclass(frozen=True)
class Request:
    """What a check looks at."""

    resolved: Resolved
    runtime: FineTuneRuntime
    namespace_labels: Mapping[str, str]

    @property
    def runtime_name(self) -> str:
        """How messages call the runtime."""
        return f"FineTuneRuntime {self.runtime.metadata.name}"


_CLUSTERS_OWN = "system-"
"""How the names of Kubernetes' own PriorityClasses begin; no other may be called so."""
Check = Callable[[Request], Iterator[Fault]]
"""What is wrong with a request; nothing if it is all right."""


def namespace_is_served(request: Request) -> Iterator[Fault]:
    """``spec.namespaces`` of the runtime: by name or by labels."""
    rule = request.runtime.spec.namespaces
    if rule is None:
        return
    told = f"{request.runtime_name} is not for namespace {request.resolved.namespace}; "
    if rule.names is not None and request.resolved.namespace not in rule.names:
        yield Fault("spec.runtime", told + "name another, or ask the platform team")
    wanted = rule.match_labels or {}
    if any(request.namespace_labels.get(key) != value for key, value in wanted.items()):
        listing = ", ".join(f"{key}={value}" for key, value in sorted(wanted.items()))
        yield Fault("spec.runtime", told + f"it serves those with the labels {listing}")


def remote_code_has_consent(request: Request) -> Iterator[Fault]:
    """A checkpoint's own Python code runs only if platform and user both want it."""
    if request.resolved.spec.model.trust_remote_code and not request.runtime.spec.allow_trust_remote_code:
        yield Fault("spec.model.trustRemoteCode", f"must be false in {request.runtime_name}, got true")


def workers_are_within_ceiling(request: Request) -> Iterator[Fault]:
    """``ceilings.workers``."""
    most = request.runtime.spec.ceilings.workers
    if most is not None and request.resolved.spec.distributed.workers > most:
        yield _too_much("workers", most, request.resolved.spec.distributed.workers, request)


def resources_are_within_ceiling(request: Request) -> Iterator[Fault]:
    """``ceilings.resources``, a worker."""
    most = request.runtime.spec.ceilings.resources or Resources()
    asked = request.resolved.spec.distributed.resources
    amounts = (("cpu", asked.cpu, most.cpu), ("memory", asked.memory, most.memory))
    for name, amount, ceiling in amounts:
        if amount is not None and ceiling is not None and parse_quantity(amount) > parse_quantity(ceiling):
            yield _too_much(f"resources.{name}", ceiling, amount, request)
    if most.gpus is not None and (asked.gpus or 0) > most.gpus:
        yield _too_much("resources.gpus", most.gpus, asked.gpus, request)


def volume_is_within_ceiling(request: Request) -> Iterator[Fault]:
    """``ceilings.volumeSize``, of a claim that the job asks for itself."""
    asked, most = request.resolved.volume, request.runtime.spec.ceilings.volume_size
    if asked == request.runtime.spec.volume or asked.size is None or most is None:
        return
    if parse_quantity(asked.size) > parse_quantity(most):
        yield Fault("spec.checkpoint.volume.size", f"must be ≤ {most} in {request.runtime_name}, got {asked.size}")


def priority_is_allowed(request: Request) -> Iterator[Fault]:
    """``ceilings.priorityClasses``: a priority that evicts others is not a tenant's to take."""
    asked, allowed = request.resolved.spec.priority_class, request.runtime.spec.ceilings.priority_classes
    if asked is None or (allowed is None and not asked.startswith(_CLUSTERS_OWN)) or asked in (allowed or ()):
        return
    rule = (
        f"one of {', '.join(allowed)}" if allowed else "unset" if allowed is not None else "none of the cluster's own"
    )
    yield Fault("spec.priorityClass", f"must be {rule} in {request.runtime_name}, got {asked}")


def workers_can_meet(request: Request) -> Iterator[Fault]:
    """Workers find each other by DNS."""
    workers = request.resolved.spec.distributed.workers
    if workers > 1 and request.runtime.spec.egress == "none":
        told = "workers find each other by DNS, which its egress (none) does not let them reach"
        yield Fault("spec.distributed.workers", f"must be 1 in {request.runtime_name}, got {workers}; {told}")


def a_process_has_a_gpu(request: Request) -> Iterator[Fault]:
    """The API's own rule, asked again with the runtime's default number of GPUs."""
    distributed = request.resolved.spec.distributed
    gpus, processes = distributed.resources.gpus, distributed.processes_per_worker
    if gpus and processes is not None and processes != gpus:
        told = f"must equal resources.gpus ({gpus} in {request.runtime_name} if not said), got {processes}"
        yield Fault("spec.distributed.processesPerWorker", f"{told}: one process drives one GPU")


def amounts_are_positive(request: Request) -> Iterator[Fault]:
    """Zero of CPU or memory is what Kubernetes takes for no limit, and so a way around a ceiling."""
    resources, volume = request.resolved.spec.distributed.resources, request.resolved.volume
    amounts = {
        "spec.distributed.resources.cpu": resources.cpu,
        "spec.distributed.resources.memory": resources.memory,
        "spec.checkpoint.volume.size": volume.size,
    }
    for field, amount in amounts.items():
        if amount is not None and parse_quantity(amount) == 0:
            yield Fault(field, f"must be more than 0, got {amount}")


def claims_have_names(request: Request) -> Iterator[Fault]:
    """What stands for a claim in ``pvc://claim/path`` can be one."""
    for field, source in request.resolved.spec.sources.items():
        claim = claim_of(source)
        if claim is not None and not re.fullmatch(DNS_SUBDOMAIN, claim):
            yield Fault(field, f"{claim} is not the name of a claim; got {source}")


def spec_reaches_the_trainer(request: Request) -> Iterator[Fault]:
    """The spec travels in an annotation."""
    size = len(request.resolved.trainer_spec)
    if size > MAX_BYTES:
        yield Fault("spec", f"must be at most {MAX_BYTES:,} bytes as JSON, got {size:,}; shorten its longest lists")


PERMISSIONS: tuple[Check, ...] = (
    namespace_is_served,
    remote_code_has_consent,
    workers_are_within_ceiling,
    resources_are_within_ceiling,
    volume_is_within_ceiling,
    priority_is_allowed,
    workers_can_meet,
)
"""What the runtime does not allow."""
VALIDATIONS: tuple[Check, ...] = (
    a_process_has_a_gpu,
    amounts_are_positive,
    claims_have_names,
    spec_reaches_the_trainer,
)
"""What could not run in any namespace; asked only of what is allowed."""


def _too_much(field: str, most: object, asked: object, request: Request) -> Fault:
    return Fault(f"spec.distributed.{field}", f"must be ≤ {most} in {request.runtime_name}, got {asked}")
