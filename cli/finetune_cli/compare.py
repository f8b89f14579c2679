"""`finetune compare`: runs of this machine and jobs of a cluster side by side."""

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

from finetune_api.errors import SpecError
from finetune_api.load import kind_in
from finetune_api.outcomes import ExitCode
from finetune_cli.comparison import Subject, rows, subject_of, to_json
from finetune_cli.comparison_page import comparison_page
from finetune_cli.experiments.screens import table
from finetune_cli.experiments.store import ExperimentStore
from finetune_cli.printing import say, write_page
from finetune_cli.store import Store
from finetune_cli.tail import EvaluationTail

ReadCluster = Callable[[str], Iterator[Subject]]
"""Name → what a cluster has of it."""


class Absent(Exception):  # noqa: N818 - what was found
    """A folder that holds no run."""


def compare(names: list[str], *, as_json: bool, read_cluster: ReadCluster, html: Path | None = None) -> int:
    """Print what is the same and what is not; returns the command's exit code.

    Args:
        names: Folders of runs or of experiments (all of its trials), or jobs or experiments of a cluster.
        as_json: Print JSON instead of a table.
        read_cluster: Reads a job of a cluster, or an experiment's trials.
        html: Where to write a page with pictures, instead of printing.
    """
    try:
        subjects = [subject for name in names for subject in _subjects(name, read_cluster)]
    except SpecError as error:
        print(error, file=sys.stderr)
        return ExitCode.BAD_DATA
    except Absent as error:
        print(error, file=sys.stderr)
        return ExitCode.NOT_FOUND
    if html is not None:
        return write_page(comparison_page(subjects), html, "--html")
    if as_json:
        say(json.dumps(to_json(subjects), indent=1))
    else:
        say("\n".join(table(rows(subjects))))
    return ExitCode.DONE


def is_folder(name: str) -> bool:
    """Whether a name means a folder here: it has a slash, or there is a folder of that name."""
    return "/" in name or Path(name).is_dir()


def _subjects(name: str, read_cluster: ReadCluster) -> Iterator[Subject]:
    if not is_folder(name):
        yield from read_cluster(name)
        return
    root = Path(name)
    if kind_in(root / "status.yaml") == "FineTuneExperiment":
        experiment = ExperimentStore(root).read()
        table = experiment.status.trial_table if experiment and experiment.status else ()
        variants = {row.name: f"{root.name}: {row.variant}" for row in table}
        for trial in sorted((root / "trials").glob("*/status.yaml")):
            yield _local(trial.parent, trial.parent.name, variants.get(trial.parent.name))
        return
    yield _local(root, str(root))


def _local(root: Path, name: str, group: str | None = None) -> Subject:
    store = Store(root)
    job = store.read()
    if job is None:
        raise Absent(f"{root}: holds no run (no status.yaml)")
    return subject_of(name, job, EvaluationTail(store.folder.history).read(), group)
