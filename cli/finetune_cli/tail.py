"""What history.jsonl tells: evaluations as they come, and the training loss.

Invariant of ``EvaluationTail``: no step is told twice, though a resumed attempt writes the file anew and trains the
last steps again.
"""

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Evaluation:
    """One evaluation on the validation set."""

    step: int
    epoch: float
    metrics: dict[str, float]
    improved: bool


class EvaluationTail:
    """Reads a history that somebody else writes."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._inode, self._offset, self._step = 0, 0, -1

    def read(self) -> list[Evaluation]:
        """The evaluations since the last call; none if there is no history yet."""
        found = [_parse(line) for line in self._read_lines() if b'"evaluation"' in line]
        new = [one for one in found if one is not None and one.step > self._step]
        self._step = max([self._step, *(one.step for one in new)])
        return new

    def _read_lines(self) -> list[bytes]:
        """Whole lines that were added since the last call; every line of a file that was replaced."""
        try:
            with self._path.open("rb") as file:
                facts = os.fstat(file.fileno())
                if facts.st_ino != self._inode or facts.st_size < self._offset:
                    self._inode, self._offset = facts.st_ino, 0
                file.seek(self._offset)
                whole, newline, _torn = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(whole) + len(newline)
        return whole.splitlines()


def read_losses(path: Path) -> Iterator[tuple[int, float]]:
    """Each step with its training loss, oldest first; nothing if there is no history yet."""
    try:
        with path.open("rb") as file:
            for line in file:
                if b'"kind": "step"' in line and (found := _parse_step(line)) is not None:
                    yield found
    except FileNotFoundError:
        return


def _parse_step(line: bytes) -> tuple[int, float] | None:
    """None for a torn line, and for a loss that is no number."""
    try:
        fields: dict[str, Any] = json.loads(line)
        step, loss = int(fields["step"]), float(fields["loss"])
    except (ValueError, KeyError, TypeError):
        return None
    return (step, loss) if math.isfinite(loss) else None


def _parse(line: bytes) -> Evaluation | None:
    try:
        fields: dict[str, Any] = json.loads(line)
        measured = {name: value for name, value in fields["metrics"].items() if value is not None}
        return Evaluation(fields["step"], fields["epoch"], measured, fields["improved"])
    except (ValueError, KeyError):
        return None
