"""What is remembered of each object: the few fields that decisions are made from.

Invariant: a record is frozen, a function of one version of its object, and small: a finished job is a few hundred
bytes, and nothing is kept of its children.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from pydantic_core import to_json

from finetune_api.errors import SpecError
from finetune_api.load import parse_runtime
from finetune_api.runtime import FineTuneRuntime
from finetune_api.status import ConditionType
from finetune_operator.build.mounts import RUN
from finetune_operator.names import LABEL_ATTEMPT, LABEL_JOB, LABEL_QUEUE, LABEL_UID
from finetune_operator.observed import ObservedWorker, WorkerPhase
from finetune_operator.pods import Raw, address_of, observe_worker, parse_time, waiting_text
from finetune_operator.schedule import Key

_FINISHED = (ConditionType.SUCCEEDED, ConditionType.FAILED)
KEPT_METADATA = ("name", "namespace", "uid", "generation", "resourceVersion")
_KEPT_OF_OWNED = ("labels", "ownerReferences")


@dataclass(frozen=True, slots=True)
class JobRecord:
    """A FineTuneJob."""

    uid: str
    version: int
    generation: int
    """Of its spec."""
    phase: str
    is_deleting: bool
    expires: datetime | None
    """When it is to be deleted; None for never, or not known yet."""
    runtime: str
    document: bytes | None
    """The object as JSON, with only the metadata that matters; None once it has finished."""

    @property
    def is_finished(self) -> bool:
        """Succeeded or failed."""
        return self.document is None


@dataclass(frozen=True, slots=True)
class AttemptRecord:
    """The Indexed Job of an attempt."""

    uid: str
    version: int
    owner: str
    """Uid of its FineTuneJob."""
    number: int
    workers: int
    created: datetime
    run: str | None
    """Where the run's folder is: ``pvc://claim/folder``."""
    queue: str | None = None
    """Where it waits to be admitted, if somebody is to admit it."""
    is_suspended: bool = False
    is_stopping: bool = False
    """It was given a deadline, which nobody but us does, or is being deleted."""
    ended: datetime | None = None
    """When no pod of it was alive any more."""
    succeeded: bool = False


@dataclass(frozen=True, slots=True)
class PodRecord:
    """The pod of a worker."""

    uid: str
    version: int
    owner: str
    """Uid of its FineTuneJob."""
    attempt: int
    created: datetime
    worker: ObservedWorker
    address: str | None
    waiting: str | None
    leave_by: datetime | None
    """When it should be gone at the latest, if it was asked to leave."""
    is_gone: bool = False
    """The object is no more; kept for what it told of its end."""


@dataclass(frozen=True, slots=True)
class LastingRecord:
    """An object that all attempts share."""

    uid: str
    version: int
    owner: str | None
    document: bytes
    """Labels and spec as JSON."""


@dataclass(frozen=True, slots=True)
class RuntimeRecord:
    """A FineTuneRuntime."""

    uid: str
    version: int
    runtime: FineTuneRuntime | None
    """None if it is not valid."""
    fault: str = ""
    """What is wrong with it."""


def record_job(raw: Raw) -> JobRecord:
    """The record of a FineTuneJob."""
    metadata, spec, status = raw["metadata"], map_of(raw.get("spec")), map_of(raw.get("status"))
    conditions = status.get("conditions") or []
    finished = any(one.get("type") in _FINISHED and one.get("status") == "True" for one in conditions)
    return JobRecord(
        uid=metadata["uid"],
        version=version_of(raw),
        generation=metadata.get("generation") or 0,
        phase=str(status.get("phase") or "Pending"),
        is_deleting="deletionTimestamp" in metadata,
        expires=_expiry(spec, status) if finished else None,
        runtime=str(spec.get("runtime") or "default"),
        document=None if finished else document_of(raw),
    )


def document_of(raw: Raw) -> bytes:
    """A job as JSON, with only the metadata that matters; labels and owner as well of one that belongs to somebody."""
    metadata = raw["metadata"]
    names = (*KEPT_METADATA, *(_KEPT_OF_OWNED if metadata.get("ownerReferences") else ()))
    document = {name: raw[name] for name in ("apiVersion", "kind", "spec", "status") if name in raw}
    document["metadata"] = {name: metadata[name] for name in names if name in metadata}
    return to_json(document)


def record_attempt(raw: Raw) -> AttemptRecord:
    """The record of an attempt's Job."""
    metadata, spec, status = raw["metadata"], raw["spec"], raw.get("status") or {}
    ends = {
        one["type"]: parse_time(one.get("lastTransitionTime"))
        for one in status.get("conditions") or []
        if one.get("type") in ("Complete", "Failed") and one.get("status") == "True"
    }
    return AttemptRecord(
        uid=metadata["uid"],
        version=version_of(raw),
        owner=owner_of(raw) or "",
        number=attempt_of(raw),
        workers=spec.get("completions") or 1,
        created=_created(raw),
        run=_run_of(spec["template"]["spec"]),
        queue=(metadata.get("labels") or {}).get(LABEL_QUEUE),
        is_suspended=bool(spec.get("suspend")) and not ends,
        is_stopping="activeDeadlineSeconds" in spec or "deletionTimestamp" in metadata,
        ended=next(iter(ends.values()), None),
        succeeded="Complete" in ends,
    )


def record_pod(raw: Raw) -> PodRecord:
    """The record of a worker's pod."""
    metadata, worker = raw["metadata"], observe_worker(raw)
    return PodRecord(
        uid=metadata["uid"],
        version=version_of(raw),
        owner=(metadata.get("labels") or {}).get(LABEL_UID, ""),
        attempt=attempt_of(raw),
        created=_created(raw),
        worker=worker,
        address=address_of(raw),
        waiting=waiting_text(raw) if worker.phase is WorkerPhase.PENDING else None,
        leave_by=parse_time(metadata.get("deletionTimestamp")),
    )


def record_runtime(raw: Raw) -> RuntimeRecord:
    """The record of a FineTuneRuntime."""
    uid, version = raw["metadata"]["uid"], version_of(raw)
    document = {name: raw[name] for name in ("apiVersion", "kind", "spec") if name in raw}
    try:
        runtime = parse_runtime({**document, "metadata": {"name": raw["metadata"]["name"]}})
    except SpecError as error:
        return RuntimeRecord(uid, version, None, str(error.faults[0]))
    return RuntimeRecord(uid, version, runtime)


def record_lasting(raw: Raw) -> LastingRecord:
    """The record of a NetworkPolicy, a claim or a Service."""
    kept = {"metadata": {"labels": raw["metadata"].get("labels") or {}}, "spec": raw.get("spec") or {}}
    document = to_json(kept)
    return LastingRecord(raw["metadata"]["uid"], version_of(raw), owner_of(raw), document)


def key_of(raw: Raw) -> Key | None:
    """The FineTuneJob that one of its children belongs to; None if it belongs to none (the Service)."""
    metadata = raw["metadata"]
    job = (metadata.get("labels") or {}).get(LABEL_JOB)
    return Key(metadata["namespace"], job) if job else None


def owner_of(raw: Raw) -> str | None:
    """Uid of the controller that owns an object."""
    owner = owner_reference(raw)
    return str(owner["uid"]) if owner else None


def owner_reference(raw: Raw) -> Raw | None:
    """The reference to the controller that owns an object."""
    owners = raw["metadata"].get("ownerReferences") or []
    return next((owner for owner in owners if owner.get("controller")), None)


def version_of(raw: Raw) -> int:
    """The object's resourceVersion; versions of one object compare as numbers (KEP-5504)."""
    text = raw["metadata"].get("resourceVersion") or "0"
    return int(text) if text.isdecimal() else 0


def attempt_of(raw: Raw) -> int:
    """Number of the attempt that an object belongs to; 0 if it does not say."""
    text = (raw["metadata"].get("labels") or {}).get(LABEL_ATTEMPT, "0")
    return int(text) if text.isdecimal() else 0


def map_of(value: Any) -> Raw:
    """A field of a FineTuneJob that is to be a map; empty if it is something else, which its parsing tells."""
    return value if isinstance(value, dict) else {}


def _created(raw: Raw) -> datetime:
    return datetime.fromisoformat(raw["metadata"]["creationTimestamp"])


def _expiry(spec: Raw, status: Raw) -> datetime | None:
    seconds, end = spec.get("ttlSecondsAfterFinished"), parse_time(status.get("completionTime"))
    return None if end is None or seconds is None else end + timedelta(seconds=seconds)


def _run_of(pod: Raw) -> str | None:
    """Where the pods mount the run's folder from: told by them, not by a runtime that may have changed since."""
    mounts = [mount for one in pod.get("containers") or [] for mount in one.get("volumeMounts") or []]
    mount = next((one for one in mounts if one.get("mountPath") == RUN), None)
    if mount is None:
        return None
    volume: Raw = next((one for one in pod.get("volumes") or [] if one.get("name") == mount["name"]), {})
    claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
    return f"pvc://{claim}/{mount.get('subPath', '')}" if claim else None
