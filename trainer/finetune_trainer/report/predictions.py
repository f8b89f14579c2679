"""Pictures of the final evaluation: which class is taken for which, and how far predicted numbers are off."""

import math
from collections.abc import Iterator

import numpy as np

from finetune_trainer.report import words
from finetune_trainer.report.history import Column
from finetune_trainer.report.records import FinalEvaluation, Residuals
from finetune_trainer.report.theme import LIGHT, Picture, add_legend, drawable, new_axes, new_picture

MAX_CLASSES = 20
"""A matrix of more classes cannot be read; the page lists the most confused pairs instead."""

MAX_NAME = 18
"""Characters of a class name beside the matrix."""
MAX_UPRIGHT = 4
"""With more classes than this their names are turned to fit."""
DARK_FROM = 0.5
"""Share from which a cell is too dark for black digits."""

_SQUARE = (4.6, 3.4)


def confusion_picture(evaluation: FinalEvaluation | None) -> Iterator[Picture]:
    """The confusion matrix, shaded by the share of the expected class; nothing above ``MAX_CLASSES``."""
    if evaluation is None or not evaluation.confusion or not 1 < len(evaluation.confusion) <= MAX_CLASSES:
        return
    counts = np.array(evaluation.confusion, dtype=float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = max(3.6, 0.46 * len(counts) + 1.6)
    figure, axes = new_axes((side + 0.4, side))
    axes.grid(visible=False)
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    names = [drawable(words.cut(name, MAX_NAME)) for name in evaluation.labels or ()]
    axes.set_xticks(range(len(names)), names, rotation=90 if len(names) > MAX_UPRIGHT else 0)
    axes.set_yticks(range(len(names)), names)
    for (row, column), amount in np.ndenumerate(counts):
        if amount:
            ink = "white" if shares[row, column] > DARK_FROM else LIGHT["ink"]
            axes.text(column, row, f"{amount:.0f}", ha="center", va="center", color=ink, fontsize=8)
    axes.set_xlabel("predicted")
    axes.set_ylabel("expected")
    right = words.share(float(np.trace(counts)), float(counts.sum()))
    yield new_picture(
        "confusion", "Confusion matrix", f"{right} of {words.count(counts.sum())} samples are right.", figure
    )


def residual_pictures(evaluation: FinalEvaluation | None) -> Iterator[Picture]:
    """Predicted against expected numbers, and how the errors are distributed."""
    if evaluation is None or evaluation.residuals is None:
        return
    expected, predicted = _pairs(evaluation.residuals)
    if not expected.size:
        return
    yield _scatter(expected, predicted)
    yield _histogram(predicted - expected)


def _pairs(residuals: Residuals) -> tuple[Column, Column]:
    length = min(len(residuals.expected), len(residuals.predicted))
    expected, predicted = np.array(residuals.expected[:length]), np.array(residuals.predicted[:length])
    mask = np.isfinite(expected) & np.isfinite(predicted)
    return expected[mask], predicted[mask]


def _scatter(expected: Column, predicted: Column) -> Picture:
    figure, axes = new_axes(_SQUARE)
    ends = [min(expected.min(), predicted.min()), max(expected.max(), predicted.max())]
    axes.plot(ends, ends, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)), label="predicted = expected")
    density = float(np.clip(60 / math.sqrt(expected.size), 0.2, 0.8))
    axes.scatter(expected, predicted, s=14, color=LIGHT["train"], alpha=density, linewidths=0)
    axes.set_xlabel("expected")
    axes.set_ylabel("predicted")
    add_legend(axes)
    related = expected.size > 1 and expected.std() > 0 and predicted.std() > 0
    correlation = words.measure(float(np.corrcoef(expected, predicted)[0, 1])) if related else words.NOTHING
    text = f"{words.plural(expected.size, 'sample')}; correlation {correlation}."
    return new_picture("predictions", "Predicted against expected", text, figure)


def _histogram(errors: Column) -> Picture:
    figure, axes = new_axes(_SQUARE)
    axes.hist(errors, bins=min(40, max(8, math.isqrt(errors.size))), color=LIGHT["train"], alpha=0.75)
    axes.axvline(0, color=LIGHT["muted"], linewidth=1, linestyle=(0, (4, 3)))
    axes.axvline(float(errors.mean()), color=LIGHT["valid"], label=f"mean {words.measure(float(errors.mean()))}")
    axes.set_xlabel("predicted − expected")
    axes.set_ylabel("samples")
    add_legend(axes)
    text = f"Errors have a mean of {words.measure(float(errors.mean()))} and a standard deviation of "
    return new_picture("errors", "Errors", f"{text}{words.measure(float(errors.std()))}.", figure)
