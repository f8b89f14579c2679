"""The files of a run folder that the report reads, as frozen records.

Invariant: reading never raises. A file that is absent is None; one that is broken is None with a note that names it; a
line that is torn (the process was killed while it wrote) is left out.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

from finetune_api.intervals import Interval

Metrics = dict[str, float | None]
Target = str | float | tuple[str, ...] | None


class Record(BaseModel):
    """Base of what is read: camelCase on disk, unknown fields ignored, so that an older page reads a newer run."""

    model_config = ConfigDict(
        frozen=True,
        extra="ignore",
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        use_attribute_docstrings=True,
    )


class Residuals(Record):
    """Expected and predicted numbers of the same samples."""

    expected: tuple[float, ...]
    """What the data says."""
    predicted: tuple[float, ...]
    """What the model says."""


class Example(Record):
    """A sample that the model got wrong."""

    text: str | None = None
    """Its text."""
    text_pair: str | None = None
    """Its second text."""
    image: str | None = None
    """A thumbnail as a data URI."""
    origin: str = ""
    """File and line it came from."""
    expected: Target = None
    """What the data says."""
    predicted: Target = None
    """What the model says."""
    loss: float | None = None
    """Its loss."""


class Shown(Record):
    """What the model made of a sample."""

    origin: str = ""
    """File and line it came from."""
    given: str = ""
    """Text that the model was given."""
    image: str | None = None
    """Picture as a data URI."""
    expected: str = ""
    """What the data says."""
    predicted: str = ""
    """What the model says."""


class FinalEvaluation(Record):
    """``evaluation.json``: the exported model on the test set."""

    part: str = "test"
    """The part that was evaluated: ``test``, or ``validation`` if there is no test set."""
    metrics: Metrics = {}
    """Metrics on that part."""
    validation: Metrics = {}
    """Metrics of the same checkpoint on the validation set."""
    intervals: dict[str, Interval] = {}
    """Confidence interval of each metric that has one."""
    confidence: float = 0.95
    """Share of resamples of that part that lie within."""
    labels: tuple[str, ...] | None = None
    """Class names, in the order of the confusion matrix."""
    confusion: tuple[tuple[int, ...], ...] | None = None
    """Samples by expected (row) and predicted (column) class."""
    residuals: Residuals | None = None
    """Regression only."""
    examples: tuple[Shown, ...] = ()
    """What the model made of the first samples of that part."""
    worst: tuple[Example, ...] = ()
    """The samples of the greatest loss, the worst first."""


class Lengths(Record):
    """Lengths of the texts in tokens."""

    p50: float
    """Half of the texts are no longer than this."""
    p90: float
    """90 % are no longer than this."""
    p99: float
    """99 % are no longer than this."""
    max: float
    """The longest."""
    truncated: int = 0
    """How many were cut to the maximum length."""


class ParameterCount(Record):
    """Parameters of the model."""

    total: int
    """All."""
    trainable: int
    """Those that the optimizer changes."""


class RateGroup(Record):
    """Parameters that share a learning rate."""

    group: str
    """What they are, for example ``layer 3``."""
    learning_rate: float
    """The rate at its peak."""
    parameters: int
    """How many."""


class Augmented(Record):
    """A training sample as it was read, and as training changes it: images (data URIs) or texts, the original first."""

    origin: str = ""
    """File and line it came from."""
    images: tuple[str, ...] = ()
    """Of an image task."""
    texts: tuple[str, ...] = ()
    """Of a text task, as its tokenizer has them."""


class Preparation(Record):
    """``preparation.json``: what was read and how it was divided, and what is trained."""

    samples: dict[str, int] = {}
    """Samples a part."""
    labels: tuple[str, ...] | None = None
    """The classes in the order of their ids."""
    label_counts: dict[str, dict[str, int]] | None = None
    """Samples by part and class."""
    lengths: Lengths | None = None
    """Text only."""
    parameters: ParameterCount | None = None
    """Parameters of the model."""
    rates: tuple[RateGroup, ...] = ()
    """Learning rates by group, bottom first."""
    augmented: tuple[Augmented, ...] = ()
    """What augmentation makes of a few training samples."""


class AttemptStart(Record):
    """A line of ``attempts.jsonl``: an attempt begins."""

    attempt: int
    """1 for the first."""
    time: datetime
    """When."""
    from_step: int = 0
    """The step it resumes from."""
    world_size: int = 1
    """Processes."""


class AttemptEnd(Record):
    """A line of ``attempts.jsonl``: an attempt has ended."""

    attempt: int
    """1 for the first."""
    time: datetime
    """When."""
    step: int = 0
    """The last step it trained."""
    exit_code: int = 0
    """How it ended."""
    cause: str | None = None
    """Why, in one word."""
    message: str | None = None
    """Why, in a sentence."""


AnyRecord = TypeVar("AnyRecord", bound=Record)


def read_record(path: Path, kind: type[AnyRecord]) -> tuple[AnyRecord | None, tuple[str, ...]]:
    """The record in a JSON file, and notes on why it is not there."""
    try:
        return kind.model_validate_json(path.read_bytes()), ()
    except FileNotFoundError:
        return None, ()
    except (OSError, ValidationError) as error:
        return None, (f"{path.name} could not be read and is left out: {_reason(error)}",)


def _reason(error: OSError | ValidationError) -> str:
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    first = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{where}: {first['msg']}" if where else first["msg"]


def read_attempts(path: Path) -> tuple[tuple[AttemptStart, AttemptEnd | None], ...]:
    """Attempts in order; one without an end was killed without a word, or is the present one if it is the last."""
    attempts: list[tuple[AttemptStart, AttemptEnd | None]] = []
    for line in read_lines(path):
        try:
            if line.get("event") == "start":
                attempts.append((AttemptStart.model_validate(line), None))
            elif attempts and attempts[-1][0].attempt == line.get("attempt"):
                attempts[-1] = (attempts[-1][0], AttemptEnd.model_validate(line))
        except ValidationError:
            continue
    return tuple(attempts)


CHUNK_BYTES = 512 * 1024


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The JSON objects in a file of one a line; a million take about two seconds, read a chunk at a time."""
    try:
        with path.open("rb") as file:
            while lines := file.readlines(CHUNK_BYTES):
                yield from _objects([line for line in lines if not line.isspace()])
    except OSError:
        return


def _objects(lines: list[bytes]) -> list[dict[str, Any]]:
    """Parsed in one go, which is twice as fast as line by line; line by line only if one of them is torn."""
    try:
        parsed = json.loads(b"[" + b",".join(lines) + b"]")
    except ValueError:
        parsed = [value for line in lines for value in _value(line)]
    return [value for value in parsed if isinstance(value, dict)]


def _value(line: bytes) -> list[Any]:
    try:
        return [json.loads(line)]
    except ValueError:
        return []
