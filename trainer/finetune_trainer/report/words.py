"""Numbers and outcomes in words, the same on the page, in the pictures and in the model card."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime

from finetune_api import Cause, FineTuneJob
from finetune_api.intervals import Interval
from finetune_api.status import Result
from finetune_trainer.report.history import History
from finetune_trainer.report.records import AttemptEnd, AttemptStart, Target

NOTHING = "—"

_METRIC_NAMES = {
    "auroc": "AUC-ROC",
    "bleu": "BLEU",
    "f1": "F1",
    "mae": "MAE",
    "mse": "MSE",
    "r2": "R²",
    "rouge1": "ROUGE-1",
    "rouge2": "ROUGE-2",
    "rougeL": "ROUGE-L",
}

_CAUSES = {
    Cause.PREEMPTED: "preempted: it was asked to leave",
    Cause.INFRASTRUCTURE: "a node, a peer or the network was lost",
    Cause.OUT_OF_MEMORY: "it ran out of memory",
    Cause.APPLICATION: "an error that nobody foresaw",
    Cause.CONFIGURATION: "spec, data, model or platform are wrong",
    Cause.STALLED: "nothing progressed within the stall time-out",
}

_LARGE, _SMALL = 1000, 1e-3


def number(value: float | None) -> str:
    """A value to four significant digits: ``0.9134``, ``32``, ``12,345``, ``3.2e-5``."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value and not _SMALL <= abs(value) < _LARGE:
        return f"{value:,.0f}".replace("-", "−") if _LARGE <= abs(value) < _LARGE**3 else _exponent(f"{value:.3g}")
    return f"{value:.4g}".replace("-", "−")


def measure(value: float | None) -> str:
    """A measured value: as ``number``, but always with its four digits, so that a column lines up: ``0.9000``."""
    if value is None or not math.isfinite(value) or not _SMALL <= abs(value) < _LARGE:
        return number(value)
    return f"{value:#.4g}".replace("-", "−")


def interval(found: Interval | None, confidence: float) -> str:
    """A confidence interval: ``0.8931 to 0.9264 (95 %)``; empty if there is none."""
    return f"{measure(found.low)} to {measure(found.high)} ({100 * confidence:.3g} %)" if found else ""


def cut(text: str, limit: int) -> str:
    """At most ``limit`` characters, the last of them an ellipsis if some are missing."""
    return text if len(text) <= limit else f"{text[: limit - 1]}…"


def rate(value: float) -> str:
    """A learning rate: ``2e-5``, ``0.01``."""
    return _exponent(f"{value:.3g}") if value >= _SMALL or value == 0 else _exponent(f"{value:.2e}")


def _exponent(text: str) -> str:
    """``2.00e-05`` as ``2e-5``."""
    mantissa, separator, exponent = text.partition("e")
    if not separator:
        return text
    mantissa = mantissa.rstrip("0").rstrip(".") if "." in mantissa else mantissa
    return f"{mantissa}e{int(exponent)}"


def count(value: float) -> str:
    """A whole number with separators: ``109,483,778``."""
    return f"{value:,.0f}"


def share(part: float, whole: float) -> str:
    """A part of a whole in per cent: ``12.3 %``; never rounded to 0 or 100 when it is not."""
    if not whole:
        return NOTHING
    percent = 100 * part / whole
    text = f"{percent:.0f}" if percent in (0, 100) else f"{min(max(percent, 0.1), 99.9):.1f}"
    return f"{text} %"


def plural(value: float, noun: str) -> str:
    """``1 epoch``, ``2.5 epochs``, ``1,200 steps``."""
    amount = count(value) if value == int(value) else number(value)
    return f"{amount} {noun}{'' if value == 1 else 's'}"


def duration(seconds: float) -> str:
    """The two largest units: ``1 h 23 min``; seconds to a tenth below a minute."""
    minute, hour, day = 60, 3600, 86_400
    if seconds < minute:
        return f"{max(seconds, 0):.1f} s"
    whole = round(seconds)
    if whole < hour:
        return f"{whole // minute} min {whole % minute} s"
    if whole < day:
        return f"{whole // hour} h {whole % hour // minute} min"
    return f"{whole // day} d {whole % day // hour} h"


def moment(time: datetime) -> str:
    """A time in UTC, to the second."""
    return f"{aware(time).astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def aware(time: datetime) -> datetime:
    """The time with a zone; UTC if it has none."""
    return time if time.tzinfo else time.replace(tzinfo=UTC)


def metric_name(name: str) -> str:
    """A metric's name for people: ``auroc`` as ``AUC-ROC``, ``f1Weighted`` as ``F1 weighted``."""
    if name in _METRIC_NAMES:
        return _METRIC_NAMES[name]
    spaced = "".join(f" {letter.lower()}" if letter.isupper() else letter for letter in name.replace("_", " "))
    words = [_METRIC_NAMES.get(word, word) for word in spaced.split()]
    return " ".join([words[0][:1].upper() + words[0][1:], *words[1:]]) if words else name


def target(value: Target) -> str:
    """What was expected or predicted: a class, a number or several classes."""
    if isinstance(value, tuple):
        return ", ".join(value) or "none"
    if isinstance(value, str):
        return value
    return number(value)


def cause(end: AttemptEnd) -> str:
    """Why an attempt ended, in words."""
    if end.cause is None:
        return "finished" if end.exit_code == 0 else f"ended with exit code {end.exit_code}"
    return _CAUSES[Cause(end.cause)] if end.cause in set(Cause) else end.cause


def outcome(
    job: FineTuneJob,
    result: Result | None,
    history: History,
    attempts: Sequence[tuple[AttemptStart, AttemptEnd | None]],
) -> str:
    """What the run came to, in a sentence or two."""
    if result is None:
        return _unfinished(history, attempts)
    steps, exported = plural(history.last_step, "step"), _exported(job, history)
    if result.reason == "EarlyStopped":
        return f"Training stopped early, after {steps}: {_no_improvement(job)}. {exported}"
    return f"Training completed: {steps}, {plural(round(history.last_epoch, 2), 'epoch')}. {exported}"


def _no_improvement(job: FineTuneJob) -> str:
    stopping = job.spec.early_stopping
    metric = metric_name(stopping.metric) if stopping and stopping.metric else "the watched metric"
    patience = f" in {plural(stopping.patience, 'evaluation')}" if stopping else ""
    return f"{metric} had not improved{patience}"


def _exported(job: FineTuneJob, history: History) -> str:
    best = history.best
    if job.spec.checkpoint.keep_best and best and best.step != history.last_step:
        return f"The model is the best checkpoint, that of step {count(best.step)}."
    return "The model is that of the last step."


def _unfinished(history: History, attempts: Sequence[tuple[AttemptStart, AttemptEnd | None]]) -> str:
    trained = f"{plural(history.last_step, 'step')} trained so far" if history.last_step else "nothing is trained yet"
    end = attempts[-1][1] if attempts else None
    if end is None:
        return f"The run is not finished: {trained}."
    message = f" {end.message}" if end.message else ""
    return f"The run is not finished: {trained}; attempt {end.attempt} ended, {cause(end)}.{message}"
