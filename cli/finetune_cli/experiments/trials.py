"""Trials as runs of this machine, several at a time.

Invariant: a trial that has not ended has a LocalCluster for as long as anything is to be done for it, and holds its
run's lock as long; so a trial is never run twice, by us or by another command.
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

from finetune_api.cgroups import cores_for_each
from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus
from finetune_cli.experiments.store import ExperimentStore
from finetune_cli.interrupts import Interrupts
from finetune_cli.local import LocalCluster
from finetune_cli.store import locked
from finetune_operator.conditions import is_finished

_THREADS = "OMP_NUM_THREADS"


@dataclass
class _Running:
    cluster: LocalCluster
    held: ExitStack
    """The lock of its run."""


class LocalTrials:
    """The trials of one experiment: call ``reconcile`` a few times a second while ``is_busy``."""

    def __init__(
        self,
        store: ExperimentStore,
        interrupts: Interrupts,
        *,
        command: tuple[str, ...],
        environment: Mapping[str, str],
        parallelism: int,
    ) -> None:
        """Take over the trials that are there.

        Args:
            store: The experiment's files.
            interrupts: What the user asks for meanwhile.
            command: What starts a worker.
            environment: Variables of workers.
            parallelism: Trials that run at the same time, at most: they share the cores.
        """
        self.jobs = store.read_trials()
        """Every trial's job by its name, with its status."""
        self._store, self._interrupts, self._command = store, interrupts, command
        self._environment, self._parallelism = environment, parallelism
        self._running: dict[str, _Running] = {}

    @property
    def is_busy(self) -> bool:
        """Something is to be done for a trial."""
        return bool(self._running)

    def go_on(self) -> None:
        """Start what has begun and not ended."""
        for name, job in self.jobs.items():
            if name not in self._running and not is_finished(job.status or JobStatus()):
                self.start(job)

    def start(self, job: FineTuneJob) -> None:
        """Start a trial, or let it go on from where it is.

        Raises:
            Cancelled: The command was asked to stop while the run was held by another's workers.
            OSError: Its files could not be written.
        """
        name, held = job.metadata.name, ExitStack()
        store = self._store.trial(name)
        store.root.mkdir(parents=True, exist_ok=True)
        lock = held.enter_context(locked(store.lock, self._say_waiting(name), self._interrupts.check))
        store.write_spec(job)
        cluster = LocalCluster(job, store, lock=lock, command=self._command, environment=self._environment_of(job))
        self.jobs[name], self._running[name] = job, _Running(cluster, held)

    def change(self, name: str, fields: Mapping[str, Any]) -> None:
        """Set mutable fields of a trial's spec."""
        running = self._running.get(name)
        job = running.cluster.job if running else self.jobs[name]
        job = job.model_copy(update={"spec": job.spec.model_copy(update=dict(fields))})
        if running:
            running.cluster.job = self.jobs[name] = job
        else:
            self.start(job)

    def reconcile(self) -> None:
        """Look after every trial that is under way; release those that are at rest."""
        for name, running in list(self._running.items()):
            running.cluster.interrupted = self._interrupts.count > 0
            running.cluster.killed = self._interrupts.count > 1
            self.jobs[name] = running.cluster.reconcile().job
            if running.cluster.is_at_rest:
                self._release(name)

    def close(self) -> None:
        """End whatever still runs (after an error of our own); it may save first."""
        for name in list(self._running):
            self._release(name)

    def _release(self, name: str) -> None:
        running = self._running.pop(name)
        try:
            running.cluster.close()
            self.jobs[name] = running.cluster.job
        finally:
            running.held.close()

    def _environment_of(self, job: FineTuneJob) -> Mapping[str, str]:
        """Trials that run at the same time share the cores, unless the user has said how many threads there are."""
        cores = cores_for_each(self._parallelism * job.spec.distributed.world_size)
        return {_THREADS: str(cores), **self._environment}

    def _say_waiting(self, name: str) -> Any:
        def say(holder: int | None) -> None:
            who = f"process {holder} works" if holder else "workers of a command that was killed are"
            print(f"Waiting: {who} in {self._store.trials / name}", file=sys.stderr, flush=True)

        return say
