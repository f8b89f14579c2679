"""``finetune status`` of jobs in a cluster: one in full, or all as rows; once, or for as long as something happens."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from http import HTTPStatus
from pathlib import Path

from finetune_api.outcomes import ExitCode
from finetune_api.status import Phase, ProgressReport, Stage
from finetune_cli import words
from finetune_cli.cluster.api import Cluster, Document
from finetune_cli.cluster.errors import ClusterError
from finetune_cli.cluster.experiment_status import show_experiment
from finetune_cli.cluster.experiments import read_known
from finetune_cli.cluster.jobs import KnownJob, know, read_known_job
from finetune_cli.cluster.screen import printable, status_lines
from finetune_cli.cluster.table import Table
from finetune_cli.interrupts import Interrupts
from finetune_cli.local import View
from finetune_cli.printing import say, say_lines
from finetune_cli.run import exit_code_of, open_display
from finetune_operator.actions import Event
from finetune_operator.kinds import FINE_TUNE_JOB

POLL_SECONDS = 2.0
_PAUSE_SECONDS = 5.0
_STAGES = {text: stage for stage, text in words.STAGES.items()}
_NO_HISTORY = Path(os.devnull)


def show_one(cluster: Cluster, name: str, *, watch: bool) -> int:
    """Print how a job or an experiment stands; with ``watch``, follow it to its end.

    Returns:
        0; of one that was watched until it failed, what ``finetune run`` returns for that.
    """
    known = read_known(cluster, name)
    return (
        show_job(cluster, known, watch=watch)
        if isinstance(known, KnownJob)
        else show_experiment(cluster, known, watch=watch)
    )


def show_job(cluster: Cluster, known: KnownJob, *, watch: bool) -> int:
    """Likewise, a job."""
    if watch and not known.is_finished:
        known = _watch_job(cluster, known)
    say_lines(tuple(status_lines(known, _now())))
    return exit_code_of(known.status, Interrupts()) if watch and known.is_finished else ExitCode.DONE


def show_jobs(cluster: Cluster, namespace: str | None, *, watch: bool) -> int:
    """Print all jobs (of every namespace, if none is given) as rows; with ``watch``, each row anew when it changes."""
    found = cluster.read_all(FINE_TUNE_JOB, namespace)
    jobs = [know(item) for item in found["items"]]
    table = Table(jobs, _now(), namespaces=namespace is None)
    if jobs or watch:
        say("\n".join(table.line(cells) for cells in (table.header, *(table.cells(known, _now()) for known in jobs))))
    else:
        print(f"no FineTuneJobs in {f'namespace {namespace}' if namespace else 'this cluster'}", file=sys.stderr)
    if watch:
        _watch_rows(cluster, namespace, table, found)
    return ExitCode.DONE


def _watch_job(cluster: Cluster, known: KnownJob) -> KnownJob:
    """Show the job until it has finished; returns it as it is then."""
    view = _view(known, None)
    if view is None:
        return known
    display = open_display(_NO_HISTORY, view)
    try:
        display.show(view)
        while not known.is_finished:
            time.sleep(POLL_SECONDS)
            before, known = known, _read_again(cluster, known)
            view = _view(known, before)
            if view is not None:
                display.show(view)
    finally:
        display.close()
    return known


def _read_again(cluster: Cluster, known: KnownJob) -> KnownJob:
    """The job as it is now; as it was, if the cluster does not answer this time."""
    try:
        again = read_known_job(cluster, known.name)
    except ClusterError as error:
        if error.code is not ExitCode.RETRY:
            raise
        print(f"{error}; asking again", file=sys.stderr)
        time.sleep(_PAUSE_SECONDS)
        return known
    if again.uid != known.uid:
        raise ClusterError(ExitCode.NOT_FOUND, f"{known.name}: was deleted, and another job of this name made")
    return again


def _view(known: KnownJob, before: KnownJob | None) -> View | None:
    """What the displays of a local run show; None if the job is one that this version does not know."""
    if known.job is None:
        return None
    return View(known.job, _now(), _report(known), tuple(_events(known, before)))


def _report(known: KnownJob) -> ProgressReport | None:
    """The latest report, as far as the status has it."""
    status, deciding = known.status, known.deciding
    if status.phase is not Phase.RUNNING or deciding is None or not status.attempts:
        return None
    stage = _STAGES.get(deciding.message[:1].lower() + deciding.message[1:], Stage.TRAINING)
    number = status.attempts[-1].number
    return ProgressReport(stage=stage, attempt=number, progress=status.progress, metrics=status.metrics)


def _events(known: KnownJob, before: KnownJob | None) -> Iterator[Event]:
    """Where the job stands, whenever that is something new; what it does while it runs is shown anyway."""
    deciding, phase = known.deciding, known.status.phase
    if deciding is None or phase is Phase.RUNNING or known.is_finished:
        return
    former = before.deciding if before else None
    if former is None or (former.reason, former.message) != (deciding.reason, deciding.message):
        kind: Event = Event("Normal", deciding.reason, printable(f"{phase}: {deciding.message}"))
        yield replace(kind, type="Warning") if phase is Phase.RESTARTING else kind


def _watch_rows(cluster: Cluster, namespace: str | None, table: Table, found: Document) -> None:
    """Print each row anew when what it says has changed; ends when nobody reads them any more."""
    shown = {item["metadata"]["uid"]: _said(table, know(item)) for item in found["items"]}
    while True:
        version = found["metadata"]["resourceVersion"]
        try:
            for event in cluster.watch(FINE_TUNE_JOB, namespace, version):
                if event["type"] == "ERROR":
                    break
                version = event["object"]["metadata"]["resourceVersion"]
                gone = event["type"] == "DELETED"
                if event["type"] != "BOOKMARK" and not _show_row(table, shown, event["object"], gone=gone):
                    return
        except ClusterError as error:
            if error.code is not ExitCode.RETRY:
                raise
            if error.status not in (0, HTTPStatus.GONE):
                print(f"{error}; asking again", file=sys.stderr)
            time.sleep(_PAUSE_SECONDS)
        found = _list_again(cluster, namespace)
        if not all(_show_row(table, shown, item, gone=False) for item in found["items"]):
            return


def _list_again(cluster: Cluster, namespace: str | None) -> Document:
    while True:
        try:
            return cluster.read_all(FINE_TUNE_JOB, namespace)
        except ClusterError as error:
            if error.code is not ExitCode.RETRY:
                raise
            print(f"{error}; asking again", file=sys.stderr)
            time.sleep(_PAUSE_SECONDS)


def _show_row(table: Table, shown: dict[str, tuple[str, ...]], item: Document, *, gone: bool) -> bool:
    """Returns whether anybody can read it."""
    known = know(item)
    said, line = _said(table, known), table.line(table.cells(known, _now()))
    if gone:
        shown.pop(known.uid, None)
        return say(f"{line}   (deleted)")
    if shown.get(known.uid) == said:
        return True
    shown[known.uid] = said
    return say(line)


def _said(table: Table, known: KnownJob) -> tuple[str, ...]:
    """The row but for its age."""
    return table.cells(known, known.created or _now())


def _now() -> datetime:
    return datetime.now(UTC)
