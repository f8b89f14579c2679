"""Images with captions, made on the spot, and jobs that match the two with models of a few weights."""

import csv
import random
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

import tiny
from finetune_api import FineTuneJob, parse_job
from finetune_api.job import JobSpec

COLORS = {"red": (220, 40, 40), "green": (40, 180, 60), "blue": (50, 80, 230), "yellow": (230, 210, 40)}
SHAPES = ("circle", "square", "triangle", "cross")
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "centre", "right")
CAPTIONS = len(COLORS) * len(SHAPES) * len(ROWS) * len(COLUMNS)
PHRASES = (
    "a {color} {shape} at the {row} {column}",
    "{row} {column}: one {shape}, {color}",
    "{color} {shape}, {row} {column}",
)

TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": 32, "max_position_embeddings": 32, "hidden_act": "gelu"}
IMAGE = {"image_size": 24, "patch_size": 8, "hidden_act": "gelu"}
CLIP = {
    "model_type": "clip",
    "text_config": TOWER | TEXT,
    "vision_config": TOWER | IMAGE,
    "projection_dim": 16,
}
SPREAD = {"initializer_range": 0.1}
"""With BLIP's own, so small a model gives all images one embedding, and gradients that are mostly rounding."""
BLIP = {
    "model_type": "blip",
    "text_config": TOWER | TEXT | SPREAD,
    "vision_config": TOWER | IMAGE | SPREAD,
    "image_text_hidden_size": 16,
}
MODELS = {"clip": CLIP, "blip": BLIP}


def draw(color: str, shape: str, row: int, column: int, chosen: random.Random) -> Image.Image:
    """24 x 24 pixels: the shape in one of nine places, on a noisy ground."""
    noise = np.random.default_rng(chosen.randrange(2**32)).integers(0, 60, (24, 24, 3), np.uint8)
    image = Image.fromarray(noise)
    pen, fill = ImageDraw.Draw(image), COLORS[color]
    left, top = column * 8 + chosen.randint(0, 1), row * 8 + chosen.randint(0, 1)
    box = (left, top, left + 6, top + 6)
    if shape == "circle":
        pen.ellipse(box, fill)
    elif shape == "square":
        pen.rectangle(box, fill)
    elif shape == "triangle":
        pen.polygon([(left + 3, top), (left, top + 6), (left + 6, top + 6)], fill)
    else:
        pen.line((left, top + 3, left + 6, top + 3), fill, 2)
        pen.line((left + 3, top, left + 3, top + 6), fill, 2)
    return image


def write(folder: Path, count: int, *, phrases: int = 1, texts_each: int = 1, distinct: bool = False) -> Path:
    """``pairs.csv`` (columns image, text, label) and its images, always the same."""
    chosen = random.Random(0)
    (folder / "images").mkdir(parents=True)
    every = list(product(COLORS, SHAPES, range(3), range(3)))
    rows = []
    for index, (color, shape, row, column) in enumerate(
        (chosen.sample if distinct else chosen.choices)(every, k=count)
    ):
        name = f"images/{index:04d}.png"
        draw(color, shape, row, column, chosen).save(folder / name)
        for phrase in chosen.sample(PHRASES[:phrases], texts_each):
            text = phrase.format(color=color, shape=shape, row=ROWS[row], column=COLUMNS[column])
            rows.append({"image": name, "text": text, "label": shape})
    write_tokenizer(folder / "tokenizer", [str(row["text"]) for row in rows])
    with (folder / "pairs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["image", "text", "label"])
        writer.writeheader()
        writer.writerows(rows)
    return folder


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """A tokenizer of the words in ``texts``, that begins and ends them as BERT's does."""
    words = sorted({word for text in texts for word, _ in Whitespace().pre_tokenize_str(text)})
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
    tokenizer = Tokenizer(WordLevel({word: number for number, word in enumerate([*special, *words])}, "[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    ends = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **names).save_pretrained(folder)


def job(folder: Path, kind: str, spec: dict[str, Any] | None = None, *, count: int = 30) -> FineTuneJob:
    """A job that matches the pairs in ``folder``, which are written if they are not there; ``spec`` is laid over it."""
    if not (folder / "pairs").exists():
        write(folder / "pairs", count)
    fixed = {
        "task": "image-text-matching",
        "model": {"config": MODELS[kind], "dropout": 0, "tokenizer": f"file://{folder / 'pairs' / 'tokenizer'}"},
        "data": {
            "source": f"file://{folder / 'pairs' / 'pairs.csv'}",
            "split": {"train": 13, "validation": 7, "test": 0},
        },
        "strategy": {"learningRate": {"value": 1e-3}},
        "training": {"batchSize": 6, "maxSteps": 5, "precision": "fp32"},
        "evaluation": {"every": {"steps": 1000}},
        "checkpoint": {"every": {"steps": 1000}},
    }
    whole = tiny.merged(fixed, spec or {})
    return parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "pairs"}, "spec": whole}
    )


def tiny_or_pairs(folder: Path, kind: str, spec: dict[str, Any] | None = None) -> FineTuneJob:
    """``tiny.job``, and ``job`` of what matches images and texts."""
    return job(folder, kind, spec) if kind in MODELS else tiny.job(folder, kind, spec)


def read_pair(spec: JobSpec, row: int) -> tuple[Image.Image, str]:
    """Image and text of one row of a job's table."""
    table = Path(spec.data.source.removeprefix("file://"))
    with table.open() as file:
        chosen = list(csv.DictReader(file))[row]
    return Image.open(table.parent / chosen["image"]).convert("RGB"), chosen["text"]
