"""One look at one job: observe, plan, apply.

Invariant: it is level-triggered. Whatever was done before, by this process or one that was killed half-way, the next
look starts from what is; at a fixed point it makes no request but the one for progress.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.errors import SpecError
from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus
from finetune_operator.actions import Plan, StartAttempt, StopAttempt
from finetune_operator.alive import POLL_SECONDS
from finetune_operator.apply import Applier
from finetune_operator.bucket import TokenBucket
from finetune_operator.errors import Obstacle
from finetune_operator.events import EventPoster, Posting
from finetune_operator.invalid import parse_stored, plan_invalid
from finetune_operator.metrics import Metrics
from finetune_operator.observe import Memory, Observation, Observer
from finetune_operator.observed import Observed, WorkerPhase
from finetune_operator.plan import plan
from finetune_operator.records import JobRecord
from finetune_operator.schedule import Key
from finetune_operator.starts import Starts
from finetune_operator.status import milestones, tells_only_start
from finetune_operator.store import Store

DOUBT_SECONDS = 1.0
"""How long one watch may lag behind the other before the API server itself is asked."""
PROGRESS_SECONDS = 10.0
"""A job's progress is written no more often than this."""
LOOKS_A_SECOND = 50.0
"""Looks a second for no news, all in all: with more than 500 jobs under way each is looked at less often."""
CROWDED_LOOKS_A_SECOND = 5.0
"""Likewise at jobs that run, in a burst of new ones: the API server is what these wait for."""
TURN_SECONDS = 20.0
"""Who has waited so long for its turn is told so."""
TURNS_TOLD_A_SECOND = 5.0
WAITS_SECONDS = 600.0
"""It is looked at again so late: when its turn comes that is told."""
NOT_ITS_TURN = "it is not its turn: where tenants share the cluster, the jobs of each start one after the other"


@dataclass
class Reconciler:
    """Looks at jobs."""

    store: Store
    observer: Observer
    applier: Applier
    events: EventPoster
    metrics: Metrics
    writes: TokenBucket
    """Limits writes of mere progress in total."""
    turns: TokenBucket
    """Limits, in total, how many are told that they wait for their turn."""
    starts: Starts
    now: Callable[[], datetime]
    clock: Callable[[], float]
    _memories: dict[Key, Memory] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Look at a job, and do what is to be done.

        Returns:
            Seconds until it is to be looked at again; None for when something happens.

        Raises:
            ApiError, NotLeading: It could not be done; it is to be looked at again.
        """
        record = self.store.jobs.get(key)
        if record is None or record.is_deleting or record.document is None:
            self._memories.pop(key, None)
            self.starts.settle(key)
            return await self._expire(key, record) if record and not record.is_deleting else None
        begins = not self.store.children_of(key).attempts
        try:
            return await self._parse_and_look(key, record, record.document)
        finally:
            attempts = self.store.children_of(key).attempts.values()
            if begins and all(attempt.is_suspended for attempt in attempts):
                self.starts.settle(key)

    async def _parse_and_look(self, key: Key, record: JobRecord, document: bytes) -> float | None:
        try:
            job = parse_stored(document)
        except SpecError as error:
            await self._tell_invalid(key, record, plan_invalid(document, error.faults, self.now()))
            return None
        return await self._look(key, record, job)

    async def _look(self, key: Key, record: JobRecord, job: FineTuneJob) -> float | None:
        memory = self._memories.setdefault(key, Memory())
        observation = await self.observer.observe(key, job, memory)
        if observation.in_doubt:
            return DOUBT_SECONDS
        made = await self._act(key, observation, memory)
        await self.applier.retire(key)
        await self._write(key, record, observation, made, memory)
        if job.status is not None and job.status.attempts:
            latest = job.status.attempts[-1]
            self.store.forget_ended(key, latest.number if latest.end else latest.number - 1)
        left = self.store.jobs.get(key)
        if left is not None and left.is_finished:
            return await self.reconcile(key)  # nobody tells of our own write again
        return self._stretched(made.look_again_seconds, observation)

    async def _act(self, key: Key, observation: Observation, memory: Memory) -> Plan:
        """Do what is planned; returns the plan, or what is to be said where that could not be done yet."""
        observed, resolved = observation.observed, observation.resolved
        made = plan(observed)
        begins = isinstance(made.action, StartAttempt) and not self.store.children_of(key).attempts
        if begins and not self.starts.admit(key):
            return self._wait_for_turn(observed, memory)
        try:
            if isinstance(made.action, StopAttempt):
                await self.applier.stop(key, made.action.number)
            elif isinstance(made.action, StartAttempt) and resolved is not None:
                await self.applier.start(resolved, made.action.number)
            elif observed.attempt is not None and not observed.attempt.is_over and resolved is not None:
                await self.applier.repair(resolved)
                await self.applier.move(resolved, observed.attempt.number)
        except Obstacle as obstacle:
            _log.warning("%s: %s", key, obstacle)
            return plan(replace(observed, obstacle=str(obstacle)))
        return made

    def _wait_for_turn(self, observed: Observed, memory: Memory) -> Plan:
        """Whose turn comes soon is not told that it waits; nor are all of very many told at once."""
        now = self.clock()
        if memory.tell_turn_at is None:
            memory.tell_turn_at = now + TURN_SECONDS + self.turns.reserve_seconds()
        if now < memory.tell_turn_at:
            return Plan(look_again_seconds=memory.tell_turn_at - now)
        return replace(plan(replace(observed, obstacle=NOT_ITS_TURN)), look_again_seconds=WAITS_SECONDS)

    async def _write(self, key: Key, record: JobRecord, observation: Observation, made: Plan, memory: Memory) -> None:
        """The status, if it tells something new that cannot wait; then the events."""
        job, status = observation.observed.job, made.status
        if status is None:
            return
        urgent = bool(made.events) or milestones(status) != milestones(job.status) or _tells_why(observation, status)
        if not urgent and job.status is not None and tells_only_start(job.status, status):
            return
        if not urgent and (self.clock() - memory.written_at < PROGRESS_SECONDS or not self.writes.take()):
            return
        await self.applier.write_status(job, record, status)
        memory.written_at = self.clock()
        self.metrics.count_change(observation.observed.status, status, observation.observed.now)
        self._post(key, record, made)

    async def _tell_invalid(self, key: Key, record: JobRecord, made: Plan) -> None:
        if made.status is not None:
            await self.applier.write_wire_status(key, record, made.status.to_wire())
            self._post(key, record, made)

    def _post(self, key: Key, record: JobRecord, made: Plan) -> None:
        for event in made.events:
            _log.info("%s: %s: %s", key, event.reason, event.message)
            self.events.add(Posting(key, record.uid, event, self.now()))

    async def _expire(self, key: Key, record: JobRecord) -> float | None:
        """Delete a finished job whose ``ttlSecondsAfterFinished`` have passed."""
        if record.expires is None:
            return None
        left = (record.expires - self.now()).total_seconds()
        if left > 0:
            return left
        await self.applier.delete_job(key, record)
        return None

    def _stretched(self, seconds: float | None, observation: Observation) -> float | None:
        """With very many running jobs, and in a burst of new ones, looks for mere progress are further apart."""
        if seconds != POLL_SECONDS:
            return seconds
        attempt = observation.observed.attempt
        waits = attempt is not None and any(worker.phase is WorkerPhase.PENDING for worker in attempt.workers)
        looks_a_second = CROWDED_LOOKS_A_SECOND if self.starts.is_crowded() and not waits else LOOKS_A_SECOND
        running = len(self._memories) - self.starts.waiting
        return max(observation.quiet_seconds or seconds, running / looks_a_second)


def _tells_why(observation: Observation, status: JobStatus) -> bool:
    """Whether it says, and did not before, why not every worker runs."""
    attempt, before = observation.observed.attempt, observation.observed.status
    return attempt is not None and attempt.waiting is not None and status.conditions != before.conditions


_log = logging.getLogger(__name__)
