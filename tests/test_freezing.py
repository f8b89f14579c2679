"""Freezing and rates of whole runs: what was exported against what was started from, and what the report says of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoTokenizer

import tiny
from architectures import ARCHITECTURES
from finetune_api.wiring import RunFolder
from finetune_trainer.layers import find_layers
from whole import whole_run

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "layer_type": "basic"}
LABELS = {"id2label": dict(enumerate("abc")), "label2id": {label: index for index, label in enumerate("abc")}}
DETECTION = ("object-detection", "AutoModelForObjectDetection")
BASES: dict[str, tuple[str, str, dict[str, Any]]] = {
    "resnet": ("image-classification", "AutoModelForImageClassification", {"model_type": "resnet", **RESNET, **LABELS}),
    "bert": (
        "text-classification",
        "AutoModelForSequenceClassification",
        {**tiny.BERT, "num_hidden_layers": 3, **LABELS},
    ),
    "blip": (
        "image-captioning",
        "AutoModelForImageTextToText",
        tiny.merged(
            tiny.BLIP,
            {"vision_config": {"initializer_range": 0.1}, "text_config": {"max_position_embeddings": 64}},
        ),
    ),
    "yolos": (*DETECTION, tiny.YOLOS),
    "detr": (*DETECTION, {"model_type": "detr", **ARCHITECTURES["detr"].fields}),
    "rt-detr": (*DETECTION, {"model_type": "rt_detr", **ARCHITECTURES["rt-detr"].fields}),
}
"""Task, class and configuration."""
IMAGE_SIZES = {"resnet": 32, "yolos": 16, "detr": 64, "rt-detr": 64}


def save_base(folder: Path, auto_class: str, fields: dict[str, Any]) -> Path:
    """A checkpoint with a trained head, batch norms with statistics of their own."""
    torch.manual_seed(0)
    model = getattr(transformers, auto_class).from_config(AutoConfig.for_model(**fields))
    if fields["model_type"] == "resnet":
        with torch.no_grad():
            model.train()(torch.randn(8, 3, 32, 32))
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny.TOKENIZER).save_pretrained(folder)
    return folder


CASES: dict[str, tuple[str, dict[str, Any], int]] = {
    "resnet, the head": ("resnet", {"trainable": "head"}, 4),
    "resnet, the last stage": ("resnet", {"trainable": "lastLayers", "lastLayers": 1}, 3),
    "resnet, all but the two lowest stages": ("resnet", {"freeze": {"bottomLayers": 2}}, 3),
    "bert, all but the lowest layer": ("bert", {"freeze": {"bottomLayers": 1}}, 2),
    "bert, all but the embeddings": ("bert", {"freeze": {"embeddings": True}}, 1),
    "blip, the last layers": ("blip", {"trainable": "lastLayers", "lastLayers": 1}, 2),
    "yolos, the last layer": ("yolos", {"trainable": "lastLayers", "lastLayers": 1}, 2),
    "detr, the decoder": ("detr", {"freeze": {"bottomLayers": 2}}, 3),
    "rt-detr, the head": ("rt-detr", {"trainable": "head"}, 3),
}
"""Base, strategy, and the lowest depth that is trained."""


@pytest.mark.parametrize(("name", "strategy", "lowest"), CASES.values(), ids=CASES)
def test_what_is_named_stays_to_the_bit_and_the_rest_changes(tmp_path, name, strategy, lowest):
    """Weights, and the statistics of batch norms."""
    kind, auto_class, fields = BASES[name]
    base = save_base(tmp_path / "base", auto_class, fields)
    rates = {"learningRate": {"value": 1e-2, "layerDecay": 0.5}}
    spec = {
        "model": {"source": base.as_uri(), "config": None, "tokenizer": None},
        "data": {"imageSize": IMAGE_SIZES[name]} if name in IMAGE_SIZES else {},
        "strategy": rates | strategy,
    }
    result = whole_run(tiny.process_of(tiny.job(tmp_path, kind, spec), tmp_path / "run"))
    model, exported = (getattr(transformers, auto_class).from_pretrained(folder) for folder in (base, result.model))
    place, depths = places_of(model), [group.name for group in find_layers(model).groups]
    before, after = (dict(each.named_parameters()) | dict(each.named_buffers()) for each in (model, exported))
    changed = {key: not torch.equal(value, after[key]) for key, value in before.items() if is_learnt(key)}
    assert changed == {key: place[key] in depths[lowest:] for key in changed}
    assert {place[key] for key in changed} - {FIXED} == set(depths)
    check_rates(RunFolder(tmp_path / "run"), depths, lowest)


FIXED = ""
"""Where the statistics are that nothing trains: DETR's backbone came with them."""


def is_learnt(key: str) -> bool:
    """Not a count of batches, nor a bias of the keys in attention, which softmax has no gradient for."""
    return not key.endswith(("num_batches_tracked", "key.bias"))


def places_of(model: torch.nn.Module) -> dict[str, str]:
    """Name of a weight or a buffer → the depth that it belongs to."""
    layers = find_layers(model)
    place = {key: group.name for group in layers.groups for key in group.parameters}
    for key, _ in model.named_buffers():
        beside = f"{key.rpartition('.')[0]}.weight"
        place[key] = place.get(beside, FIXED)
    return place


def check_rates(run: RunFolder, depths: list[str], lowest: int) -> None:
    """As the spec says: halved with each layer from the head down; recorded, and shown in the report's table."""
    trained = depths[lowest:]
    expected = {group: 1e-2 * 0.5 ** (len(trained) - at) for at, group in enumerate(trained, 1)}
    recorded = {row["group"]: row["learningRate"] for row in json.loads(run.preparation.read_text())["rates"]}
    assert recorded == pytest.approx(expected)
    page = run.report.read_text()
    table = re.search(r"<caption>Learning rates at their peak.*?</table>", page, re.DOTALL).group()
    shown = re.findall(r'<th scope="row">([^<]+)</th><td class="n">[^<]*</td><td class="n">([^<]+)</td>', table)
    assert [group for group, _ in shown] == trained
    assert [number(text) for _, text in shown] == pytest.approx(list(expected.values()), rel=0.01)


def number(text: str) -> float:
    """``1.25 × 10⁻³`` or ``0.00125`` as a number."""
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--")
    return float(re.sub(r"\s*×\s*10", "e", text).translate(raised))
