"""How a job of a cluster stands, as lines of a screen (see ``finetune_cli.screens``)."""

from collections.abc import Iterator
from datetime import datetime, timedelta

from finetune_api.status import Condition, ConditionType, Phase, Progress, Reason
from finetune_cli import words
from finetune_cli.advice import CLUSTER, advise
from finetune_cli.cluster.jobs import KnownJob
from finetune_cli.screens import Line, fact, outcome_facts
from finetune_cli.status import attempt_line
from finetune_operator.conditions import holds

UNSEEN = "the operator has not looked at it yet"
_SILENT = timedelta(minutes=2)
"""The operator writes more often than this while a job trains."""
_BAR_WIDTH = 20
_NEXT = {
    Reason.INVALID: "Correct the field that is named above, and make the job anew.",
    Reason.FORBIDDEN: "Ask for what is allowed, name another runtime, or ask the platform team.",
    Reason.RUNTIME_NOT_FOUND: "See kubectl get finetuneruntimes; it starts by itself once there is one of the name.",
    Reason.SUSPENDED_BY_USER: "finetune resume {name} lets it go on.",
    Reason.QUEUED: "Nothing: it starts once its queue admits it; kubectl get workloads says what it waits for.",
    Reason.STARTING: "Nothing: it starts by itself. If that takes minutes, put right what is named above.",
    Reason.RESTARTING: "Nothing: the next attempt follows by itself.",
    Reason.TRAINING: "Nothing: it is under way.",
    Reason.COMPLETED: "Nothing: the model is there.",
    Reason.EARLY_STOPPED: "Nothing: the model is there.",
}
_WORRYING = (Reason.INVALID, Reason.FORBIDDEN, Reason.RUNTIME_NOT_FOUND)


def status_lines(known: KnownJob, now: datetime) -> Iterator[Line]:
    """Phase with its reason, progress, metrics, result and attempts."""
    yield title(known), "plain"
    yield headline(known)
    yield from _facts(known, now)
    deciding = known.deciding
    if known.status.phase is Phase.FAILED or (deciding is not None and deciding.reason in _WORRYING):
        yield "", "plain"
        yield f"What to do: {what_next(known)}", "plain"
    if known.status.attempts:
        yield "", "plain"
        yield "Attempts:", "plain"
        for attempt in known.status.attempts:
            yield printable(attempt_line(attempt)), "plain"


def title(known: KnownJob) -> str:
    """The job, and what it is."""
    task = f"  {known.job.spec.task}" if known.job else ""
    return f"{known.name}{task}  in namespace {known.namespace}"


def headline(known: KnownJob) -> Line:
    """``Failed (Configuration, exit code 65): …``, with its style."""
    phase, deciding = known.status.phase, known.deciding
    told = _told(known, deciding)
    style = {Phase.FAILED: "bad", Phase.SUCCEEDED: "good", Phase.RUNNING: "good"}.get(phase, "plain")
    if deciding is not None and deciding.reason in _WORRYING:
        style = "bad"
    return printable(f"{phase}{_reason(known, deciding)}{': ' if told else ''}{told}"), style


def _told(known: KnownJob, deciding: Condition | None) -> str:
    if deciding is None:
        return f"{UNSEEN}; if it does not, see that it is installed and runs"
    behind = "" if known.is_current or known.is_finished else f" ({UNSEEN} since its spec was changed)"
    return f"{deciding.message}{behind}"


def _reason(known: KnownJob, deciding: Condition | None) -> str:
    """In brackets, where it says more than the phase does."""
    if deciding is None or deciding.reason in (Reason.TRAINING, Reason.STARTING, Reason.RESTARTING):
        return ""
    latest = known.status.attempts[-1] if known.status.attempts else None
    failed = known.status.phase is Phase.FAILED and deciding.reason is not Reason.DEADLINE_EXCEEDED
    code = f", exit code {latest.exit_code}" if failed and latest and latest.exit_code is not None else ""
    return f" ({deciding.reason}{code})"


def what_next(known: KnownJob) -> str:
    """What its user should do, in a sentence."""
    deciding = known.deciding
    if deciding is None:
        return "Nothing yet; if this lasts, see that the operator is installed and runs."
    if known.status.phase is Phase.FAILED:
        latest = known.status.attempts[-1] if known.status.attempts else None
        return advise(deciding.reason, latest, CLUSTER)
    if known.suspend and known.status.phase is not Phase.SUSPENDED and not known.is_finished:
        return "Nothing: it saves and leaves, for spec.suspend is true."
    return _NEXT.get(deciding.reason, "Nothing.").format(name=known.name)


def _facts(known: KnownJob, now: datetime) -> Iterator[Line]:
    status = known.status
    runs = status.phase is Phase.RUNNING
    if known.is_finished:
        yield from outcome_facts(status)
    else:
        if status.progress is not None:
            yield fact("progress", bar(status.progress))
        if known.job is not None:
            yield from (fact(name, text) for name, text in words.facts(known.job, runs=runs))
    if runs and status.progress is not None and now - status.progress.time > _SILENT:
        yield fact("last heard", f"{words.duration((now - status.progress.time).total_seconds())} ago")
    if status.phase is not Phase.FAILED and holds(status, ConditionType.STALLED):
        yield fact("stalled", "nothing has progressed within spec.recovery.stallTimeoutSeconds")
    yield from _places(known)


def _places(known: KnownJob) -> Iterator[Line]:
    result, saved = known.status.result, known.status.last_checkpoint
    yield from (fact(printable(name), printable(url)) for name, url in sorted(known.status.tracking_urls.items()))
    if result is not None:
        named = (("model", result.model), ("adapter", result.adapter), ("report", result.report))
        yield from (fact(name, printable(path)) for name, path in named if path)
    if known.is_finished and saved is not None:
        yield fact("checkpoint", printable(f"step {saved.step}, {saved.path}"))


def bar(progress: Progress) -> str:
    """``[##########----------] 50 %  step 50 of 100, epoch 1.50``."""
    done = round(progress.percent / 100 * _BAR_WIDTH)
    return f"[{'#' * done}{'-' * (_BAR_WIDTH - done)}] {progress.percent:.0f} %  {words.step(progress)}"


def printable(text: str) -> str:
    """The text without what could steer a terminal: another tenant's pod may have chosen it."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
