"""report.html of an experiment: the answer, the table, the plots; one file that needs no other."""

from collections.abc import Mapping
from html import escape

from finetune_api.experiment import ExperimentStatus, FineTuneExperiment, VariantStatus
from finetune_api.job import FineTuneJob
from finetune_api.status import JobStatus
from finetune_cli.experiments import plots
from finetune_cli.experiments.screens import variant_rows
from finetune_operator.experiments.standing import answer

SHOWN_CURVES = 8
"""Variants whose curves are drawn: as many as there are colours; of a search those with the best means."""
_STYLE = """\
:root { color-scheme: light dark; --page: #f5f7f9; --card: #fff; --ink: #17202a; --muted: #5b6876; --grid: #dbe2e9;
  --good: #00795a; --bad: #b34700; }
@media screen and (prefers-color-scheme: dark) { :root { --page: #11161b; --card: #191f26; --ink: #e6ebf0;
  --muted: #9aa7b4; --grid: #2c3641; --good: #3fc59a; --bad: #f09a5b; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, "DejaVu Sans", sans-serif; }
main { max-width: 980px; margin: 0 auto; padding: 36px 24px; }
h1 { font-size: 32px; margin: 0; overflow-wrap: anywhere; }
h2 { font-size: 20px; margin: 0 0 8px; }
.muted { color: var(--muted); }
.answer { font-size: 18px; max-width: 75ch; margin: 14px 0 24px; overflow-wrap: anywhere; text-wrap: pretty; }
section { background: var(--card); border: 1px solid var(--grid); border-radius: 12px; padding: 20px 24px;
  margin: 0 0 20px; }
.scroll { overflow-x: auto; }
.scroll:focus-visible { outline: 2px solid #0072b2; outline-offset: 2px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: 6px 14px 6px 0; border-bottom: 1px solid var(--grid); white-space: nowrap; }
th { color: var(--muted); font-weight: 500; }
.plot { display: block; width: 100%; height: auto; }
.plot text { fill: var(--ink); font-size: 13px; paint-order: stroke; stroke: var(--card); stroke-width: 3px; }
.plot .grid { stroke: var(--grid); } .plot .axis, .plot .zero { stroke: var(--muted); }
.plot .mean { fill: none; stroke-width: 2.5; } .plot .zero { stroke-dasharray: 4 4; }
.plot .interval { stroke: var(--muted); stroke-width: 3; } .plot circle.unknown { fill: var(--muted); }
.plot .interval.better { stroke: var(--good); } .plot circle.better { fill: var(--good); }
.plot .interval.worse { stroke: var(--bad); } .plot circle.worse { fill: var(--bad); }
.plot .proposal { fill: none; stroke: var(--muted); opacity: .35; stroke-width: 1.5; }
.plot .proposal.best { stroke: var(--good); opacity: 1; stroke-width: 3; }
"""


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
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="muted">{escape(what)}; {len(status.variants)} {over}, {len(experiment.spec.seeds)} seeds</p>',
        f'<p class="answer"><b>{status.phase.value}.</b> {escape(answer(status))}</p>',
        _section("Differences", _NOTE, _differences(status.variants, metric)),
        _section("Search", "A line is a proposal; the best one stands out.", _proposals(experiment, status)),
        _section("Curves", "Means over seeds on the validation set; bands are a standard deviation.",
                 _curves(status, jobs)),
        _section("All in numbers", "", _table(variant_rows(status.variants, metric))),
    ]  # fmt: skip
    body = "\n".join(part for part in parts if part)
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(name)}</title>'
    page = f"<head>{head}<style>{_STYLE}</style></head>\n<body><main>\n{body}\n</main></body>"
    return f'<!doctype html>\n<html lang="en">{page}</html>\n'


_NOTE = "Paired over equal seeds, with 95 % intervals; coloured where a difference is claimed (Holm, p < 0.05)."


def _section(title: str, note: str, content: str) -> str:
    if not content:
        return ""
    told = f'<p class="muted">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{told}\n{content}</section>"


def _differences(variants: tuple[VariantStatus, ...], metric: str) -> str:
    found = [(row.name, one.mean, one.low, one.high, one.verdict) for row in variants if (one := row.difference)]
    return plots.differences(found, variants[0].name, metric) if found else ""


def _curves(status: ExperimentStatus, jobs: Mapping[str, FineTuneJob]) -> str:
    names = [row.name for row in status.variants]
    if len(names) > SHOWN_CURVES:
        best = status.best.value if status.best else 0.0
        known = [row for row in status.variants if row.mean is not None]
        names = [row.name for row in sorted(known, key=lambda row: abs((row.mean or 0.0) - best))[:SHOWN_CURVES]]
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
    return plots.curves(courses, watched)


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
    return plots.proposals(axes, [row.mean or 0.0 for row in known], best)


def _is_log(log_uniform: object, int_range: object) -> bool:
    return log_uniform is not None or bool(getattr(int_range, "log", False))


def _plain(value: object) -> float | str:
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)


def _table(rows: list[list[str]]) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in rows[0])
    body = "\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows[1:])
    table = f"<table><thead><tr>{head}</tr></thead>\n<tbody>{body}</tbody></table>"
    return f'<div class="scroll" role="region" tabindex="0" aria-label="All in numbers">{table}</div>'
