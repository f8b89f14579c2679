"""Faster kernels change neither what a model says nor what it learns, nor what is saved of it."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM
from transformers.activations import NewGELUActivation

import tiny
from finetune_trainer.kernels import AlignedLinear, RowEmbedding, add_rows_alone, align_output_layer, use_one_gelu

ODD = 101
"""A vocabulary that is no multiple of 8."""
MODELS = {
    "gpt2, its embeddings tied": (AutoModelForCausalLM, {**tiny.GPT2, "bos_token_id": 1, "eos_token_id": 1}),
    "phi, a bias in its output layer": (
        AutoModelForCausalLM,
        {
            "model_type": "phi",
            "hidden_size": 16,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
        },
    ),
    "t5": (AutoModelForSeq2SeqLM, {**tiny.T5, "tie_word_embeddings": False, "decoder_start_token_id": 0}),
}


def made(name):
    kind, fields = MODELS[name]
    torch.manual_seed(0)
    config = AutoConfig.for_model(**{"bos_token_id": 1, "eos_token_id": 2, **fields, "vocab_size": ODD})
    model = kind.from_config(config).eval()
    for value in model.parameters():  # activations that are not all near 0
        if value.dim() > 1:
            nn.init.normal_(value, std=0.3)
    return model


def logits_and_gradients(model):
    ids = torch.arange(60).view(3, 20)
    inputs = {"input_ids": ids} | ({"labels": ids} if model.config.is_encoder_decoder else {})
    logits = model(**inputs).logits
    nn.functional.cross_entropy(logits.flatten(0, 1), ids.flatten()).backward()
    return logits.detach(), {name: value.grad for name, value in model.named_parameters()}


@pytest.mark.parametrize("change", [use_one_gelu, align_output_layer, add_rows_alone])
@pytest.mark.parametrize("name", MODELS)
def test_outputs_and_gradients_are_the_same(name, change):
    plain = made(name)
    fast = copy.deepcopy(plain)
    change(fast)
    assert fast.state_dict().keys() == plain.state_dict().keys()
    assert fast.config.to_dict() == plain.config.to_dict()
    (wanted, slopes), (got, found) = map(logits_and_gradients, (plain, fast))
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    for parameter, slope in slopes.items():
        torch.testing.assert_close(
            found[parameter], slope, rtol=1e-4, atol=1e-6, msg=lambda m, p=parameter: f"{p}: {m}"
        )


def test_what_is_changed():
    model = made("gpt2, its embeddings tied")
    assert any(isinstance(module, NewGELUActivation) for module in model.modules())
    use_one_gelu(model)
    assert not any(isinstance(module, NewGELUActivation) for module in model.modules())
    align_output_layer(model)
    assert type(model.lm_head) is AlignedLinear
    assert model.lm_head.weight is model.transformer.wte.weight


def test_an_output_layer_that_is_aligned_or_not_there_is_left_alone():
    config = AutoConfig.for_model(**{**tiny.GPT2, "vocab_size": 128, "bos_token_id": 1, "eos_token_id": 1})
    aligned = AutoModelForCausalLM.from_config(config)
    align_output_layer(aligned)
    assert type(aligned.lm_head) is nn.Linear
    align_output_layer(AutoModelForCausalLM.from_config(config).base_model)


def passes(model, count):
    """Gradients after some passes over other tokens each, as in a step."""
    for at in range(count):
        ids = (torch.arange(20) * (at + 3)).view(2, 10) % 50
        model(ids).square().sum().backward()
    return model.weight.grad


@pytest.mark.parametrize("padding", [None, 0, 7], ids=str)
@pytest.mark.parametrize("count", [1, 2, 5])
def test_rows_that_are_added_alone_add_up(count, padding):
    plain = nn.Embedding(50, 4, padding_idx=padding)
    fast = copy.deepcopy(plain)
    add_rows_alone(nn.ModuleList([fast]))
    assert type(fast) is RowEmbedding
    wanted, found = passes(plain, count), passes(fast, count)
    assert not found.is_sparse
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)


def test_rows_of_embeddings_that_are_also_the_output_add_up():
    plain = made("gpt2, its embeddings tied")
    fast = copy.deepcopy(plain)
    add_rows_alone(fast)
    for model in (plain, fast):
        for shift in range(3):
            ids = (torch.arange(60).view(3, 20) + shift) % ODD
            nn.functional.cross_entropy(model(ids).logits.flatten(0, 1), ids.flatten()).backward()
    torch.testing.assert_close(fast.lm_head.weight.grad, plain.lm_head.weight.grad, rtol=1e-4, atol=1e-5)


def test_frozen_embeddings_have_no_gradient():
    layer = nn.Embedding(50, 4).requires_grad_(requires_grad=False)
    add_rows_alone(nn.ModuleList([layer]))
    assert not layer(torch.tensor([1])).requires_grad


@pytest.mark.parametrize("wish", [{"max_norm": 1.0}, {"scale_grad_by_freq": True}, {"sparse": True}], ids=str)
def test_embeddings_with_wishes_of_their_own_are_left_alone(wish):
    layer = nn.Embedding(50, 4, **wish)
    add_rows_alone(nn.ModuleList([layer]))
    assert type(layer) is nn.Embedding
