"""What cleaning found, as the report shows it."""

from dataclasses import dataclass

from pydantic import Field

from finetune_trainer.report import words
from finetune_trainer.report.records import Record
from finetune_trainer.report.tables import SHORT_TEXT, thumbnail

_KINDS = {
    "empty": "Empty or broken",
    "duplicate": "Duplicates",
    "nearDuplicate": "Near duplicates",
    "leak": "Also in a set that is measured by",
    "label": "Label likely to be wrong",
}
_OUTCOMES = {
    "dropped": "dropped",
    "reported": "kept",
    "downWeighted": "kept, with less weight",
    "refused": "ended the run",
}


class Found(Record):
    """How many samples of a source something was found of, and what became of them."""

    kind: str
    """empty, duplicate, nearDuplicate, leak or label."""
    outcome: str
    """dropped, reported, downWeighted or refused."""
    source: str
    """source, validationSource or testSource."""
    samples: int
    """How many."""


class Case(Record):
    """One finding; all are in ``cleaning.jsonl``."""

    kind: str
    """As in ``Found``."""
    outcome: str
    """As in ``Found``."""
    origin: str
    """File and line."""
    why: str
    """What was found."""
    label: str | None = None
    """The sample's label."""
    text: str | None = None
    """The sample's text."""
    image: str | None = None
    """A thumbnail as a data URI."""
    twin: str | None = None
    """File and line of what it duplicates."""
    twin_text: str | None = None
    """Text of what it duplicates."""
    twin_image: str | None = None
    """Thumbnail of what it duplicates."""


class CleaningRecord(Record):
    """``cleaning.json``: what cleaning found."""

    read: dict[str, int] = Field(default_factory=dict)
    """Samples of each source before."""
    found: tuple[Found, ...] = ()
    """Findings in numbers."""
    conflicts: int = 0
    """Duplicates, near ones included, whose labels differ."""
    examples: tuple[Case, ...] = ()
    """Some of each kind."""


@dataclass(frozen=True)
class CaseRow:
    """One finding, ready to print."""

    kind: str
    texts: tuple[str, ...]
    images: tuple[str, ...]
    label: str
    why: str
    origin: str


def found_rows(record: CleaningRecord) -> list[tuple[str, str, str, str, str]]:
    """(what, source, samples, share of the source, what became of them), in the order in which it was looked for."""
    order = list(_KINDS)
    ranked = sorted(record.found, key=lambda one: order.index(one.kind) if one.kind in order else len(order))
    return [
        (
            _KINDS.get(one.kind, one.kind),
            f"spec.data.{one.source}",
            words.count(one.samples),
            words.share(one.samples, record.read.get(one.source, 0) or one.samples),
            _OUTCOMES.get(one.outcome, one.outcome),
        )
        for one in ranked
    ]


def case_rows(record: CleaningRecord) -> list[CaseRow]:
    """Examples, those of a kind together."""
    return [
        CaseRow(
            kind=_KINDS.get(case.kind, case.kind),
            texts=tuple(words.cut(text, SHORT_TEXT) for text in (case.text, case.twin_text) if text),
            images=tuple(image for image in map(thumbnail, (case.image, case.twin_image)) if image),
            label=case.label or words.NOTHING,
            why=case.why,
            origin=f"{case.origin}, like {case.twin}" if case.twin else case.origin,
        )
        for kind in (*_KINDS, *sorted({case.kind for case in record.examples} - set(_KINDS)))
        for case in record.examples
        if case.kind == kind
    ]
