"""An experiment's plan, carried out: jobs are made, changed or deleted, then its status is written, once.

Invariants, as in ``apply``: a trial's name is a function of the experiment, so a job that is made again after a crash
is the same one; what is changed or deleted is the very job that was looked at.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from finetune_api.experiment import ExperimentStatus, FineTuneExperiment
from finetune_api.job import FineTuneJob
from finetune_operator.api import Api, Document
from finetune_operator.apply import as_obstacle, ignoring_absence, status_manifest
from finetune_operator.build.trial import build_trial
from finetune_operator.errors import ApiError, taken
from finetune_operator.experiment_records import ExperimentRecord
from finetune_operator.experiments.observed import ExperimentPlan
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT, FINE_TUNE_JOB
from finetune_operator.records import owner_of
from finetune_operator.schedule import Key
from finetune_operator.store import Store


@dataclass
class ExperimentApplier:
    """Carries plans of experiments out."""

    store: Store
    api: Api
    enqueue: Callable[[Key], None]
    """Gets the trials that are to be looked at."""

    async def apply(
        self, key: Key, record: ExperimentRecord, experiment: FineTuneExperiment, plan: ExperimentPlan
    ) -> None:
        """All but the status.

        Raises:
            Obstacle: The cluster does not take a trial.
            ApiError: Something else went wrong; the same again may do.
        """
        for name, fields in plan.change.items():
            await self._change(key, name, fields)
        for name in plan.delete:
            await self._delete(key, name)
        for job in plan.create:
            await self._make(experiment, job, record.uid)
        if plan.delete_experiment:
            preconditions = {"uid": record.uid, "resourceVersion": str(record.version)}
            with ignoring_absence():
                await self.api.delete(FINE_TUNE_EXPERIMENT, key.namespace, key.name, preconditions)

    async def write_status(self, key: Key, record: ExperimentRecord, status: ExperimentStatus) -> None:
        """Replace the status of the experiment as it was observed.

        Raises:
            ApiError: 409 if it has changed since; it is to be observed anew.
        """
        manifest = status_manifest(FINE_TUNE_EXPERIMENT, key, record, status.to_wire())
        try:
            self.store.see(FINE_TUNE_EXPERIMENT, await self.api.replace(FINE_TUNE_EXPERIMENT, manifest, "status"))
        except ApiError as error:
            if error.is_absence_of(key.name):
                self.store.drop(FINE_TUNE_EXPERIMENT, record.uid, key)  # its deletion was missed: a watch was cut
            raise

    async def _make(self, experiment: FineTuneExperiment, job: FineTuneJob, owner: str) -> None:
        """Make a trial's job, or find that it was made before."""
        manifest = build_trial(experiment, job)
        namespace, name = job.metadata.namespace, job.metadata.name
        try:
            made = await self.api.create(FINE_TUNE_JOB, namespace, manifest)
        except ApiError as error:
            if not error.is_taken:
                raise as_obstacle(error, FINE_TUNE_JOB, manifest) from error
            made = await self.api.get(FINE_TUNE_JOB, namespace, name)
            if owner_of(made) != owner:
                raise taken(FINE_TUNE_JOB.name, name, "experiment") from error
        self._see(made)

    async def _change(self, key: Key, name: str, fields: Mapping[str, Any]) -> None:
        trial = self.store.experiments.trials_of(key)[name]
        patch = {"metadata": {"uid": trial.uid}, "spec": dict(fields)}
        with ignoring_absence():
            self._see(await self.api.merge(FINE_TUNE_JOB, key.namespace, name, patch))

    def _see(self, job: Document) -> None:
        """Take in a trial as we have made it: the watch's word of it may come later, and is no news then."""
        for key in self.store.see(FINE_TUNE_JOB, job):
            self.enqueue(key)

    async def _delete(self, key: Key, name: str) -> None:
        trial = self.store.experiments.trials_of(key)[name]
        with ignoring_absence():
            await self.api.delete(FINE_TUNE_JOB, key.namespace, name, {"uid": trial.uid})
        self.store.drop(FINE_TUNE_JOB, trial.uid, Key(key.namespace, name))
