"""Runs and experiments of this machine: every ``status.yaml`` in a folder, looked at once a second."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.errors import SpecError
from finetune_api.experiment import ExperimentStatus
from finetune_api.load import kind_in
from finetune_api.status import JobStatus, Phase
from finetune_cli.advice import HERE, advise
from finetune_cli.cluster.experiments import KnownExperiment
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.dashboard.board import Document, Entry, Problem
from finetune_cli.dashboard.cluster_source import Post
from finetune_cli.dashboard.details import experiment_detail, job_detail
from finetune_cli.dashboard.rows import EXPERIMENT, JOB, experiment_row, job_row
from finetune_cli.dashboard.trail import Trail
from finetune_cli.experiments.store import ExperimentStore
from finetune_cli.store import Store, is_locked
from finetune_cli.tail import read_losses

POLL_SECONDS = 1.0
_PATTERNS = ("status.yaml", "*/status.yaml", "trials/*/status.yaml", "*/trials/*/status.yaml")
"""The folder of runs, of one run, or of one experiment."""
_AT_REST = (Phase.SUCCEEDED, Phase.FAILED, Phase.SUSPENDED)
_GOES_ON = "The same finetune run goes on from the last checkpoint."
_LEFT_ALONE = "no command runs it now"
Where = tuple[str, str]
"""The folder that a run's folder is in, and its name."""
Stamp = tuple[int, int]
"""When the file was changed, and its inode."""


@dataclass(frozen=True)
class Seen:
    """A status.yaml as it was when it was last read."""

    stamp: Stamp
    entry: Entry | None = None
    problem: Problem | None = None
    is_held: bool | None = None
    """Whether a command works on the run; None for what is at rest, and for an experiment: its trials tell."""


Look = dict[Path, Seen]
"""What was found."""


def start(root: Path, post: Post, pause: Callable[[float], None] = time.sleep) -> None:
    """Follow the folder for as long as the process lives, in a thread."""
    post(lambda board: board.expect(str(root)))
    threading.Thread(target=_follow, args=(root, post, pause), name=f"watch {root}", daemon=True).start()


def _follow(root: Path, post: Post, pause: Callable[[float], None]) -> None:
    before: Look = {}
    post(lambda board: board.content(str(root)))
    while True:
        before = follow_once(root, before, post)
        pause(POLL_SECONDS)


def follow_once(root: Path, before: Look, post: Post) -> Look:
    """Tell the board what has changed since the last look."""
    found = look(root, before)
    if found == before:
        return found
    entries = [seen.entry for seen in found.values() if seen.entry is not None]
    problems = {seen.problem.what: seen.problem for seen in found.values() if seen.problem is not None}
    settled = {seen.problem.what for seen in before.values() if seen.problem is not None} - problems.keys()
    post(lambda board: board.replace(entries, lambda _key: True))
    for problem in problems.values():
        post(lambda board, problem=problem: board.complain(problem))  # type: ignore[misc]
    for what in settled:
        post(lambda board, what=what: board.content(what))  # type: ignore[misc]
    return found


def look(root: Path, before: Look) -> Look:
    """What lies in the folder now; only files that have changed are read."""
    paths = [path for pattern in _PATTERNS for path in sorted(root.glob(pattern))]
    return {path: seen for path in paths if (seen := _look_at(root, path, before.get(path))) is not None}


def _look_at(root: Path, path: Path, before: Seen | None) -> Seen | None:
    try:
        facts = path.stat()
    except OSError:  # removed at this moment
        return None
    stamp = (facts.st_mtime_ns, facts.st_ino)
    if before is not None and before.stamp == stamp and before.is_held in (None, _is_held(path.parent)):
        return before
    try:
        return _read(root, path, stamp)
    except FileNotFoundError:
        return None
    except (SpecError, OSError) as error:
        return Seen(stamp, problem=Problem(str(path), str(error), None))


def _read(root: Path, path: Path, stamp: Stamp) -> Seen:
    folder = path.parent
    where = (str(folder.parent.relative_to(root.parent)) if folder != root else "", folder.name)
    if kind_in(path) == EXPERIMENT:
        return Seen(stamp, _experiment_entry(folder, where, str(stamp[0])))
    known = _known_run(Store(folder), where, str(stamp[0]))
    is_held = None if known.status.phase in _AT_REST else _is_held(folder)
    return Seen(stamp, _run_entry(known, Store(folder), is_held=is_held), is_held=is_held)


def _is_held(folder: Path) -> bool:
    return is_locked(Store(folder).lock)


def _known_run(store: Store, where: Where, version: str) -> KnownJob:
    job = store.read()
    if job is None:
        raise FileNotFoundError(store.folder.status)
    status = job.status or JobStatus()
    return KnownJob(
        name=where[1],
        namespace=where[0],
        uid=str(store.root),
        version=version,
        created=status.start_time,
        is_current=True,
        suspend=job.spec.suspend,
        status=status,
        job=job,
    )


def _run_entry(known: KnownJob, store: Store, *, is_held: bool | None) -> Entry:
    row = job_row(known, _experiment_of(known.namespace))
    if is_held is False:
        row |= {"message": f"{_LEFT_ALONE}: {row['message']}", "tone": "plain"}

    def detail() -> Document:
        made = job_detail(known, datetime.now(UTC), _advice(known, is_held=is_held), str(store.folder.logs))
        return {**row, **made, "trail": _course_of_loss(store)}

    return Entry((JOB, known.namespace, known.name), row, detail)


def _advice(known: KnownJob, *, is_held: bool | None) -> str:
    if known.status.phase is Phase.FAILED and known.deciding is not None:
        return advise(known.deciding.reason, known.status.attempts[-1] if known.status.attempts else None, HERE)
    return _GOES_ON if known.status.phase is Phase.SUSPENDED or is_held is False else ""


def _course_of_loss(store: Store) -> list[tuple[int, float]]:
    trail = Trail()
    for step, loss in read_losses(store.folder.history):
        trail.add(step, loss)
    return trail.points


def _experiment_of(folder: str) -> Document | None:
    """The experiment whose folder a trial's is in."""
    path = Path(folder)
    if path.name != "trials":
        return None
    above = path.parent
    return {"namespace": str(above.parent) if above.parent.parts else "", "name": above.name}


def _experiment_entry(folder: Path, where: Where, version: str) -> Entry:
    experiment = ExperimentStore(folder).read()
    if experiment is None:
        raise FileNotFoundError(folder / "status.yaml")
    status = experiment.status or ExperimentStatus()
    known = KnownExperiment(
        name=where[1],
        namespace=where[0],
        uid=str(folder),
        version=version,
        created=status.start_time,
        metric=experiment.spec.objective.metric,
        spec=experiment.spec.to_wire(),
        status=status,
    )
    row, trials = experiment_row(known), str(Path(*where) / "trials")
    return Entry((EXPERIMENT, *where), row, lambda: {**row, **experiment_detail(known, trials)})
