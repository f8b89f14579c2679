"""`finetune run`: one job on this machine, from where it stands to its end.

Invariant: the same command again goes on, whatever ended it; it changes nothing of a run that is finished.
"""

import os
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from finetune_api.errors import SpecError
from finetune_api.job import FineTuneJob, immutable_changes
from finetune_api.load import kind_in, read_job
from finetune_api.outcomes import ExitCode
from finetune_api.status import JobStatus, Phase, Reason
from finetune_api.wiring import Variable
from finetune_cli.interrupts import Cancelled, Interrupts
from finetune_cli.local import TRAINER, LocalCluster, View
from finetune_cli.printing import is_terminal, say, say_lines
from finetune_cli.screens import last_screen, verdict
from finetune_cli.store import Store, locked
from finetune_operator.actions import Event
from finetune_operator.status import reopened

POLL_SECONDS = 0.2
DEADLINE_EXIT_CODE = 124
"""As timeout(1) has it."""
_CHANGEABLE = frozenset({"spec.distributed", "spec.recovery"})
"""Fixed in a cluster, where pods may stand that they made; here nothing runs yet. The run stays the same: batches
are global, and any number of processes loads a checkpoint."""
_HINT = Event("Normal", Reason.INTERRUPTED, "Saving and stopping; a second time ends it at once")


@dataclass(frozen=True)
class Options:
    """What the user asked for."""

    file: Path
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    """Folder of the run. None: ``runs/<name of the job>``."""
    cache: Path | None = None
    volumes: Path | None = None


class Display(Protocol):
    """Shows how a run goes."""

    def show(self, view: View) -> None:
        """Show the present state and what has happened since the last call."""

    def close(self) -> None:
        """Stop showing."""


def run(options: Options, *, command: tuple[str, ...] = TRAINER) -> int:
    """Run the job to its end, or until it is interrupted; returns the command's exit code.

    Args:
        options: What the user asked for.
        command: What starts a worker.
    """
    if not options.file.exists():
        return _refuse(ExitCode.NOT_FOUND, [f"{options.file}: is not there"])
    try:
        if kind_in(options.file) == "FineTuneExperiment":
            from finetune_cli.experiments.run import run_experiment

            return run_experiment(options, command)
        job = read_job(options.file, options.overrides)
        store = Store((options.out or Path("runs") / job.metadata.name).resolve())
        store.root.mkdir(parents=True, exist_ok=True)
        with Interrupts() as interrupts:
            return _run_alone(job, store, interrupts, command, environment_of(options))
    except SpecError as error:
        return _refuse(ExitCode.BAD_SPEC, (str(one) if one.path else f"{options.file}: {one}" for one in error.faults))
    except PermissionError as error:
        return _refuse(ExitCode.DENIED, [str(error)])
    except OSError as error:
        return _refuse(ExitCode.PLATFORM, [str(error)])


def environment_of(options: Options) -> Mapping[str, str]:
    """Variables of the workers: our own, and the folders that the user named."""
    folders = {Variable.CACHE: options.cache, Variable.VOLUMES: options.volumes}
    return os.environ | {name.value: str(path.resolve()) for name, path in folders.items() if path is not None}


def _run_alone(
    job: FineTuneJob, store: Store, interrupts: Interrupts, command: tuple[str, ...], environment: Mapping[str, str]
) -> int:
    def say_waiting(holder: int | None) -> None:
        who = f"another finetune run (process {holder}) works" if holder else "workers of a command that was killed are"
        print(f"Waiting: {who} in {store.root}", file=sys.stderr, flush=True)

    try:
        with locked(store.lock, say_waiting, interrupts.check) as lock:
            return _run_locked(job, store, interrupts, command, environment, lock)
    except Cancelled:
        return interrupts.exit_code


def _run_locked(
    job: FineTuneJob,
    store: Store,
    interrupts: Interrupts,
    command: tuple[str, ...],
    environment: Mapping[str, str],
    lock: int,
) -> int:
    before = store.read()
    if before is not None:
        faults = _differences(before, job, store.root)
        if faults:
            return _refuse(ExitCode.BAD_SPEC, faults)
        job = job.model_copy(update={"status": _taken_over(before.status or JobStatus())})
        if before.status is not None and before.status.phase is Phase.SUCCEEDED:
            say("This run is finished; nothing was done. Another --out trains it anew.")
            say_lines(last_screen(job, store))
            return ExitCode.DONE
    store.write_spec(job)
    cluster = LocalCluster(job, store, lock=lock, command=command, environment=environment)
    try:
        _drive(cluster, store, interrupts)
    finally:
        cluster.close()
    say_lines(last_screen(cluster.job, store, cluster.failed_worker))
    if cluster.write_fault is not None:
        print(f"warning: the run's status could not be written: {cluster.write_fault}", file=sys.stderr)
    return exit_code_of(cluster.job.status or JobStatus(), interrupts)


def _differences(before: FineTuneJob, job: FineTuneJob, root: Path) -> list[str]:
    """What of the job is not as it was when the run in this folder began, a line each; then what to do about it."""
    changed = [field for field in immutable_changes(before.spec, job.spec) if field not in _CHANGEABLE]
    if before.metadata.name != job.metadata.name:
        changed = ["metadata.name", *changed]
    if not changed:
        return []
    advice = f"{root} holds a run of another spec: name another folder with --out, or remove this one"
    return [*(f"{field}: differs from the run's, and cannot change once it has begun" for field in changed), advice]


def _taken_over(status: JobStatus) -> JobStatus:
    """The status to go on from: a run that has failed is tried again, with its budgets whole."""
    if status.phase is not Phase.FAILED:
        return status
    condition = verdict(status)
    say(f"This run failed before ({condition.reason if condition else status.phase}); trying again.")
    return reopened(status)


def _drive(cluster: LocalCluster, store: Store, interrupts: Interrupts) -> None:
    """Reconcile until nothing is left to do. The first time comes before anything is shown: workers start early."""
    view = cluster.reconcile()
    display = open_display(store.folder.history, view)
    warned = False
    try:
        display.show(view)
        while not cluster.is_at_rest:
            time.sleep(POLL_SECONDS)
            cluster.interrupted, cluster.killed = interrupts.count > 0, interrupts.count > 1
            if cluster.interrupted and not warned:
                warned = True
                display.show(replace(view, events=(_HINT,)))
            view = cluster.reconcile()
            display.show(view)
    finally:
        display.close()


def open_display(history: Path, view: View) -> Display:
    """A picture where somebody looks, else lines; ``history`` is the run's, for its evaluations."""
    if is_terminal():
        from rich.console import Console

        from finetune_cli.live import LiveDisplay

        return LiveDisplay(view, Console())
    from finetune_cli.plain import PlainDisplay

    return PlainDisplay(history, view)


def exit_code_of(status: JobStatus, interrupts: Interrupts) -> int:
    """0 if it succeeded or is suspended by its spec; the failing worker's; or 128 + the signal that interrupted it."""
    if status.phase is Phase.SUCCEEDED:
        return ExitCode.DONE
    if status.phase is Phase.SUSPENDED:
        return interrupts.exit_code if interrupts.count else ExitCode.DONE
    condition = verdict(status)
    if condition is not None and condition.reason is Reason.DEADLINE_EXCEEDED:
        return DEADLINE_EXIT_CODE
    code = status.attempts[-1].exit_code if status.attempts else None
    return code or ExitCode.BUG


def _refuse(code: ExitCode, faults: Iterable[str]) -> int:
    for fault in faults:
        print(fault, file=sys.stderr)
    return code
