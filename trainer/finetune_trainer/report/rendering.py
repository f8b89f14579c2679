"""Templates, and writing what they make; shared by the page and the model card."""

from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from finetune_api import FineTuneJob
from finetune_trainer.report import tables, words
from finetune_trainer.report.predictions import MAX_CLASSES

TEMPLATES = Path(__file__).parent / "templates"


def environment(*, autoescape: bool) -> Environment:
    """Templates with our words as filters; ``autoescape`` for HTML."""
    made = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=autoescape,  # noqa: S701 - the card is Markdown and has its own escape
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    made.filters |= {
        "number": words.number,
        "measure": words.measure,
        "interval": words.interval,
        "count": words.count,
        "rate": words.rate,
        "plural": words.plural,
        "metric_name": words.metric_name,
        "cell": markdown_cell,
        "code": markdown_code,
    }
    made.globals |= {
        "share": words.share,
        "class_scores": tables.class_scores,
        "confused_pairs": tables.confused_pairs,
        "NOTHING": words.NOTHING,
        "MAX_ROWS": tables.MAX_ROWS,
        "MAX_CLASSES": MAX_CLASSES,
    }
    return made


def markdown_cell(text: str) -> str:
    """A user's text inside Markdown: on one line, and neither markup nor the end of a table's cell."""
    for letter in "\\`*_{}[]<>|#":
        text = text.replace(letter, f"\\{letter}")
    return " ".join(text.split())


def markdown_code(text: str) -> str:
    """A user's text as a code span, which it cannot end."""
    return f"`{' '.join(text.replace('`', '').split())}`"


def job_yaml(job: FineTuneJob) -> str:
    """The job as its user would write it, every default spelled out; without what a cluster adds to it."""
    document = job.to_wire()
    document.pop("status", None)
    kept = ("name", "namespace", "labels")
    document["metadata"] = {key: value for key, value in document["metadata"].items() if key in kept}
    return yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def write_file(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    half = path.with_name(f".{path.name}.tmp")
    half.write_bytes(content)
    half.replace(path)
