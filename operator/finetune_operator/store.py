"""What the watches have told, and the answers to our own writes: everything that is known of the cluster.

Invariants: a newer version replaces an older one, never the other way round, so that an answer to a write and the watch
may come in any order; what a deleted pod told of its end stays until its attempt's end is in the job's status; nothing
is kept of a finished job's children.
"""

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.status import Phase
from finetune_operator.experiment_records import experiment_key
from finetune_operator.experiment_store import Experiments
from finetune_operator.kinds import (
    CLAIM,
    FINE_TUNE_EXPERIMENT,
    FINE_TUNE_JOB,
    JOB,
    NETWORK_POLICY,
    POD,
    RUNTIME,
    SERVICE,
    Kind,
)
from finetune_operator.names import service_name
from finetune_operator.observed import PlatformReason, WorkerPhase
from finetune_operator.pods import Raw
from finetune_operator.records import (
    AttemptRecord,
    JobRecord,
    LastingRecord,
    PodRecord,
    RuntimeRecord,
    attempt_of,
    key_of,
    record_attempt,
    record_job,
    record_lasting,
    record_pod,
    record_runtime,
    version_of,
)
from finetune_operator.schedule import Key

_log = logging.getLogger(__name__)
_ENDED = (Phase.SUCCEEDED, Phase.FAILED)


@dataclass(slots=True)
class Children:
    """The objects of one job."""

    attempts: dict[int, AttemptRecord] = field(default_factory=dict)
    pods: dict[str, PodRecord] = field(default_factory=dict)
    lasting: dict[str, LastingRecord] = field(default_factory=dict)
    """By kind."""
    awaits_pods: bool = False
    """The next look is far off, for there are no pods: the first one is to be looked at."""


class Store:
    """All objects by what they are. ``see`` and ``lose`` return what this is of interest to: jobs and experiments."""

    def __init__(self, now: Callable[[], datetime]) -> None:
        self.experiments = Experiments()
        self.jobs: dict[Key, JobRecord] = {}
        self.children: dict[Key, Children] = {}
        self.runtimes: dict[str, RuntimeRecord] = {}
        self.services: dict[Key, LastingRecord] = {}
        """By namespace and their own name."""
        self.phases: Counter[tuple[str, str]] = Counter()
        """Jobs by namespace and phase."""
        self._now = now

    def see(self, kind: Kind, raw: Raw) -> list[Key]:
        """An object is there, or has changed. One that nobody can read (it only bears our label) is passed by."""
        try:
            return self._see(kind, raw)
        except (AttributeError, KeyError, TypeError, ValueError):
            _log.exception("%s %s cannot be read", kind.name, raw.get("metadata"))
            return []

    def _see(self, kind: Kind, raw: Raw) -> list[Key]:
        match kind:
            case _ if kind is FINE_TUNE_EXPERIMENT:
                return self.experiments.see(raw)
            case _ if kind is FINE_TUNE_JOB:
                return self._see_job(raw)
            case _ if kind is JOB:
                return self._see_attempt(raw)
            case _ if kind is POD:
                return self._see_pod(raw)
            case _ if kind is RUNTIME:
                return self._see_runtime(raw)
            case _:
                return self._see_lasting(kind, raw)

    def lose(self, kind: Kind, raw: Raw) -> list[Key]:
        """An object is gone; ``raw`` is its last state."""
        if kind is POD:
            self.see(kind, raw)
        return self.drop(kind, raw["metadata"]["uid"], _identity(kind, raw))

    def drop(self, kind: Kind, uid: str, key: Key | None) -> list[Key]:
        """The object of this uid is gone; ``key`` is the job that it belongs to (or, of others, its own name)."""
        if key is None:
            return []
        match kind:
            case _ if kind is FINE_TUNE_EXPERIMENT:
                return self.experiments.drop(key, uid)
            case _ if kind is FINE_TUNE_JOB:
                return self._drop_job(key, uid)
            case _ if kind is RUNTIME:
                self.runtimes = {name: one for name, one in self.runtimes.items() if one.uid != uid}
                return []
            case _ if kind is SERVICE:
                return self._drop_service(key, uid)
            case _:
                return self._drop_child(kind, uid, key)

    def _drop_child(self, kind: Kind, uid: str, key: Key) -> list[Key]:
        children = self.children.get(key)
        if children is None:
            return []
        if kind is POD:
            return self._drop_pod(key, children, uid)
        if kind is JOB:
            children.attempts = {number: one for number, one in children.attempts.items() if one.uid != uid}
        else:
            children.lasting = {name: one for name, one in children.lasting.items() if one.uid != uid}
        return [key]

    def known(self, kind: Kind) -> Iterator[tuple[str, Key]]:
        """Uid of every object of a kind that is taken to be there, and what ``drop`` wants to know of it."""
        if kind is FINE_TUNE_EXPERIMENT:
            yield from ((one.uid, key) for key, one in self.experiments.records.items())
        elif kind is FINE_TUNE_JOB:
            yield from ((job.uid, key) for key, job in self.jobs.items())
        elif kind is RUNTIME:
            yield from ((one.uid, Key("", name)) for name, one in self.runtimes.items())
        elif kind is SERVICE:
            yield from ((one.uid, key) for key, one in self.services.items())
        else:
            for key, children in self.children.items():
                yield from ((uid, key) for uid in _uids(kind, children))

    def children_of(self, key: Key) -> Children:
        """The job's children; none of a job that nobody has told of."""
        return self.children.get(key) or Children()

    def forget_ended(self, key: Key, number: int) -> None:
        """The ends of attempts up to ``number`` are in the status: what their gone pods told is of no more use."""
        children = self.children.get(key)
        if children is not None and any(pod.is_gone for pod in children.pods.values()):
            kept = {uid: pod for uid, pod in children.pods.items() if not pod.is_gone or pod.attempt > number}
            children.pods = kept

    def purge(self) -> None:
        """Children of jobs that are no more; the cluster's garbage collector removes the objects."""
        for key in [key for key in self.children if key not in self.jobs]:
            del self.children[key]

    def everything(self) -> Iterator[Key]:
        """All that is looked at."""
        yield from list(self.jobs)
        yield from list(self.experiments.records)

    def unfinished(self, namespace: str | None = None) -> Iterator[Key]:
        """Jobs that are not finished (in a namespace, if one is given)."""
        for key, job in list(self.jobs.items()):
            if not job.is_finished and namespace in (None, key.namespace):
                yield key

    def is_shared(self, namespace: str) -> bool:
        """Whether others than this namespace have jobs that are not finished."""
        return any(other != namespace and phase not in _ENDED for other, phase in self.phases)

    def _see_job(self, raw: Raw) -> list[Key]:
        key = Key(raw["metadata"]["namespace"], raw["metadata"]["name"])
        before = self.jobs.get(key)
        if before is not None and version_of(raw) <= before.version:
            return []
        job = record_job(raw)
        self.jobs[key] = job
        self._count(key, before, job)
        if job.is_finished:
            self.children.pop(key, None)
        experiments = self.experiments.see_trial(raw, job.document)
        # The status is the operator's own: its write comes back by the watch, often before its answer does.
        return experiments if before is not None and _asks_the_same(before, job) else [key, *experiments]

    def _drop_job(self, key: Key, uid: str) -> list[Key]:
        job = self.jobs.get(key)
        if job is None or job.uid != uid:
            return []
        self._count(key, job, None)
        del self.jobs[key]
        self.children.pop(key, None)
        return [key, *self.experiments.drop_trial(key)]

    def _count(self, key: Key, before: JobRecord | None, after: JobRecord | None) -> None:
        for job, change in ((before, -1), (after, 1)):
            if job is not None:
                self.phases[key.namespace, job.phase] += change
                if not self.phases[key.namespace, job.phase]:
                    del self.phases[key.namespace, job.phase]

    def _see_attempt(self, raw: Raw) -> list[Key]:
        key, children = self._owned(raw)
        if children is None or key is None:
            return []
        before = children.attempts.get(attempt_of(raw))
        if before is not None and before.version >= version_of(raw):
            return []
        after = record_attempt(raw)
        children.attempts[after.number] = after
        if after.is_suspended:
            # Whoever suspends a Job has its pods deleted: that is no end of the attempt.
            children.pods = {uid: pod for uid, pod in children.pods.items() if pod.attempt != after.number}
        return [] if before is None or replace(before, version=after.version) == after else [key]

    def _see_pod(self, raw: Raw) -> list[Key]:
        key, children = self._owned(raw)
        if children is None or key is None:
            return []
        before = children.pods.get(raw["metadata"]["uid"])
        if before is not None and (before.is_gone or before.version >= version_of(raw)):
            return []
        after = record_pod(raw)
        attempt = children.attempts.get(after.attempt)
        if before is None and attempt is not None and attempt.is_suspended:
            return []
        children.pods[after.uid] = after
        awaited, children.awaits_pods = children.awaits_pods, False
        # That it is scheduled or runs is seen by the next look; nobody should wait for why it does not, or has ended.
        hindered = after.waiting is not None and (before is None or before.waiting is None)
        return [key] if awaited or hindered or not after.worker.is_alive else []

    def _drop_pod(self, key: Key, children: Children, uid: str) -> list[Key]:
        pod = children.pods.get(uid)
        if pod is None or pod.is_gone:
            return []
        worker = pod.worker
        if worker.is_alive:
            reason = worker.platform_reason or PlatformReason.DELETED
            worker = replace(worker, phase=WorkerPhase.FAILED, ended=self._now(), platform_reason=reason)
        children.pods[uid] = replace(pod, worker=worker, is_gone=True)
        return [key]

    def _see_runtime(self, raw: Raw) -> list[Key]:
        name = raw["metadata"]["name"]
        before = self.runtimes.get(name)
        if before is not None and version_of(raw) <= before.version:
            return []
        self.runtimes[name] = record_runtime(raw)
        return [key for key in self.unfinished() if self.jobs[key].runtime == name]

    def _see_lasting(self, kind: Kind, raw: Raw) -> list[Key]:
        if kind is SERVICE:
            return self._see_service(raw)
        key, children = self._owned(raw)
        if children is None or key is None:
            return []
        before = children.lasting.get(kind.name)
        if before is not None and before.version >= version_of(raw):
            return []
        after = children.lasting[kind.name] = record_lasting(raw)
        return [] if before is None or before.document == after.document else [key]

    def _see_service(self, raw: Raw) -> list[Key]:
        service = Key(raw["metadata"]["namespace"], raw["metadata"]["name"])
        before = self.services.get(service)
        if before is not None and before.version >= version_of(raw):
            return []
        after = self.services[service] = record_lasting(raw)
        return [] if before is None or before.document == after.document else self._served_by(service)

    def _drop_service(self, service: Key, uid: str) -> list[Key]:
        before = self.services.get(service)
        if before is None or before.uid != uid:
            return []
        del self.services[service]
        return self._served_by(service)

    def _served_by(self, service: Key) -> list[Key]:
        return [key for key in self.unfinished(service.namespace) if service_name(key.name) == service.name]

    def _owned(self, raw: Raw) -> tuple[Key | None, Children | None]:
        """The job that an object belongs to, and its children; none are kept of a finished one."""
        key = key_of(raw)
        if key is None or ((job := self.jobs.get(key)) is not None and job.is_finished):
            return key, None
        return key, self.children.setdefault(key, Children())


def _asks_the_same(before: JobRecord, after: JobRecord) -> bool:
    """Whether nothing but the status or the metadata of a job has changed."""
    return all(
        getattr(before, name) == getattr(after, name) for name in ("uid", "generation", "is_deleting", "is_finished")
    )


def _identity(kind: Kind, raw: Raw) -> Key | None:
    metadata = raw["metadata"]
    if kind is FINE_TUNE_EXPERIMENT:
        return experiment_key(metadata["namespace"], metadata["name"])
    if kind in (FINE_TUNE_JOB, RUNTIME, SERVICE):
        return Key(metadata.get("namespace") or "", metadata["name"])
    return key_of(raw)


def _uids(kind: Kind, children: Children) -> Iterable[str]:
    if kind is JOB:
        return [attempt.uid for attempt in children.attempts.values()]
    if kind is POD:
        return [uid for uid, pod in children.pods.items() if not pod.is_gone]
    assert kind in (NETWORK_POLICY, CLAIM)
    return [children.lasting[kind.name].uid] if kind.name in children.lasting else []
