"""The loss curve of HF Trainer, step by step: the same weights, samples, order and settings, each by its own code.

The reference reads the files, tokenizes, pads and trains by itself; what is shared is the order of the samples. Its
``average_tokens_across_devices`` is off: with one process it changes nothing but multiplies the gradient where several
are counted (transformers' ``Trainer.training_step``).
"""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torch import nn
from transformers import (
    DataCollatorForLanguageModeling,
    DataCollatorForSeq2Seq,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
    default_data_collator,
)

import tiny
from finetune_trainer.data.order import BatchSize, epoch_batches
from finetune_trainer.run import Material, Process, build_model, prepare

STEPS, BATCH, EPOCHS = 50, 6, 5
TOLERANCE = 1e-4
SPEC: dict[str, Any] = {
    "data": {"split": {"train": 2, "validation": 1, "test": 0, "stratify": False}},
    "strategy": {"learningRate": {"value": 3e-3}},
    "training": {"batchSize": BATCH, "maxSteps": STEPS, "warmup": {"steps": 5}, "weightDecay": 0.05},
}
"""90 samples: 60 to train on, 10 batches an epoch."""


class Reference(Trainer):
    """HF Trainer, which keeps each step's loss (its own log rounds)."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self.losses: list[float] = []

    def training_step(self, *arguments: Any, **named: Any) -> Any:
        loss = super().training_step(*arguments, **named)
        self.losses.append(loss.item())
        return loss


def texts(material: Material, path: Path, order: list[int]) -> tuple[list[dict[str, Any]], Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = material.companion
    rows = [
        {**tokenizer(lines[row]["text"], truncation=True, max_length=64), "labels": "abc".index(lines[row]["label"])}
        for row in order
    ]
    return rows, DataCollatorWithPadding(tokenizer)


def tokens(material: Material, path: Path, order: list[int]) -> tuple[list[dict[str, Any]], Any]:
    lines = [json.loads(line)["text"] for line in path.read_text().splitlines()]
    tokenizer = material.companion
    rows = [tokenizer(lines[row], truncation=True, max_length=64) for row in order]
    return rows, DataCollatorForLanguageModeling(tokenizer, mlm=False)


def words(material: Material, path: Path, order: list[int]) -> tuple[list[dict[str, Any]], Any]:
    """As transformers' own example of token classification aligns tags with tokens."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer, labels = material.companion, material.prepared.labels
    rows = []
    for row in order:
        encoded = tokenizer(lines[row]["tokens"], is_split_into_words=True, truncation=True, max_length=64)
        places = encoded.word_ids()
        firsts = [at for at, place in enumerate(places) if place is not None and place not in places[:at]]
        wanted = {at: labels.index(lines[row]["tags"][places[at]]) for at in firsts}
        rows.append({**encoded, "labels": [wanted.get(at, -100) for at in range(len(places))]})
    return rows, DataCollatorForTokenClassification(tokenizer)


def sequences(material: Material, path: Path, order: list[int]) -> tuple[list[dict[str, Any]], Any]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    tokenizer = material.companion
    rows = [
        {**tokenizer(lines[row]["text"]), "labels": tokenizer(text_target=lines[row]["other"])["input_ids"]}
        for row in order
    ]
    return rows, DataCollatorForSeq2Seq(tokenizer)


def images(material: Material, path: Path, order: list[int]) -> tuple[list[dict[str, Any]], Any]:
    files = sorted(path.glob("*/*.png"))
    processor = material.companion
    rows = [
        {
            "pixel_values": processor(images=Image.open(files[row]), return_tensors="pt")["pixel_values"][0],
            "labels": "abc".index(files[row].parent.name),
        }
        for row in order
    ]
    return rows, default_data_collator


KINDS = {
    "text-classification": (texts, "linear"),
    "causal-lm": (tokens, "cosine"),
    "image-classification": (images, "linear"),
    "token-classification": (words, "linear"),
    "sequence-to-sequence": (sequences, "cosine"),
}


def reference_losses(
    folder: Path, model: nn.Module, rows: list[dict[str, Any]], collate: Any, scheduler: str
) -> list[float]:
    options = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=BATCH,
        gradient_accumulation_steps=1,
        max_steps=STEPS,
        learning_rate=3e-3,
        lr_scheduler_type=scheduler,
        warmup_steps=5,
        weight_decay=0.05,
        max_grad_norm=1.0,
        train_sampling_strategy="sequential",
        average_tokens_across_devices=False,
        remove_unused_columns=False,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
        dataloader_pin_memory=False,
    )
    reference = Reference(model, options, train_dataset=rows, data_collator=collate)
    reference.train()
    return reference.losses


def order_of(process: Process, material: Material) -> list[int]:
    """Rows of the source in the order in which our run takes them."""
    part = material.parts["train"]
    batches = [
        batch
        for epoch in range(EPOCHS)
        for batch in epoch_batches(
            len(part), part.padded_lengths, BatchSize(BATCH, None), seed=process.spec.training.seed, epoch=epoch
        )
    ]
    assert [len(batch) for batch in batches] == [BATCH] * STEPS
    return part.rows[np.concatenate(batches)].tolist()


@pytest.mark.parametrize(("kind", "read", "scheduler"), [(k, *v) for k, v in KINDS.items()], ids=KINDS)
def test_loss_curve_is_that_of_hf_trainer(tmp_path, kind, read, scheduler):
    spec = tiny.merged(SPEC, {"training": {"scheduler": scheduler}})
    process = tiny.process_of(tiny.job(tmp_path, kind, spec, samples=90), tmp_path / "run")
    material = prepare(process)
    model = copy.deepcopy(build_model(process.spec, material)[0])
    if kind == "causal-lm":  # GPT-2's class has no loss type, so Trainer would count the first token of every text too
        model.loss_type = "ForCausalLM"
    tiny.trained(process)
    ours = [step["loss"] for step in tiny.steps_of(tmp_path / "run")]
    rows, collate = read(material, tmp_path / kind, order_of(process, material))
    theirs = reference_losses(tmp_path / "reference", model, rows, collate, scheduler)
    assert len(theirs) == len(ours) == STEPS
    assert ours == pytest.approx(theirs, rel=TOLERANCE)
