"""What cleaning found, in the run's folder: every finding a line, and a summary for the report."""

import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from finetune_api.wiring import RunFolder
from finetune_trainer.cleaning.clean import Cleaned
from finetune_trainer.thumbnails import thumbnail

log = logging.getLogger(__name__)

_EXAMPLES = 6
"""Examples of each kind that the report shows."""


def write_record(run: RunFolder, cleaned: Cleaned, more: Iterable[Mapping[str, Any]] = ()) -> None:
    """Write ``cleaning.jsonl`` and ``cleaning.json``.

    Args:
        run: The folder.
        cleaned: What was found in reading and among duplicates.
        more: Further findings.
    """
    run.root.mkdir(parents=True, exist_ok=True)
    found: Counter[tuple[str, str, str]] = Counter()
    conflicts = 0
    examples: list[dict[str, Any]] = []
    with run.findings.open("w", encoding="utf-8") as file:
        for line in (*_lines(cleaned), *more):
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            found[line["kind"], line["outcome"], line["source"]] += 1
            conflicts += bool(line.get("conflict"))
            if sum(example["kind"] == line["kind"] for example in examples) < _EXAMPLES:
                examples.append(_with_pictures(line))
    summary = {
        "read": dict(cleaned.read),
        "found": [
            {"kind": kind, "outcome": outcome, "source": source, "samples": count}
            for (kind, outcome, source), count in found.items()
        ],
        "conflicts": conflicts,
        "examples": examples,
    }
    run.cleaning.write_text(json.dumps(summary, ensure_ascii=False, indent=1), encoding="utf-8")
    for (kind, outcome, source), count in found.items():
        log.info("cleaning: %s: %d of spec.data.%s %s", kind, count, source, outcome)


def _lines(cleaned: Cleaned) -> Iterator[dict[str, Any]]:
    for source, path in cleaned.lines:
        with path.open(encoding="utf-8") as file:
            for text in file:
                line: dict[str, Any] = json.loads(text)
                yield {"source": source, **line} if source else line


def _with_pictures(line: Mapping[str, Any]) -> dict[str, Any]:
    """The line, its images as thumbnails; one that does not decode is left out."""
    shown = dict(line)
    for name in ("image", "twinImage"):
        if name in shown:
            shown[name] = thumbnail(str(Path(shown[name]))) if line["kind"] != "empty" else None
    return shown
