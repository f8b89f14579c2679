"""Everything that a decision about a job is made from: the store, and where that cannot know, a request.

What is asked, and when: worker 0's progress (each look, limited in total); the namespace's labels, if the runtime wants
some; why Jobs have no pods, for only their events tell (for all Jobs of a namespace at once and not often, for the API
server reads each event of it for that); an attempt's pods, when its Job says that they have ended and the watch of pods
does not (yet).
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from finetune_api.job import FineTuneJob
from finetune_api.status import ProgressReport, Reason
from finetune_operator.api import Api
from finetune_operator.attempts import is_in_doubt, newest_pods, numbers_of, observe_attempt
from finetune_operator.bucket import TokenBucket
from finetune_operator.errors import ApiError
from finetune_operator.kinds import CORE_EVENT, NAMESPACE, POD
from finetune_operator.names import LABEL_ATTEMPT, LABEL_JOB
from finetune_operator.observed import Observed, ObservedAttempt, ObservedWorker, Refusal, WorkerPhase
from finetune_operator.progress import relocate_message, relocate_report
from finetune_operator.records import AttemptRecord, PodRecord
from finetune_operator.resolve import resolve
from finetune_operator.resolved import Resolved
from finetune_operator.schedule import Key
from finetune_operator.status import latest_attempt, open_attempt
from finetune_operator.store import Store

PODLESS_SECONDS = 8.0
"""A Job that has not made its pods by then is asked why."""
ASK_SOON_SECONDS = 10.0
"""Again, if it has not told."""
ASK_AGAIN_SECONDS = 30.0
ASKING_SHARE = 0.05
"""What a namespace's events tell is so long good enough that reading them takes no more of the time than this."""
Pull = Callable[[str], Awaitable[ProgressReport | None]]
"""Address of worker 0 → its report."""


@dataclass
class Memory:
    """What is remembered of a job from one look to the next; all of it may be lost."""

    report: ProgressReport | None = None
    written_at: float = -1e9
    """When its status was last written, in the clock's seconds."""
    doubted: bool = False
    refused_pods: str | None = None
    ask_at: float | None = None
    """When to ask why there are no pods; None if there are."""
    tell_turn_at: float | None = None
    """When to say that it waits for its turn; None if it never had to."""


@dataclass(frozen=True)
class Observation:
    """What is observed of a job, and what it runs with."""

    observed: Observed
    resolved: Resolved | None
    """None if it may not run."""
    in_doubt: bool = False
    """What is known contradicts itself; it will not in a moment."""
    quiet_seconds: float = 0.0
    """How long nothing can be learned but by the watches, which tell when it is there."""


@dataclass
class Observer:
    """Observes jobs."""

    store: Store
    api: Api
    pull: Pull
    pulls: TokenBucket
    """Limits pulls in total."""
    asks: TokenBucket
    """Limits readings of events in total."""
    now: Callable[[], datetime]
    clock: Callable[[], float]
    _labels: dict[str, tuple[float, Mapping[str, str]]] = field(default_factory=dict)
    """Labels of namespaces, and when they were read."""
    _refusals: dict[str, tuple[float, Mapping[str, str]]] = field(default_factory=dict)
    """By namespace: until when nobody need ask again, and why Jobs (by uid) get no pods."""

    async def observe(self, key: Key, job: FineTuneJob, memory: Memory) -> Observation:
        """Look at a job.

        Raises:
            ApiError: Something that had to be asked could not be.
        """
        found = await self._resolve(job)
        resolved, refusal = (found, None) if isinstance(found, Resolved) else (None, found)
        observed = Observed(job, self.now(), refusal=refusal)
        number = self._number(key, job)
        if number is None:
            return Observation(observed, resolved)
        if not _is_told(job, number) and self._is_in_doubt(key, number):
            if not memory.doubted:
                memory.doubted = True
                return Observation(observed, resolved, in_doubt=True)
            await self._read_pods(key, number)
        memory.doubted = False
        attempt = await self._attempt(key, number, memory)
        report = await self._report(key, attempt, memory)
        quiet = self._quiet_seconds(key, number, memory)
        return Observation(replace(observed, attempt=attempt, report=report), resolved, quiet_seconds=quiet)

    async def _resolve(self, job: FineTuneJob) -> Resolved | Refusal:
        record = self.store.runtimes.get(job.spec.runtime)
        if record is not None and record.runtime is None:
            told = f"FineTuneRuntime {job.spec.runtime} is not valid ({record.fault}); ask the platform team"
            return Refusal(Reason.RUNTIME_NOT_FOUND, f"spec.runtime: {told}")
        runtime = record.runtime if record else None
        rule = runtime.spec.namespaces if runtime else None
        labels = await self._namespace_labels(job.metadata.namespace) if rule and rule.match_labels else {}
        return resolve(job, runtime, labels)

    async def _namespace_labels(self, namespace: str) -> Mapping[str, str]:
        read_at, labels = self._labels.get(namespace, (-1e9, {}))
        if self.clock() - read_at > ASK_AGAIN_SECONDS:
            raw = await self.api.get(NAMESPACE, None, namespace)
            labels = raw["metadata"].get("labels") or {}
            self._labels[namespace] = self.clock(), labels
        return labels

    def _number(self, key: Key, job: FineTuneJob) -> int | None:
        """The attempt to decide about (see ``Observed.attempt``)."""
        numbers = numbers_of(self.store.children_of(key), self.store.jobs[key].uid)
        current = open_attempt(job.status) if job.status else None
        if current is not None and current.number in numbers:
            return current.number
        return max(numbers, default=None)

    def _is_in_doubt(self, key: Key, number: int) -> bool:
        children = self.store.children_of(key)
        return is_in_doubt(children.attempts.get(number), self._pods(key, number))

    def _pods(self, key: Key, number: int) -> list[PodRecord]:
        uid = self.store.jobs[key].uid
        return [pod for pod in self.store.children_of(key).pods.values() if (pod.attempt, pod.owner) == (number, uid)]

    async def _read_pods(self, key: Key, number: int) -> None:
        """Take over which pods there really are."""
        selector = f"{LABEL_JOB}={key.name},{LABEL_ATTEMPT}={number}"
        found: set[str] = set()
        async for page in self.api.pages(POD, key.namespace, labelSelector=selector):
            for raw in page:
                self.store.see(POD, raw)
                found.add(raw["metadata"]["uid"])
        for pod in self._pods(key, number):
            if pod.uid not in found:
                self.store.drop(POD, pod.uid, key)

    async def _attempt(self, key: Key, number: int, memory: Memory) -> ObservedAttempt:
        job, pods = self.store.children_of(key).attempts.get(number), self._pods(key, number)
        if job is not None and len(newest_pods(pods)) < job.workers:
            await self._ask_why(key, job, memory)
        else:
            memory.refused_pods = memory.ask_at = None
        attempt = observe_attempt(number, job, pods, self.now(), memory.refused_pods)
        return attempt if job is None or job.run is None else _relocated(attempt, job.run)

    async def _ask_why(self, key: Key, job: AttemptRecord, memory: Memory) -> None:
        """The Job controller tells in events alone why it cannot make a pod (quota, policy)."""
        if job.is_suspended or job.ended is not None:
            memory.ask_at = None
            return
        now, age = self.clock(), (self.now() - job.created).total_seconds()
        if memory.ask_at is None:
            memory.ask_at = now + max(0.0, PODLESS_SECONDS - age)
        if now < memory.ask_at:
            return
        memory.refused_pods = (await self._refusals_in(key.namespace)).get(job.uid)
        memory.ask_at = now + (ASK_SOON_SECONDS if memory.refused_pods is None else ASK_AGAIN_SECONDS)

    async def _refusals_in(self, namespace: str) -> Mapping[str, str]:
        """Why Jobs (by uid) of a namespace get no pods, as of a moment ago."""
        began = self.clock()
        good_until, known = self._refusals.get(namespace, (-1e9, {}))
        if began < good_until or not self.asks.take():
            return known
        self._refusals[namespace] = began + ASK_AGAIN_SECONDS, known  # the others need not ask meanwhile
        selector = "involvedObject.kind=Job,reason=FailedCreate"
        try:
            pages = self.api.pages(CORE_EVENT, namespace, fieldSelector=selector)
            events = [event async for page in pages for event in page]
        except ApiError:  # what it would tell is a help, and nothing waits for it
            self._refusals[namespace] = self.clock() + ASK_SOON_SECONDS, known
            return known
        events.sort(key=lambda event: str(event.get("lastTimestamp") or ""))
        told = {str(one["involvedObject"]["uid"]): _refusal(one) for one in events}
        took = self.clock() - began
        self._refusals[namespace] = self.clock() + max(ASK_SOON_SECONDS, took / ASKING_SHARE), told
        return told

    def _quiet_seconds(self, key: Key, number: int, memory: Memory) -> float:
        """How long a Job without any pod need not be looked at; its first one is told of."""
        if memory.ask_at is None or self._pods(key, number):
            return 0.0
        self.store.children_of(key).awaits_pods = True
        return memory.ask_at - self.clock()

    async def _report(self, key: Key, attempt: ObservedAttempt, memory: Memory) -> ProgressReport | None:
        """The latest report that worker 0 gave; it is not asked for another where it may be ending and not answer."""
        if attempt.held or (memory.report is not None and memory.report.attempt != attempt.number):
            memory.report = None
        first = next((worker for worker in attempt.workers if worker.index == 0), None)
        pod = newest_pods(self._pods(key, attempt.number)).get(0)
        if first is None or first.phase is not WorkerPhase.RUNNING or pod is None or pod.address is None:
            return memory.report
        if any(worker.phase is WorkerPhase.FAILED for worker in attempt.workers):
            return memory.report
        if self.pulls.take() and (report := await self.pull(pod.address)) is not None:
            job = self.store.children_of(key).attempts.get(attempt.number)
            memory.report = relocate_report(report, job.run) if job and job.run else report
        return memory.report


def _refusal(event: Mapping[str, Any]) -> str:
    return str(event.get("message") or "").removeprefix("Error creating: ")


def _is_told(job: FineTuneJob, number: int) -> bool:
    """Whether an attempt's end is in the status already: of its pods nothing more is needed."""
    latest = latest_attempt(job.status) if job.status else None
    return latest is not None and latest.end is not None and number <= latest.number


def _relocated(attempt: ObservedAttempt, run: str) -> ObservedAttempt:
    def relocate(worker: ObservedWorker) -> ObservedWorker:
        return worker if worker.message is None else replace(worker, message=relocate_message(worker.message, run))

    return replace(attempt, workers=tuple(relocate(worker) for worker in attempt.workers))
