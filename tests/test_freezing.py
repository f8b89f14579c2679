"""Freezing and rates of whole runs: what was exported against what was started from, and what the report says of it."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification, AutoTokenizer

import tiny
from finetune_api.wiring import RunFolder
from finetune_trainer.layers import find_layers
from whole import whole_run

RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "layer_type": "basic"}
ALL = ("embeddings", "layer 1", "layer 2", "layer 3", "head")


def save_base(folder: Path, name: str) -> Path:
    """A checkpoint with a trained head for three classes, batch norms with statistics of their own."""
    labels = {"id2label": dict(enumerate("abc")), "label2id": {label: index for index, label in enumerate("abc")}}
    torch.manual_seed(0)
    if name == "resnet":
        model = AutoModelForImageClassification.from_config(AutoConfig.for_model("resnet", **RESNET, **labels))
        with torch.no_grad():
            model.train()(torch.randn(8, 3, 32, 32))
    else:
        fields = {**tiny.BERT, "num_hidden_layers": 3}
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(**fields, **labels))
        AutoTokenizer.from_pretrained(tiny.TOKENIZER).save_pretrained(folder)
    model.save_pretrained(folder)
    return folder


CASES: dict[str, tuple[str, dict[str, Any], tuple[str, ...]]] = {
    "resnet, the head": ("resnet", {"trainable": "head"}, ALL[4:]),
    "resnet, the last stage": ("resnet", {"trainable": "lastLayers", "lastLayers": 1}, ALL[3:]),
    "resnet, all but the two lowest stages": ("resnet", {"freeze": {"bottomLayers": 2}}, ALL[3:]),
    "bert, all but the lowest layer": ("bert", {"freeze": {"bottomLayers": 1}}, ALL[2:]),
    "bert, all but the embeddings": ("bert", {"freeze": {"embeddings": True}}, ALL[1:]),
}


@pytest.mark.parametrize(("name", "strategy", "trained"), CASES.values(), ids=CASES)
def test_what_is_named_stays_to_the_bit_and_the_rest_changes(tmp_path, name, strategy, trained):
    """Weights, and the statistics of batch norms."""
    base = save_base(tmp_path / "base", name)
    kind = "image-classification" if name == "resnet" else "text-classification"
    rates = {"learningRate": {"value": 1e-2, "layerDecay": 0.5}}
    spec = {
        "model": {"source": base.as_uri(), "config": None, "tokenizer": None},
        "data": {"imageSize": 32} if name == "resnet" else {},
        "strategy": rates | strategy,
    }
    result = whole_run(tiny.process_of(tiny.job(tmp_path, kind, spec), tmp_path / "run"))
    before, after = load_file(base / "model.safetensors"), load_file(Path(result.model) / "model.safetensors")
    auto = AutoModelForImageClassification if name == "resnet" else AutoModelForSequenceClassification
    place = places_of(auto.from_pretrained(base))
    changed = {key: not torch.equal(value, after[key]) for key, value in before.items() if is_learnt(key)}
    assert changed == {key: place[key] in trained for key in changed}
    assert {place[key] for key in changed} == set(ALL)
    check_rates(RunFolder(tmp_path / "run"), trained)


def is_learnt(key: str) -> bool:
    """Not a count of batches, nor a bias of the keys in attention, which softmax has no gradient for."""
    return not key.endswith(("num_batches_tracked", "key.bias"))


def places_of(model: torch.nn.Module) -> dict[str, str]:
    """Name of a weight or a buffer → the depth that it belongs to."""
    layers = find_layers(model)
    place = {key: group.name for group in layers.groups for key in group.parameters}
    for key, _ in model.named_buffers():
        beside = f"{key.rpartition('.')[0]}.weight"
        place[key] = place.get(beside, "")
    return place


def check_rates(run: RunFolder, trained: tuple[str, ...]) -> None:
    """As the spec says: halved with each layer from the head down; recorded, and shown in the report's table."""
    expected = {group: 1e-2 * 0.5 ** (4 - ALL.index(group)) for group in trained}
    recorded = {row["group"]: row["learningRate"] for row in json.loads(run.preparation.read_text())["rates"]}
    assert recorded == pytest.approx(expected)
    page = run.report.read_text()
    table = re.search(r"<caption>Learning rates at their peak.*?</table>", page, re.DOTALL).group()
    shown = re.findall(r'<th scope="row">([^<]+)</th><td class="n">[^<]*</td><td class="n">([^<]+)</td>', table)
    assert [group for group, _ in shown] == list(trained)
    assert [number(text) for _, text in shown] == pytest.approx(list(expected.values()), rel=0.01)


def number(text: str) -> float:
    """``1.25 × 10⁻³`` or ``0.00125`` as a number."""
    raised = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻−", "0123456789--")
    return float(re.sub(r"\s*×\s*10", "e", text).translate(raised))
