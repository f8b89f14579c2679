"""One look at one experiment: observe, plan, apply.

Invariant: as in ``reconcile``. Everything is in the experiment's status and its trials' jobs; what is remembered here
may be lost at any moment.
"""

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime

from finetune_api.errors import SpecError
from finetune_api.experiment import ExperimentStatus, FineTuneExperiment
from finetune_api.experiment_checks import experiment_faults
from finetune_api.job import FineTuneJob
from finetune_operator.bucket import TokenBucket
from finetune_operator.errors import Obstacle
from finetune_operator.events import EventPoster, Posting
from finetune_operator.experiment_apply import ExperimentApplier
from finetune_operator.experiment_records import ExperimentRecord, TrialRecord
from finetune_operator.experiments.events import events_of
from finetune_operator.experiments.invalid import invalid_status, parse_stored_experiment
from finetune_operator.experiments.observed import ExperimentPlan, ObservedExperiment
from finetune_operator.experiments.plan import plan_experiment
from finetune_operator.experiments.trials import ENDED
from finetune_operator.invalid import parse_stored
from finetune_operator.schedule import Key
from finetune_operator.store import Store

LOOK_SECONDS = 30.0
"""An experiment that is under way is looked at as often for mere progress, and what is in its way is tried again."""
LOOKS_A_SECOND = 5.0
"""Looks for mere progress, all in all: with more than 150 experiments each is looked at less often."""
_log = logging.getLogger(__name__)


@dataclass
class _Memory:
    """What is remembered of an experiment from one look to the next."""

    refusal: tuple[int, str | None] | None = None
    """Generation of the spec, and what is wrong with it."""
    jobs: dict[str, tuple[int, FineTuneJob]] = field(default_factory=dict)
    """Trials' jobs as they were read, with the version that they were read from."""


@dataclass
class ExperimentReconciler:
    """Looks at experiments."""

    store: Store
    applier: ExperimentApplier
    events: EventPoster
    writes: TokenBucket
    """Limits writes of mere progress in total."""
    now: Callable[[], datetime]
    _memories: dict[Key, _Memory] = field(default_factory=dict)

    async def reconcile(self, key: Key) -> float | None:
        """Look at an experiment, and do what is to be done.

        Returns:
            Seconds until it is to be looked at again; None for when something happens.

        Raises:
            ApiError, NotLeading: It could not be done; it is to be looked at again.
        """
        record = self.store.experiments.records.get(key)
        if record is None or record.is_deleting:
            self._memories.pop(key, None)
            return None
        try:
            experiment = parse_stored_experiment(record.document)
        except SpecError as error:
            before, after = invalid_status(record.document, error.faults, self.now())
            if after != before:
                await self._write(key, record, before, after)
            return None
        return await self._look(key, record, experiment)

    async def _look(self, key: Key, record: ExperimentRecord, experiment: FineTuneExperiment) -> float | None:
        observed = self._observe(key, record, experiment)
        made = await _planned(observed)
        try:
            await self.applier.apply(key, record, experiment, made)
        except Obstacle as obstacle:
            _log.warning("%s: %s", key, obstacle)
            observed = replace(self._observe(key, record, experiment), obstacle=str(obstacle))
            made = await _planned(observed)
        if made.status is not None and (_is_urgent(observed.status, made.status) or self.writes.take()):
            await self._write(key, record, observed.status, made.status)
        if record.is_finished:
            self._memories.pop(key, None)
            return made.look_again_seconds
        left = self.store.experiments.records.get(key)
        if left is not None and left.is_finished:
            return await self.reconcile(key)  # nobody tells of our own write again
        return None if observed.refusal is not None else max(LOOK_SECONDS, len(self._memories) / LOOKS_A_SECOND)

    def _observe(self, key: Key, record: ExperimentRecord, experiment: FineTuneExperiment) -> ObservedExperiment:
        trials = self.store.experiments.trials_of(key)
        if record.is_finished:
            return ObservedExperiment(experiment, self.now(), names=frozenset(trials))
        memory = self._memories.setdefault(key, _Memory())
        if memory.refusal is None or memory.refusal[0] != record.generation:
            faults = experiment_faults(experiment)
            memory.refusal = record.generation, "; ".join(str(fault) for fault in faults) or None
        jobs = _read(trials, _told(experiment, record), memory)
        return ObservedExperiment(experiment, self.now(), jobs, refusal=memory.refusal[1])

    async def _write(
        self, key: Key, record: ExperimentRecord, before: ExperimentStatus, after: ExperimentStatus
    ) -> None:
        """The status, then its events."""
        await self.applier.write_status(key, record, after)
        for event in events_of(before, after):
            _log.info("%s: %s: %s", key, event.reason, event.message)
            self.events.add(Posting(key, record.uid, event, self.now()))


async def _planned(observed: ObservedExperiment) -> ExperimentPlan:
    """The plan. What a search proposes takes its time, so others are not kept waiting for it."""
    try:
        if observed.experiment.spec.search is None:
            return plan_experiment(observed)
        return await asyncio.to_thread(plan_experiment, observed)
    except SpecError as error:
        return plan_experiment(replace(observed, refusal=str(error)))


def _told(experiment: FineTuneExperiment, record: ExperimentRecord) -> frozenset[str]:
    """Trials of which the status holds all that is needed: they have ended, and nothing goes by their courses."""
    if record.prunes or experiment.status is None:
        return frozenset()
    return frozenset(row.name for row in experiment.status.trial_table if row.phase in ENDED)


def _read(trials: dict[str, TrialRecord], told: frozenset[str], memory: _Memory) -> dict[str, FineTuneJob]:
    """The jobs of all other trials, read again only where they have changed."""
    memory.jobs = {
        name: _latest(trial, memory.jobs.get(name))
        for name, trial in trials.items()
        if name not in told and trial.document is not None
    }
    return {name: job for name, (_, job) in memory.jobs.items()}


def _latest(trial: TrialRecord, known: tuple[int, FineTuneJob] | None) -> tuple[int, FineTuneJob]:
    assert trial.document is not None
    if known is not None and known[0] == trial.version:
        return known
    return trial.version, parse_stored(trial.document)


def _is_urgent(before: ExperimentStatus, after: ExperimentStatus) -> bool:
    """Whether it tells more than that trials have come further."""
    return _milestones(before) != _milestones(after)


def _milestones(status: ExperimentStatus) -> tuple[object, ...]:
    conditions = [(one.type, one.status, one.reason, one.message) for one in status.conditions]
    return status.phase, status.trials, conditions, status.observed_generation
