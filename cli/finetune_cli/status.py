"""`finetune status`: how the run in a folder stands."""

import sys
from collections.abc import Iterator
from pathlib import Path

from finetune_api.errors import SpecError
from finetune_api.job import FineTuneJob
from finetune_api.load import kind_in
from finetune_api.outcomes import ExitCode
from finetune_api.status import Attempt, JobStatus, Phase
from finetune_cli import words
from finetune_cli.printing import say_lines
from finetune_cli.screens import Line, fact, last_screen, verdict
from finetune_cli.store import Store, is_locked


def show_status(root: Path) -> int:
    """Print how the run stands; returns the command's exit code."""
    store = Store(root.resolve())
    if kind_in(store.folder.status) == "FineTuneExperiment":
        return _show_experiment(store.root)
    try:
        job = store.read()
    except SpecError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_DATA
    if job is None:
        print(f"{root}: holds no run (no status.yaml)", file=sys.stderr)
        return ExitCode.NOT_FOUND
    say_lines(tuple(status_lines(job, store)))
    return ExitCode.DONE


def _show_experiment(root: Path) -> int:
    from finetune_cli.experiments.screens import screen
    from finetune_cli.experiments.store import ExperimentStore

    try:
        experiment = ExperimentStore(root).read()
    except SpecError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_DATA
    assert experiment is not None
    say_lines(tuple(screen(experiment, root)))
    return ExitCode.DONE


def status_lines(job: FineTuneJob, store: Store) -> Iterator[Line]:
    """How a run stands: the last screen of one that is at rest, else how far it is."""
    status = job.status or JobStatus()
    screen = last_screen(job, store)
    yield f"{job.metadata.name}  {job.spec.task}", "plain"
    yield from screen or _lines_under_way(job, status, running=is_locked(store.lock))
    if len(status.attempts) > 1 or not screen:
        yield "", "plain"
        yield "Attempts:", "plain"
        for attempt in status.attempts:
            yield attempt_line(attempt), "plain"


def _lines_under_way(job: FineTuneJob, status: JobStatus, *, running: bool) -> Iterator[Line]:
    condition = verdict(status)
    told = f": {condition.message}" if condition and status.phase is Phase.RUNNING else ""
    yield f"{status.phase}{told}", "good" if running else "plain"
    if not running:
        yield "No command runs it now; the same finetune run goes on from the last checkpoint.", "bad"
    if status.progress is not None:
        yield fact("progress", words.step(status.progress))
    yield from (fact(name, text) for name, text in words.facts(job, runs=running))


def attempt_line(attempt: Attempt) -> str:
    """One attempt in a line."""
    steps = f"steps {attempt.from_step} to {attempt.to_step}"
    if attempt.end is None:
        return f"  {attempt.number}  {steps}, runs"
    took = words.duration((attempt.end - attempt.start).total_seconds())
    if attempt.cause is None:
        return f"  {attempt.number}  {steps} in {took}, finished"
    code = f", exit code {attempt.exit_code}" if attempt.exit_code is not None else ""
    return f"  {attempt.number}  {steps} in {took}, {attempt.cause}{code}: {attempt.reason}"
