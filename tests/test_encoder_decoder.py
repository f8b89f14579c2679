"""The depth of a model that writes by a decoder what it has read by an encoder: T5, BART, Marian."""

import pytest
from transformers import AutoConfig, BartForConditionalGeneration

from architectures import ARCHITECTURES
from finetune_api.job import Freeze, LearningRate, Strategy
from finetune_trainer.layers import find_layers
from finetune_trainer.strategies import apply_strategy

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
