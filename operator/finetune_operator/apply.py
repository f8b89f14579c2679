"""A plan, carried out: the attempt is started or stopped, then its job's status is written, once.

Invariants: names are functions of job and attempt, so a write that is repeated after a crash hits the same object; what
is known to be right is not written; a status is written over the very version that it was made from, or not at all.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus
from finetune_operator.api import Api, Document
from finetune_operator.build.job import build_job
from finetune_operator.drift import find_drift
from finetune_operator.errors import ApiError, Obstacle, taken
from finetune_operator.experiment_records import ExperimentRecord
from finetune_operator.kinds import BY_NAME, FINE_TUNE_JOB, JOB, SERVICE, Kind
from finetune_operator.names import LABEL_QUEUE, attempt_name
from finetune_operator.records import JobRecord, owner_of
from finetune_operator.resolved import Resolved
from finetune_operator.schedule import Key
from finetune_operator.store import Store

KEPT_ATTEMPTS = 2
"""Jobs of so many attempts stay, the present one's included, for the logs of their pods."""
_STOP_SECONDS = 1
"""A deadline that has passed: the Job controller asks every pod to leave, makes no more, and the Job stays to tell."""


@dataclass
class Applier:
    """Carries plans out."""

    store: Store
    api: Api
    progress_readers: tuple[str, ...]
    enqueue: Callable[[Key], None]
    """Gets what a job's new status is of interest to: its experiment."""

    async def repair(self, resolved: Resolved) -> None:
        """Apply those of the lasting objects that are not as they should be.

        Raises:
            Obstacle: The cluster does not take one.
            ApiError: Something else went wrong; the same again may do.
        """
        for manifest, known in find_drift(self.store, resolved, self.progress_readers):
            kind = BY_NAME[manifest["kind"]]
            try:
                # What is not known to be ours may be a user's own object of the same name. A Service's name is ours
                # alone, and jobs that start together may apply the same one.
                overwrite = known is not None or kind is SERVICE
                self.store.see(kind, await self.api.apply(kind, manifest, overwrite=overwrite))
            except ApiError as error:
                raise as_obstacle(error, kind, manifest) from error

    async def start(self, resolved: Resolved, number: int) -> None:
        """Start an attempt, or find that it was started before.

        Raises:
            Obstacle, ApiError: As ``repair``.
        """
        await self.repair(resolved)
        key = Key(resolved.namespace, resolved.name)
        known = self.store.children_of(key).attempts.get(number)
        if known is None or known.owner != resolved.uid:
            self.store.see(JOB, await self._make(build_job(resolved, number), resolved.uid))

    async def move(self, resolved: Resolved, number: int) -> None:
        """Have an attempt that waits to be admitted wait in the job's present queue; one that runs stays admitted."""
        key, queue = Key(resolved.namespace, resolved.name), resolved.spec.queue
        known = self.store.children_of(key).attempts.get(number)
        if known is None or not known.is_suspended or queue is None or known.queue == queue:
            return
        patch = {"metadata": {"uid": known.uid, "labels": {LABEL_QUEUE: queue}}}
        self.store.see(JOB, await self.api.merge(JOB, key.namespace, attempt_name(key.name, number), patch))

    async def stop(self, key: Key, number: int) -> None:
        """Have every pod of an attempt asked to leave; nothing if that was done, or there is no such attempt."""
        known = self.store.children_of(key).attempts.get(number)
        if known is None or known.is_stopping:
            return
        patch = {"metadata": {"uid": known.uid}, "spec": {"activeDeadlineSeconds": _STOP_SECONDS}}
        self.store.see(JOB, await self.api.merge(JOB, key.namespace, attempt_name(key.name, number), patch))

    async def retire(self, key: Key) -> None:
        """Delete the Jobs of all but the newest KEPT_ATTEMPTS attempts, with what is left of their pods."""
        attempts = self.store.children_of(key).attempts
        for number in sorted(attempts)[:-KEPT_ATTEMPTS]:
            uid = attempts[number].uid
            with ignoring_absence():
                await self.api.delete(JOB, key.namespace, attempt_name(key.name, number), {"uid": uid})
            self.store.drop(JOB, uid, key)

    async def write_status(self, job: FineTuneJob, record: JobRecord, status: JobStatus) -> None:
        """Replace the status of the job as it was observed.

        Raises:
            ApiError: 409 if it has changed since; it is to be observed anew.
        """
        key = Key(job.metadata.namespace, job.metadata.name)
        await self.write_wire_status(key, record, status.to_wire())

    async def write_wire_status(self, key: Key, record: JobRecord, status: Document) -> None:
        """Likewise, a status in JSON types."""
        manifest = status_manifest(FINE_TUNE_JOB, key, record, status)
        try:
            for affected in self.store.see(FINE_TUNE_JOB, await self.api.replace(FINE_TUNE_JOB, manifest, "status")):
                self.enqueue(affected)
        except ApiError as error:
            if error.is_absence_of(key.name):
                self.store.drop(FINE_TUNE_JOB, record.uid, key)  # its deletion was missed: a watch was cut
            raise

    async def delete_job(self, key: Key, record: JobRecord) -> None:
        """Delete a finished job whose time has come, unless it has changed since; what it owns goes with it."""
        preconditions = {"uid": record.uid, "resourceVersion": str(record.version)}
        with ignoring_absence():
            await self.api.delete(FINE_TUNE_JOB, key.namespace, key.name, preconditions)

    async def _make(self, manifest: Document, owner: str | None) -> Document:
        namespace, name = manifest["metadata"]["namespace"], manifest["metadata"]["name"]
        try:
            return await self.api.create(JOB, namespace, manifest)
        except ApiError as error:
            if not error.is_taken:
                raise as_obstacle(error, JOB, manifest) from error
        found = await self.api.get(JOB, namespace, name)
        if owner_of(found) != owner:
            raise taken(JOB.name, name)
        return found


@contextmanager
def ignoring_absence() -> Iterator[None]:
    """What is to be deleted may be gone already."""
    try:
        yield
    except ApiError as error:
        if error.status != HTTPStatus.NOT_FOUND:
            raise


def status_manifest(kind: Kind, key: Key, record: JobRecord | ExperimentRecord, status: Document) -> Document:
    """The object that is replaced by one with this status, over the very version that it was made from."""
    version = {"uid": record.uid, "resourceVersion": str(record.version)}
    return {
        "apiVersion": kind.api_version,
        "kind": kind.name,
        "metadata": {"namespace": key.namespace, "name": key.name, **version},
        "status": status,
    }


def as_obstacle(error: ApiError, kind: Kind, manifest: Document) -> ApiError | Obstacle:
    """The error as people read it, if it is for them to do something about it."""
    name = manifest["metadata"]["name"]
    if error.is_taken:
        return taken(kind.name, name)
    return Obstacle(f"{kind.name} {name} is refused: {error.message}") if error.is_refusal else error
