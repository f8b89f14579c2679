"""What is remembered of a cluster, in its folder: its shape, its address and ports, its processes' command lines."""

import json
from pathlib import Path
from typing import Any

FILE = "cluster.json"


def read_state(folder: Path) -> dict[str, Any]:
    """What is remembered."""
    known: dict[str, Any] = json.loads((folder / FILE).read_text())
    return known


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Remember it, whole or not at all."""
    partial = folder / f".{FILE}"
    partial.write_text(json.dumps(state, indent=2))
    partial.rename(folder / FILE)
