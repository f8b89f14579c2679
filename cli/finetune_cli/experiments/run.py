"""`finetune run` of an experiment: every trial on this machine, from where it stands to the answer.

Invariant: the same command again goes on, whatever ended it; it changes nothing of an experiment that is concluded.
"""

import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

from finetune_api.experiment import (
    ExperimentPhase,
    ExperimentStatus,
    FineTuneExperiment,
    immutable_experiment_changes,
)
from finetune_api.experiment_checks import read_experiment
from finetune_api.outcomes import ExitCode
from finetune_api.status import JobStatus, Phase
from finetune_cli.experiments.report import report
from finetune_cli.experiments.screens import news, screen
from finetune_cli.experiments.store import ExperimentStore
from finetune_cli.experiments.trials import LocalTrials
from finetune_cli.interrupts import Cancelled, Interrupts
from finetune_cli.printing import say, say_lines
from finetune_cli.run import Options, environment_of
from finetune_cli.store import locked
from finetune_operator.experiments.observed import ExperimentPlan, ObservedExperiment
from finetune_operator.experiments.plan import plan_experiment
from finetune_operator.status import reopened

POLL_SECONDS = 0.2
_WRITE_INTERVAL = timedelta(seconds=5)


def run_experiment(options: Options, command: tuple[str, ...]) -> int:
    """Run the experiment to its answer, or until it is interrupted; returns the command's exit code.

    Raises:
        SpecError: It is not valid, or not the one that this folder holds.
        OSError: Its files cannot be written.
    """
    experiment = read_experiment(options.file, options.overrides)
    store = ExperimentStore((options.out or Path("runs") / experiment.metadata.name).resolve())
    store.root.mkdir(parents=True, exist_ok=True)
    with Interrupts() as interrupts:

        def say_waiting(_holder: int | None) -> None:
            print(f"Waiting: another finetune run works in {store.root}", file=sys.stderr, flush=True)

        try:
            with locked(store.lock, say_waiting, interrupts.check):
                return _run_locked(experiment, store, interrupts, options, command)
        except Cancelled:
            return interrupts.exit_code


def _run_locked(
    experiment: FineTuneExperiment,
    store: ExperimentStore,
    interrupts: Interrupts,
    options: Options,
    command: tuple[str, ...],
) -> int:
    before = store.read()
    if before is not None:
        faults = _differences(before, experiment, store.root)
        if faults:
            print("\n".join(faults), file=sys.stderr)
            return ExitCode.BAD_SPEC
        experiment = experiment.model_copy(update={"status": _taken_over(before.status or ExperimentStatus())})
    trials = LocalTrials(
        store,
        interrupts,
        command=command,
        environment=environment_of(options),
        parallelism=experiment.spec.parallelism,
    )
    driver = Driver(experiment, store, trials, interrupts)
    try:
        driver.run()
    finally:
        trials.close()
        driver.write()
    store.write_report(report(driver.experiment, trials.jobs))
    say_lines(tuple(screen(driver.experiment, store.root)))
    return _exit_code(driver, trials, interrupts)


def _differences(before: FineTuneExperiment, now: FineTuneExperiment, root: Path) -> list[str]:
    changed = immutable_experiment_changes(before.spec, now.spec)
    if before.metadata.name != now.metadata.name:
        changed = ["metadata.name", *changed]
    if not changed:
        return []
    advice = f"{root} holds another experiment: name another folder with --out, or remove this one"
    return [
        *(f"{field}: differs from the experiment's, and cannot change once it has begun" for field in changed),
        advice,
    ]


def _taken_over(status: ExperimentStatus) -> ExperimentStatus:
    """The status to go on from: an experiment that has failed is tried again."""
    if status.phase is not ExperimentPhase.FAILED:
        return status
    say("This experiment failed before; its failed trials are tried again.")
    fresh = {"phase": ExperimentPhase.PENDING, "conditions": (), "completion_time": None}
    return status.model_copy(update=fresh)


class Driver:
    """Plans and applies until nothing is left to do."""

    def __init__(
        self, experiment: FineTuneExperiment, store: ExperimentStore, trials: LocalTrials, interrupts: Interrupts
    ) -> None:
        self.experiment, self._store, self._trials, self._interrupts = experiment, store, trials, interrupts
        self._written: ExperimentStatus | None = None
        self._written_at = datetime.min.replace(tzinfo=UTC)

    @property
    def status(self) -> ExperimentStatus:
        """The experiment's status."""
        return self.experiment.status or ExperimentStatus()

    def run(self) -> None:
        """To the answer, or to rest."""
        if self.status.phase is ExperimentPhase.SUCCEEDED:
            say("This experiment is concluded; nothing was done. Another --out makes it anew.")
        else:
            self._reopen_failed()
            self._trials.go_on()
        while True:
            was_busy = self._trials.is_busy
            if self._step():
                if not was_busy:
                    return
                time.sleep(POLL_SECONDS)

    def write(self) -> None:
        """Put the status on disk, if it is not there."""
        if self.experiment.status is not None and self.experiment.status != self._written:
            self._store.write(self.experiment)
            self._written = self.experiment.status

    def _step(self) -> bool:
        """Decide, act, and look after the trials; returns whether nothing was to be decided."""
        now = datetime.now(UTC)
        interrupted = self._interrupts.count > 0
        made = plan_experiment(ObservedExperiment(self.experiment, now, dict(self._trials.jobs), interrupted))
        self._apply(made, now)
        self._trials.reconcile()
        # Locally nothing deletes an experiment, and what a trial frees is freed once.
        return not (made.create or made.change or made.status)

    def _apply(self, made: ExperimentPlan, now: datetime) -> None:
        for job in made.create:
            self._trials.start(job)
        for name, fields in made.change.items():
            self._trials.change(name, fields)
        for name in made.delete:
            self._store.free(name)
        if made.status is None:
            return
        before = self.status
        self.experiment = self.experiment.model_copy(update={"status": made.status})
        for line in news(before, made.status, now):
            say(line)
        is_milestone = (made.status.phase, made.status.trials) != (before.phase, before.trials)
        if is_milestone or now - self._written_at >= _WRITE_INTERVAL:
            self._written_at = now
            self.write()

    def _reopen_failed(self) -> None:
        for name, job in self._trials.jobs.items():
            if job.status is not None and job.status.phase is Phase.FAILED:
                self._trials.jobs[name] = job.model_copy(update={"status": reopened(job.status)})


def _exit_code(driver: Driver, trials: LocalTrials, interrupts: Interrupts) -> int:
    """0 if it is concluded or suspended by its spec; a failed trial's; or 128 + the signal that interrupted it."""
    if driver.status.phase is ExperimentPhase.SUCCEEDED:
        return ExitCode.DONE
    if driver.status.phase is ExperimentPhase.FAILED:
        statuses = [job.status or JobStatus() for job in trials.jobs.values()]
        codes = [one.attempts[-1].exit_code for one in statuses if one.phase is Phase.FAILED and one.attempts]
        return next((code for code in codes if code), ExitCode.BUG)
    return interrupts.exit_code if interrupts.count else ExitCode.DONE
