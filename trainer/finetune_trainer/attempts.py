"""attempts.jsonl: when each attempt at the run started and how it ended. Kept on the run's volume, for its report."""

import datetime as dt
import json
from pathlib import Path
from typing import Any

from finetune_api.status import TerminationMessage


def record_start(path: Path, *, attempt: int, from_step: int, world_size: int) -> None:
    """Note that an attempt trains, from which step and on how many processes."""
    _append(path, {"event": "start", "attempt": attempt, "fromStep": from_step, "worldSize": world_size})


def record_end(path: Path, *, attempt: int, message: TerminationMessage) -> None:
    """Note how an attempt ended."""
    end = {
        "event": "end",
        "attempt": attempt,
        "step": message.step,
        "exitCode": message.exit_code,
        "cause": message.cause,
        "message": message.message,
    }
    _append(path, end)


def _append(path: Path, line: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "time": dt.datetime.now(dt.UTC).isoformat()}) + "\n")
