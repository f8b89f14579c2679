"""history.jsonl: one line a step and an evaluation, without times, so that equal runs have equal histories."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_TAIL_BYTES = 65_536
"""More than the longest line and a torn one after it."""


class History:
    """Appends lines; each is in the operating system's hands when ``write`` returns."""

    def __init__(self, path: Path, *, resumed_step: int) -> None:
        """Open ``path`` and drop what lies after ``resumed_step``: those steps are trained again."""
        path.parent.mkdir(parents=True, exist_ok=True)
        self.lost_steps = _keep_until(path, resumed_step)
        self._file = path.open("a", encoding="utf-8", buffering=1)

    def write(self, line: Mapping[str, Any]) -> None:
        """Append one line. Numbers are written so that they read back to the same bits."""
        self._file.write(json.dumps(line) + "\n")

    def sync(self) -> None:
        """Wait until every line is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def last_step(path: Path) -> int:
    """The last step that a history tells of; 0 if there is none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
            lines = [_parse(raw) for raw in file]
    except OSError:
        return 0
    return next((int(line["step"]) for line in reversed(lines) if line), 0)


def _keep_until(path: Path, step: int) -> int:
    """Cut the file after ``step``; returns how many steps were cut."""
    if not path.exists():
        return 0
    kept, lost = [], 0
    with path.open("rb") as file:
        for raw in file:
            line = _parse(raw)
            if line is None:
                continue
            if line["step"] <= step:
                kept.append(raw)
            elif line["kind"] == "step":
                lost += 1
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    return lost


def _parse(raw: bytes) -> dict[str, Any] | None:
    """A line, or None for the torn last one of a killed process."""
    if not raw.endswith(b"\n"):
        return None
    try:
        line: dict[str, Any] = json.loads(raw)
    except json.JSONDecodeError:
        return None
    return line
