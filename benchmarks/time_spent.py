"""Where the time of our training loop goes: MiniLM on Debian's texts, CPU time by kind of operation.

Batches stand for a whole epoch's, as in text_classification.py. The profiler itself takes some per cent, the more the
smaller the operation.

    python benchmarks/time_spent.py --threads 1
"""

import json
from collections import Counter
from typing import Any

import subjects
from measure import Record, Report, Window, arguments, in_fresh_process
from text_classification import TOKENS, job_of, our_batches, train_ours, warm_up

KINDS = {
    "matrix products": ("mm", "addmm", "bmm", "baddbmm", "linear", "mkldnn_linear"),
    "attention": ("scaled_dot_product", "softmax", "_flash_attention", "_Attention"),
    "dropout": ("dropout", "bernoulli", "random", "native_dropout"),
    "GELU": ("gelu",),
    "layer norm": ("layer_norm",),
    "embeddings": ("embedding", "index_select"),
    "optimizer and clipping": ("_fused_adam", "_foreach", "norm", "linalg_vector_norm"),
    "copies and fills": ("copy_", "cat", "zero_", "fill_", "clone", "contiguous"),
    "sums and products": ("add", "add_", "sum", "mul", "mul_", "div", "div_", "sub", "neg"),
}


def kind_of(operation: str) -> str:
    """The kind that an operation of torch belongs to."""
    name = operation.removeprefix("aten::")
    exact = next((kind for kind, names in KINDS.items() if name in names), None)
    if exact is not None:
        return exact
    return next((kind for kind, names in KINDS.items() if any(part in name for part in names if len(part) > 3)), "rest")


def measure(settings: Record) -> Record:
    """Seconds by kind."""
    from torch.profiler import ProfilerActivity, profile

    import finetune_trainer.loop

    with subjects.scratch() as folder:
        process, material = subjects.prepared(job_of(settings, epochs=1), folder)
        loop, state = subjects.assembled(process, material)
        batches = our_batches(settings, loop)
        warm_up(loop.inner, {**settings, "warmUp": 1})
        finetune_trainer.loop.epoch_batches = lambda *_arguments, **_named: batches
        with profile(activities=[ProfilerActivity.CPU]) as found:
            train_ours(loop, state, Window())
    seconds: Counter[str] = Counter()
    for event in found.key_averages():
        seconds[kind_of(event.key)] += event.self_cpu_time_total / 1e6
    return {"samples": sum(map(len, batches)), "seconds": dict(seconds)}


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--max-length", type=int, nargs="+", default=[128, 256], help="default: 128 256")
    parser.add_argument("--samples", type=int, default=400, help="samples that are trained on (default: 400)")
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(measure(options.worker)))
        return
    for max_length in [32] if options.quick else options.max_length:
        report(max_length, options).print(as_json=options.json)


def report(max_length: int, options: Any) -> Report:
    settings = {
        "data": str(subjects.texts()),
        "maxLength": max_length,
        "tokens": TOKENS.get(max_length, subjects.BATCH * max_length),
        "samples": 32 if options.quick else options.samples,
        "learningRate": subjects.LEARNING_RATE,
        "seed": 0,
    }
    launched = subjects.launched(job_of(settings, epochs=1), options.threads)
    found = in_fresh_process(__file__, settings, threads=options.threads, timeout_seconds=1800, **launched)
    total = sum(found["seconds"].values())
    made = Report(f"Where training spends its time, MiniLM, maxLength {max_length}", ("kind", "CPU s", "per cent"))
    for kind, seconds in sorted(found["seconds"].items(), key=lambda item: -item[1]):
        made.add(kind, seconds, 100 * seconds / total)
    return made


if __name__ == "__main__":
    main()
