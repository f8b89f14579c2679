"""What a benchmark prints when it is run quickly."""

import json
import math
import subprocess
import sys
from pathlib import Path

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run_quickly(name, *arguments):
    """Standard output of a benchmark with tiny settings."""
    command = [sys.executable, str(BENCHMARKS / f"{name}.py"), "--quick", "--threads", "1", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=550).stdout


def assert_figures(name, expected):
    """It prints tables, and these figures."""
    reports = [json.loads(line) for line in run_quickly(name, "--json").splitlines()]
    figures = {figure["name"]: figure["value"] for report in reports for figure in report["figures"]}
    assert figures.keys() == expected
    assert all(math.isfinite(value) for value in figures.values())
    assert all(report["rows"] for report in reports)
