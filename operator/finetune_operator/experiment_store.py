"""What is known of experiments and their trials; a part of ``store``.

Invariants: as there; an experiment is told of a trial that has ended, is gone or was changed by somebody, and of mere
progress only if it goes by that: the rest is seen by its next look.
"""

from collections import Counter
from dataclasses import replace

from finetune_operator.experiment_records import (
    ExperimentRecord,
    TrialRecord,
    experiment_key,
    experiment_of,
    record_experiment,
    record_trial,
)
from finetune_operator.pods import Raw
from finetune_operator.records import document_of, version_of
from finetune_operator.schedule import Key


class Experiments:
    """All experiments, and their trials. ``see``, ``drop`` and the like return what is to be looked at."""

    def __init__(self) -> None:
        self.records: dict[Key, ExperimentRecord] = {}
        self.phases: Counter[tuple[str, str]] = Counter()
        """Experiments by namespace and phase."""
        self._trials: dict[Key, dict[str, TrialRecord]] = {}
        """By experiment and by the job's name."""
        self._owners: dict[Key, Key] = {}
        """Job → experiment."""

    def trials_of(self, key: Key) -> dict[str, TrialRecord]:
        """The trials of this very experiment (not of a deleted namesake) by their jobs' names."""
        uid = self.records[key].uid
        return {name: one for name, one in self._trials.get(key, {}).items() if one.owner == uid}

    def see(self, raw: Raw) -> list[Key]:
        """An experiment is there, or has changed."""
        key = experiment_key(raw["metadata"]["namespace"], raw["metadata"]["name"])
        before = self.records.get(key)
        if before is not None and version_of(raw) <= before.version:
            return []
        after = record_experiment(raw)
        self.records[key] = after
        self._count(key, before, after)
        if after.is_finished:
            trials = self._trials.get(key, {})
            self._trials[key] = {name: replace(one, document=None) for name, one in trials.items()}
        return [] if before is not None and _asks_the_same(before, after) else [key]

    def drop(self, key: Key, uid: str) -> list[Key]:
        """An experiment is gone. What is known of its trials stays until they are gone, too."""
        record = self.records.get(key)
        if record is None or record.uid != uid:
            return []
        self._count(key, record, None)
        del self.records[key]
        return [key]

    def see_trial(self, raw: Raw, document: bytes | None) -> list[Key]:
        """A job is there, or has changed, to a newer version than was known.

        ``document`` is what is kept of it, if that is made already.
        """
        owner, job = experiment_of(raw), Key(raw["metadata"]["namespace"], raw["metadata"]["name"])
        former = self._owners.get(job)
        if former is not None and (owner is None or former != owner[0]):
            affected = self._forget(job)
            return [*affected, *self.see_trial(raw, document)]
        if owner is None:
            return []
        key, uid = owner
        experiment, trials = self.records.get(key), self._trials.setdefault(key, {})
        finished = experiment is not None and experiment.is_finished
        kept = None if finished else document or document_of(raw)
        before, after = trials.get(job.name), record_trial(raw, uid, kept)
        trials[job.name], self._owners[job] = after, key
        return [key] if before is not None and self._is_news(experiment, before, after) else []

    def drop_trial(self, job: Key) -> list[Key]:
        """A job is gone."""
        return self._forget(job) if job in self._owners else []

    @staticmethod
    def _is_news(experiment: ExperimentRecord | None, before: TrialRecord, after: TrialRecord) -> bool:
        prunes = experiment is not None and experiment.prunes
        return before.standing != after.standing or (prunes and before.evaluations != after.evaluations)

    def _forget(self, job: Key) -> list[Key]:
        key = self._owners.pop(job)
        trials = self._trials.get(key, {})
        trials.pop(job.name, None)
        if not trials:
            self._trials.pop(key, None)
        return [key]

    def _count(self, key: Key, before: ExperimentRecord | None, after: ExperimentRecord | None) -> None:
        for one, change in ((before, -1), (after, 1)):
            if one is not None:
                self.phases[key.namespace, one.phase] += change
                if not self.phases[key.namespace, one.phase]:
                    del self.phases[key.namespace, one.phase]


def _asks_the_same(before: ExperimentRecord, after: ExperimentRecord) -> bool:
    """Whether nothing but the status or the metadata has changed; the status is the operator's own."""
    return all(
        getattr(before, name) == getattr(after, name) for name in ("uid", "generation", "is_deleting", "is_finished")
    )
