"""Jobs as rows, like ``kubectl get`` has them, with how far they are and how long they still take."""

from collections.abc import Iterable, Sequence
from datetime import datetime

from finetune_api.status import JobStatus, Phase
from finetune_cli import words
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.cluster.screen import UNSEEN, printable

_HEADER = ("NAME", "PHASE", "PROGRESS", "LEFT", "SAMPLES/S", "BEST", "ATTEMPT", "AGE", "MESSAGE")
_LEAST = (10, 10, 16, 10, 9, 16, 7, 9, 0)
"""Widths that hardly any row exceeds: rows that come later stand below those that were there."""
_GAP = "   "


class Table:
    """Lays rows out; those that come later keep to the widths of the first."""

    def __init__(self, first: Iterable[KnownJob], now: datetime, *, namespaces: bool) -> None:
        self._namespaces = namespaces
        rows = [self.cells(known, now) for known in first]
        self.header = (("NAMESPACE",) if namespaces else ()) + _HEADER
        least = ((9,) if namespaces else ()) + _LEAST
        self._widths = [max(width, *map(len, column)) for width, *column in zip(least, self.header, *rows, strict=True)]

    def line(self, cells: Sequence[str]) -> str:
        """One row."""
        padded = [cell.ljust(width) for cell, width in zip(cells, self._widths, strict=True)]
        return _GAP.join(padded).rstrip()

    def cells(self, known: KnownJob, now: datetime) -> tuple[str, ...]:
        """What a row says of a job."""
        status = known.status
        return (
            *((known.namespace,) if self._namespaces else ()),
            known.name,
            status.phase.value,
            _progress(status),
            _left(status),
            _rate(status),
            f"{status.best.metric} {words.number(status.best.value)}" if status.best else "",
            str(status.attempts[-1].number) if status.attempts else "",
            words.duration((now - known.created).total_seconds()) if known.created else "",
            printable(_message(known)),
        )


def _progress(status: JobStatus) -> str:
    progress = status.progress
    return f"{progress.percent:.0f} % ({progress.step}/{progress.total_steps})" if progress else ""


def _left(status: JobStatus) -> str:
    known = status.progress is not None and status.progress.eta_seconds is not None
    return words.duration(status.progress.eta_seconds or 0) if known and status.progress and _runs(status) else ""


def _rate(status: JobStatus) -> str:
    rate = status.progress.samples_per_second if status.progress and _runs(status) else None
    return words.number(rate) if rate is not None else ""


def _runs(status: JobStatus) -> bool:
    return status.phase is Phase.RUNNING


def _message(known: KnownJob) -> str:
    """Why it does not run; nothing of one that does or has succeeded."""
    if known.deciding is None:
        return UNSEEN
    return "" if known.status.phase in (Phase.RUNNING, Phase.SUCCEEDED) else known.deciding.message
