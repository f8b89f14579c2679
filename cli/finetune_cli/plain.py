"""Progress as lines of a log: one at each change that is worth a line."""

from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path

from finetune_api.status import ProgressReport, Stage
from finetune_cli import words
from finetune_cli.local import View
from finetune_cli.printing import say
from finetune_cli.tail import EvaluationTail

_CHECKPOINT_INTERVAL = timedelta(seconds=5)
_PROGRESS_INTERVAL = timedelta(seconds=30)


class PlainDisplay:
    """Writes to a log, or to a terminal that cannot do more."""

    def __init__(self, history: Path, view: View, write: Callable[[str], object] = say) -> None:
        """Start with what is new after ``view``; ``write`` takes a line."""
        self._write = write
        self._evaluations = EvaluationTail(history)
        self._evaluations.read()
        self._stage: tuple[int, Stage] | None = None
        saved = view.status.last_checkpoint
        self._checkpoint = saved.step if saved else 0
        self._checkpoint_at = view.now - _CHECKPOINT_INTERVAL
        self._said_at = view.now

    def show(self, view: View) -> None:
        """Write what is new."""
        for one in self._evaluations.read():
            best = " (best so far)" if one.improved else ""
            self._say(view.now, f"step {one.step}, epoch {one.epoch:.2f}: {words.metrics(one.metrics)}{best}")
        self._show_checkpoint(view)
        if view.report is not None:  # after what the stage before it has brought
            self._show_stage(view.now, view.report)
        for event in view.events:
            self._say(view.now, f"warning: {event.message}" if event.type == "Warning" else event.message)
        if view.report is not None and view.now - self._said_at >= _PROGRESS_INTERVAL:
            self._show_progress(view.now, view.report)

    def close(self) -> None:
        """Nothing is held."""

    def _show_stage(self, now: datetime, report: ProgressReport) -> None:
        stage = (report.attempt, report.stage)
        if report.stage in (Stage.PREPARING, Stage.EXPORTING) and stage != self._stage:
            self._stage = stage
            self._say(now, f"Attempt {report.attempt}: {words.STAGES[report.stage]}")

    def _show_checkpoint(self, view: View) -> None:
        saved = view.status.last_checkpoint
        if saved is None or saved.step <= max(self._checkpoint, view.status.resumed_from_step or 0):
            return
        is_over = view.report is not None and view.report.stage is Stage.EXPORTING
        if view.now - self._checkpoint_at < _CHECKPOINT_INTERVAL and not is_over:
            return
        self._checkpoint, self._checkpoint_at = saved.step, view.now
        self._say(view.now, f"checkpoint of step {saved.step} saved")

    def _show_progress(self, now: datetime, report: ProgressReport) -> None:
        if report.progress is None:
            percent = "" if report.stage_percent is None else f" ({report.stage_percent:.0f} %)"
            self._say(now, f"{words.STAGES[report.stage]}{percent}")
            return
        loss = report.metrics.get("trainLoss")
        told = "" if loss is None else f"training loss {words.number(loss)}"
        parts = (words.step(report.progress), told, words.pace(report.progress))
        self._say(now, ", ".join(part for part in parts if part))

    def _say(self, now: datetime, text: str) -> None:
        self._said_at = now
        self._write(f"{now.astimezone():%H:%M:%S} {text}")
