"""Samples per second on one GPU in bf16, our loop beside HF Trainer: texts and images, from files to optimizer step.

text-classification: a model of BERT-base's size (110 M parameters, made at random) on texts of 8 to 256 random words,
HF Trainer with its best setting (grouped by length, padded to the longest of a batch), and with run_glue's default
(padded to the maximum). image-classification: ViT-base (86 M) on JPEG files of 256 x 256 pixels, read by as many
processes on both sides. Dropout 0, AdamW (fused). Without a GPU it says so and ends.

    python benchmarks/gpu_samples.py
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import subjects
from gpu_tokens import SKIPPED, Clock, train_hf, train_ours, write_tokenizer
from measure import Record, Report, arguments, in_fresh_process, in_turn, median

LENGTHS = (8, 256)
WORDS = 30_000
PIXELS = 256
IMAGES = 2000
BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
SMALL = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 128}
SIDES = {
    "text-classification": ("ours", "HF Trainer, best", "HF Trainer, default"),
    "image-classification": ("ours", "HF Trainer"),
}
BATCH = {"text-classification": 64, "image-classification": 128}


def train(settings: Record) -> Record:
    """One side: samples per second."""
    with subjects.scratch() as folder:
        is_text = settings["task"] == "text-classification"
        document = _text_job(folder, settings) if is_text else _image_job(folder, settings)
        process, material = subjects.prepared(document, folder / "run")
        clock = Clock()
        if settings["side"] == "ours":
            loop, state = subjects.assembled(process, material)
            train_ours(loop, state, clock)
        else:
            model = subjects.plain_model(process, material)
            rows, collate, more = (_text_side if is_text else _image_side)(settings, material)
            train_hf(settings, model, rows, collate, clock, folder, remove_unused_columns=False, **more)
    return {"samplesPerSecond": (settings["steps"] - SKIPPED) * settings["batch"] / clock.window.seconds["wallSeconds"]}


def _job(data: Path, settings: Record, **spec: Any) -> dict[str, Any]:
    training = {"batchSize": settings["batch"], "maxSteps": settings["steps"], "precision": "bf16"}
    document = subjects.job(data, max_length=LENGTHS[1], training=training, task=settings["task"], **spec)
    document["spec"]["data"]["split"] = {"train": 90, "validation": 10, "test": 0}
    return document


def _text_job(folder: Path, settings: Record) -> dict[str, Any]:
    """Lengths as texts have them: most are short, few long."""
    chosen = random.Random(0)
    data = folder / "texts.jsonl"
    with data.open("w", encoding="utf-8") as file:
        for number in range(settings["steps"] * settings["batch"] * 5 // 4):
            length = max(LENGTHS[0], min(LENGTHS[1], int(chosen.lognormvariate(math.log(64), 0.7))))
            text = " ".join(f"w{chosen.randrange(WORDS)}" for _ in range(length))
            file.write(json.dumps({"text": text, "label": "ab"[number % 2]}) + "\n")
    tokenizer = write_tokenizer(folder / "tokenizer", WORDS)
    config = {"model_type": "bert", "vocab_size": WORDS + 1, "max_position_embeddings": 512, **settings["model"]}
    model = {"config": config, "tokenizer": f"file://{tokenizer}", "dropout": 0}
    return _job(data, settings, model=model)


def _image_job(folder: Path, settings: Record) -> dict[str, Any]:
    from PIL import Image

    chosen = random.Random(0)
    data = folder / "images"
    for number in range(IMAGES if settings["steps"] > 2 * SKIPPED else IMAGES // 20):
        path = data / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        small = Image.frombytes("RGB", (32, 32), chosen.randbytes(32 * 32 * 3))
        small.resize((PIXELS, PIXELS), Image.Resampling.BICUBIC).save(path, quality=90)
    config = {"model_type": "vit", "image_size": 224, "patch_size": 16, **settings["model"]}
    document = _job(data, settings, model={"config": config, "dropout": 0})
    del document["spec"]["data"]["maxLength"]
    return document


def _text_side(settings: Record, material: Any) -> tuple[Any, Any, dict[str, Any]]:
    from transformers import DataCollatorWithPadding

    part, tokenizer = material.parts["train"], material.companion
    offsets = part.encoded.offsets
    rows = [
        {"input_ids": part.encoded.ids[offsets[row] : offsets[row + 1]].tolist(), "labels": int(part.targets[row])}
        for row in part.rows.tolist()
    ]
    if settings["side"].endswith("default"):
        return rows, DataCollatorWithPadding(tokenizer, padding="max_length", max_length=LENGTHS[1]), {}
    return rows, DataCollatorWithPadding(tokenizer), {"train_sampling_strategy": "group_by_length"}


def _image_side(_settings: Record, material: Any) -> tuple[Any, Any, dict[str, Any]]:
    from transformers import default_data_collator

    from finetune_trainer.run import IMAGE_LOADERS

    part = material.parts["train"]
    paths = [part.paths[row] for row in part.rows.tolist()]
    labels = part.targets[part.rows].tolist()
    return _Images(paths, labels, material.companion), default_data_collator, {"dataloader_num_workers": IMAGE_LOADERS}


class _Images:
    """Images as transformers' own example reads them: opened, and made the model's input by its processor."""

    def __init__(self, paths: list[str], labels: list[int], processor: Any) -> None:
        self.paths, self.labels, self.processor = paths, labels, processor

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Any]:
        from PIL import Image

        with Image.open(self.paths[index]) as image:
            pixels = self.processor(images=image.convert("RGB"), return_tensors="pt")["pixel_values"][0]
        return {"pixel_values": pixels, "labels": self.labels[index]}


def compare(task: str, gpu: str, options: Any) -> Report:
    """All sides in turn."""
    model = SMALL if options.quick else BASE
    settings = {"task": task, "model": model, "batch": options.batch or BATCH[task], "steps": options.steps + SKIPPED}

    def measure(side: str, _repeat: int) -> Record:
        return in_fresh_process(__file__, {**settings, "side": side}, threads=options.threads, timeout_seconds=900)

    records = in_turn(SIDES[task], options.repeats, measure)
    rate = {side: median(rows, "samplesPerSecond") for side, rows in records.items()}
    report = Report(f"{gpu}, {task}, bf16", ("side", "samples/s"))
    for side in records:
        report.add(side, rate[side])
    for side in SIDES[task][1:]:
        report.figure(f"{task}, samples/s, ours / {side}", rate["ours"] / rate[side])
    return report


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--task", choices=list(SIDES), nargs="+", default=list(SIDES), help="default: both")
    parser.add_argument("--steps", type=int, default=60, help="steps that count (default: 60)")
    parser.add_argument("--batch", type=int, help="samples of a batch (default: 64 texts, 128 images)")
    parser.add_argument("--repeats", type=int, default=3, help="runs of each side (default: 3)")
    options = parser.parse_args()
    if options.worker is not None:
        print(json.dumps(train(options.worker)))
        return
    import torch

    if not torch.cuda.is_available():
        print("No GPU here: samples per second were not measured.")
        return
    if options.quick:
        options.steps, options.repeats, options.batch = 5, 1, 8
    for task in options.task:
        compare(task, torch.cuda.get_device_name(), options).print(as_json=options.json)


if __name__ == "__main__":
    main()
