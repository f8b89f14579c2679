"""What the page shows of one object beside its row: JSON types, in the words of the other commands."""

from collections.abc import Iterable, Iterator
from datetime import datetime
from itertools import zip_longest
from typing import Any

from finetune_api.experiment import ExperimentCondition, TrialStatus, VariantStatus
from finetune_api.job import MaxRestarts
from finetune_api.metrics import watched_metric
from finetune_api.status import Attempt, Condition, JobStatus
from finetune_cli import words
from finetune_cli.cluster.describe import attempt_facts, budget_facts, heading
from finetune_cli.cluster.experiments import KnownExperiment
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.cluster.screen import headline, printable
from finetune_cli.dashboard.board import Document
from finetune_cli.dashboard.rows import experiment_message, wire_time
from finetune_cli.experiments.screens import trial_counts, variant_rows
from finetune_cli.store import to_yaml

MOST_SPEC_CHARACTERS = 65_536
Fact = tuple[str, str]


def job_detail(known: KnownJob, now: datetime, advice: str, logs: str) -> Document:
    """Everything of a job: ``advice`` is what to do next, ``logs`` where they are or what prints them."""
    status = known.status
    budgets = known.job.spec.recovery.max_restarts if known.job else MaxRestarts()
    return {
        "task": known.job.spec.task if known.job else "",
        "headline": headline(known)[0],
        "next": advice,
        "progress": _progress(status),
        "facts": _clean([*_job_facts(known), ("logs", logs)]),
        "course": _course(known),
        "attempts": _attempts(status.attempts, budgets, now),
        "budgets": _clean(budget_facts(status, budgets)),
        "conditions": [_condition(one) for one in status.conditions],
        "spec": spec_text(known.job.to_wire()["spec"] if known.job else {}),
    }


def experiment_detail(known: KnownExperiment, trials_in: str) -> Document:
    """Everything of an experiment, whose trials are in the namespace (of local runs: the folder) ``trials_in``."""
    status = known.status
    head, *rows = variant_rows(status.variants, known.metric) if status.variants else [[]]
    return {
        "headline": printable(f"{status.phase.value}: {experiment_message(status)}"),
        "metric": printable(known.metric),
        "facts": _clean(_experiment_facts(known)),
        "table": {"head": head, "rows": [[printable(cell) for cell in row] for row in rows]},
        "variants": [_variant(one) for one in status.variants if one.mean is not None],
        "trials": [_trial(one, trials_in) for one in status.trial_table],
        "conditions": [_condition(one) for one in status.conditions],
        "spec": spec_text(known.spec),
    }


def spec_text(spec: Any) -> str:
    """As YAML, cut where it is very long."""
    text = to_yaml(spec)
    if len(text) <= MOST_SPEC_CHARACTERS:
        return text
    return f"{text[:MOST_SPEC_CHARACTERS]}\n… and {len(text) - MOST_SPEC_CHARACTERS} characters more\n"


def _progress(status: JobStatus) -> Document | None:
    progress = status.progress
    if progress is None:
        return None
    return {"told": words.step(progress), "pace": words.pace(progress), "time": wire_time(progress.time)}


def _job_facts(known: KnownJob) -> Iterator[Fact]:
    status = known.status
    yield "result", words.metrics(status.result.metrics) if status.result else ""
    yield "best", words.best(status.best) if status.best else ""
    yield "latest", words.metrics(status.metrics)
    if known.job is not None:
        told = dict(words.facts(known.job, runs=not known.is_finished))
        yield from ((name, told.get(name, "")) for name in ("stopping", "restarts"))
    yield "took", words.duration(status.running_seconds) if status.running_seconds else ""
    saved = status.last_checkpoint
    yield "checkpoint", f"step {saved.step}, {saved.path}" if saved else ""
    if status.result is not None:
        yield from (("model", status.result.model), ("adapter", status.result.adapter or ""))
        yield "report", status.result.report or ""
    yield from sorted(status.tracking_urls.items())


def _experiment_facts(known: KnownExperiment) -> Iterator[Fact]:
    best = known.status.best
    yield "trials", trial_counts(known.status)
    yield "best", f"{best.trial} with {known.metric} {words.number(best.value)}" if best else ""
    yield "model", best.model or "" if best else ""


def _course(known: KnownJob) -> Document:
    """The watched metric over the steps."""
    status = known.status
    watched = watched_metric(known.job.spec) if known.job else None
    return {
        "metric": printable(status.best.metric if status.best else watched or "metric"),
        "points": [(one.step, one.value) for one in status.evaluations],
        "best": status.best.step if status.best else None,
    }


def _attempts(attempts: tuple[Attempt, ...], budgets: MaxRestarts, now: datetime) -> list[Document]:
    return [
        {
            "heading": printable(heading(attempt)[0]),
            "tone": heading(attempt)[1],
            "start": wire_time(attempt.start),
            "took": words.duration(((attempt.end or now) - attempt.start).total_seconds()),
            # The page tells the time as its reader's clock does.
            "facts": _clean(fact for fact in attempt_facts(attempt, after, budgets, now) if fact[0] != "when"),
        }
        for attempt, after in zip_longest(attempts, attempts[1:])
    ]


def _condition(condition: Condition | ExperimentCondition) -> Document:
    return {
        "type": condition.type.value,
        "status": condition.status,
        "reason": condition.reason.value,
        "message": printable(condition.message),
        "since": wire_time(condition.last_transition_time),
    }


def _variant(row: VariantStatus) -> Document:
    verdict = row.difference.verdict if row.difference else None
    return {"name": printable(row.name), "mean": row.mean, "low": row.low, "high": row.high, "verdict": verdict}


def _trial(row: TrialStatus, namespace: str) -> Document:
    return {
        "namespace": namespace,
        "name": row.name,
        "variant": printable(row.variant),
        "seed": row.seed,
        "phase": "Pruned" if row.pruned else row.phase.value,
        "step": f"{row.step} of {row.total_steps}" if row.total_steps else "",
        "value": words.number(row.value) if row.value is not None else "",
        "took": words.duration(row.worker_seconds) if row.worker_seconds else "",
    }


def _clean(facts: Iterable[Fact]) -> list[Fact]:
    """Those of which something is known."""
    return [(printable(name), printable(text)) for name, text in facts if text]
