"""Pictures of the run's course: loss, metrics, learning rate and gradient norm over the steps.

Invariant: at most twice ``MAX_POINTS`` points a line are drawn, however long the run was, and no spike is lost by it.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes

from finetune_trainer.report import words
from finetune_trainer.report.history import Column, EvaluationPoint, History, envelope, finite, moving_mean, thin
from finetune_trainer.report.theme import LIGHT, Picture, add_legend, new_axes, new_picture

MAX_POINTS = 600
MAX_METRICS = 8
SMOOTHING_SHARE = 0.02
"""The smoothed line is the mean over this share of the run."""
LOG_SCALE_FROM = 30.0
"""Values whose greatest is this many times their median are drawn on a logarithmic scale."""

WIDE, HALF = (9.2, 3.1), (4.6, 2.7)


@dataclass(frozen=True)
class Marks:
    """Steps that are marked in every curve."""

    best: EvaluationPoint | None
    stopped_at: int | None
    restarts: tuple[int, ...]


def loss_picture(history: History, marks: Marks) -> Iterator[Picture]:
    """Training and validation loss, if either was recorded."""
    step, loss = finite(history.steps.step, history.steps.loss)
    points, validation = history.metric("loss")
    if not (step.size or points.size):
        return
    figure, axes = new_axes(WIDE)
    if step.size:
        _raw(axes, step, loss, LIGHT["train"])
        axes.plot(*_smooth(step, loss), color=LIGHT["train"], label="training, smoothed")
    if points.size:
        axes.plot(points, validation, color=LIGHT["valid"], marker="o", markersize=3.5, label="validation")
    _mark(axes, marks, "loss")
    _scale(axes, np.concatenate([loss, validation]))
    _finish(axes, history)
    yield new_picture("loss", "Loss", _loss_words(loss, points, validation), figure, wide=True)


def _loss_words(loss: Column, points: Column, validation: Column) -> str:
    parts = []
    if loss.size:
        first, last = (words.measure(float(part.mean())) for part in (loss[: _window(loss)], loss[-_window(loss) :]))
        parts.append(f"Training loss goes from {first} to {last}")
    if validation.size:
        best = int(validation.argmin())
        at = f"at step {words.count(points[best])}"
        parts.append(f"validation loss is lowest, {words.measure(validation[best])}, {at}")
    text = "; ".join(parts)
    return f"{text[:1].upper()}{text[1:]}."


def metric_pictures(history: History, marks: Marks) -> Iterator[Picture]:
    """One picture a validation metric, for the first ``MAX_METRICS`` of them."""
    for name in metric_names(history)[:MAX_METRICS]:
        points, values = history.metric(name)
        if not points.size:
            continue
        figure, axes = new_axes(HALF)
        axes.plot(points, values, color=LIGHT["valid"], marker="o", markersize=3.5)
        _mark(axes, marks, name)
        _scale(axes, values)
        _finish(axes, history)
        yield new_picture(
            f"metric-{_slug(name)}", f"Validation {_inner(name)}", _metric_words(name, values, marks), figure
        )


def metric_names(history: History) -> list[str]:
    """The validation metrics beside the loss, in the order in which the trainer wrote them."""
    names = (name for point in history.evaluations for name in point.metrics)
    return [name for name in dict.fromkeys(names) if name != "loss"]


def _metric_words(name: str, values: Column, marks: Marks) -> str:
    text = f"{words.metric_name(name)} on the validation set goes from {words.measure(values[0])} "
    text += f"to {words.measure(values[-1])} over {words.plural(values.size, 'evaluation')}"
    best = marks.best.metrics.get(name) if marks.best else None
    if marks.best is None or best is None:
        return f"{text}."
    return f"{text}; at the best checkpoint, step {words.count(marks.best.step)}, it is {words.measure(best)}."


def learning_rate_picture(history: History, marks: Marks) -> Iterator[Picture]:
    """The rate that the scheduler set, if it was recorded."""
    step, rates = finite(history.steps.step, history.steps.learning_rate)
    if not step.size:
        return
    figure, axes = new_axes(HALF)
    axes.plot(*thin(step, rates, MAX_POINTS), color=LIGHT["train"])
    axes.set_ylim(0, float(rates.max()) * 1.08 or 1)
    axes.yaxis.set_major_formatter(lambda value, _: words.rate(value))
    _mark_restarts(axes, marks)
    _finish(axes, history)
    peak = int(rates.argmax())
    text = f"The learning rate peaks at {words.rate(rates[peak])} in step {words.count(step[peak])}"
    yield new_picture("learning-rate", "Learning rate", f"{text} and ends at {words.rate(rates[-1])}.", figure)


def gradient_norm_picture(history: History, marks: Marks, limit: float, *, wide: bool = False) -> Iterator[Picture]:
    """The norm before it was limited, and the ``limit`` (0 for none) if any step was above it."""
    step, norms = finite(history.steps.step, history.steps.grad_norm)
    if not step.size:
        return
    figure, axes = new_axes(WIDE if wide else HALF)
    _raw(axes, step, norms, LIGHT["train"])
    axes.plot(*_smooth(step, norms), color=LIGHT["train"], label="smoothed")
    clipped = float((norms > limit).mean()) if limit else 0.0
    if clipped:
        axes.axhline(limit, color=LIGHT["muted"], linestyle=(0, (4, 3)), linewidth=1, label="limit")
    _scale(axes, norms)
    _mark_restarts(axes, marks)
    _finish(axes, history)
    text = f"Median {words.measure(float(np.median(norms)))}, greatest {words.measure(float(norms.max()))}"
    scaled = f"; {words.share(clipped, 1)} of the steps were scaled down to {words.number(limit)}" if clipped else ""
    yield new_picture("gradient-norm", "Gradient norm", f"{text}{scaled}.", figure, wide=wide)


def _window(values: Column) -> int:
    return max(1, int(values.size * SMOOTHING_SHARE))


def _smooth(x: Column, y: Column) -> tuple[Column, Column]:
    return thin(x, moving_mean(y, _window(y)), MAX_POINTS)


def _raw(axes: Axes, x: Column, y: Column, colour: str) -> None:
    """Every value, faint; where more than fit are recorded, the span between the lowest and the highest."""
    if _window(y) == 1:
        return
    if x.size <= 2 * MAX_POINTS:  # below two values a stretch the span would have gaps
        axes.plot(x, y, color=colour, alpha=0.35, linewidth=0.9)
    else:
        axes.fill_between(*envelope(x, y, MAX_POINTS), color=colour, alpha=0.3, linewidth=0)


def _mark(axes: Axes, marks: Marks, metric: str) -> None:
    """The best evaluation, where the run was stopped, and where it resumed."""
    if marks.best:
        value = marks.best.metrics.get(metric)
        axes.axvline(marks.best.step, color=LIGHT["best"], linewidth=1, linestyle=(0, (1, 2)))
        if value is not None and math.isfinite(value):
            label = f"best {words.measure(value)}, step {words.count(marks.best.step)}"
            axes.plot(
                [marks.best.step], [value], color=LIGHT["best"], marker="o", markersize=6, linestyle="", label=label
            )
    if marks.stopped_at is not None:
        axes.axvline(marks.stopped_at, color=LIGHT["stop"], linewidth=1.2, linestyle=(0, (4, 3)), label="early stop")
    _mark_restarts(axes, marks)


def _mark_restarts(axes: Axes, marks: Marks) -> None:
    for position, step in enumerate(marks.restarts):
        axes.axvline(step, color=LIGHT["muted"], linewidth=0.8, alpha=0.7, label="resumed" if position == 0 else None)


def _scale(axes: Axes, values: Column) -> None:
    if values.size and values.min() > 0 and values.max() > LOG_SCALE_FROM * np.median(values):
        axes.set_yscale("log")


def _finish(axes: Axes, history: History) -> None:
    axes.set_xlim(0, max(history.last_step, 1) * 1.01)
    axes.set_xlabel("step")
    add_legend(axes)


def _slug(name: str) -> str:
    return "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in name).strip("-").lower()


def _inner(name: str) -> str:
    """A metric's name inside a sentence: ``accuracy``, but ``F1``."""
    text = words.metric_name(name)
    return text if text[:2].isupper() or any(letter.isdigit() for letter in text[:2]) else text[:1].lower() + text[1:]
