"""Time from `finetune run` to the first training step, beside a plain script that trains the same (plain_script.py).

Both start cold, as processes of their own with nothing prepared: they import torch and transformers, read and tokenize
the same CSV file, load MiniLM and train one batch of 32. Ours also divides the data, writes what it found, serves
progress and watches over its worker. Files are in the page cache for both: the first pair is not counted.

    python benchmarks/startup.py
"""

import contextlib
import csv
import itertools
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

import subjects
from debian_texts import read_texts
from measure import Record, Report, arguments, environment, in_turn, median

MAX_LENGTH = 128
TIMEOUT_SECONDS = 180
POLL_SECONDS = 0.002
_numbers = itertools.count()


def write_data(folder: Path, texts: int) -> Path:
    """``texts`` texts of the data set, evenly from all of it, as a CSV file."""
    rows = list(zip(*read_texts(subjects.texts()), strict=True))
    path = folder / "texts.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows[:: max(1, len(rows) // texts)][:texts])
    return path


def ours(folder: Path, data: Path, threads: int) -> Record:
    """Seconds until ``history.jsonl`` tells of the first step."""
    out = folder / f"run-{next(_numbers)}"
    job = subjects.job(data, max_length=MAX_LENGTH, training={"batchSize": subjects.BATCH, "epochs": 1})
    file = folder / "job.yaml"
    file.write_text(yaml.safe_dump(job))
    history = out / "history.jsonl"
    command = [sys.executable, "-m", "finetune_cli.main", "run", "-f", str(file), "--out", str(out)]
    command += ["--cache", str(out / "cache")]
    begun = time.perf_counter()
    with started(command, environment(threads)) as process:
        while not (history.exists() and history.stat().st_size):
            if process.poll() is not None or time.perf_counter() - begun > TIMEOUT_SECONDS:
                raise RuntimeError(f"finetune run made no step:\n{logs(out)}")
            time.sleep(POLL_SECONDS)
        return {"seconds": time.perf_counter() - begun}


def logs(out: Path) -> str:
    return "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted((out / "logs").glob("*.log")))


def plain(folder: Path, data: Path, threads: int) -> Record:  # noqa: ARG001 - as ours
    """Seconds until the script says what its first loss was."""
    script = str(Path(__file__).with_name("plain_script.py"))
    command = [sys.executable, script, str(data), str(subjects.minilm()), str(MAX_LENGTH)]
    begun = time.perf_counter()
    with started(command, environment(threads), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        if not process.stdout.readline().startswith("loss"):
            raise RuntimeError("the plain script failed")
        return {"seconds": time.perf_counter() - begun}


@contextlib.contextmanager
def started(command: Sequence[str], variables: dict[str, str], **options: Any) -> Any:
    """A process in a group of its own; interrupted twice (at once, then for good) when we have seen enough."""
    options = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, **options}
    process = subprocess.Popen(command, env=variables, start_new_session=True, **options)
    try:
        yield process
    finally:
        for _ in range(2):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(1)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(30)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def compare(options: Any) -> Report:
    """Pairs in turn."""
    sides = {"ours": ours, "plain": plain}
    with subjects.scratch() as folder:
        data = write_data(folder, options.texts)

        def measure(side: str, _repeat: int) -> Record:
            return sides[side](folder, data, options.threads)

        if not options.quick:
            in_turn(tuple(sides), 1, measure)
        records = in_turn(tuple(sides), options.repeats, measure)
    title = f"Seconds to the first step, {options.texts:,} texts, {options.repeats} pairs"
    report = Report(title, ("side", "median", "least", "most"))
    for side, rows in records.items():
        seconds = [row["seconds"] for row in rows]
        report.add(side, median(rows, "seconds"), min(seconds), max(seconds))
    ratio = statistics.median(
        mine["seconds"] / other["seconds"] for mine, other in zip(records["ours"], records["plain"], strict=True)
    )
    report.figure("ours / plain script", ratio, at_most=1.15)
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--texts", type=int, default=2000, help="texts of the data set (default: 2000)")
    parser.add_argument("--repeats", type=int, default=7, help="pairs (default: 7)")
    options = parser.parse_args()
    if options.quick:
        options.texts, options.repeats = 200, 1
    # A shell that runs this in the background has it, and all that it starts, ignore what ends a side.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    compare(options).print(as_json=options.json)


if __name__ == "__main__":
    main()
