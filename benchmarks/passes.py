"""What a forward and backward pass costs by its size: where ``CPU_COST`` in finetune_trainer/data/passes.py comes from.

MiniLM trains on 32 texts of 80 tokens a step; the step is one pass, or is cut into passes of fewer texts. CPU seconds
of a step beside those in one pass: it falls while smaller activations stay in the caches, and rises again with what
each pass costs whatever is in it.

    python benchmarks/passes.py
"""

import json
import statistics
from typing import Any

import subjects
from measure import Record, Report, Window, arguments, in_fresh_process

TEXTS, TOKENS = 32, 80


def measure(settings: Record) -> Record:
    """CPU seconds of a step, by texts a pass; every size in turn, medians."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(subjects.minilm(), num_labels=12).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    seconds: dict[int, list[float]] = {size: [] for size in settings["sizes"]}
    for repeat in range(settings["repeats"] + 1):
        for size, found in seconds.items():
            window = Window()
            window.mark()
            _step(model, optimizer, size)
            window.mark()
            if repeat:
                found.append(window.seconds["cpuSeconds"])
    return {str(size): statistics.median(found) for size, found in seconds.items()}


def _step(model: Any, optimizer: Any, size: int) -> None:
    import torch

    for _ in range(TEXTS // size):
        ids = torch.randint(1000, 20_000, (size, TOKENS))
        (model(input_ids=ids).logits.sum() / TEXTS).backward()
    optimizer.step()
    optimizer.zero_grad()


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--repeats", type=int, default=7, help="steps of each size (default: 7)")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker)))
        return
    settings = {
        "sizes": [32, 8] if options.quick else [32, 16, 8, 4, 2],
        "repeats": 1 if options.quick else options.repeats,
    }
    found = in_fresh_process(__file__, settings, threads=options.threads, timeout_seconds=1800)
    columns = ("tokens a pass", "passes a step", "CPU s a step", "beside one pass")
    report = Report(f"A step of {TEXTS} texts of {TOKENS} tokens, MiniLM, {options.threads} threads", columns)
    whole = found[str(TEXTS)]
    for size, seconds in found.items():
        report.add(int(size) * TOKENS, TEXTS // int(size), seconds, seconds / whole)
    report.print(as_json=options.json)


if __name__ == "__main__":
    main()
