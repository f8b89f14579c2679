"""The depth of a model of encoder and decoder: one that writes (T5, BART, Marian), one that finds objects (DETR)."""

import copy
import dataclasses

import pytest
import torch
from transformers import AutoConfig, BartForConditionalGeneration

import tiny
from architectures import ARCHITECTURES
from finetune_api.job import Freeze, LearningRate, Lora, Strategy, Training
from finetune_trainer.adapters import NEW_WEIGHTS
from finetune_trainer.layers import find_layers
from finetune_trainer.optimizer import build_optimizer
from finetune_trainer.run import build_model, prepare
from finetune_trainer.strategies import apply_strategy, set_training

NAMES = ("t5", "bart", "marian")
OUTSIDE = {
    "t5": ["shared", "encoder.final_layer_norm", "decoder.final_layer_norm"],
    "bart": [
        "model.shared",
        "model.encoder.embed_positions",
        "model.encoder.layernorm_embedding",
        "model.decoder.embed_positions",
        "model.decoder.layernorm_embedding",
    ],
    "marian": ["model.shared", "model.encoder.embed_positions", "model.decoder.embed_positions"],
}
"""What counts as embeddings; the output layer is the first of them."""


@pytest.mark.parametrize("name", NAMES)
def test_the_decoder_s_layers_follow_the_encoder_s(name):
    layers = find_layers(ARCHITECTURES[name].build())
    reader, writer = layers.path.split(", ")
    assert writer == reader.replace("encoder", "decoder")
    inside = [
        sorted({".".join(key.split(".")[: path.count(".") + 2]) for key in group.parameters})
        for group, path in zip(layers.groups[1:-1], [reader, reader, writer, writer, writer], strict=True)
    ]
    assert inside == [[f"{reader}.0"], [f"{reader}.1"], *([f"{writer}.{at}"] for at in range(3))]
    embeddings, head = layers.groups[0].parameters, layers.groups[-1].parameters
    assert (list(dict.fromkeys(key.rpartition(".")[0] for key in embeddings)), head) == (OUTSIDE[name], {})
    assert len(layers.modules) == layers.depth == 5


def test_an_output_layer_of_its_own_is_the_head():
    config = AutoConfig.for_model("bart", **ARCHITECTURES["bart"].fields, tie_word_embeddings=False)
    assert list(find_layers(BartForConditionalGeneration(config)).groups[-1].parameters) == ["lm_head.weight"]


TRAINED = {
    "the last layer": (Strategy(trainable="lastLayers", lastLayers=1), (5,)),
    "all but the encoder": (Strategy(freeze=Freeze(bottomLayers=2)), (3, 4, 5)),
    "all but the embeddings": (Strategy(freeze=Freeze(embeddings=True)), (1, 2, 3, 4, 5)),
}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("strategy", "trained"), TRAINED.values(), ids=TRAINED)
def test_what_is_frozen_is_not_computed_backwards(name, strategy, trained):
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    layers = find_layers(model)
    needs_gradient = {}
    for depth, layer in enumerate(layers.modules, 1):
        layer.register_forward_hook(
            lambda _module, _inputs, output, depth=depth: needs_gradient.update({depth: is_needed(output)})
        )
    model, rates = apply_strategy(model, strategy, has_new_head=False)
    assert [rate.group for rate in rates] == [f"layer {depth}" for depth in trained]
    model(**architecture.inputs()).logits.square().sum().backward()
    changed = {key for key, value in model.named_parameters() if value.grad is not None}
    assert changed == set().union(*(layers.groups[depth].parameters for depth in trained))
    assert needs_gradient == {depth: depth >= trained[0] for depth in range(1, 6)}


def is_needed(output) -> bool:
    return (output[0] if isinstance(output, tuple) else output).requires_grad


def test_rates_fall_from_the_decoder_s_top_to_the_encoder_s_bottom():
    rate = LearningRate(value=1.0, layerDecay=0.5)
    _, rates = apply_strategy(ARCHITECTURES["t5"].build(), Strategy(learningRate=rate), has_new_head=False)
    assert [found.learning_rate for found in rates] == [0.5**depth for depth in range(6, 0, -1)]


# ── detectors ────────────────────────────────────────────────────────────────────────────────────────────────────────

PYRAMID = [
    "model.backbone.model",
    "model.encoder_input_proj",
    *(f"model.encoder.{part}" for part in ("aifi", "lateral_convs", "fpn_blocks", "downsample_convs", "pan_blocks")),
    "model.enc_output",
    "model.enc_score_head",
    "model.enc_bbox_head",
]
AT_QUERIES = ["model.decoder.class_embed", "model.decoder.bbox_embed"]
DECODER = "model.decoder.layers"
DETECTORS = {
    "detr": (
        ["model.encoder.layers", DECODER],
        ["model.backbone.model", "model.query_position_embeddings", "model.input_projection"],
        ["model.decoder.layernorm", "class_labels_classifier", "bbox_predictor"],
    ),
    "rt-detr": (
        [DECODER],
        [*PYRAMID, "model.decoder_input_proj"],
        ["model.decoder.query_pos_head", *AT_QUERIES],
    ),
    "d-fine": (
        [DECODER],
        [*PYRAMID, "model.decoder"],
        [f"model.decoder.{part}" for part in ("query_pos_head", "pre_bbox_head", "lqe_layers")] + AT_QUERIES,
    ),
}
"""Lists of layers; embeddings and head, each in the order in which it is registered."""


@pytest.mark.parametrize(
    ("name", "lists", "embeddings", "head"), [(k, *v) for k, v in DETECTORS.items()], ids=DETECTORS
)
def test_a_detector_s_layers_are_those_of_its_transformer(name, lists, embeddings, head):
    layers = find_layers(ARCHITECTURES[name].build())
    found = [{".".join(key.split(".")[:4]) for key in group.parameters} for group in layers.groups[1:-1]]
    assert (layers.path, found) == (", ".join(lists), [{f"{path}.{at}"} for path in lists for at in range(2)])
    assert (modules_of(layers.groups[0]), modules_of(layers.groups[-1])) == (embeddings, head)
    assert len(layers.modules) == layers.depth == 2 * len(lists)


def modules_of(group):
    """Names of the modules that hold the weights, as deep as they tell one from another."""
    names = (key.split(".")[:-1][:3] for key in group.parameters)
    return list(dict.fromkeys(".".join(part for part in name if part not in {*"012", "layers"}) for name in names))


@pytest.mark.parametrize("strategy", [Strategy(), Strategy(lora=Lora(r=2))], ids=["whole", "lora"])
def test_what_the_checkpoint_lacked_is_head_unless_it_lies_in_a_layer(strategy):
    model = ARCHITECTURES["rt-detr"].build()
    new = {"model.enc_score_head.weight", "model.enc_score_head.bias", "model.decoder.layers.0.mlp.fc1.bias"}
    before = [set(group.parameters) for group in find_layers(model).groups]
    setattr(model, NEW_WEIGHTS, frozenset(new))
    score = {key for key in new if "score" in key}
    after = [set(group.parameters) for group in find_layers(model).groups]
    assert after == [before[0] - score, *before[1:-1], before[-1] | score]
    _, rates = apply_strategy(model, strategy, has_new_head=True)
    place = {plain(key): rate.group for rate in rates for key in rate.parameters}
    assert {key: place[key] for key in new} == dict.fromkeys(score, "head") | {
        "model.decoder.layers.0.mlp.fc1.bias": "layer 1"
    }


def plain(key):
    return key.removeprefix("base_model.model.").replace(".modules_to_save.default", "")


def test_what_counts_other_labels_is_trained_with_the_head(tmp_path):
    """RT-DETR has a classifier at its encoder, and embeddings of the labels that it denoises."""
    base = ARCHITECTURES["rt-detr"]
    base = dataclasses.replace(base, fields=base.fields | {"num_labels": 3, "num_denoising": 10})
    base.build().save_pretrained(tmp_path / "base")
    spec = {
        "model": {"source": (tmp_path / "base").as_uri(), "config": None},
        "data": {"imageSize": 64},
        "strategy": {"trainable": "head"},
    }
    process = tiny.process_of(tiny.job(tmp_path, "object-detection", spec), tmp_path / "run")
    before, _ = build_model(process.spec, prepare(process))
    new = {"model.denoising_class_embed.weight", "model.enc_score_head.weight", "model.enc_score_head.bias"}
    assert new < getattr(before, NEW_WEIGHTS)
    after = dict(tiny.trained(process).inner.named_parameters())
    changed = {key for key, value in before.named_parameters() if not torch.equal(value, after[key])}
    assert changed - set(find_layers(base.build()).groups[-1].parameters) == new
    assert changed == set(find_layers(before).groups[-1].parameters)


PARTS = {
    "the head": (Strategy(trainable="head"), -1),
    "the last layer": (Strategy(trainable="lastLayers", lastLayers=1), -2),
    "all but the embeddings": (Strategy(freeze=Freeze(embeddings=True)), 1),
}
WITHOUT_LOSS = "model.decoder.lqe_layers.0."
"""D-FINE of two layers without denoising: transformers' auxiliary loss leaves out what these put out."""


@pytest.mark.parametrize("name", DETECTORS)
@pytest.mark.parametrize(("strategy", "first"), PARTS.values(), ids=PARTS)
def test_the_named_weights_of_a_detector_change_and_no_others(name, strategy, first):
    """Nor do the statistics of batch norms."""
    architecture = ARCHITECTURES[name]
    model = architecture.build()
    trained = set().union(*(group.parameters for group in find_layers(model).groups[first:]))
    model, rates = apply_strategy(model, strategy, has_new_head=True)
    before = copy.deepcopy(model.state_dict())
    optimizer = build_optimizer(model, rates, Training(weightDecay=0.1))
    set_training(model)
    truth = [{"class_labels": torch.tensor([1]), "boxes": torch.tensor([[0.5, 0.5, 0.3, 0.3]])}] * 4
    for _ in range(2):
        model(**architecture.inputs(), labels=truth).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    after = dict(model.named_parameters()) | dict(model.named_buffers())
    changed = {key for key, value in after.items() if not torch.equal(before[key], value)}
    assert {key for key in changed ^ trained if not key.startswith(WITHOUT_LOSS)} == set()
