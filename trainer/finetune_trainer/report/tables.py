"""Tables of a report, as rows ready to print: which classes are confused, what the data holds, how attempts went."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from finetune_trainer.report import words
from finetune_trainer.report.records import AttemptEnd, AttemptStart, Example, FinalEvaluation, Preparation

MAX_ROWS = 20
"""Rows of a table that is sorted by what matters; the rest is counted."""
SHORT_TEXT, LONG_TEXT = 220, 20_000
"""Characters of an example that are shown at once, and when it is opened."""
MAX_THUMBNAIL = 400_000
"""Characters of an image's data URI; a larger one is no thumbnail and would bloat the page."""

_THUMBNAIL = re.compile(r"data:image/(png|jpeg|webp|gif);base64,[A-Za-z0-9+/=]+")


@dataclass(frozen=True)
class ClassScore:
    """How well one class is told from the others."""

    name: str
    precision: float | None
    recall: float | None
    f1: float
    samples: int


@dataclass(frozen=True)
class ConfusedPair:
    """Samples of one class that were taken for another."""

    expected: str
    predicted: str
    samples: int
    share: float
    """Of the expected class, 0 to 1."""


@dataclass(frozen=True)
class ExampleRow:
    """A sample that the model got wrong."""

    texts: tuple[tuple[str, str], ...]
    """(short, rest) of each text: the rest is empty if the short form is all of it."""
    image: str | None
    origin: str
    expected: str
    predicted: str
    loss: str


@dataclass(frozen=True)
class AttemptRow:
    """One try at the run."""

    number: int
    start: str
    duration: str
    processes: int
    from_step: str
    to_step: str
    exit_code: str
    ending: str
    message: str


@dataclass(frozen=True)
class ClassCount:
    """Samples of one class in every part."""

    name: str
    counts: tuple[int, ...]
    share: float
    """Of the most frequent class in the first part, 0 to 1: the length of its bar."""


def confusion_of(evaluation: FinalEvaluation | None) -> tuple[tuple[str, ...], tuple[tuple[int, ...], ...]] | None:
    """Class names and the confusion matrix; None unless it is square and there are at least two classes."""
    matrix = evaluation.confusion if evaluation else None
    if evaluation is None or not matrix or len(matrix) == 1 or any(len(row) != len(matrix) for row in matrix):
        return None
    names = evaluation.labels or ()
    return tuple(names[i] if i < len(names) else f"class {i}" for i in range(len(matrix))), matrix


def class_scores(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[ClassScore]:
    """Precision, recall and F1 a class, in the order of the classes."""
    scores = []
    for index, name in enumerate(names):
        right = matrix[index][index]
        expected, predicted = sum(matrix[index]), sum(row[index] for row in matrix)
        scores.append(
            ClassScore(
                name,
                precision=right / predicted if predicted else None,
                recall=right / expected if expected else None,
                f1=2 * right / (expected + predicted) if expected + predicted else 0.0,
                samples=expected,
            )
        )
    return scores


def confused_pairs(names: Sequence[str], matrix: Sequence[Sequence[int]]) -> list[ConfusedPair]:
    """Pairs of classes that were confused, the most frequent first."""
    pairs = [
        ConfusedPair(names[i], names[j], samples, samples / sum(row))
        for i, row in enumerate(matrix)
        for j, samples in enumerate(row)
        if i != j and samples
    ]
    return sorted(pairs, key=lambda pair: (-pair.samples, -pair.share, pair.expected, pair.predicted))


def example_rows(evaluation: FinalEvaluation | None) -> list[ExampleRow]:
    """The examples that the model got most wrong, cut to what a page can hold."""
    return [_example_row(example) for example in (evaluation.worst if evaluation else ())[:MAX_ROWS]]


def shown_rows(evaluation: FinalEvaluation | None) -> list[ExampleRow]:
    """What the model made of a few samples."""
    return [
        ExampleRow(
            texts=(_folded(shown.given),) if shown.given else (),
            image=thumbnail(shown.image),
            origin=shown.origin,
            expected=words.cut(shown.expected, LONG_TEXT),
            predicted=words.cut(shown.predicted, LONG_TEXT),
            loss="",
        )
        for shown in (evaluation.examples if evaluation else ())[:MAX_ROWS]
    ]


def _example_row(example: Example) -> ExampleRow:
    return ExampleRow(
        texts=tuple(_folded(text) for text in (example.text, example.text_pair) if text is not None),
        image=thumbnail(example.image),
        origin=example.origin,
        expected=words.target(example.expected),
        predicted=words.target(example.predicted),
        loss=words.measure(example.loss),
    )


def _folded(text: str) -> tuple[str, str]:
    if len(text) <= SHORT_TEXT:
        return text, ""
    return text[:SHORT_TEXT], words.cut(text, LONG_TEXT)[SHORT_TEXT:]


def thumbnail(image: str | None) -> str | None:
    """The data URI, if it is one of a picture: anything else could make the page ask a server."""
    return image if image and len(image) <= MAX_THUMBNAIL and _THUMBNAIL.fullmatch(image) else None


def class_counts(preparation: Preparation) -> tuple[tuple[str, ...], list[ClassCount]]:
    """Parts, and the classes with their samples in each, the most frequent first."""
    counts = preparation.label_counts or {}
    parts = tuple(counts)
    names = list(dict.fromkeys([*(preparation.labels or ()), *(name for part in parts for name in counts[part])]))
    table = [(name, tuple(counts[part].get(name, 0) for part in parts)) for name in names] if parts else []
    most = max((row[0] for _, row in table), default=0) or 1
    rows = [ClassCount(name, row, row[0] / most) for name, row in table]
    return parts, sorted(rows, key=lambda row: -row.counts[0])


def attempt_rows(
    attempts: Sequence[tuple[AttemptStart, AttemptEnd | None]], last_step: int, *, finished: bool, now: datetime
) -> list[AttemptRow]:
    """Attempts in order.

    Args:
        attempts: Starts with their ends.
        last_step: The last step of the whole history.
        finished: Whether the run has a result, so that the attempt that writes this is done but for its end line.
        now: When the page is written.
    """
    rows = []
    for position, (start, end) in enumerate(attempts):
        following = attempts[position + 1][0] if position + 1 < len(attempts) else None
        if end:
            rows.append(_attempt_row(start, end.time, words.count(end.step), str(end.exit_code), words.cause(end), end))
        elif following:
            reached = f"≥ {words.count(following.from_step)}"
            rows.append(_attempt_row(start, None, reached, words.NOTHING, "killed without a word"))
        else:
            ending = "finished" if finished else "running when this page was written"
            rows.append(_attempt_row(start, now, words.count(last_step), words.NOTHING, ending))
    return rows


def _attempt_row(
    start: AttemptStart,
    until: datetime | None,
    to_step: str,
    exit_code: str,
    ending: str,
    end: AttemptEnd | None = None,
) -> AttemptRow:
    return AttemptRow(
        number=start.attempt,
        start=words.moment(start.time),
        duration=words.duration(seconds_between(start.time, until)) if until else words.NOTHING,
        processes=start.world_size,
        from_step=words.count(start.from_step),
        to_step=to_step,
        exit_code=exit_code,
        ending=ending,
        message=(end.message if end else None) or "",
    )


def seconds_between(start: datetime, end: datetime) -> float:
    """Seconds from one time to another; a time without a zone is UTC."""
    return (words.aware(end) - words.aware(start)).total_seconds()


def running_seconds(attempts: Sequence[tuple[AttemptStart, AttemptEnd | None]], now: datetime) -> float | None:
    """Seconds that all attempts ran; None if none is recorded or one was killed without a word."""
    ends = [end.time if end else None for _, end in attempts]
    if not ends or None in ends[:-1]:
        return None
    return sum(seconds_between(start.time, end.time if end else now) for start, end in attempts)
