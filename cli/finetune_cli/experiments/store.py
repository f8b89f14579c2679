"""What an experiment keeps on disk: its status, and a run's folder for each trial.

Invariant: status.yaml is always whole. All that an experiment goes on from is in its folder.
"""

import shutil
from pathlib import Path

from finetune_api.errors import Fault, SpecError
from finetune_api.experiment import FineTuneExperiment
from finetune_api.experiment_checks import read_experiment
from finetune_api.job import FineTuneJob
from finetune_cli.store import Store, to_yaml, write_atomically


class ExperimentStore:
    """The files of one experiment."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.status = root / "status.yaml"
        self.trials = root / "trials"
        """A run's folder for each trial, by its name."""
        self.report = root / "report.html"
        self.lock = root / ".lock"

    def trial(self, name: str) -> Store:
        """The files of a trial."""
        return Store(self.trials / name)

    def read(self) -> FineTuneExperiment | None:
        """The experiment with its status as it was last written; None for a new one.

        Raises:
            SpecError: status.yaml was damaged (never by us), or holds something else.
        """
        if not self.status.exists():
            return None
        try:
            return read_experiment(self.status)
        except SpecError as error:
            raise SpecError(tuple(Fault(str(self.status), str(fault)) for fault in error.faults)) from error

    def read_trials(self) -> dict[str, FineTuneJob]:
        """The trials' jobs by name, as they were last written."""
        found = (self.trial(path.parent.name).read() for path in sorted(self.trials.glob("*/status.yaml")))
        return {job.metadata.name: job for job in found if job is not None}

    def write(self, experiment: FineTuneExperiment) -> None:
        """Put the experiment with its status into status.yaml."""
        write_atomically(self.status, to_yaml(experiment.to_wire()))

    def write_report(self, page: str) -> None:
        """Put the page into report.html."""
        write_atomically(self.report, page)

    def free(self, name: str) -> None:
        """Remove what is large of a trial; its status, history and report stay."""
        folder = self.trial(name).folder
        for path in (folder.checkpoints, folder.model, folder.adapter):
            shutil.rmtree(path, ignore_errors=True)
