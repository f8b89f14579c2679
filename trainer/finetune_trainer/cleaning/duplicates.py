"""Duplicates within and between sources: which row is like which earlier one, and what becomes of it."""

import json
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.cleaning import Cleaning
from finetune_trainer.cleaning.contents import Contents
from finetune_trainer.cleaning.looks import Looks, look
from finetune_trainer.cleaning.text_hashes import Indices
from finetune_trainer.cleaning.twins import choose_twins, find_pairs
from finetune_trainer.data.cache import Beat

MAIN = "source"
"""The source that is divided. The others are brought to measure by: they lose but what is empty or leaks."""
_CHARACTERS = 400


class Kind(StrEnum):
    """What is wrong with a sample."""

    EMPTY = "empty"
    """It lacks something, or its image does not decode."""
    DUPLICATE = "duplicate"
    """Its content is that of an earlier one."""
    NEAR_DUPLICATE = "nearDuplicate"
    """Its content is almost that of an earlier one."""
    LEAK = "leak"
    """Its content, or almost, is in a set that is measured by."""
    LABEL = "label"
    """Its label is likely to be wrong."""


class Outcome(StrEnum):
    """What becomes of it."""

    DROPPED = "dropped"
    REPORTED = "reported"
    DOWN_WEIGHTED = "downWeighted"
    REFUSED = "refused"


@dataclass(frozen=True)
class Finding:
    """One sample that something is wrong with."""

    row: int
    kind: Kind
    outcome: Outcome
    why: str
    twin: int | None = None


def find_duplicates(contents: Contents, spec: Cleaning, folder: Path, beat: Beat) -> list[Finding]:
    """Broken images and duplicates, in the order of the rows."""
    near = spec.near_duplicates
    with TemporaryDirectory(dir=folder) as scratch:
        looks = look(contents, near, Path(scratch), forgive=spec.empty == "drop", beat=beat)
        search = _Search(contents, spec, looks, beat)
        found = [Finding(row, Kind.EMPTY, Outcome.DROPPED, why) for row, why in looks.broken.items()]
        asked = np.ones(len(contents), bool)
        if spec.duplicates or near:
            exact = search.exact()
            asked = exact < 0
            found += search.findings(exact, Kind.DUPLICATE, spec.duplicates or (near.action if near else "report"))
        if near:
            found += search.findings(search.near(asked), Kind.NEAR_DUPLICATE, near.action)
        return sorted(found, key=lambda finding: finding.row)


@dataclass(frozen=True)
class _Search:
    contents: Contents
    spec: Cleaning
    looks: Looks
    beat: Beat

    def exact(self) -> Indices:
        """(rows,) the earlier row of the same content, or -1."""
        count, same = len(self.contents), self.looks.is_equal
        pairs = find_pairs(self.looks.exact_bands, count, np.ones(count, bool), same, self.beat)
        return choose_twins(pairs, count, self._may_leave, same)

    def near(self, asked: NDArray[np.bool_]) -> Indices:
        """(rows,) the earlier row of almost the same content, or -1; of the rows ``asked`` for."""
        count, same = len(self.contents), self.looks.is_near
        pairs = find_pairs(self.looks.bands, count, asked, same, self.beat)
        return choose_twins(pairs, count, self._may_leave_near, same)

    def _may_leave(self, earlier: int, later: int) -> bool:
        """A duplicate may leave its source, unless that is measured by and holds both."""
        name = self.contents.source_of(later)[0]
        return name == MAIN or name != self.contents.source_of(earlier)[0]

    def _may_leave_near(self, earlier: int, later: int) -> bool:
        """Nor may a near duplicate with another label: the little that differs may be what the label is about."""
        return self._may_leave(earlier, later) and self.contents.label(earlier) == self.contents.label(later)

    def findings(self, twins: Indices, kind: Kind, action: str) -> list[Finding]:
        """One for each row that has a twin."""
        return [self._finding(row, int(twins[row]), kind, action) for row in np.flatnonzero(twins >= 0).tolist()]

    def _finding(self, row: int, twin: int, kind: Kind, action: str) -> Finding:
        name, other = self.contents.source_of(row)[0], self.contents.source_of(twin)[0]
        why = self._why(row, twin, kind)
        if kind == Kind.NEAR_DUPLICATE and self.contents.label(row) != self.contents.label(twin):
            return Finding(row, kind, Outcome.REPORTED, why, twin)
        if name != other:
            outcome = Outcome.REFUSED if self.spec.leakage == "error" else Outcome.DROPPED
            return Finding(row, Kind.LEAK, outcome, f"{why}, in spec.data.{other}", twin)
        outcomes = {"drop": Outcome.DROPPED, "report": Outcome.REPORTED, "error": Outcome.REFUSED}
        may_change = name == MAIN or action == "error"
        return Finding(row, kind, outcomes[action] if may_change else Outcome.REPORTED, why, twin)

    def _why(self, row: int, twin: int, kind: Kind) -> str:
        alike = "the same content" if kind == Kind.DUPLICATE else "almost the same content"
        label, other = self.contents.label(row), self.contents.label(twin)
        return alike if label == other else f'{alike}, but the label "{label}" where the other has "{other}"'


def as_line(contents: Contents, finding: Finding) -> dict[str, Any]:
    """A finding as the run's folder tells it."""
    row, twin = finding.row, finding.twin
    line: dict[str, Any] = {
        "kind": finding.kind,
        "outcome": finding.outcome,
        "source": contents.source_of(row)[0],
        "origin": contents.origin(row),
        "why": finding.why,
        "label": contents.label(row),
        **_content(contents, row, ""),
    }
    if twin is not None:
        line |= {"twin": contents.origin(twin), "twinLabel": contents.label(twin), **_content(contents, twin, "twin")}
        line["conflict"] = line["label"] != line["twinLabel"]
    return {name: value for name, value in line.items() if value is not None}


def _content(contents: Contents, row: int, prefix: str) -> dict[str, Any]:
    image = contents.image(row)
    if image is not None:
        return {f"{prefix}Image" if prefix else "image": image}
    text = contents.text(row)[:_CHARACTERS]
    return {f"{prefix}Text" if prefix else "text": text}


def write_lines(path: Path, contents: Contents, findings: list[Finding]) -> None:
    """Write findings as JSON Lines."""
    with path.open("w", encoding="utf-8") as file:
        for finding in findings:
            file.write(json.dumps(as_line(contents, finding), ensure_ascii=False) + "\n")
