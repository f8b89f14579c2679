"""Jobs of a cluster as what ``finetune compare`` compares; an experiment stands for all of its trials."""

from collections.abc import Iterator

from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.experiments import KnownExperiment, read_known, read_trials
from finetune_cli.comparison import Subject, subject_of


def subjects_of(cluster: Cluster, name: str) -> Iterator[Subject]:
    """The job of this name, or the trials of the experiment.

    Raises:
        ClusterError: There is neither, no way to it, or it is of another version.
    """
    known = read_known(cluster, name)
    if isinstance(known, KnownExperiment):
        jobs = read_trials(cluster, known)
        rows = [row for row in known.status.trial_table if row.name in jobs]
        yield from (subject_of(row.name, jobs[row.name], group=f"{name}: {row.variant}") for row in rows)
    elif known.job is None:
        raise ClusterError(ExitCode.BAD_DATA, f"{name}: its spec is of another version; bring this one up to date")
    else:
        yield subject_of(name, known.job)
