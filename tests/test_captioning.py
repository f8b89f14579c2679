"""Image captioning: batches, a model that learns to say what it sees, and what is refused."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from transformers import AutoModelForImageTextToText, AutoProcessor

import tiny
from finetune_trainer.errors import SpecFault
from finetune_trainer.run import prepare, run
from finetune_trainer.task import IGNORED
from shapes import COLORS, KINDS, write_shapes
from words import write_tokenizer

BLIP = tiny.merged(
    tiny.BLIP,
    {
        "vision_config": {"hidden_size": 32, "num_attention_heads": 4, "image_size": 32},
        "text_config": {"hidden_size": 32, "num_attention_heads": 4, "encoder_hidden_size": 32, "vocab_size": 12},
    },
)


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    """Process and result of a BLIP that learned."""
    folder = tmp_path_factory.mktemp("captions")
    data = write_shapes(folder / "shapes", 160, sizes=((32, 32),))
    tokenizer = write_tokenizer(folder / "words", ["a", "and", *COLORS, *KINDS])
    spec = {
        "model": {"config": BLIP, "tokenizer": f"file://{tokenizer}"},
        "data": {"source": f"file://{data}", "split": {"train": 7, "validation": 2, "test": 1}},
        "strategy": {"learningRate": {"value": 2e-3}},
        "training": {"batchSize": 16, "maxSteps": 250},
    }
    process = tiny.process_of(tiny.job(folder, "image-captioning", spec), folder / "run")
    AcceleratorState._reset_state(reset_partial_state=True)
    return process, run(process)


def captions(material, part):
    piece = material.prepared.slices[part]
    return [piece.samples.table["text"][row].as_py() for row in piece.rows.tolist()]


def colours_right(said, wanted):
    return np.mean([one.split()[1:2] == other.split()[1:2] for one, other in zip(said, wanted, strict=True)])


def test_says_what_is_to_be_seen(learned):
    """Colours are named far more often right than by the most frequent caption, whatever the image."""
    process, result = learned
    material = prepare(process)
    wanted, part = captions(material, "test"), material.parts["test"]
    model = AutoModelForImageTextToText.from_pretrained(result.model).eval()
    processor = AutoProcessor.from_pretrained(result.model)
    pictures = [Image.open(part.images.paths[row]) for row in part.rows.tolist()]
    pixels = processor(images=pictures, return_tensors="pt")["pixel_values"]
    said = processor.batch_decode(model.generate(pixel_values=pixels, max_new_tokens=8), skip_special_tokens=True)
    usual = [Counter(captions(material, "train")).most_common(1)[0][0]] * len(wanted)
    right, guessed = colours_right(said, wanted), colours_right(usual, wanted)
    print(f"colours right: {right:.2f}, most frequent caption {guessed:.2f}")
    assert right > max(0.7, 1.5 * guessed)
    record = json.loads(process.context.run.evaluation.read_text())
    shown = [(one["expected"], one["predicted"]) for one in record["examples"]]
    assert shown == list(zip(wanted, said, strict=True))[:8], "the exported model says what the trained one says"


def test_the_exported_model_has_the_same_loss(learned):
    process, result = learned
    part = prepare(process).parts["test"]
    batch = part.batch(0, np.arange(len(part)), is_counted=True)
    model = AutoModelForImageTextToText.from_pretrained(result.model).eval()
    with torch.no_grad():
        logits = model(**batch.inputs).logits
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), batch.target[:, 1:].flatten())
    assert loss.item() == pytest.approx(result.metrics["loss"], rel=1e-4)


def test_a_batch(tmp_path):
    process = tiny.process_of(tiny.job(tmp_path, "image-captioning"), tmp_path / "run")
    material = prepare(process)
    part = material.parts["train"]
    batch = part.batch(0, np.arange(6), is_counted=True)
    ids, mask = batch.inputs["input_ids"], batch.inputs["attention_mask"].bool()
    assert set(batch.inputs) == {"pixel_values", "input_ids", "attention_mask"}
    assert batch.inputs["pixel_values"].shape == (6, 3, 16, 16)
    assert ids[:, 0].tolist() == [101] * 6
    assert all(102 in row.tolist() for row in ids)
    assert torch.equal(batch.target, torch.where(mask, ids, IGNORED))
    texts = material.companion.batch_decode(ids, skip_special_tokens=True)
    assert texts == captions(material, "train")[:6]


REFUSED = {
    "another architecture": (
        {"config": {"model_type": "vit"}},
        "spec.model: image-captioning takes the architecture blip",
    ),
    "too few tokens": (
        {"config": tiny.merged(tiny.BLIP, {"text_config": {"vocab_size": 99}})},
        "spec.model.config.text_config.vocab_size: must be 30522 (the tokenizer's) at least, got 99",
    ),
}


@pytest.mark.parametrize(("model", "message"), REFUSED.values(), ids=REFUSED)
def test_models_that_cannot_be_used(tmp_path, model, message):
    wanted = tiny.job(tmp_path, "image-captioning")
    changed = wanted.spec.model.model_copy(update=model)
    wanted = wanted.model_copy(update={"spec": wanted.spec.model_copy(update={"model": changed})})
    with pytest.raises(SpecFault) as fault:
        prepare(tiny.process_of(wanted, tmp_path / "run"))
    assert str(fault.value).startswith(message)
