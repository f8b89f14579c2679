"""A pod as a worker: what its status tells of one, and why it may not run yet.

Sources: https://kubernetes.io/docs/concepts/workloads/pods/pod-lifecycle/ and, for who took a pod away,
https://kubernetes.io/docs/concepts/workloads/pods/disruptions/#pod-disruption-conditions.
"""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from finetune_api.outcomes import ExitCode, cause_of
from finetune_api.status import TERMINATION_MESSAGE_BYTES, TerminationMessage
from finetune_operator.names import ANNOTATION_INDEX, TRAINER_CONTAINER
from finetune_operator.observed import ObservedWorker, PlatformReason, WorkerPhase

Raw = Mapping[str, Any]
_LOG_CHARACTERS = 400
_OOM = "OOMKilled"
_MAX_EXIT_CODE = 255

_PHASES = {
    "Pending": WorkerPhase.PENDING,
    "Succeeded": WorkerPhase.SUCCEEDED,
    "Failed": WorkerPhase.FAILED,
}
"""Anything else (Running, Unknown) may be running."""
_DISRUPTIONS = {
    "EvictionByEvictionAPI": PlatformReason.EVICTED,
    "TerminationByKubelet": PlatformReason.EVICTED,
    "PreemptionByScheduler": PlatformReason.PREEMPTED,
    "DeletionByPodGC": PlatformReason.NODE_LOST,
}
_STATUS_REASONS = {
    "Evicted": PlatformReason.EVICTED,
    "Terminated": PlatformReason.EVICTED,
    "NodeShutdown": PlatformReason.EVICTED,
    "Preempting": PlatformReason.PREEMPTED,
    "NodeLost": PlatformReason.NODE_LOST,
}
_IMAGE = ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "ImageInspectError")
_CONTAINER = ("CreateContainerConfigError", "CreateContainerError", "RunContainerError")


def observe_worker(pod: Raw) -> ObservedWorker:
    """The worker that a pod is."""
    status = pod.get("status") or {}
    phase = _phase(pod)
    state = _container(status).get("state") or {}
    # A container that has ended does not end the worker: others of its pod may run.
    ended = state.get("terminated") or {} if phase in (WorkerPhase.SUCCEEDED, WorkerPhase.FAILED) else {}
    code = _exit_code(ended)
    return ObservedWorker(
        index=_index(pod),
        phase=phase,
        started=parse_time((state.get("running") or state.get("terminated") or {}).get("startedAt")),
        ended=parse_time(ended.get("finishedAt")),
        exit_code=code,
        message=read_message(ended.get("message"), code),
        node=(pod.get("spec") or {}).get("nodeName"),
        platform_reason=_platform_reason(pod, ended),
    )


def waiting_text(pod: Raw) -> str | None:
    """Why a pod does not run yet, in the words of who knows; None if it runs or nobody says so."""
    status = pod.get("status") or {}
    waiting = (_container(status).get("state") or {}).get("waiting") or {}
    reason, message = waiting.get("reason"), waiting.get("message") or ""
    if reason in _IMAGE:
        return f"its image cannot be pulled ({reason}): {message or _container(status).get('image', '')}"
    if reason in _CONTAINER:
        return f"its container cannot be started ({reason}): {message}"
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"no node takes it ({scheduled.get('reason', 'Unschedulable')}): {scheduled.get('message', '')}"
    return None


def address_of(pod: Raw) -> str | None:
    """Where a worker answers; None if it has no address yet, or its container has ended."""
    status = pod.get("status") or {}
    return None if "terminated" in (_container(status).get("state") or {}) else status.get("podIP")


def read_message(text: str | None, exit_code: int | None) -> TerminationMessage | None:
    """The termination message; where the kubelet put the end of the log in its place, the last line of that.

    None if there is neither. A worker that was killed did not choose its last line, so that says nothing.
    """
    if not text or exit_code is None:
        return None
    try:
        return TerminationMessage.model_validate_json(text[:TERMINATION_MESSAGE_BYTES])
    except ValidationError:
        lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines or exit_code in (ExitCode.DONE, ExitCode.KILLED, ExitCode.PREEMPTED):
        return None
    told = f"left with exit code {exit_code}: {lines[-1][:_LOG_CHARACTERS]}"
    return TerminationMessage(exit_code=exit_code, cause=cause_of(exit_code), message=told)


def parse_time(text: str | None) -> datetime | None:
    """A time of Kubernetes (RFC 3339, with a time zone); None if there is none."""
    return datetime.fromisoformat(text) if text else None


def _phase(pod: Raw) -> WorkerPhase:
    """The pod's phase, but failed as soon as its containers have: a second passes until their kubelet has tidied up.

    They are never restarted; what the kubelet has lost sight of (ContainerStatusUnknown) may run yet. That its node
    killed it is told only with the pod's end, but whoever is asked to leave says so at once (finetune_trainer.launch).
    One with a priority waits for the pod: until then its place is taken, and its successor would push others off their
    nodes.
    """
    status, spec = pod.get("status") or {}, pod["spec"]
    phase = _PHASES.get(status.get("phase") or "Pending", WorkerPhase.RUNNING)
    if phase is not WorkerPhase.RUNNING or (spec.get("priority") or 0) > 0:
        return phase
    ends = [(one.get("state") or {}).get("terminated") or {} for one in status.get("containerStatuses") or []]
    codes = [_exit_code(end) for end in ends]
    has_ended = len(codes) == len(spec["containers"]) and None not in codes
    return WorkerPhase.FAILED if has_ended and any(codes) else phase


def _container(status: Raw) -> Raw:
    containers = status.get("containerStatuses") or []
    return next((one for one in containers if one.get("name") == TRAINER_CONTAINER), {})


def _condition(status: Raw, kind: str) -> Raw:
    return next((one for one in status.get("conditions") or [] if one.get("type") == kind), {})


def _index(pod: Raw) -> int:
    text = (pod["metadata"].get("annotations") or {}).get(ANNOTATION_INDEX, "0")
    return int(text) if text.isdecimal() else 0


def _exit_code(ended: Raw) -> int | None:
    """None as well where the kubelet made it up, for it had lost sight of the container."""
    code = ended.get("exitCode")
    if code is None or ended.get("reason") == "ContainerStatusUnknown":
        return None
    return min(max(int(code), 0), _MAX_EXIT_CODE)


def _platform_reason(pod: Raw, ended: Raw) -> PlatformReason | None:
    status = pod.get("status") or {}
    if ended.get("reason") == _OOM:
        return PlatformReason.OOM_KILLED
    disruption = _condition(status, "DisruptionTarget")
    if disruption.get("status") == "True":
        reason = disruption.get("reason", "")
        if reason == "DeletionByTaintManager":
            # A node that is out of reach is tainted, and so may be one that shall be emptied; there the worker could
            # still say how it ended.
            return PlatformReason.NODE_LOST if _exit_code(ended) is None else PlatformReason.EVICTED
        if reason in _DISRUPTIONS:
            return _DISRUPTIONS[reason]
    known = _STATUS_REASONS.get(status.get("reason") or "")
    return known or (PlatformReason.DELETED if pod["metadata"].get("deletionTimestamp") else None)
