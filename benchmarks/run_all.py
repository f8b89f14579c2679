"""Every benchmark, one after the other; the figures are also written to build/benchmarks.json.

python benchmarks/run_all.py              four to five hours on 2 quiet cores
python benchmarks/run_all.py startup      some of them
"""

import json
import platform
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

from measure import CORES, Report, arguments, note

HERE = Path(__file__).parent
NAMES = (
    "passes",
    "startup",
    "checkpoint_pause",
    "evaluation_memory",
    "cleaning",
    "text_classification",
    "time_spent",
    "distillation",
    "operator_scale",
    "operator_tenants",
    "operator_experiments",
    "pruning",
    "gpu_tokens",
    "gpu_samples",
)
RESULTS = HERE.parent / "build" / "benchmarks.json"


def measure(name: str, options: Any) -> list[dict[str, Any]] | None:
    """The reports of one benchmark; None if it failed."""
    command = [sys.executable, str(HERE / f"{name}.py"), "--json", "--threads", str(options.threads)]
    done = subprocess.run([*command, *(["--quick"] * options.quick)], stdout=subprocess.PIPE, text=True, check=False)
    for line in done.stdout.splitlines():
        if not line.startswith("{"):
            print(line)
    return (
        [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")] if not done.returncode else None
    )


def show(report: dict[str, Any]) -> None:
    rows = report["rows"]
    columns = tuple(rows[0]) if rows else ()
    Report(report["title"], columns, [tuple(row.values()) for row in rows], report["figures"]).print(as_json=False)


def machine() -> dict[str, Any]:
    """What the figures were taken on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    model = next(
        (line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine()
    )
    packages = {name: version(name) for name in ("torch", "transformers", "accelerate")}
    return {"cpu": model, "cores": CORES, "python": platform.python_version(), **packages}


def main() -> int:
    parser = arguments(__doc__)
    parser.add_argument("names", nargs="*", help=f"some of {', '.join(NAMES)} (default: all)")
    options = parser.parse_args()
    unknown = set(options.names) - set(NAMES)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    results: dict[str, Any] = {}
    for name in options.names or NAMES:
        note(f"── {name}")
        results[name] = measure(name, options)
        for report in results[name] or ():
            show(report)
    if not options.quick:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine(), "results": results}, indent=1))
    failed = [name for name, reports in results.items() if reports is None]
    if failed:
        note(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
