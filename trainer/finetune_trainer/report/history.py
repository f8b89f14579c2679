"""The course of a run: its steps and evaluations as columns, and what makes a million of them drawable.

Invariant: steps rise strictly. An attempt that resumes before the last recorded step trains steps again; what is
recorded later supersedes every earlier line of the same or a higher step.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_trainer.report.records import Metrics, read_lines

Column = NDArray[np.float64]
_COLUMNS = ("step", "epoch", "loss", "learningRate", "gradNorm")
_ROWS_A_BLOCK = 65_536


@dataclass(frozen=True)
class Steps:
    """Training steps, one entry each, in columns of equal length; NaN where a value is not recorded."""

    step: Column
    epoch: Column
    loss: Column
    learning_rate: Column
    grad_norm: Column


@dataclass(frozen=True)
class EvaluationPoint:
    """One evaluation on the validation set."""

    step: int
    epoch: float
    metrics: Metrics
    improved: bool


@dataclass(frozen=True)
class History:
    """The course of a run."""

    steps: Steps
    evaluations: tuple[EvaluationPoint, ...]

    @property
    def last_step(self) -> int:
        """The last step that is recorded; 0 if none is."""
        trained = int(self.steps.step[-1]) if self.steps.step.size else 0
        return max(trained, self.evaluations[-1].step if self.evaluations else 0)

    @property
    def last_epoch(self) -> float:
        """Epochs done at the last step."""
        epochs = [*self.steps.epoch[-1:].tolist(), *(point.epoch for point in self.evaluations[-1:])]
        return max((epoch for epoch in epochs if np.isfinite(epoch)), default=0.0)

    @property
    def best(self) -> EvaluationPoint | None:
        """The best evaluation: the last that improved."""
        return next((point for point in reversed(self.evaluations) if point.improved), None)

    def metric(self, name: str) -> tuple[Column, Column]:
        """Steps and values of a validation metric, where it is finite."""
        steps = np.array([point.step for point in self.evaluations], dtype=float)
        values = np.array([point.metrics.get(name) for point in self.evaluations], dtype=float)
        return finite(steps, values)


def read_history(path: Path) -> History:
    """The course of the run in ``history.jsonl``; empty if the file is absent."""
    blocks: list[Column] = [np.empty((0, len(_COLUMNS)))]
    rows: list[list[Any]] = []
    evaluations: list[tuple[int, EvaluationPoint]] = []
    seen = 0
    for line in read_lines(path):
        if not isinstance(line.get("step"), int):
            continue
        if line.get("kind") == "step":
            rows.append([line.get(name) for name in _COLUMNS])
            seen += 1
            if len(rows) == _ROWS_A_BLOCK:
                blocks.append(_block(rows))
                rows = []
        elif line.get("kind") == "evaluation":
            evaluations.append((seen, _evaluation(line)))
    table = np.concatenate([*blocks, _block(rows)] if rows else blocks)
    lowest_after = _lowest_after(table[:, 0])
    table = table[table[:, 0] < lowest_after[1:]]
    points = [point for position, point in evaluations if point.step < lowest_after[position]]
    return History(Steps(*table.T), _superseded(points))


def _block(rows: list[list[Any]]) -> Column:
    try:
        return np.array(rows, dtype=float)
    except (TypeError, ValueError):
        return np.array([[_number(value) for value in row] for row in rows], dtype=float)


def _evaluation(line: dict[str, Any]) -> EvaluationPoint:
    metrics = line.get("metrics")
    return EvaluationPoint(
        step=line["step"],
        epoch=_number(line.get("epoch")),
        metrics={name: _number(value) for name, value in metrics.items()} if isinstance(metrics, dict) else {},
        improved=bool(line.get("improved")),
    )


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else math.nan


def _lowest_after(steps: Column) -> Column:
    """For each position 0 to n, the lowest step recorded at or after it; infinite at n."""
    with_end = np.append(steps, np.inf)
    lowest: Column = np.minimum.accumulate(with_end[::-1])[::-1]
    return lowest


def _superseded(points: list[EvaluationPoint]) -> tuple[EvaluationPoint, ...]:
    """The evaluations that still hold; one that was made again at the same step stays an improvement."""
    kept: list[EvaluationPoint] = []
    for point in points:
        while kept and kept[-1].step > point.step:
            kept.pop()
        if kept and kept[-1].step == point.step:
            kept[-1] = replace(point, improved=point.improved or kept[-1].improved)
        else:
            kept.append(point)
    return tuple(kept)


def finite(x: Column, y: Column) -> tuple[Column, Column]:
    """The points whose value is a finite number."""
    mask = np.isfinite(y)
    return x[mask], y[mask]


def moving_mean(values: Column, window: int) -> Column:
    """Centred moving mean of finite values; at the ends the window shrinks, so nothing is shifted."""
    reach = max(window, 1) // 2
    sums = np.concatenate([[0.0], np.cumsum(values)])
    position = np.arange(values.size)
    low, high = np.maximum(position - reach, 0), np.minimum(position + reach + 1, values.size)
    means: Column = (sums[high] - sums[low]) / (high - low)
    return means


def thin(x: Column, y: Column, limit: int) -> tuple[Column, Column]:
    """At most ``limit`` of the points at equal distances, the first and the last among them."""
    if x.size <= limit:
        return x, y
    chosen = np.linspace(0, x.size - 1, limit).round().astype(int)
    return x[chosen], y[chosen]


def envelope(x: Column, y: Column, limit: int) -> tuple[Column, Column, Column]:
    """Lowest and highest value in each of at most ``limit`` stretches: (first x of each, lowest, highest).

    No spike is lost, however many points a pixel stands for.
    """
    starts = np.unique(np.linspace(0, x.size, min(limit, x.size), endpoint=False).astype(int))
    return x[starts], np.minimum.reduceat(y, starts), np.maximum.reduceat(y, starts)
