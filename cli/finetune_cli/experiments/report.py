"""report.html of an experiment: the answer, the table, the plots; one file that needs no other."""

from collections.abc import Mapping
from html import escape

from finetune_api.errors import SpecError
from finetune_api.experiment import ExperimentStatus, FineTuneExperiment, VariantStatus
from finetune_api.experiment_checks import mode_of
from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus
from finetune_cli.experiments import plots
from finetune_cli.experiments.importance import LEAST_PROPOSALS, importances
from finetune_cli.experiments.screens import variant_rows
from finetune_cli.pages import page, scrolling, section, table
from finetune_operator.experiments.search import Proposal
from finetune_operator.experiments.standing import answer


def report(experiment: FineTuneExperiment, jobs: Mapping[str, FineTuneJob]) -> str:
    """The page.

    Args:
        experiment: With its status.
        jobs: Its trials by name, with theirs: their evaluations are the curves.
    """
    status, metric = experiment.status or ExperimentStatus(), experiment.spec.objective.metric
    name, template = experiment.metadata.name, experiment.spec.template
    what = f"{template.task} of {template.model.source or 'a new model'} on {template.data.source}"
    over = "proposals" if experiment.spec.search else "variants"
    under = f"{what}; {len(status.variants)} {over}, {len(experiment.spec.seeds)} seeds"
    sections = [
        section("Differences", _NOTE, _differences(status.variants, metric)),
        section("Search", "A line is a proposal; the best one stands out.", _proposals(experiment, status)),
        _importance(experiment, status),
        section("Curves", _CURVES, _curves(status, jobs)),
        section("All in numbers", "", table(variant_rows(status.variants, metric), "All in numbers")),
    ]
    told = f'<p class="answer"><b>{status.phase.value}.</b> {escape(answer(status))}</p>'
    return page(name, under, told, sections)


_CURVES = "Means over seeds on the validation set; bands are one standard deviation to either side."
_IMPORTANCE = (
    "How much each field mattered for being among the best proposals (PED-ANOVA). The mark is what chance alone stays "
    "below in 95 of 100 cases, found by shuffling the results; bars that do not pass it are grey."
)
_NOTE = "Paired over equal seeds, with 95 % intervals; coloured where a difference is claimed (Holm, p < 0.05)."


def _differences(variants: tuple[VariantStatus, ...], metric: str) -> str:
    found = [(row.name, one.mean, one.low, one.high, one.verdict) for row in variants if (one := row.difference)]
    if not found:
        return ""
    return scrolling(plots.differences(found, variants[0].name, metric), "Differences, drawn")


def _curves(status: ExperimentStatus, jobs: Mapping[str, FineTuneJob]) -> str:
    """Of as many variants as one picture holds; of a search those with the best means."""
    names = [row.name for row in status.variants]
    if len(names) > plots.SHOWN:
        best = status.best.value if status.best else 0.0
        known = [row for row in status.variants if row.mean is not None]
        names = [row.name for row in sorted(known, key=lambda row: abs((row.mean or 0.0) - best))[: plots.SHOWN]]
    statuses = {row.name: jobs[row.name].status or JobStatus() for row in status.trial_table if row.name in jobs}
    courses = {
        name: [
            [(float(point.step), point.value) for point in statuses[row.name].evaluations]
            for row in status.trial_table
            if row.variant == name and row.name in statuses
        ]
        for name in names
    }
    watched = next((one.best.metric for one in statuses.values() if one.best), "")
    drawn = plots.curves(courses, watched)
    return scrolling(drawn, "Curves, drawn") if drawn else ""


def _proposals(experiment: FineTuneExperiment, status: ExperimentStatus) -> str:
    search = experiment.spec.search
    known = [row for row in status.variants if row.mean is not None]
    if search is None or status.best is None or not known:
        return ""
    axes = [
        (one.field, [_plain(row.set[one.field]) for row in known], _is_log(one.log_uniform, one.int_range))
        for one in search.parameters
    ]
    best = next(number for number, row in enumerate(known) if row.name == status.best.variant)
    drawn = plots.proposals(axes, [row.mean or 0.0 for row in known], best)
    return scrolling(drawn, "Proposals, drawn")


def _importance(experiment: FineTuneExperiment, status: ExperimentStatus) -> str:
    search = experiment.spec.search
    known = [
        Proposal(row.set, row.mean) for row in status.variants if row.mean is not None and not row.pruned + row.failed
    ]
    if search is None or not known:
        return ""
    if len(known) < LEAST_PROPOSALS:
        told = f"takes {LEAST_PROPOSALS} proposals that ran to their end; here are {len(known)}"
        return section("Importance", "", f"<p>Which field mattered cannot be told: that {told}.</p>")
    try:
        found = importances(search, mode_of(experiment), known)
    except SpecError:
        return section("Importance", "", "<p>Not computed: optuna is not installed where this page was made.</p>")
    drawn = plots.importance([(one.field, one.value, one.chance) for one in found])
    return section("Importance", _IMPORTANCE, scrolling(drawn, "Importance, drawn"))


def _is_log(log_uniform: object, int_range: object) -> bool:
    return log_uniform is not None or bool(getattr(int_range, "log", False))


def _plain(value: object) -> float | str:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
