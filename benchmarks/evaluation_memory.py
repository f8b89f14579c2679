"""Peak memory of an evaluation on 1x and on 10x the data: metrics are streamed, so it should not grow.

Our own evaluation with all metrics of text classification and the details that the report shows, of MiniLM on Debian's
texts, in a fresh process for each size, with what our launcher sets. The peak is the resident set's high-water mark
(VmHWM), set back when the model and the data are there and what preparing them left free is given back.

    python benchmarks/evaluation_memory.py
"""

import ctypes
import gc
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import subjects
from measure import Record, Report, arguments, in_fresh_process, in_turn, median

MIB = 2**20


def evaluate(settings: Record) -> Record:
    """Memory in bytes before and at the peak of one evaluation."""
    from finetune_trainer.evaluate import Details

    with subjects.scratch() as folder:
        process, material = subjects.prepared(job_of(settings), folder)
        loop, _ = subjects.assembled(process, material)
        part = material.parts["validation"]
        part = replace(part, rows=part.rows[: settings["samples"]])
        loop.judge.evaluate(loop.inner, replace(part, rows=part.rows[:64]))  # imports torchmetrics
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # else what is free now hides some of what is taken next
        Path("/proc/self/clear_refs").write_text("5")
        before = status("VmRSS")
        loop.judge.evaluate(loop.inner, part, details=Details(material.task, material.classes))
        return {"samples": len(part), "before": before, "peak": status("VmHWM")}


def job_of(settings: Record) -> Record:
    training = {"tokensPerBatch": settings["tokens"], "epochs": 1}
    return subjects.job(Path(settings["data"]), max_length=64, training=training, evaluation={})


def status(name: str) -> int:
    """One of the kernel's figures of this process, in bytes."""
    found = re.search(rf"^{name}:\s+(\d+) kB", Path("/proc/self/status").read_text(), re.MULTILINE)
    assert found is not None
    return int(found.group(1)) * 1024


def compare(options: Any) -> Report:
    """Both sizes in turn."""
    sizes = {"1x": options.samples, "10x": 10 * options.samples}

    def measure(side: str, _repeat: int) -> Record:
        settings = {"data": str(subjects.texts()), "samples": sizes[side], "tokens": options.tokens}
        variables = subjects.launched(job_of(settings), options.threads)
        return in_fresh_process(__file__, settings, threads=options.threads, timeout_seconds=1800, **variables)

    measure("1x", 0)  # prepares the data, which takes memory of its own
    records = in_turn(tuple(sizes), options.repeats, measure)
    title = f"Memory of an evaluation in MiB, medians of {options.repeats}"
    report = Report(title, ("data", "samples", "before", "peak", "growth"))
    for side, rows in records.items():
        before, peak = median(rows, "before") / MIB, median(rows, "peak") / MIB
        report.add(side, rows[0]["samples"], before, peak, peak - before)
    ratio = median(records["10x"], "peak") / median(records["1x"], "peak")
    report.figure("peak, 10x / 1x", ratio, at_most=1.05)
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--samples", type=int, default=700, help="samples of 1x (default: 700, at most 769)")
    parser.add_argument("--tokens", type=int, default=2048, help="tokens of a batch (default: 2048)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each size (default: 3)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(evaluate(options.worker)))
        return
    if options.quick:
        options.samples, options.repeats, options.tokens = 20, 1, 512
    compare(options).print(as_json=options.json)


if __name__ == "__main__":
    main()
