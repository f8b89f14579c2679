"""Progress as a picture in a terminal that is drawn anew twice a second, with what has happened above it."""

from datetime import timedelta

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from finetune_api.status import Phase
from finetune_cli import words
from finetune_cli.local import View

_REDRAW_INTERVAL = timedelta(seconds=0.5)
_BAR_WIDTH = 40


class LiveDisplay:
    """Draws the run. The picture goes when it is closed; the lines above it stay."""

    def __init__(self, view: View, console: Console) -> None:
        self._live = Live(render(view), console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._drawn_at = view.now

    def show(self, view: View) -> None:
        """Draw the view, unless the last picture is fresh enough."""
        for event in view.events:
            style = "yellow" if event.type == "Warning" else "dim"
            self._live.console.print(Text(f"{view.now.astimezone():%H:%M:%S} {event.message}", style=style))
        if view.events or view.now - self._drawn_at >= _REDRAW_INTERVAL:
            self._drawn_at = view.now
            self._live.update(render(view), refresh=True)

    def close(self) -> None:
        """Take the picture away."""
        self._live.stop()


def render(view: View) -> RenderableType:
    """The picture."""
    facts = Table.grid(padding=(0, 2))
    facts.add_column(style="dim", justify="right")
    facts.add_column()
    trains = view.report is not None and view.report.progress is not None
    for name, text in words.facts(view.job, runs=trains):
        facts.add_row(name, text)
    return Group(_title(view), *_bar(view), facts)


def _title(view: View) -> Text:
    attempt = view.status.attempts[-1].number if view.status.attempts else 1
    state = words.STAGES[view.report.stage] if view.report else view.status.phase.value.lower()
    percent = view.report.stage_percent if view.report else None
    told = f"{state} {percent:.0f} %" if percent is not None else state
    again = f", attempt {attempt}" if attempt > 1 else ""
    return Text.assemble((view.job.metadata.name, "bold"), f"  {view.job.spec.task}{again}  ", (told, _style(view)))


def _style(view: View) -> str:
    return {Phase.RESTARTING: "yellow", Phase.FAILED: "red", Phase.SUSPENDED: "yellow"}.get(view.status.phase, "green")


def _bar(view: View) -> list[RenderableType]:
    progress = view.status.progress
    if progress is None:
        return []
    line = Table.grid(padding=(0, 2))
    bar = ProgressBar(total=100, completed=progress.percent, width=_BAR_WIDTH)
    line.add_row(bar, f"{progress.percent:.0f} %", words.step(progress))
    return [line]
