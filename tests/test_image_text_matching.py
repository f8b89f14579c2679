"""Matching images and texts from a job to an exported model, with tiny CLIPs and BLIPs on drawn pictures."""

import copy
import json
from unittest import mock

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    BlipForImageTextRetrieval,
)

import pairs
import tiny
from finetune_api.errors import SpecError
from finetune_trainer.errors import DataError, SpecFault
from finetune_trainer.retrieval import RECALLS, recalls
from finetune_trainer.run import assemble, build_model, prepare, run

CHANCE = 5 / 90
"""Recall at 5 of one who guesses among the 90 pictures of a test set."""
LEARNING = {
    "clip": {
        "strategy": {"learningRate": {"value": 4e-3}},
        "training": {"maxSteps": 200, "matching": {"labels": True}},
    },
    "blip": {"strategy": {"learningRate": {"value": 4e-3}}, "training": {"maxSteps": 200}},
}
ALL = {
    "training": {"batchSize": 64},
    "data": {"split": {"train": 8, "validation": 1, "test": 1}},
    "evaluation": {"metrics": [*RECALLS, "accuracy"]},
}


def execute(process):
    """Run a job to its end in this process; closes what a process leaves to its end."""
    AcceleratorState._reset_state(reset_partial_state=True)
    loops = []

    def keep(*arguments):
        loops.append(assemble(*arguments))
        return loops[0]

    with mock.patch("finetune_trainer.run.assemble", keep):
        result = run(process)
    loops[0][0].history.close()
    return result


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    folder = tmp_path_factory.mktemp("matching")
    pairs.write(folder / "pairs", 900)
    return folder


@pytest.fixture(scope="module", params=LEARNING)
def learned(request, drawn):
    """Kind, process and result of a run that learned."""
    process = tiny.process_of(
        pairs.job(drawn, request.param, tiny.merged(ALL, LEARNING[request.param])), drawn / request.param
    )
    return request.param, process, execute(process)


def test_finds_far_better_than_chance(learned):
    kind, _, result = learned
    print(kind, {name: round(value, 3) for name, value in result.metrics.items()})
    assert min(result.metrics[f"{way}At5"] for way in ("textRecall", "imageRecall")) > 8 * CHANCE
    assert result.metrics["accuracy"] > {"clip": 0.25, "blip": 0.5}[kind] * 1.3  # of 4 shapes; of match or no match


def test_exported_model_finds_the_same(learned):
    """Loaded by transformers alone: the same recalls, and the same classes."""
    kind, process, result = learned
    part = prepare(process).parts["test"]
    batch = part.batch(0, np.arange(len(part)), is_counted=True)
    texts = {name: value[: len(part)] for name, value in batch.inputs.items() if name != "pixel_values"}
    pixels = batch.inputs["pixel_values"]
    with torch.no_grad():
        if kind == "clip":
            output = AutoModel.from_pretrained(result.model)(**texts, pixel_values=pixels)
            images, words = output.image_embeds, output.text_embeds
            logits = AutoModelForImageClassification.from_pretrained(result.model)(pixel_values=pixels).logits
            accuracy = (logits.argmax(1) == batch.target[:, 3]).float().mean().item()
        else:
            model = BlipForImageTextRetrieval.from_pretrained(result.model)
            similarity = model(**texts, pixel_values=pixels, use_itm_head=False).itm_score
            images, words = similarity, torch.eye(len(part))
            right = model(**texts, pixel_values=pixels).itm_score.argmax(1)
            wrong = {name: value[len(part) :] for name, value in batch.inputs.items() if name != "pixel_values"}
            mistaken = model(**wrong, pixel_values=pixels).itm_score.argmax(1)
            accuracy = ((right == 1).float().mean() + (mistaken == 0).float().mean()).item() / 2
    expected = {name: result.metrics[name] for name in RECALLS}
    assert recalls(images, words, batch.target[:, :2]) == pytest.approx(expected, abs=1e-6)
    assert accuracy == pytest.approx(result.metrics["accuracy"], abs=1e-6)


def test_exported_processor_makes_the_same_inputs(learned):
    _, process, result = learned
    part = prepare(process).parts["test"]
    image, text = pairs.read_pair(process.spec, part.rows[0])
    made = AutoProcessor.from_pretrained(result.model)(images=image, text=text, return_tensors="pt")
    batch = part.batch(0, np.arange(1), is_counted=True)
    torch.testing.assert_close(made["pixel_values"], batch.inputs["pixel_values"])
    assert made["input_ids"][0].tolist() == batch.inputs["input_ids"][0][: made["input_ids"].shape[1]].tolist()
    assert set(made) == {"pixel_values", "input_ids", "attention_mask"}


def test_another_projection_width_keeps_the_towers(learned, tmp_path, drawn):
    kind, _, result = learned
    width = {"clip": {"projection_dim": 8}, "blip": {"image_text_hidden_size": 8}}[kind]
    model = {"config": width, "source": f"file://{result.model}", "tokenizer": None}
    process = tiny.process_of(pairs.job(drawn, kind, {"model": model}), tmp_path / "run")
    built, _ = build_model(process.spec, prepare(process))
    source = load_file(f"{result.model}/model.safetensors")
    changed = {name for name, value in built.state_dict().items() if not torch.equal(value, source[name])}
    new = {"clip": {"visual_projection", "text_projection"}, "blip": {"vision_proj", "text_proj"}}[kind]
    assert {name.split(".")[0] for name in changed} == new
    assert tiny.trained(process).inner.state_dict()[next(iter(changed))].shape[0] == 8


FROZEN = {
    "the lowest layer and the embeddings": (
        {"freeze": {"bottomLayers": 1}},
        lambda name: "embeddings." in name or "layers.0." in name or "layer.0." in name or "pre_layrnorm" in name,
    ),
    "all but the head": (
        {"trainable": "head"},
        lambda name: "embeddings." in name or "layer." in name or "layers." in name or "pre_layrnorm" in name,
    ),
}


@pytest.mark.parametrize(("strategy", "is_frozen"), FROZEN.values(), ids=FROZEN)
@pytest.mark.parametrize("kind", pairs.MODELS)
def test_frozen_weights_of_both_towers_stay_to_the_bit(tmp_path, kind, strategy, is_frozen):
    spec = {"strategy": strategy, "training": {"matching": {"labels": kind == "clip"}}}
    process = tiny.process_of(pairs.job(tmp_path, kind, spec), tmp_path / "run")
    before = copy.deepcopy(build_model(process.spec, prepare(process))[0].state_dict())
    after = tiny.trained(process).inner.state_dict()
    changed = {name: not torch.equal(value, after[name]) for name, value in before.items() if value.numel()}
    stuck = {"self_attn.k_proj.bias"}  # softmax does not see it
    assert {name for name in changed if changed[name] == is_frozen(name) and not name.endswith(tuple(stuck))} == set()


@pytest.mark.parametrize("kind", pairs.MODELS)
def test_adapters_lie_on_both_towers_and_merge(tmp_path, kind):
    """The merged export computes what the adapter does (``export`` refuses otherwise)."""
    lora = {"strategy": {"lora": {"r": 4, "alpha": 16, "dropout": 0}, "learningRate": {"value": 1e-2}}}
    process = tiny.process_of(pairs.job(tmp_path, kind, lora), tmp_path / "run")
    result = execute(process)
    adapter = load_file(f"{result.adapter}/adapter_model.safetensors")
    config = json.loads((process.context.run.adapter / "adapter_config.json").read_text())
    towers = {"clip": {"vision_model", "text_model"}, "blip": {"vision_model", "text_encoder"}}[kind]
    assert {tower for tower in towers if any(f".{tower}." in name for name in adapter)} == towers
    assert config["r"] == 4
    assert max(value.abs().max().item() for name, value in adapter.items() if "lora_B" in name) > 1e-3


def test_an_image_and_its_texts_are_in_one_part(tmp_path):
    pairs.write(tmp_path / "pairs", 40, phrases=3, texts_each=2)
    process = tiny.process_of(pairs.job(tmp_path, "blip"), tmp_path / "run")
    prepared = prepare(process)
    seen = {
        name: {piece.samples.table["image"][int(row)].as_py() for row in piece.rows}
        for name, piece in prepared.prepared.slices.items()
    }
    assert not seen["train"] & seen["validation"]
    assert sum(len(part) for part in prepared.parts.values()) == 80


def test_wrong_texts_do_not_belong_to_their_image(tmp_path):
    """Over 5 epochs; they change from one to the next, and are the same when it is asked again."""
    pairs.write(tmp_path / "pairs", 40, phrases=3, texts_each=2)
    part = prepare(tiny.process_of(pairs.job(tmp_path, "blip"), tmp_path / "run")).parts["train"]
    images, texts = part.images.targets[torch.from_numpy(part.rows)].numpy()[:, :2].T
    own = set(zip(images.tolist(), texts.tolist(), strict=True))
    drawn = np.array([[part._wrong(epoch, index) for index in range(len(part))] for epoch in range(5)])
    again = np.array([[part._wrong(epoch, index) for index in range(len(part))] for epoch in range(5)])
    assert not own & {
        (image, text) for row in drawn for image, text in zip(images.tolist(), texts[row].tolist(), strict=True)
    }
    assert (drawn == again).all()
    assert (drawn[0] != drawn[1]).mean() > 0.5


UNKNOWN_END = (
    "spec.model.config.text_config.eos_token_id: clip reads a text at this id (if it is 2, at the highest id), and the"
    " tokenizer ends texts with 3; got 7"
)
BAD = {
    "an architecture that cannot": (
        {"model": {"config": {"model_type": "align"}}},
        SpecFault,
        "spec.model: image-text-matching takes the architectures clip and blip, got align",
    ),
    "labels for BLIP": (
        {"model": {"config": pairs.BLIP}, "training": {"matching": {"labels": True}}},
        SpecFault,
        "spec.training.matching.labels: goes with clip; blip's classification part is match or no match",
    ),
    "accuracy without labels": (
        {"evaluation": {"metrics": ["accuracy"]}},
        SpecFault,
        "spec.evaluation.metrics: accuracy of clip needs spec.training.matching.labels: true",
    ),
    "a small vocabulary": (
        {"model": {"config": {"text_config": {"vocab_size": 20}}}},
        SpecFault,
        "spec.model.config.text_config.vocab_size: must be at least 21, as many as the tokenizer has, got 20",
    ),
    "another end of text": (
        {"model": {"config": {"text_config": {"eos_token_id": 7}}}},
        SpecFault,
        UNKNOWN_END,
    ),
    "a metric of others": (
        {"evaluation": {"metrics": ["f1"]}},
        SpecFault,
        f"spec.evaluation.metrics: image-text-matching has the metrics loss, accuracy, {', '.join(RECALLS)}, got f1",
    ),
}


@pytest.mark.parametrize(("spec", "kind", "message"), BAD.values(), ids=BAD)
def test_what_cannot_be_matched(tmp_path, spec, kind, message):
    process = tiny.process_of(pairs.job(tmp_path, "clip", spec), tmp_path / "run")
    with pytest.raises(kind) as raised:
        prepare(process)
    assert str(raised.value) == message


def test_one_text_for_all(tmp_path):
    pairs.write(tmp_path / "pairs", 12)
    table = tmp_path / "pairs" / "pairs.csv"
    lines = [line.split(",") for line in table.read_text().splitlines()]
    table.write_text("\n".join([",".join(lines[0]), *(f"{image},a red circle,circle" for image, *_ in lines[1:])]))
    process = tiny.process_of(pairs.job(tmp_path, "blip"), tmp_path / "run")
    with pytest.raises(DataError, match=r"^spec\.data: an image of the train set belongs to every text in it \(1\)"):
        prepare(process)


SPECS = {
    "for another task": ({"task": "image-classification", "training": {"matching": {}}}, "spec.training.matching"),
    "a batch by tokens": ({"training": {"batchSize": None, "tokensPerBatch": 64}}, "spec.training.tokensPerBatch"),
    "a negative weight": (
        {"training": {"matching": {"contrastiveWeight": -1}}},
        "spec.training.matching.contrastiveWeight",
    ),
    "no temperature": ({"training": {"matching": {"temperature": 0}}}, "spec.training.matching.temperature"),
}


@pytest.mark.parametrize(("spec", "field"), SPECS.values(), ids=SPECS)
def test_what_the_spec_cannot_say(tmp_path, spec, field):
    with pytest.raises(SpecError) as raised:
        pairs.job(tmp_path, "clip", spec)
    assert field in str(raised.value)
