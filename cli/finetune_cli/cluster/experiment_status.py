"""``finetune status`` and ``finetune report`` of an experiment in a cluster."""

import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from finetune_api.experiment import ExperimentPhase
from finetune_api.experiment_checks import LABEL_EXPERIMENT
from finetune_api.outcomes import ExitCode
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.experiments import KnownExperiment, know_experiment, parsed, read_known, read_trials
from finetune_cli.cluster.screen import UNSEEN, printable
from finetune_cli.experiments.report import report
from finetune_cli.experiments.screens import news, summary
from finetune_cli.printing import say, say_lines, write_page
from finetune_cli.screens import Line, fact
from finetune_operator.kinds import FINE_TUNE_EXPERIMENT

POLL_SECONDS = 5.0


def show_experiment(cluster: Cluster, known: KnownExperiment, *, watch: bool) -> int:
    """Print how an experiment stands; with ``watch``, a line for each trial that begins or ends, then how it stands.

    Returns:
        0; of an experiment that was watched until it failed, 70.
    """
    while watch and not known.is_finished:
        time.sleep(POLL_SECONDS)
        before, known = known, _read_again(cluster, known)
        for line in news(before.status, known.status, datetime.now(UTC)):
            say(line)
    say_lines(tuple(_lines(known)))
    return ExitCode.BUG if watch and known.status.phase is ExperimentPhase.FAILED else ExitCode.DONE


def write_report(cluster: Cluster, name: str, path: Path) -> int:
    """``finetune report``: the page of an experiment.

    Raises:
        ClusterError: There is no such experiment, or no way to it.
    """
    known = read_known(cluster, name)
    if not isinstance(known, KnownExperiment):
        told = f"{name} is a job: its report lies in its run's folder; finetune status {name} says where"
        raise ClusterError(ExitCode.BAD_SPEC, told)
    return write_page(report(parsed(known), read_trials(cluster, known)), path, "--out")


def _lines(known: KnownExperiment) -> Iterator[Line]:
    yield f"{known.name}  experiment in namespace {known.namespace}", "plain"
    if not known.status.conditions:
        yield f"{known.status.phase.value}: {UNSEEN}; if it does not, see that it is installed and runs", "plain"
        return
    yield from ((printable(text), style) for text, style in summary(known.status, known.metric))
    selector = f"-l {LABEL_EXPERIMENT}={known.name}"
    yield fact("jobs", f"kubectl get finetunejobs -n {known.namespace} {selector}")


def _read_again(cluster: Cluster, known: KnownExperiment) -> KnownExperiment:
    """The experiment as it is now; as it was, if the cluster does not answer this time."""
    try:
        again = know_experiment(cluster.get(FINE_TUNE_EXPERIMENT, known.name))
    except ClusterError as error:
        if error.code is not ExitCode.RETRY:
            raise
        print(f"{error}; asking again", file=sys.stderr)
        return known
    if again.uid != known.uid:
        raise ClusterError(ExitCode.NOT_FOUND, f"{known.name}: was deleted, and another experiment of this name made")
    return again
