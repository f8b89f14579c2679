"""first_token.py: what nobody reads is not computed, and nothing else changes."""

import copy

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoConfig, AutoModelForImageClassification, AutoModelForSequenceClassification

import tiny
from finetune_trainer.first_token import _FORWARDS, compute_what_is_read
from finetune_trainer.layers import find_layers

TEXT = {
    "hidden_size": 16,
    "embedding_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 50,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "num_labels": 3,
}
IMAGES = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 2,
    "num_labels": 3,
}
OF_TEXTS = {
    "bert": "BertForSequenceClassification",
    "camembert": "CamembertForSequenceClassification",
    "distilbert": "DistilBertForSequenceClassification",
    "electra": "ElectraForSequenceClassification",
    "roberta": "RobertaForSequenceClassification",
    "xlm-roberta": "XLMRobertaForSequenceClassification",
}
OF_IMAGES = {"deit": "DeiTForImageClassification", "vit": "ViTForImageClassification"}
DISTILBERT = {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32}


def made(kind, **more):
    torch.manual_seed(0)
    if kind in OF_IMAGES:
        model = AutoModelForImageClassification.from_config(
            AutoConfig.for_model(kind, **IMAGES, architectures=[OF_IMAGES[kind]], **more)
        )
    else:
        sizes = DISTILBERT if kind == "distilbert" else {}
        model = AutoModelForSequenceClassification.from_config(AutoConfig.for_model(kind, **TEXT | sizes, **more))
    for value in model.parameters():  # so that tokens attend to some more than to others
        if value.dim() > 1:
            nn.init.normal_(value, std=0.5)
    return model.double()  # so that sums in another order, which differ among CPUs, agree


def inputs(kind):
    if kind in OF_IMAGES:
        return {"pixel_values": torch.randn(5, 3, 8, 8, dtype=torch.double)}
    mask = torch.ones(5, 9, dtype=torch.long)
    mask[1, 4:] = 0
    return {"input_ids": torch.randint(1, 50, (5, 9)) * mask, "attention_mask": mask}


def without_dropout(model):
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "attention_dropout"):
            module.attention_dropout = 0.0
    return model


def logits_and_gradients(model, given):
    logits = model(**given).logits
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 2, 0, 1])).backward()
    return logits.detach(), {name: value.grad for name, value in model.named_parameters()}


def test_every_model_is_tested():
    assert sorted((OF_TEXTS | OF_IMAGES).values()) == sorted(_FORWARDS)


@pytest.mark.parametrize("kind", OF_TEXTS | OF_IMAGES)
def test_outputs_and_gradients_are_the_same_for_less_work(kind):
    plain = made(kind).eval()
    given = inputs(kind)
    fast = copy.deepcopy(plain)
    assert type(fast).__name__ == (OF_TEXTS | OF_IMAGES)[kind]
    compute_what_is_read(fast)
    with FlopCounterMode(display=False) as counted:
        wanted, slopes = logits_and_gradients(plain, given)
    with FlopCounterMode(display=False) as fewer:
        got, found = logits_and_gradients(fast, given)
    torch.testing.assert_close(got, wanted)
    for name, slope in slopes.items():
        assert (slope is None) == (found[name] is None), name
        if slope is not None:
            torch.testing.assert_close(found[name], slope, msg=lambda m, n=name: f"{n}: {m}")
    assert fewer.get_total_flops() < 0.75 * counted.get_total_flops()  # two layers: at best 2/3
    assert fast.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("kind", ["bert", "distilbert", "vit"])
def test_drops_as_often(kind):
    """A model in training draws its masks from torch's generator: a run that goes on draws the same ones."""
    rates = {"hidden_dropout_prob": 0.5, "attention_probs_dropout_prob": 0.5, "dropout": 0.5, "attention_dropout": 0.5}
    model, given = made(kind, **rates).train(), inputs(kind)
    compute_what_is_read(model)
    drawn = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        drawn.append(model(**given).logits)
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.allclose(drawn[0], drawn[2])
    without_dropout(model)
    torch.testing.assert_close(model(**given).logits, model.eval()(**given).logits)


def test_gradient_checkpointing_computes_it_again():
    plain, given = made("bert").eval(), inputs("bert")
    fast = without_dropout(copy.deepcopy(plain).train())
    compute_what_is_read(fast)
    fast.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    (wanted, slopes), (got, found) = logits_and_gradients(plain, given), logits_and_gradients(fast, given)
    torch.testing.assert_close(got, wanted)
    for name, slope in slopes.items():
        torch.testing.assert_close(found[name], slope)


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(lambda: made("bert", is_decoder=True), id="a decoder"),
        pytest.param(lambda: made("bert", attn_implementation="eager"), id="another attention"),
        pytest.param(lambda: made("bert").base_model, id="no head"),
        pytest.param(lambda: AutoModelForSequenceClassification.from_config(gpt2()), id="reads the last token"),
    ],
)
def test_others_are_left_alone(model):
    found = model()
    compute_what_is_read(found)
    assert "forward" not in vars(find_layers(found).modules[-1])


def gpt2():
    return AutoConfig.for_model(**{**tiny.GPT2, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0})
