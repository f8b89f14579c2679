"""``finetune describe``: every attempt of a job in words: what happened, why, what that counts against, what to do."""

from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import zip_longest

from finetune_api.job import MaxRestarts
from finetune_api.outcomes import Cause, ExitCode
from finetune_api.status import Attempt, JobStatus
from finetune_cli import words
from finetune_cli.cluster.api import Cluster
from finetune_cli.cluster.jobs import KnownJob, read_known_job
from finetune_cli.cluster.screen import headline, printable, title, what_next
from finetune_cli.printing import say_lines
from finetune_cli.screens import Line, fact
from finetune_operator.policy import budget_of

_MEANINGS = {
    Cause.PREEMPTED: "it was asked to leave or taken away (eviction, preemption, deletion, suspension)",
    Cause.INFRASTRUCTURE: "a node, a peer or the network was lost, or a process was killed from outside",
    Cause.OUT_OF_MEMORY: "the memory limit or the GPU's memory was exceeded",
    Cause.APPLICATION: "the trainer failed in a way that nobody foresaw",
    Cause.CONFIGURATION: "spec, data, model or platform are wrong",
    Cause.STALLED: "nothing progressed within spec.recovery.stallTimeoutSeconds",
}


def describe(cluster: Cluster, name: str) -> int:
    """Print the story of a job."""
    say_lines(tuple(description(read_known_job(cluster, name), datetime.now(UTC))))
    return ExitCode.DONE


def description(known: KnownJob, now: datetime) -> Iterator[Line]:
    """The story of a job, as lines."""
    budgets = known.job.spec.recovery.max_restarts if known.job else MaxRestarts()
    yield title(known), "plain"
    yield headline(known)
    yield fact("what to do", what_next(known))
    attempts = known.status.attempts
    for attempt, after in zip_longest(attempts, attempts[1:]):
        yield "", "plain"
        yield heading(attempt)
        yield from (fact(name, printable(text)) for name, text in attempt_facts(attempt, after, budgets, now) if text)
    if known.status.restarts:
        yield "", "plain"
        yield "Restarts, each cause with the budget that a newer checkpoint makes whole again:", "plain"
        yield from (fact(cause, text) for cause, text in budget_facts(known.status, budgets))


def heading(attempt: Attempt) -> Line:
    """What became of an attempt, and what that means."""
    if attempt.end is None:
        return f"Attempt {attempt.number}: is under way", "plain"
    if attempt.cause is None:
        return f"Attempt {attempt.number}: finished the run", "good"
    return f"Attempt {attempt.number}: {attempt.cause}, {_MEANINGS[attempt.cause]}", "bad"


def attempt_facts(
    attempt: Attempt, after: Attempt | None, budgets: MaxRestarts, now: datetime
) -> Iterator[tuple[str, str]]:
    """What is known of an attempt, each with its name; a text is empty where nothing is known."""
    yield "when", _when(attempt, now)
    yield "trained", _trained(attempt)
    if attempt.cause is not None:
        yield "happened", attempt.reason or ""
        yield "exit code", f"{attempt.exit_code}" if attempt.exit_code is not None else ""
        yield "node", attempt.node or ""
        yield "counts", _counts(attempt.cause, budgets)
    if after is not None:
        yield "then", _then(attempt, after)


def _when(attempt: Attempt, now: datetime) -> str:
    took = words.duration(((attempt.end or now) - attempt.start).total_seconds())
    return f"{attempt.start.astimezone():%Y-%m-%d %H:%M:%S}, {'for' if attempt.end else 'since'} {took}"


def _trained(attempt: Attempt) -> str:
    begun = f"went on from the checkpoint of step {attempt.from_step}" if attempt.from_step else "from the beginning"
    if attempt.to_step <= attempt.from_step:
        return f"{begun}; no step was told of"
    return f"{begun}, to step {attempt.to_step}"


def _counts(cause: Cause, budgets: MaxRestarts) -> str:
    if cause is Cause.CONFIGURATION:
        return "is never tried again: the same would fail in the same way"
    budget = budget_of(cause, budgets)
    if budget is None:
        return "free: nothing went wrong with the run, and it may happen any number of times"
    return f"may happen {budget} time{'' if budget == 1 else 's'} without a newer checkpoint"


def _then(attempt: Attempt, after: Attempt) -> str:
    waited = (after.start - attempt.end).total_seconds() if attempt.end else 0.0
    lost = attempt.to_step - after.from_step
    again = f"; {lost} step{'' if lost == 1 else 's'} had to be trained again" if lost > 0 else ""
    return (
        f"attempt {after.number} went on {words.duration(max(0.0, waited))} later, from step {after.from_step}{again}"
    )


def budget_facts(status: JobStatus, budgets: MaxRestarts) -> Iterator[tuple[str, str]]:
    """Causes of restarts, and how much of each one's budget is used."""
    for name, count in status.restarts.items():
        budget = budget_of(Cause(name), budgets) if name in set(Cause) else None
        used = status.restarts_since_progress.get(name, 0)
        spent = f"{used} of {budget} used" if budget is not None else "free"
        yield name, f"{spent}, {count} in all"
