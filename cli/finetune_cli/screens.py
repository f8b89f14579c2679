"""The last screen: what came of a run, where everything lies, and what to do next.

A screen is a tuple of lines, each a text and its style (one of ``good``, ``bad``, ``dim``, ``plain``).
"""

from collections.abc import Iterator
from pathlib import Path

from finetune_api.job import FineTuneJob, TaskName
from finetune_api.status import Attempt, Condition, JobStatus, Phase, Reason, Result
from finetune_cli import words
from finetune_cli.advice import HERE, advise
from finetune_cli.store import Store

Line = tuple[str, str]
LOG_LINES = 20
_LOG_TAIL_BYTES = 16_384
_PIPELINES: dict[TaskName, str] = {
    "text-classification": 'pipeline("text-classification", model={model!r})',
    "text-regression": 'pipeline("text-classification", model={model!r}, function_to_apply="none")',
    "causal-lm": 'pipeline("text-generation", model={model!r})',
    "image-classification": 'pipeline("image-classification", model={model!r})',
    "object-detection": 'pipeline("object-detection", model={model!r})',
    "image-captioning": "AutoModelForImageTextToText.from_pretrained({model!r})",
    "image-text-matching": "AutoModel.from_pretrained({model!r})  # a BLIP by BlipForImageTextRetrieval",
    "token-classification": 'pipeline("token-classification", model={model!r}, aggregation_strategy="first")',
    "sequence-to-sequence": "AutoModelForSeq2SeqLM.from_pretrained({model!r})",
}


def last_screen(job: FineTuneJob, store: Store, failed_worker: int | None = None) -> tuple[Line, ...]:
    """What came of a run that is at rest."""
    status = job.status or JobStatus()
    if status.phase is Phase.SUCCEEDED:
        return tuple(_success(job, status, store))
    if status.phase is Phase.FAILED:
        return tuple(_failure(status, store, failed_worker))
    if status.phase is Phase.SUSPENDED:
        return tuple(_suspension(status))
    return ()


def verdict(status: JobStatus) -> Condition | None:
    """The condition that says where a job stands for good."""
    return next((one for one in reversed(status.conditions) if one.status == "True" and one.type != "Stalled"), None)


def _success(job: FineTuneJob, status: JobStatus, store: Store) -> Iterator[Line]:
    yield f"Succeeded: {_message(status)}", "good"
    yield from outcome_facts(status)
    yield "", "plain"
    yield from _places(store, status.result)
    if status.result is not None:
        call = _PIPELINES[job.spec.task].format(model=_short(Path(status.result.model)))
        yield "", "plain"
        yield "Use the model:", "plain"
        yield f"  from transformers import {call.partition('(')[0].partition('.')[0]}", "plain"
        yield f"  model = {call}", "plain"


def outcome_facts(status: JobStatus) -> Iterator[Line]:
    """What a finished run came to."""
    took = words.duration(status.running_seconds)
    facts = (
        ("metrics", words.metrics(status.result.metrics) if status.result else ""),
        ("best", words.best(status.best) if status.best else ""),
        ("restarts", words.restarts(status)),
        ("took", took),
        *sorted(status.tracking_urls.items()),
    )
    for name, text in facts:
        if text:
            yield fact(name, text)


def _places(store: Store, result: Result | None) -> Iterator[Line]:
    folder = store.folder
    places = (
        ("model", Path(result.model) if result else None),
        ("adapter", Path(result.adapter) if result and result.adapter else None),
        ("report", Path(result.report) if result and result.report else None),
        ("checkpoints", folder.checkpoints),
        ("logs", folder.logs),
        ("status", folder.status),
    )
    for name, path in places:
        if path is not None:
            yield fact(name, _short(path))


def _failure(status: JobStatus, store: Store, failed_worker: int | None) -> Iterator[Line]:
    condition = verdict(status)
    latest = status.attempts[-1] if status.attempts else None
    reason = condition.reason if condition else Reason.BUDGET_EXHAUSTED
    is_own_fault = latest is not None and latest.exit_code is not None and reason is not Reason.DEADLINE_EXCEEDED
    code = f", exit code {latest.exit_code}" if latest and is_own_fault else ""
    yield f"Failed ({reason}{code}): {_message(status)}", "bad"
    if latest is not None:
        yield from _log_lines(store, latest, failed_worker or 0)
    yield "", "plain"
    yield f"What to do: {advise(reason, latest, HERE)}", "plain"
    yield fact("logs", _short(store.folder.logs))
    yield fact("status", _short(store.folder.status))
    if status.last_checkpoint is not None:
        yield fact("checkpoint", f"step {status.last_checkpoint.step}, {_short(Path(status.last_checkpoint.path))}")


def _log_lines(store: Store, attempt: Attempt, worker: int) -> Iterator[Line]:
    path = store.log(attempt.number, worker)
    lines = read_last_lines(path, LOG_LINES)
    if lines:
        yield "", "plain"
        yield f"The last lines of {_short(path)}:", "plain"
        for line in lines:
            yield f"  {line}", "dim"


def _suspension(status: JobStatus) -> Iterator[Line]:
    saved = f" Step {status.last_checkpoint.step} is saved." if status.last_checkpoint else " Nothing was saved yet."
    yield f"Suspended: {_message(status)}.{saved if status.attempts else ''}", "plain"


def _message(status: JobStatus) -> str:
    condition = verdict(status)
    return condition.message if condition else status.phase.value


def fact(name: str, text: str) -> Line:
    """A name and what is known of it."""
    return f"  {name:<12}{text}", "plain"


def _short(path: Path) -> str:
    """The path as seen from here, if that is below."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


def read_last_lines(path: Path, count: int) -> list[str]:
    """The last lines of a log, at most ``count``; empty if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _LOG_TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return []
    return text.splitlines()[-count:]
