"""What an experiment's user reads: lines while it runs, the table of variants, and the answer."""

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path

from finetune_api.experiment import (
    ExperimentPhase,
    ExperimentStatus,
    FineTuneExperiment,
    TrialStatus,
    VariantStatus,
)
from finetune_api.status import Phase
from finetune_cli import words
from finetune_cli.screens import Line, fact
from finetune_operator.experiments.standing import answer


def news(before: ExperimentStatus, after: ExperimentStatus, now: datetime) -> Iterator[str]:
    """A line for each trial that has begun or ended between two statuses."""
    known = {row.name: row for row in before.trial_table}
    for row in after.trial_table:
        was = known.get(row.name)
        if was is None or was.phase is not row.phase:
            told = _told(row)
            if told:
                yield f"{now.astimezone():%H:%M:%S} {row.name}: {told}"


def _told(row: TrialStatus) -> str:
    if row.phase is Phase.FAILED:
        return "failed"
    if row.phase is Phase.SUCCEEDED:
        at = f" at step {row.step} of {row.total_steps}" if row.total_steps else ""
        if row.pruned:
            return f"ended early{at}, for it had no hope"
        return f"finished with {words.number(row.value)}" if row.value is not None else "finished without a value"
    return {Phase.STARTING: "starts", Phase.RUNNING: "trains", Phase.RESTARTING: "starts again"}.get(row.phase, "")


def screen(experiment: FineTuneExperiment, root: Path) -> Iterator[Line]:
    """How an experiment on this machine stands, and where everything lies."""
    status = experiment.status or ExperimentStatus()
    yield from summary(status, experiment.spec.objective.metric)
    yield fact("report", _short(root / "report.html"))
    yield fact("folders", _short(root / "trials"))
    yield fact("status", _short(root / "status.yaml"))


def summary(status: ExperimentStatus, metric: str) -> Iterator[Line]:
    """How an experiment stands: the answer, the table of variants, the best trial."""
    style = {ExperimentPhase.SUCCEEDED: "good", ExperimentPhase.FAILED: "bad"}.get(status.phase, "plain")
    yield f"{status.phase.value}: {answer(status)}", style
    yield "", "plain"
    for line in table(variant_rows(status.variants, metric)):
        yield f"  {line}", "plain"
    yield "", "plain"
    yield fact("trials", trial_counts(status))
    if status.best is not None:
        yield fact("best", f"{status.best.trial} with {words.number(status.best.value)}")
        if status.best.model:
            yield fact("model", _short(status.best.model))


def trial_counts(status: ExperimentStatus) -> str:
    """``15 (9 succeeded, 1 failed, 2 running)``."""
    counted = status.trials
    parts = [("succeeded", counted.succeeded), ("pruned", counted.pruned), ("failed", counted.failed)]
    told = ", ".join(f"{count} {name}" for name, count in [*parts, ("running", counted.running)] if count)
    return f"{counted.total} ({told})" if told else str(counted.total)


def variant_rows(variants: Sequence[VariantStatus], metric: str) -> list[list[str]]:
    """The table of variants: a head, and a row each."""
    is_search = any(row.set for row in variants)
    last = "settings" if is_search else "difference to the first (95 % interval)"
    head = ["variant", "n", f"mean {metric}", "std", "95 % interval", "worker time", last]
    return [head, *(_variant_row(row, is_search=is_search) for row in variants)]


def _variant_row(row: VariantStatus, *, is_search: bool) -> list[str]:
    settings = ", ".join(f"{field}={_brief(value)}" for field, value in row.set.items())
    return [
        row.name,
        str(row.seeds),
        _number(row.mean),
        _number(row.std),
        _interval(row.low, row.high),
        words.duration(row.worker_seconds),
        settings if is_search else _difference(row),
    ]


def _difference(row: VariantStatus) -> str:
    difference = row.difference
    if difference is None:
        return ""
    told = f"{difference.mean:+.3g}"
    if difference.low is None or difference.p is None:
        return told
    return f"{told} ({_interval(difference.low, difference.high)}), p {difference.p:.2g}: {difference.verdict}"


def _interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{low:.3g} to {high:.3g}"


def _number(value: float | None) -> str:
    return "" if value is None else words.number(value)


def _brief(value: object) -> str:
    return words.number(value) if isinstance(value, float) else str(value)


def table(rows: Iterable[Sequence[str]]) -> list[str]:
    """Rows of equal length in columns; nothing follows the last word of a line."""
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _short(place: Path | str) -> str:
    """Below the present folder if it is there; a place in a cluster (``pvc://…``) as it is."""
    path = Path(place)
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(place)
