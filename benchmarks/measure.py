"""How the benchmarks measure: sides in turn, each in a fresh process, with the same threads; and how they tell it."""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from finetune_api.cgroups import usable_cores

Record = dict[str, Any]
CORES = usable_cores()


def cpu_seconds() -> float:
    """CPU time of this process so far, all its threads, user and system."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


@dataclass
class Window:
    """A stretch of this process's time: wall and CPU seconds between ``open`` and the last ``mark``."""

    start: tuple[float, float] | None = None
    end: tuple[float, float] | None = None

    def mark(self) -> None:
        """The first call opens the window, every later one moves its end."""
        now = (time.perf_counter(), cpu_seconds())
        if self.start is None:
            self.start = now
        self.end = now

    @property
    def seconds(self) -> Record:
        """Wall and CPU seconds."""
        assert self.start is not None
        assert self.end is not None
        wall, cpu = (after - before for before, after in zip(self.start, self.end, strict=True))
        return {"wallSeconds": wall, "cpuSeconds": cpu}


def environment(threads: int, **more: str) -> dict[str, str]:
    """The variables of a measured process: the same number of threads everywhere, nothing from the network."""
    return os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "true",
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        **more,
    }


def in_fresh_process(
    script: str, settings: Mapping[str, Any], *, threads: int, timeout_seconds: float, **variables: str
) -> Record:
    """What ``script --worker SETTINGS`` prints as its last line, a JSON object.

    Raises:
        RuntimeError: It failed; the message holds what it said.
    """
    command = [sys.executable, script, "--worker", json.dumps(settings)]
    done = subprocess.run(
        command,
        env=environment(threads, **variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout_seconds,
    )
    if done.returncode:
        raise RuntimeError(f"{Path(script).name} {settings} failed:\n{done.stdout[-2000:]}{done.stderr[-4000:]}")
    record: Record = json.loads(done.stdout.splitlines()[-1])
    return record


def in_turn(sides: Sequence[str], repeats: int, measure: Callable[[str, int], Record]) -> dict[str, list[Record]]:
    """A B A B …: ``measure(side, repeat)`` for every side, then again; side → its records."""
    records: dict[str, list[Record]] = {side: [] for side in sides}
    for repeat in range(repeats):
        for side in sides:
            started = time.monotonic()
            records[side].append(measure(side, repeat))
            note(f"  {side}, {repeat + 1} of {repeats}: {time.monotonic() - started:.0f} s")
    return records


def median(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Median of one figure."""
    return statistics.median(float(record[name]) for record in records)


def note(text: str) -> None:
    """Say how it goes, on standard error: standard output is the result's."""
    print(text, file=sys.stderr, flush=True)


@dataclass
class Report:
    """What a benchmark prints: a table, and figures beside what is wanted of them."""

    title: str
    columns: Sequence[str]
    rows: list[Sequence[Any]] = field(default_factory=list)
    figures: list[Record] = field(default_factory=list)

    def add(self, *cells: Any) -> None:
        """Add one row."""
        self.rows.append(cells)

    def figure(self, name: str, value: float, *, at_least: float | None = None, at_most: float | None = None) -> None:
        """Add one figure and the bound that is wanted of it."""
        met = (at_least is None or value >= at_least) and (at_most is None or value <= at_most)
        bounds = {"atLeast": at_least, "atMost": at_most}
        wanted = {bound: limit for bound, limit in bounds.items() if limit is not None}
        self.figures.append({"name": name, "value": value, **wanted, "met": met})

    def print(self, *, as_json: bool) -> None:
        """Print it for people, or as one JSON object."""
        if as_json:
            rows = [dict(zip(self.columns, row, strict=True)) for row in self.rows]
            print(json.dumps({"title": self.title, "rows": rows, "figures": self.figures}))
            return
        cells = [[str(column) for column in self.columns], *([_text(cell) for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
        print(f"\n{self.title}")
        for row in cells:
            first, *rest = (
                cell.ljust(width) if not at else cell.rjust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            )
            print("  ".join([first, *rest]))
        for figure in self.figures:
            print(f"{figure['name']}: {_text(figure['value'])}{_wanted(figure)}")


def _wanted(figure: Record) -> str:
    for bound, sign in (("atLeast", "≥"), ("atMost", "≤")):
        if bound in figure:
            return f" (wanted {sign} {figure[bound]:g}: {'met' if figure['met'] else 'NOT MET'})"
    return ""


def _text(cell: Any) -> str:
    if isinstance(cell, float):
        return f"{cell:.3f}" if abs(cell) < 10 else f"{cell:,.1f}"
    return f"{cell:,}" if isinstance(cell, int) else str(cell)


def arguments(description: str | None) -> argparse.ArgumentParser:
    """A parser with what every benchmark takes."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--quick", action="store_true", help="tiny settings: see that it works; the figures say nothing"
    )
    parser.add_argument(
        "--threads", type=int, default=CORES, help=f"threads of a measured process (default: every core, {CORES})"
    )
    parser.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    return parser
