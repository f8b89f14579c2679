"""The report page: one file that asks no server for anything, light or dark as its reader's screen is, printable.

Invariant: every word that comes from a user is escaped (Jinja escapes all but the pictures, which are drawn here), and
the page's own policy forbids scripts and requests.
"""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from markupsafe import Markup

from finetune_api import FineTuneJob
from finetune_api.status import Result
from finetune_api.wiring import RunFolder
from finetune_trainer.report import tables, words
from finetune_trainer.report.augmented import augmented_texts
from finetune_trainer.report.cleaning import CleaningRecord, case_rows, found_rows
from finetune_trainer.report.curves import metric_names
from finetune_trainer.report.history import History, read_history
from finetune_trainer.report.pictures import draw_pictures
from finetune_trainer.report.records import (
    AttemptEnd,
    AttemptStart,
    FinalEvaluation,
    Metrics,
    Preparation,
    read_attempts,
    read_record,
)
from finetune_trainer.report.rendering import environment, job_yaml, write_file
from finetune_trainer.report.settings import setting_rows
from finetune_trainer.report.theme import COLOURS, Picture

MAX_EVALUATIONS = 50
Attempts = tuple[tuple[AttemptStart, AttemptEnd | None], ...]


def write_report(run: RunFolder, job: FineTuneJob, result: Result | None, *, now: datetime | None = None) -> Path:
    """Write the report page and its pictures into the run folder.

    Args:
        run: The folder; what it lacks, the page does without.
        job: The resolved job.
        result: What the run came to; None if it is not finished.
        now: When the page is written; unset: this moment.

    Returns:
        The page's path.

    Raises:
        OSError: The folder cannot be written to.
    """
    now = now or datetime.now(UTC)
    history, attempts = read_history(run.history), read_attempts(run.attempts)
    evaluation, evaluation_notes = read_record(run.evaluation, FinalEvaluation)
    preparation, preparation_notes = read_record(run.preparation, Preparation)
    cleaning, cleaning_notes = read_record(run.cleaning, CleaningRecord)
    resumed = tuple(dict.fromkeys(start.from_step for start, _ in attempts if start.from_step))
    pictures = draw_pictures(job, result, history, evaluation, resumed, preparation)
    _write_pictures(run.pictures, pictures)
    page = (
        environment(autoescape=True)
        .get_template("report.html.j2")
        .render(
            job=job,
            spec=job_yaml(job),
            written=words.moment(now),
            notes=(*evaluation_notes, *preparation_notes, *cleaning_notes),
            outcome=words.outcome(job, result, history, attempts),
            verdict=_verdict(result),
            colours=COLOURS,
            settings=setting_rows(job),
            pictures=[(picture, Markup(picture.svg)) for picture in pictures],  # noqa: S704 - drawn here
            facts=_facts(history, attempts, preparation, now),
            metrics=_metric_tiles(result, evaluation),
            part=evaluation.part if evaluation else "test",
            evaluations=_evaluation_rows(history),
            evaluation_metrics=_evaluation_metrics(history),
            attempts=tables.attempt_rows(attempts, history.last_step, finished=result is not None, now=now),
            examples=tables.example_rows(evaluation),
            shown=tables.shown_rows(evaluation),
            preparation=preparation,
            augmented=augmented_texts(preparation),
            cleaning=cleaning,
            found=found_rows(cleaning) if cleaning else [],
            cases=case_rows(cleaning) if cleaning else [],
            class_counts=tables.class_counts(preparation) if preparation else None,
            confusion=tables.confusion_of(evaluation),
        )
    )
    write_file(run.report, page.encode())
    return run.report


def _write_pictures(folder: Path, pictures: tuple[Picture, ...]) -> None:
    for picture in pictures:
        write_file(folder / f"{picture.name}.png", picture.png)


def _verdict(result: Result | None) -> str:
    return {"Completed": "Completed", "EarlyStopped": "Stopped early"}[result.reason] if result else "Not finished"


def _metric_tiles(result: Result | None, evaluation: FinalEvaluation | None) -> list[tuple[str, str, str, str]]:
    """(name, value, interval or empty, value on the validation set or empty) of each metric; the loss comes last."""
    metrics: Metrics = dict(result.metrics) if result and result.metrics else {}
    metrics = metrics or (evaluation.metrics if evaluation else {})
    beside = evaluation.validation if evaluation and evaluation.part != "validation" else {}
    intervals, share = (evaluation.intervals, evaluation.confidence) if evaluation else ({}, 0.0)
    return [
        (
            words.metric_name(name),
            words.measure(metrics[name]),
            words.interval(intervals.get(name), share),
            words.measure(beside[name]) if name in beside else "",
        )
        for name in sorted(metrics, key=lambda name: name == "loss")
    ]


def _facts(history: History, attempts: Attempts, preparation: Preparation | None, now: datetime) -> list[list[str]]:
    """(value, name) of what a reader asks first beside the metrics."""
    facts = []
    if history.last_step:
        facts.append([words.count(history.last_step), "steps"])
        facts.append([words.number(round(history.last_epoch, 2)), "epochs"])
    seconds = tables.running_seconds(attempts, now)
    if seconds is not None:
        facts.append([words.duration(seconds), "running"])
    if attempts:
        facts.append([str(len(attempts)), "attempt" if len(attempts) == 1 else "attempts"])
        facts.append([str(attempts[-1][0].world_size), "process" if attempts[-1][0].world_size == 1 else "processes"])
    if preparation and preparation.samples:
        facts.append([words.count(sum(preparation.samples.values())), "samples"])
    if preparation and preparation.parameters:
        parameters = preparation.parameters
        facts.append([words.share(parameters.trainable, parameters.total), "of the parameters trained"])
    return facts


def _evaluation_metrics(history: History) -> list[str]:
    has_loss = any("loss" in point.metrics for point in history.evaluations)
    return [*(["loss"] if has_loss else []), *metric_names(history)]


def _evaluation_rows(history: History) -> dict[str, Any]:
    """The latest evaluations as rows for a table, and how many earlier ones are left out."""
    shown = history.evaluations[-MAX_EVALUATIONS:]
    return {"rows": shown, "left_out": len(history.evaluations) - len(shown), "best": history.best}
