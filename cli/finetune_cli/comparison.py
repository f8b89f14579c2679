"""What several runs have in common and what not: their specs, metrics and curves side by side. Pure."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from finetune_api.intervals import Interval
from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus
from finetune_cli import words
from finetune_cli.tail import Evaluation

CURVE_ROWS = 24
"""Steps of a curve that a screen shows, at most."""
_UNSET = "unset"


@dataclass(frozen=True)
class Subject:
    """A run or job."""

    name: str
    spec: Mapping[str, Any]
    """On the wire, defaults and all."""
    phase: str
    metrics: Mapping[str, float]
    """On the test set (on the validation set if there is none); empty before the end."""
    evaluations: tuple[Evaluation, ...]
    """On the validation set, oldest first."""
    watched: str
    """The metric that decides which evaluation is best."""
    steps: int
    worker_seconds: float
    intervals: Mapping[str, tuple[float, float]]
    """Of the metrics: low and high ends, where they are known."""
    group: str
    """What it is drawn as: trials of one variant share it."""


def subject_of(
    name: str, job: FineTuneJob, evaluations: Sequence[Evaluation] | None = None, group: str | None = None
) -> Subject:
    """A job with its status, as a subject.

    Args:
        name: What it is called in tables.
        job: The job.
        evaluations: All that was measured; None for what the status knows: the watched metric.
        group: What it is drawn as; None for its name.
    """
    status = job.status or JobStatus()
    watched = status.best.metric if status.best else "loss"
    known = [Evaluation(one.step, 0.0, {watched: one.value}, improved=False) for one in status.evaluations]
    return Subject(
        name=name,
        spec=job.spec.to_wire(),
        phase=status.phase.value,
        metrics=status.result.metrics if status.result else {},
        evaluations=tuple(known if evaluations is None else evaluations),
        watched=watched,
        steps=status.progress.step if status.progress else 0,
        worker_seconds=status.running_seconds * job.spec.distributed.workers,
        intervals={name: _ends(one) for name, one in status.result.intervals.items()} if status.result else {},
        group=group or name,
    )


def _ends(interval: Interval) -> tuple[float, float]:
    return interval.low, interval.high


def differences(subjects: Sequence[Subject]) -> dict[str, list[Any]]:
    """Fields in which the specs are not all the same → each one's value, None where it is unset."""
    flat = [dict(_leaves(subject.spec, "")) for subject in subjects]
    fields = dict.fromkeys(field for one in flat for field in one)
    found = {field: [one.get(field) for one in flat] for field in fields}
    return {field: values for field, values in found.items() if any(value != values[0] for value in values)}


def to_json(subjects: Sequence[Subject]) -> dict[str, Any]:
    """The comparison as JSON types; nothing is left out."""
    return {
        "subjects": [
            {name: value for name, value in asdict(subject).items() if name not in ("spec", "evaluations", "group")}
            | {"evaluations": [{"step": one.step, "metrics": one.metrics} for one in subject.evaluations]}
            for subject in subjects
        ],
        "differences": differences(subjects),
    }


def rows(subjects: Sequence[Subject]) -> Iterator[list[str]]:
    """The comparison as rows of a table, a column each subject; an empty first cell begins a part."""
    yield ["", *(subject.name for subject in subjects)]
    yield ["phase", *(subject.phase for subject in subjects)]
    yield ["steps", *(str(subject.steps) for subject in subjects)]
    yield ["worker time", *(words.duration(subject.worker_seconds) for subject in subjects)]
    yield from _part("spec", [[field, *map(shown, values)] for field, values in differences(subjects).items()])
    names = dict.fromkeys(name for subject in subjects for name in subject.metrics)
    yield from _part("result", [[name, *(_number(one.metrics.get(name)) for one in subjects)] for name in names])
    for metric in dict.fromkeys(subject.watched for subject in subjects):
        yield from _part(f"validation {metric} by step", list(_curve(subjects, metric)))


def _part(title: str, body: list[list[str]]) -> Iterator[list[str]]:
    if body:
        yield [""] * len(body[0])
        yield [f"{title}:", *[""] * (len(body[0]) - 1)]
        yield from ([f"  {row[0]}", *row[1:]] for row in body)


def _curve(subjects: Sequence[Subject], metric: str) -> Iterator[list[str]]:
    curves = [{one.step: one.metrics.get(metric) for one in subject.evaluations} for subject in subjects]
    steps = sorted({step for curve in curves for step in curve})
    stride = -(-len(steps) // CURVE_ROWS) if steps else 1
    # Counted from the end, which is what matters most.
    for step in steps[::-1][::stride][::-1]:
        yield [str(step), *(_number(curve.get(step)) for curve in curves)]


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Every field that holds no fields, with its path."""
    if not isinstance(value, Mapping) or not value:
        yield path, value
        return
    for name, item in value.items():
        yield from _leaves(item, f"{path}.{name}" if path else name)


def shown(value: Any) -> str:
    """A field's value as text."""
    return _UNSET if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def _number(value: float | None) -> str:
    return "" if value is None else words.number(value)
