"""Text classification beside HF Trainer: MiniLM learns the section of Debian's package descriptions.

Speed: samples per CPU second of the training loop (start, evaluation and saving excluded), at maxLength 128 and 256, of
  ours      our trainer's loop with a token budget
  default   HF Trainer as run_glue sets it up: every text padded to maxLength, batches of 32 at random
  best      HF Trainer's best setting: grouped by length, padded to the longest of a batch, batches of 32
  limit     a bare loop of our model and optimizer on our batches without their padding: as many samples and tokens in
            each pass, cut to one length, no attention mask
All but `default` do every j-th batch, by length, of a whole epoch's plan as made for the full training set, so that
each side sees the same distribution of lengths; `default` costs the same for every text, so a random part will do.

Accuracy: on the test set after the same number of samples at the same rate, schedule, warm-up and weight decay, texts
cut to 64 tokens. Far enough that seeds tell the same: after 8,000 samples at 5e-5 they are 8 points apart.

    python benchmarks/text_classification.py                 both
    python benchmarks/text_classification.py speed --repeats 5
    python benchmarks/text_classification.py accuracy --samples 27000
"""

import csv
import json
import statistics
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import subjects
from debian_texts import read_texts
from measure import CORES, Record, Report, Window, arguments, in_fresh_process, in_turn, median, note

SIDES = ("ours", "default", "best", "limit")
WANTED = {  # at least this many times as many samples per CPU second
    (128, "default"): 1.45,
    (256, "default"): 3.5,
    (128, "best"): 1.1,
    (256, "best"): 1.25,
    (128, "limit"): 0.95,
    (256, "limit"): 0.95,
}
TOKENS = {64: 1760, 128: 2400, 256: 2600}
"""Our tokensPerBatch: 32 texts of the mean length (55, 74, 81 tokens), so that a step sees as many as HF Trainer's."""
ACCURACY_LENGTH = 64
SHARE_OF_DEFAULT = 0.25
"""The side that pads everything does this share of the samples: it is slow, and each sample costs the same."""


# ── speed: one side in one process ───────────────────────────────────────────────────────────────────────────────


def speed(settings: Record) -> Record:
    """One side: samples and seconds of its training loop."""
    with subjects.scratch() as folder:
        process, material = subjects.prepared(job_of(settings, epochs=1), folder)
        window = Window()
        batches = SPEED[settings["side"]](settings, process, material, window)
    return {**window.seconds, **_facts(batches, material.parts["train"].lengths, settings)}


def our_passes(loop: Any, batch: Any) -> list[Any]:
    """How our loop cuts a batch."""
    return loop.share.of(batch, loop.train_part.padded_lengths, loop.batch_size)


def job_of(settings: Record, epochs: float) -> Record:
    training = {"tokensPerBatch": settings["tokens"], "epochs": epochs, "seed": settings["seed"]}
    strategy = {"learningRate": {"value": settings["learningRate"]}}
    return subjects.job(Path(settings["data"]), max_length=settings["maxLength"], training=training, strategy=strategy)


def _facts(batches: Sequence[Sequence[Any]], lengths: Any, settings: Record) -> Record:
    """What was done, as passes of each batch."""
    passes = [one for batch in batches for one in batch]
    samples = sum(map(len, passes))
    tokens = sum(int(lengths[one].sum()) for one in passes)
    width = (lambda _one: settings["maxLength"]) if settings["side"] == "default" else (lambda one: lengths[one].max())
    computed = sum(len(one) * int(width(one)) for one in passes)
    if settings["side"] == "limit":
        computed = tokens
    return {
        "samples": samples,
        "steps": len(batches),
        "passes": len(passes) / len(batches),
        "tokensPerSample": tokens / samples,
        "paddingPercent": 100 * (1 - tokens / computed),
    }


def warm_up(model: Any, settings: Record) -> None:
    """Forward and backward without an update: threads, kernels and memory are there before the clock runs."""
    import torch

    model.train()
    for _ in range(settings["warmUp"]):
        ids = torch.randint(1000, 20_000, (subjects.BATCH, settings["maxLength"]))
        model(input_ids=ids).logits.sum().backward()
    model.zero_grad(set_to_none=True)


def every_jth(batches: Sequence[Any], lengths: Any, samples: int) -> list[Any]:
    """About ``samples`` samples in whole batches that stand for all: every j-th by length, in their first order."""
    total = sum(map(len, batches))
    count = max(1, min(len(batches), round(len(batches) * samples / total)))
    by_length = np.argsort([lengths[batch].mean() for batch in batches], kind="stable")
    chosen = by_length[((np.arange(count) + 0.5) * len(batches) / count).astype(int)]
    return [batches[index] for index in sorted(chosen)]


def ours(settings: Record, process: Any, material: Any, window: Window) -> list[list[Any]]:
    """Our loop as it is, but that nothing falls due between steps and that an epoch is the chosen batches."""
    import finetune_trainer.loop

    loop, state = subjects.assembled(process, material)
    batches = our_batches(settings, loop)
    warm_up(loop.inner, settings)
    finetune_trainer.loop.epoch_batches = lambda *_arguments, **_named: batches
    train_ours(loop, state, window)
    return [our_passes(loop, batch) for batch in batches]


def train_ours(loop: Any, state: Any, window: Window) -> Any:
    """Our loop without evaluations and checkpoints; returns the state at its end."""

    def settle(reached: Any) -> Any:
        window.mark()
        return reached

    loop._settle = settle  # noqa: SLF001 - where evaluations and checkpoints are made, between two steps
    return loop.run(state)


def our_batches(settings: Record, loop: Any) -> list[Any]:
    from finetune_trainer.data.order import epoch_batches

    lengths = loop.train_part.lengths
    batches = epoch_batches(len(lengths), lengths, loop.batch_size, seed=settings["seed"], epoch=0)
    return every_jth(batches, lengths, settings["samples"])


def limit(settings: Record, process: Any, material: Any, window: Window) -> list[list[Any]]:
    """The bare loop. Each pass holds the tokens of one of ours, cut anew into as many texts of one length."""
    import torch
    from torch.nn.functional import cross_entropy

    loop, _ = subjects.assembled(process, material)
    batches = [our_passes(loop, batch) for batch in our_batches(settings, loop)]
    encoded = [[_unpadded(loop.train_part, one) for one in batch] for batch in batches]
    model, optimizer = loop.inner.train(), loop.optimizer
    warm_up(model, settings)
    window.mark()
    for batch in encoded:
        samples = sum(len(targets) for _, targets in batch)
        losses = []
        for ids, targets in batch:
            loss = cross_entropy(model(input_ids=ids).logits, targets, reduction="sum") / samples
            loss.backward()
            losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        sum(losses).item()
        window.mark()
    return batches


def _unpadded(part: Any, batch: Any) -> tuple[Any, Any]:
    import torch

    rows = part.rows[batch]
    ids = np.concatenate([part.encoded.ids[part.encoded.offsets[row] : part.encoded.offsets[row + 1]] for row in rows])
    width = max(1, round(len(ids) / len(rows)))
    cut = np.resize(ids, len(rows) * width).reshape(len(rows), width).astype(np.int64)
    return torch.from_numpy(cut), part.targets[rows]


def hf_default(settings: Record, process: Any, material: Any, window: Window) -> list[list[Any]]:
    """HF Trainer, run_glue's way."""
    part, model = material.parts["train"], subjects.plain_model(process, material)
    random = np.random.Generator(np.random.PCG64(settings["seed"]))
    count = max(subjects.BATCH, int(settings["samples"] * SHARE_OF_DEFAULT) // subjects.BATCH * subjects.BATCH)
    indices = random.permutation(len(part))[:count]
    rows = rows_of(part, indices, pad_to=settings["maxLength"], pad_id=material.companion.pad_token_id)
    warm_up(model, settings)
    train_hf(settings, model, rows, window, strategy="random", tokenizer=None)
    return [[batch] for batch in np.split(indices, range(subjects.BATCH, count, subjects.BATCH))]


def hf_best(settings: Record, process: Any, material: Any, window: Window) -> list[list[Any]]:
    """HF Trainer, grouped by length; the groups are those that its sampler makes of the whole training set."""
    import torch
    from transformers.trainer_pt_utils import LengthGroupedSampler

    part, model = material.parts["train"], subjects.plain_model(process, material)
    generator = torch.Generator().manual_seed(settings["seed"])
    sampler = LengthGroupedSampler(subjects.BATCH, lengths=part.lengths.tolist(), generator=generator)
    order = np.array(list(sampler))
    whole = order[: len(order) // subjects.BATCH * subjects.BATCH].reshape(-1, subjects.BATCH)
    batches = every_jth(list(whole), part.lengths, settings["samples"])
    warm_up(model, settings)
    rows = rows_of(part, np.concatenate(batches))
    train_hf(settings, model, rows, window, strategy="sequential", tokenizer=material.companion)
    return [[batch] for batch in batches]


SPEED = {"ours": ours, "default": hf_default, "best": hf_best, "limit": limit}


def rows_of(part: Any, indices: Any, *, pad_to: int | None = None, pad_id: int = 0) -> list[dict[str, Any]]:
    """Samples as the tokenizer hands them to HF Trainer; padded if ``pad_to`` is given."""
    return list(_rows(part, indices, pad_to, pad_id))


def _rows(part: Any, indices: Any, pad_to: int | None, pad_id: int) -> Iterator[dict[str, Any]]:
    for row in part.rows[indices].tolist():
        ids = part.encoded.ids[part.encoded.offsets[row] : part.encoded.offsets[row + 1]].tolist()
        padding = (pad_to or len(ids)) - len(ids)
        yield {
            "input_ids": ids + [pad_id] * padding,
            "token_type_ids": [0] * (len(ids) + padding),
            "attention_mask": [1] * len(ids) + [0] * padding,
            "labels": int(part.targets[row]),
        }


def train_hf(
    settings: Record, model: Any, rows: list[dict[str, Any]], window: Window, *, strategy: str, tokenizer: Any
) -> None:
    """One epoch of HF Trainer over ``rows``; its defaults but for what is named. Pads by ``tokenizer`` if given."""
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments, default_data_collator

    class Clock(TrainerCallback):
        def on_train_begin(self, *_arguments: Any, **_named: Any) -> None:
            window.mark()

        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            window.mark()

    with subjects.scratch() as folder:
        options = TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=subjects.BATCH,
            num_train_epochs=1,
            learning_rate=settings["learningRate"],
            weight_decay=subjects.WEIGHT_DECAY,
            warmup_steps=subjects.WARMUP,  # below 1: a share of all steps
            train_sampling_strategy=strategy,
            average_tokens_across_devices=False,
            seed=settings["seed"],
            use_cpu=True,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        collate = DataCollatorWithPadding(tokenizer) if tokenizer is not None else default_data_collator
        Trainer(model, options, train_dataset=rows, data_collator=collate, callbacks=[Clock()]).train()


# ── accuracy: one run in one process ─────────────────────────────────────────────────────────────────────────────


def accuracy(settings: Record) -> Record:
    """One run of one side; accuracy on the test set."""
    with subjects.scratch() as folder:
        process, material = subjects.prepared(job_of(settings, epochs=settings["epochs"]), folder)
        window = Window()
        if settings["side"] == "ours":
            loop, state = subjects.assembled(process, material)
            model, samples = loop.inner, int(train_ours(loop, state, window).samples)
        else:
            model = subjects.plain_model(process, material)
            samples = _train_hf_at_random(settings, material, model, window)
        return {**window.seconds, "samples": samples, "accuracy": accuracy_of(model, material.parts["test"])}


def _train_hf_at_random(settings: Record, material: Any, model: Any, window: Window) -> int:
    """Batches of 32 at random, as run_glue has them; padded to their longest, which changes time but not results."""
    part = material.parts["train"]
    random = np.random.Generator(np.random.PCG64(settings["seed"]))
    samples = round(settings["epochs"] * len(part))
    order = np.concatenate([random.permutation(len(part)) for _ in range(-(-samples // len(part)))])[:samples]
    train_hf(settings, model, rows_of(part, order), window, strategy="sequential", tokenizer=material.companion)
    return len(order)


def accuracy_of(model: Any, part: Any) -> float:
    """Percent of the part's samples that the model labels rightly."""
    import torch

    from finetune_trainer.data.order import BatchSize, ordered_batches

    right = 0
    model.eval()
    with torch.no_grad():
        for indices in ordered_batches(len(part), part.lengths, BatchSize(None, 8192)):
            batch = part.batch(0, indices, is_counted=True)
            right += int((model(**batch.inputs).logits.argmax(-1) == batch.target).sum())
    return 100 * right / len(part)


# ── all sides ────────────────────────────────────────────────────────────────────────────────────────────────────


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    data: Path
    lengths: tuple[int, ...]
    samples: int
    repeats: int
    accuracy_samples: int
    seeds: int
    warm_up: int
    threads: int
    tokens: int | None
    learning_rate: float
    timeout_seconds: float

    def budget(self, max_length: int) -> int:
        """Our ``tokensPerBatch``: what is asked for, or TOKENS."""
        return self.tokens or TOKENS.get(max_length, subjects.BATCH * max_length)


def run_side(settings: Record, plan: Plan, threads: int) -> Record:
    """One side in a fresh process; ours with what our launcher sets, HF Trainer's with what a shell would."""
    is_ours = settings["side"] in {"ours", "limit"}
    more = subjects.launched(job_of(settings, epochs=1), threads) if is_ours else {}
    return in_fresh_process(__file__, settings, threads=threads, timeout_seconds=plan.timeout_seconds, **more)


def compare_speed(plan: Plan, max_length: int) -> Report:
    """Every side in turn; medians, and ours over each of the others."""
    common = {"kind": "speed", "data": str(plan.data), "maxLength": max_length, "tokens": plan.budget(max_length)}
    common |= {"samples": plan.samples, "warmUp": plan.warm_up, "learningRate": subjects.LEARNING_RATE}

    def measure(side: str, repeat: int) -> Record:
        return run_side({**common, "side": side, "seed": repeat}, plan, plan.threads)

    note(f"speed at maxLength {max_length}: {plan.repeats} times {', '.join(SIDES)}")
    records = in_turn(SIDES, plan.repeats, measure)
    for rows in records.values():
        for row in rows:
            row["rate"] = row["samples"] / row["cpuSeconds"]
            row["wallRate"] = row["samples"] / row["wallSeconds"]
    title = f"Training speed, MiniLM, maxLength {max_length}, {plan.threads} threads, medians of {plan.repeats}"
    columns = (
        "side",
        "samples",
        "steps",
        "passes/step",
        "tokens/sample",
        "padding %",
        "CPU s",
        "samples/CPU s",
        "samples/s",
        "ours ÷",
    )
    report = Report(title, columns)
    rate = {side: median(rows, "rate") for side, rows in records.items()}
    for side, rows in records.items():
        counts = [int(median(rows, name)) for name in ("samples", "steps")]
        names = ("passes", "tokensPerSample", "paddingPercent", "cpuSeconds", "rate", "wallRate")
        shown = [median(rows, name) for name in names]
        report.add(side, *counts, *shown, rate["ours"] / rate[side])
    for side in SIDES[1:]:
        ratio = statistics.median(
            mine["rate"] / other["rate"] for mine, other in zip(records["ours"], records[side], strict=True)
        )
        report.figure(f"ours / {side} at {max_length}", ratio, at_least=WANTED.get((max_length, side)))
    return report


def compare_accuracy(plan: Plan, max_length: int) -> Report:
    """Both sides with every seed, two at a time, one thread each."""
    epochs = plan.accuracy_samples / (0.7 * len(read_texts(plan.data)[0]))
    common = {"kind": "accuracy", "data": str(plan.data), "maxLength": max_length, "epochs": epochs}
    common |= {"learningRate": plan.learning_rate}
    runs = [(side, seed) for seed in range(plan.seeds) for side in ("ours", "HF Trainer")]

    def measure(run: tuple[str, int]) -> Record:
        settings = {**common, "tokens": plan.budget(max_length), "side": run[0], "seed": run[1]}
        record = run_side(settings, plan, threads=1)
        note(f"  {run[0]}, seed {run[1]}: {record['accuracy']:.2f} % in {record['wallSeconds']:.0f} s")
        return record

    note(f"accuracy: {plan.seeds} seeds, {plan.accuracy_samples:,} samples each")
    with ThreadPoolExecutor(max(1, min(CORES, plan.threads))) as pool:
        records = dict(zip(runs, pool.map(measure, runs), strict=True))
    title = f"Test accuracy (%) after {plan.accuracy_samples:,} samples, MiniLM, maxLength {max_length}"
    report = Report(title, ("side", *(f"seed {seed}" for seed in range(plan.seeds)), "mean", "samples", "CPU s"))
    means = {}
    for side in ("ours", "HF Trainer"):
        rows = [records[side, seed] for seed in range(plan.seeds)]
        found = [row["accuracy"] for row in rows]
        means[side] = statistics.mean(found)
        report.add(side, *found, means[side], int(median(rows, "samples")), median(rows, "cpuSeconds"))
    report.figure("ours - HF Trainer, points", means["ours"] - means["HF Trainer"], at_least=-0.5)
    return report


def small_part(folder: Path, texts: int) -> Path:
    """The first texts of every label, as a data set of its own."""
    rows = list(zip(*read_texts(subjects.texts()), strict=True))
    labels = sorted({label for _, label in rows})
    each = max(10, texts // len(labels))
    path = folder / "small.csv"
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        for label in labels:
            writer.writerows([row for row in rows if row[1] == label][:each])
    return path


def plan_of(options: Any, folder: Path) -> Plan:
    if options.quick:
        return Plan(small_part(folder, 240), (32,), 32, 1, 32, 1, 1, options.threads, options.tokens, 5e-5, 300)
    return Plan(
        data=subjects.texts(),
        lengths=tuple(options.max_length),
        samples=options.speed_samples,
        repeats=options.repeats,
        accuracy_samples=options.samples,
        seeds=options.seeds,
        warm_up=2,
        threads=options.threads,
        tokens=options.tokens,
        learning_rate=options.learning_rate,
        timeout_seconds=14_400,
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("what", nargs="*", choices=["speed", "accuracy", []], help="default: both")
    parser.add_argument("--max-length", type=int, nargs="+", default=[128, 256], help="of the speed (default: 128 256)")
    parser.add_argument("--speed-samples", type=int, default=1600, help="samples a side and repeat (default: 1600)")
    parser.add_argument("--repeats", type=int, default=3, help="of the speed (default: 3)")
    parser.add_argument(
        "--samples", type=int, default=12_000, help="samples an accuracy run trains on (default: 12,000)"
    )
    parser.add_argument("--seeds", type=int, default=3, help="of the accuracy (default: 3)")
    parser.add_argument("--tokens", type=int, help=f"our tokensPerBatch (default by maxLength: {TOKENS})")
    parser.add_argument("--learning-rate", type=float, default=2e-4, help="of the accuracy (default: %(default)s)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps({"speed": speed, "accuracy": accuracy}[options.worker["kind"]](options.worker)))
        sys.stdout.flush()
        return
    with subjects.scratch() as folder:
        plan = plan_of(options, folder)
        if "accuracy" not in options.what or "speed" in options.what:
            for max_length in plan.lengths:
                compare_speed(plan, max_length).print(as_json=options.json)
        if "speed" not in options.what or "accuracy" in options.what:
            compare_accuracy(plan, 32 if options.quick else ACCURACY_LENGTH).print(as_json=options.json)


if __name__ == "__main__":
    main()
