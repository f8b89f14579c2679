"""`finetune compare --html`: runs side by side on one page. Pure."""

from collections.abc import Iterator, Sequence
from html import escape

from finetune_cli import words
from finetune_cli.comparison import Subject, differences, shown
from finetune_cli.experiments import plots
from finetune_cli.pages import page, scrolling, section, table

_CURVES = (
    "On the validation set. Trials of one variant are one curve, the mean over its seeds, in a band of one standard "
    "deviation to either side."
)
_RESULTS = "On the test set (on the validation set if there is none), with 95 % intervals over samples where known."


def comparison_page(subjects: Sequence[Subject]) -> str:
    """The page: where each stands, in what the specs differ, results, curves."""
    names = [one.name for one in subjects]
    groups = list(dict.fromkeys(one.group for one in subjects))
    under = ", ".join(names) if len(names) <= plots.SHOWN else f"{', '.join(groups)}"
    changed = differences(subjects)
    spec = [["field", *names], *([field, *map(shown, values)] for field, values in changed.items())]
    same = "" if changed else "<p>Their specs are the same.</p>"
    sections = [
        section("Runs", "", table(list(_runs(subjects)), "Runs")),
        section("Differences of the spec", "", table(spec, "Differences of the spec") if changed else same),
        section("Results", _RESULTS, _results(subjects)),
        section("Curves", _CURVES, "\n".join(_curves(subjects, groups))),
    ]
    told = f'<p class="answer">{len(subjects)} runs side by side.</p>' if len(subjects) > 1 else ""
    return page("Comparison", under, told, sections)


def _runs(subjects: Sequence[Subject]) -> Iterator[list[str]]:
    yield ["run", "phase", "steps", "worker time"]
    for one in subjects:
        yield [one.name, one.phase, str(one.steps), words.duration(one.worker_seconds)]


def _results(subjects: Sequence[Subject]) -> str:
    metrics = list(dict.fromkeys(name for one in subjects for name in one.metrics))
    if not metrics:
        return ""
    rows = [["run", *metrics], *([one.name, *(_result(one, name) for name in metrics)] for one in subjects)]
    drawn = [_estimates(subjects, metric) for metric in dict.fromkeys(one.watched for one in subjects)]
    return "\n".join([table(rows, "Results"), *filter(None, drawn)])


def _result(subject: Subject, metric: str) -> str:
    if metric not in subject.metrics:
        return ""
    value = words.number(subject.metrics[metric])
    if metric not in subject.intervals:
        return value
    low, high = subject.intervals[metric]
    return f"{value} ({low:.3g} to {high:.3g})"


def _estimates(subjects: Sequence[Subject], metric: str) -> str:
    rows = [(one.name, one.metrics[metric], *one.intervals.get(metric, (None, None))) for one in subjects
            if metric in one.metrics]  # fmt: skip
    drawn = plots.estimates(rows, metric)
    return f"<h3>{escape(metric)}</h3>{scrolling(drawn, f'{metric}, drawn')}" if drawn else ""


def _curves(subjects: Sequence[Subject], groups: Sequence[str]) -> Iterator[str]:
    for metric in dict.fromkeys(one.watched for one in subjects):
        courses = {group: [_course(one, metric) for one in subjects if one.group == group] for group in groups}
        drawn = plots.curves(dict(list(courses.items())[: plots.SHOWN]), metric)
        left = len(courses) - plots.SHOWN
        if drawn:
            more = f'<p class="muted">{left} more are not drawn.</p>' if left > 0 else ""
            yield f"<h3>{escape(metric)}</h3>{scrolling(drawn, f'Curves of {metric}, drawn')}{more}"


def _course(subject: Subject, metric: str) -> list[tuple[float, float]]:
    return [(float(one.step), one.metrics[metric]) for one in subject.evaluations if metric in one.metrics]
