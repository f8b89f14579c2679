"""Tokens per second and model FLOP utilisation (MFU) on one GPU in bf16, our loop beside HF Trainer.

GPT-2-type models of about 100 million and 1 billion parameters, made at random, learn random texts of 1,024 tokens:
causal-lm, the same batch, AdamW (fused), dropout 0. Without a GPU it says so and ends.

MFU counts 6 FLOPs a parameter and token (the token embedding once, as it is the output layer; positions not) and
12 · layers · width · length for attention, as in https://arxiv.org/abs/2204.02311 (appendix B), over the GPU's peak.

    python benchmarks/gpu_tokens.py
"""

import json
import random
from pathlib import Path
from typing import Any

import subjects
from measure import Record, Report, Window, arguments, in_fresh_process, in_turn, median

LENGTH = 1024
WORDS = 50_000
MODELS = {
    "100M": {"n_layer": 12, "n_embd": 768, "n_head": 12},
    "1B": {"n_layer": 24, "n_embd": 1792, "n_head": 14},
}
BATCH = {"100M": 16, "1B": 8}
PEAK_FLOPS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "L4": 121e12, "A10": 125e12}
"""Dense bf16, from the vendor's data sheets; a longer name is looked up first."""
SKIPPED = 5
"""Steps before the clock runs."""
SIDES = ("ours", "HF Trainer")


def train(settings: Record) -> Record:
    """One side: tokens per second, and FLOPs a token."""
    from transformers import default_data_collator

    with subjects.scratch() as folder:
        document = _job(folder, settings)
        process, material = subjects.prepared(document, folder / "run")
        clock = Clock()
        if settings["side"] == "ours":
            loop, state = subjects.assembled(process, material)
            train_ours(loop, state, clock)
            model = loop.inner
        else:
            model = subjects.plain_model(process, material)
            train_hf(settings, model, _rows(material), default_data_collator, clock, folder)
        config = model.config
        parameters = sum(value.numel() for value in model.parameters()) - config.n_positions * config.n_embd
        attention = 12 * config.n_layer * config.n_embd * settings["length"]
    tokens = (settings["steps"] - SKIPPED) * settings["batch"] * settings["length"]
    seconds = clock.window.seconds["wallSeconds"]
    return {"tokensPerSecond": tokens / seconds, "parameters": parameters, "flops": 6 * parameters + attention}


class Clock:
    """Opens its window after the first steps, when the GPU has done them."""

    def __init__(self) -> None:
        self.steps, self.window = 0, Window()

    def step(self) -> None:
        """A step's work is on its way."""
        import torch

        self.steps += 1
        if self.steps >= SKIPPED:
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            self.window.mark()


def _job(folder: Path, settings: Record) -> dict[str, Any]:
    samples = settings["steps"] * settings["batch"] * 2
    data = _write_texts(folder / "texts.jsonl", samples, settings["length"])
    tokenizer = write_tokenizer(folder / "tokenizer", WORDS)
    config = {"model_type": "gpt2", "n_positions": settings["length"], "vocab_size": WORDS + 1, **settings["model"]}
    training = {
        "batchSize": settings["batch"],
        "maxSteps": settings["steps"],
        "precision": "bf16",
        "weightDecay": subjects.WEIGHT_DECAY,
        "warmup": {"ratio": subjects.WARMUP},
    }
    document = subjects.job(
        data,
        max_length=settings["length"],
        training=training,
        task="causal-lm",
        model={"config": config, "tokenizer": f"file://{tokenizer}", "dropout": 0},
    )
    document["spec"]["evaluation"].pop("metrics")
    return document


def _write_texts(path: Path, samples: int, length: int) -> Path:
    """Texts of ``length`` random words: after truncation all are of one length, so that nothing is padded."""
    chosen = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(samples):
            text = " ".join(f"w{chosen.randrange(WORDS)}" for _ in range(length))
            file.write(json.dumps({"text": text}) + "\n")
    return path


def write_tokenizer(folder: Path, words: int) -> Path:
    """Write a tokenizer with a token a word: w0, w1 and so on."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {f"w{number}": number for number in range(words)} | {"<end>": words}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = ["input_ids", "attention_mask"]
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<end>", pad_token="<end>", model_input_names=names
    ).save_pretrained(folder)
    return folder


def train_ours(loop: Any, state: Any, clock: Clock) -> None:
    def settle(reached: Any) -> Any:
        if reached.step:
            clock.step()
        return reached

    loop._settle = settle  # noqa: SLF001 - where evaluations and checkpoints are made
    loop.run(state)


def _rows(material: Any) -> list[dict[str, Any]]:
    part = material.parts["train"]
    offsets = part.encoded.offsets
    ids = [part.encoded.ids[offsets[row] : offsets[row + 1]].tolist() for row in part.rows.tolist()]
    return [{"input_ids": row, "labels": row} for row in ids]


def train_hf(settings: Record, model: Any, rows: Any, collate: Any, clock: Clock, folder: Path, **options: Any) -> None:
    """HF Trainer on ``rows``; ``options`` are TrainingArguments beside those that every benchmark on a GPU sets."""
    import torch
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Steps(TrainerCallback):
        def on_step_end(self, *_arguments: Any, **_named: Any) -> None:
            clock.step()

    chosen = TrainingArguments(
        output_dir=str(folder / "hf"),
        per_device_train_batch_size=settings["batch"],
        max_steps=settings["steps"],
        learning_rate=subjects.LEARNING_RATE,
        weight_decay=subjects.WEIGHT_DECAY,
        warmup_steps=subjects.WARMUP,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        **options,
    )
    Trainer(model, chosen, train_dataset=rows, data_collator=collate, callbacks=[Steps()]).train()


def peak_flops(name: str) -> float | None:
    """Peak of a GPU by its name; None if it is not in the table."""
    known = (kind for kind in sorted(PEAK_FLOPS, key=len, reverse=True) if kind in name)
    return PEAK_FLOPS.get(next(known, ""))


def compare(size: str, gpu: str, options: Any) -> Report:
    """Both sides in turn with one model."""
    settings = {"model": MODELS[size], "batch": BATCH[size], "length": LENGTH, "steps": options.steps + SKIPPED}

    def measure(side: str, _repeat: int) -> Record:
        return in_fresh_process(__file__, {**settings, "side": side}, threads=options.threads, timeout_seconds=900)

    records = in_turn(SIDES, options.repeats, measure)
    report = Report(f"{gpu}, GPT-2 type of {size}, bf16", ("side", "parameters", "tokens/s", "MFU %"))
    peak = peak_flops(gpu)
    rate = {side: median(rows, "tokensPerSecond") for side, rows in records.items()}
    for side, rows in records.items():
        share = 100 * rate[side] * rows[0]["flops"] / peak if peak else float("nan")
        report.add(side, rows[0]["parameters"], rate[side], share)
    report.figure(f"tokens/s at {size}, ours / HF Trainer", rate["ours"] / rate["HF Trainer"])
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--model", choices=list(MODELS), nargs="+", default=list(MODELS), help="default: both")
    parser.add_argument("--steps", type=int, default=30, help="steps that count (default: 30)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(train(options.worker)))
        return
    import torch

    if not torch.cuda.is_available():
        print("No GPU here: tokens per second were not measured.")
        return
    if options.quick:
        options.model, options.steps, options.repeats = ["100M"], 5, 1
    for size in options.model:
        compare(size, torch.cuda.get_device_name(), options).print(as_json=options.json)


if __name__ == "__main__":
    main()
