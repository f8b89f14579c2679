"""What is trained and how fast, on tiny models of six architectures: layers, freezing, rates, LoRA."""

import copy

import pytest
import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
)

from finetune_api.job import Every, Freeze, LearningRate, Lora, Strategy, Training
from finetune_trainer.course import RunState, make_course
from finetune_trainer.errors import SpecFault
from finetune_trainer.export import export
from finetune_trainer.layers import find_layers
from finetune_trainer.optimizer import build_optimizer, set_rates
from finetune_trainer.strategies import apply_strategy, rate_at, set_training

TEXT = {"vocab_size": 50, "max_position_embeddings": 16}
ENCODER = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
GPT2 = {"n_embd": 16, "n_layer": 3, "n_head": 2, "vocab_size": 50, "n_positions": 16}
ENDS = {"bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 0}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16], "depths": [1, 1, 1], "layer_type": "basic"}
PROJECTIONS = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
PLAIN = ("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj", "mlp.fc1", "mlp.fc2")
DISTIL = ("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin", "ffn.lin1", "ffn.lin2")

ARCHITECTURES = {
    "bert": (AutoModelForSequenceClassification, ENCODER | TEXT),
    "roberta": (AutoModelForSequenceClassification, ENCODER | TEXT),
    "distilbert": (
        AutoModelForSequenceClassification,
        {"dim": 16, "n_layers": 3, "n_heads": 2, "hidden_dim": 32} | TEXT,
    ),
    "gpt2": (AutoModelForCausalLM, GPT2 | ENDS),
    "vit": (AutoModelForImageClassification, ENCODER | {"image_size": 8, "patch_size": 4}),
    "resnet": (AutoModelForImageClassification, STAGES),
}
HAS_NEW_HEAD = {name: name != "gpt2" for name in ARCHITECTURES}


def build(name: str) -> nn.Module:
    """A tiny model without dropout, always the same."""
    auto, fields = ARCHITECTURES[name]
    config = AutoConfig.for_model(name, **fields)
    for field in config.to_dict():
        if "dropout" in field or field.endswith("_pdrop"):
            setattr(config, field, 0.0)
    torch.manual_seed(0)
    return auto.from_config(config)


def inputs_of(name: str) -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    if name in {"vit", "resnet"}:
        return {"pixel_values": torch.randn(4, 3, 8 if name == "vit" else 32, 8 if name == "vit" else 32)}
    return {"input_ids": torch.randint(2, 50, (4, 12))}


def train(name: str, model: nn.Module, rates, steps: int = 3) -> None:
    """Some optimizer steps, every trained parameter with a gradient."""
    optimizer = build_optimizer(model, rates, Training(weightDecay=0.1))
    set_training(model)
    for _ in range(steps):
        model(**inputs_of(name)).logits.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()


# ── layers ───────────────────────────────────────────────────────────────────────────────────────────────────────

FOUND = {
    "bert": ("bert.encoder.layer", "bert.embeddings.", ("bert.pooler.", "classifier.")),
    "roberta": ("roberta.encoder.layer", "roberta.embeddings.", ("classifier.",)),
    "distilbert": ("distilbert.transformer.layer", "distilbert.embeddings.", ("pre_classifier.", "classifier.")),
    "gpt2": ("transformer.h", "transformer.w", ("transformer.ln_f.",)),
    "vit": ("vit.layers", "vit.embeddings.", ("vit.layernorm.", "classifier.")),
    "resnet": ("resnet.encoder.stages", "resnet.embedder.", ("classifier.",)),
}


@pytest.mark.parametrize(("name", "path", "embeddings", "head"), [(k, *v) for k, v in FOUND.items()], ids=FOUND)
def test_layers(name, path, embeddings, head):
    model = build(name)
    layers = find_layers(model)
    assert (layers.path, layers.depth) == (path, 3)
    assert [group.name for group in layers.groups] == ["embeddings", "layer 1", "layer 2", "layer 3", "head"]
    starts = [(embeddings,), *((f"{path}.{depth}.",) for depth in range(3)), head]
    for group, allowed in zip(layers.groups, starts, strict=True):
        assert group.parameters
        assert [key for key in group.parameters if not key.startswith(allowed)] == []
    named = {key: value for group in layers.groups for key, value in group.parameters.items()}
    assert named.keys() == dict(model.named_parameters()).keys()


def test_a_model_without_layers():
    with pytest.raises(SpecFault) as fault:
        find_layers(nn.Sequential(nn.Linear(2, 2)))
    assert str(fault.value) == "spec.model: Sequential has no list of layers; use an architecture of transformers"


# ── freezing ─────────────────────────────────────────────────────────────────────────────────────────────────────

ALL = ("embeddings", "layer 1", "layer 2", "layer 3", "head")
FROZEN = {
    "everything": (Strategy(), ALL),
    "head": (Strategy(trainable="head"), ALL[4:]),
    "last layer": (Strategy(trainable="lastLayers", lastLayers=1), ALL[3:]),
    "last two layers": (Strategy(trainable="lastLayers", lastLayers=2), ALL[2:]),
    "all layers, no embeddings": (Strategy(trainable="lastLayers", lastLayers=3), ALL[1:]),
    "all but the bottom layer": (Strategy(freeze=Freeze(bottomLayers=1)), ALL[2:]),
    "all but the bottom layers": (Strategy(freeze=Freeze(bottomLayers=3)), ALL[4:]),
    "embeddings": (Strategy(freeze=Freeze(embeddings=True)), ALL[1:]),
}


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize(("strategy", "trained"), FROZEN.values(), ids=FROZEN)
def test_frozen_stays_and_trained_changes(name, strategy, trained):
    model = build(name)
    layers = find_layers(model)
    model, rates = apply_strategy(model, strategy, has_new_head=HAS_NEW_HEAD[name])
    assert tuple(rate.group for rate in rates) == trained
    before = copy.deepcopy(model.state_dict())
    train(name, model, rates)
    after = model.state_dict()
    for group in layers.groups:
        for key in group.parameters:
            same = torch.equal(before[key], after[key])
            assert same is (group.name not in trained), key


NORMS = {
    "everything": (Strategy(), (True, True, True, True)),
    "head": (Strategy(trainable="head"), (False, False, False, False)),
    "last stage": (Strategy(trainable="lastLayers", lastLayers=1), (False, False, False, True)),
    "embeddings": (Strategy(freeze=Freeze(embeddings=True)), (False, True, True, True)),
    "lora": (Strategy(lora=Lora(r=2)), (False, False, False, False)),
}


@pytest.mark.parametrize(("strategy", "change"), NORMS.values(), ids=NORMS)
def test_statistics_of_frozen_batch_norms_stay(strategy, change):
    model, rates = apply_strategy(build("resnet"), strategy, has_new_head=True)
    before = {key: value.clone() for key, value in model.named_buffers() if "running" in key}
    train("resnet", model, rates)
    after = dict(model.named_buffers())
    parts = [("embedder.embedder", 0), *((f"stages.{stage}.", stage + 1) for stage in range(3))]
    assert {key: not torch.equal(value, after[key]) for key, value in before.items()} == {
        key: change[next(index for part, index in parts if part in key)] for key in before
    }


FAULTS = {
    "more layers than there are": (
        "bert",
        Strategy(trainable="lastLayers", lastLayers=4),
        "spec.strategy.lastLayers: must be at most 3 (the layers in bert.encoder.layer), got 4",
    ),
    "more frozen layers than there are": (
        "vit",
        Strategy(freeze=Freeze(bottomLayers=9)),
        "spec.strategy.freeze.bottomLayers: must be at most 3 (the layers in vit.layers), got 9",
    ),
    "no such module": (
        "distilbert",
        Strategy(lora=Lora(targetModules=("q_lin", "query"))),
        (
            "spec.strategy.lora.targetModules: no module that can be adapted is named 'query';"
            " there are k_lin, lin1, lin2, out_lin, q_lin, v_lin"
        ),
    ),
}


@pytest.mark.parametrize(("name", "strategy", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(name, strategy, message):
    with pytest.raises(SpecFault) as fault:
        apply_strategy(build(name), strategy, has_new_head=True)
    assert str(fault.value) == message


# ── rates ────────────────────────────────────────────────────────────────────────────────────────────────────────

RATES = {
    "one for all": (LearningRate(value=1e-3), (1e-3,) * 5),
    "bottom and top": (LearningRate(bottom=1e-5, top=5e-5), (1e-5, 2e-5, 3e-5, 4e-5, 5e-5)),
    "top below bottom": (LearningRate(bottom=5e-5, top=1e-5), (5e-5, 4e-5, 3e-5, 2e-5, 1e-5)),
    "decay": (LearningRate(value=1e-3, layerDecay=0.5), (6.25e-5, 1.25e-4, 2.5e-4, 5e-4, 1e-3)),
    "no decay": (LearningRate(value=1e-3, layerDecay=1.0), (1e-3,) * 5),
}


@pytest.mark.parametrize("name", ["bert", "gpt2", "resnet"])
@pytest.mark.parametrize(("rate", "expected"), RATES.values(), ids=RATES)
def test_rates_by_depth(name, rate, expected):
    model, rates = apply_strategy(build(name), Strategy(learningRate=rate), has_new_head=True)
    assert {found.group: found.learning_rate for found in rates} == pytest.approx(
        dict(zip(ALL, expected, strict=True)), rel=1e-12
    )
    optimizer = build_optimizer(model, rates, Training())
    set_rates(optimizer, 0.5)
    used = {id(value): group["lr"] for group in optimizer.param_groups for value in group["params"]}
    named = dict(model.named_parameters())
    assert {key: used[id(named[key])] for found in rates for key in found.parameters} == pytest.approx(
        {key: found.learning_rate / 2 for found in rates for key in found.parameters}, rel=1e-12
    )
    assert len(used) == len(named)


def test_rates_do_not_move_with_what_is_frozen():
    """The depth counts, not the place among the trained."""
    strategy = Strategy(trainable="lastLayers", lastLayers=1, learningRate=LearningRate(value=1e-3, layerDecay=0.5))
    _, rates = apply_strategy(build("bert"), strategy, has_new_head=True)
    assert [(rate.group, rate.learning_rate) for rate in rates] == [("layer 3", 5e-4), ("head", 1e-3)]


DEPTHS = {
    "embeddings": (LearningRate(value=1.0, layerDecay=0.9), 0, 13, 0.9**13),
    "layer 12 of 12": (LearningRate(value=1.0, layerDecay=0.9), 12, 13, 0.9),
    "head": (LearningRate(value=1.0, layerDecay=0.9), 13, 13, 1.0),
    "in the middle": (LearningRate(bottom=0.0625, top=0.1875), 5, 10, 0.125),
}


@pytest.mark.parametrize(("rate", "depth", "top", "expected"), DEPTHS.values(), ids=DEPTHS)
def test_rate_at(rate, depth, top, expected):
    assert rate_at(rate, depth, top) == pytest.approx(expected, rel=1e-12)


def test_first_step_of_a_rising_rate_changes_nothing():
    """The warm-up starts at 0, as in transformers."""
    course = make_course(Training(maxSteps=100), Every(epochs=1), Every(epochs=1), steps_per_epoch=10)
    model, rates = apply_strategy(build("bert"), Strategy(), has_new_head=True)
    optimizer = build_optimizer(model, rates, Training())
    before = copy.deepcopy(model.state_dict())
    set_rates(optimizer, course.factor(RunState()))
    model(**inputs_of("bert")).logits.sum().backward()
    optimizer.step()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_biases_and_norms_do_not_decay(name):
    model, rates = apply_strategy(build(name), Strategy(), has_new_head=True)
    optimizer = build_optimizer(model, rates, Training(weightDecay=0.1))
    decay = {id(value): group["weight_decay"] for group in optimizer.param_groups for value in group["params"]}
    norms = (nn.LayerNorm, nn.BatchNorm2d)
    without = {
        id(value)
        for module in model.modules()
        for key, value in module.named_parameters(recurse=False)
        if isinstance(module, norms) or key == "bias"
    }
    assert without
    assert {key: decay[id(value)] for key, value in model.named_parameters()} == {
        key: 0.0 if id(value) in without else 0.1 for key, value in model.named_parameters()
    }


# ── LoRA ─────────────────────────────────────────────────────────────────────────────────────────────────────────

CONVOLUTIONS = {"layers.0.layer.0.convolution", "layers.0.layer.1.convolution"}
ADAPTED = {
    "bert": {*PROJECTIONS, "intermediate.dense", "output.dense"},
    "roberta": {*PROJECTIONS, "intermediate.dense", "output.dense"},
    "distilbert": set(DISTIL),
    "gpt2": {"attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"},
    "vit": set(PLAIN),
    "resnet": CONVOLUTIONS | {"layers.0.shortcut.convolution"},
}
HEADS = {
    "bert": {"classifier"},
    "roberta": {"classifier.dense", "classifier.out_proj"},
    "distilbert": {"pre_classifier", "classifier"},
    "gpt2": set(),
    "vit": {"classifier"},
    "resnet": {"classifier.1"},
}


def adapted(name: str, lora: Lora):
    """A model with an adapter, and its rates."""
    return apply_strategy(
        build(name), Strategy(lora=lora, learningRate=LearningRate(value=1e-2)), has_new_head=HAS_NEW_HEAD[name]
    )


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_adapts_the_projections_of_the_layers_and_trains_a_new_head(name):
    layers = find_layers(build(name))
    model, rates = adapted(name, Lora(r=2))
    trained = {key for rate in rates for key in rate.parameters}
    assert trained == {key for key, value in model.named_parameters() if value.requires_grad}
    with_adapter = {key.partition(".lora_")[0].removeprefix("base_model.model.") for key in trained if ".lora_" in key}
    assert {key.removeprefix(f"{layers.path}.").partition(".")[2] for key in with_adapter} == ADAPTED[name]
    assert all(key.startswith(f"{layers.path}.") for key in with_adapter)
    heads = {key.rpartition(".")[0] for key in trained if ".lora_" not in key}
    assert {key.removeprefix("base_model.model.").replace(".modules_to_save.default", "") for key in heads} == HEADS[
        name
    ]
    groups = ["layer 1", "layer 2", "layer 3", *(["head"] if HEADS[name] else [])]
    assert [(rate.group, rate.learning_rate) for rate in rates] == [(group, 1e-2) for group in groups]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_lora_leaves_the_base_to_the_bit(name):
    model, rates = adapted(name, Lora(r=2))
    before = copy.deepcopy(model.state_dict())
    train(name, model, rates)
    trained = {key for rate in rates for key in rate.parameters}
    for key, value in model.state_dict().items():
        if key in trained:
            assert not torch.equal(before[key], value), key
        else:
            assert torch.equal(before[key], value), key


def test_lora_on_modules_that_are_named():
    _, rates = adapted("bert", Lora(r=2, targetModules=("query", "output.dense")))
    adapters = {key.partition(".lora_")[0] for rate in rates for key in rate.parameters if ".lora_" in key}
    assert {key.removeprefix("base_model.model.bert.encoder.layer.")[2:] for key in adapters} == {
        "attention.self.query",
        "attention.output.dense",
        "output.dense",
    }


class Companion:
    """A tokenizer's part in an export."""

    def save_pretrained(self, folder):
        (folder / "companion").touch()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_merged_model_is_the_adapter_s_equal(name, tmp_path):
    model, rates = adapted(name, Lora(r=2, dropout=0.0))
    train(name, model, rates)
    probe = inputs_of(name)
    model.eval()
    with torch.no_grad():
        wanted = model(**probe).logits
        assert (wanted - model.get_base_model().eval()(**probe).logits).abs().max() == 0
        with model.disable_adapter():
            assert (wanted - model(**probe).logits).abs().max() > 1e-3, "the adapter does something"
    export(model, [Companion()], to=tmp_path / "model", adapter_to=tmp_path / "adapter", probe=probe)
    auto = ARCHITECTURES[name][0]
    merged = auto.from_pretrained(tmp_path / "model").eval()
    assert not any("lora" in key for key in merged.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(merged(**probe).logits, wanted, atol=1e-4, rtol=1e-4)
    assert {path.name for path in (tmp_path / "adapter").iterdir()} >= {
        "adapter_config.json",
        "adapter_model.safetensors",
        "companion",
    }
    assert not list(tmp_path.glob(".tmp-*"))


def test_an_adapter_alone_is_loaded_by_peft(tmp_path):
    from peft import PeftModel

    model, rates = adapted("bert", Lora(r=2, dropout=0.0))
    train("bert", model, rates)
    model.eval()
    with torch.no_grad():
        wanted = model(**inputs_of("bert")).logits
        export(model, [], to=tmp_path / "model", adapter_to=tmp_path / "adapter", probe=inputs_of("bert"))
        again = PeftModel.from_pretrained(build("bert"), tmp_path / "adapter").eval()
        torch.testing.assert_close(again(**inputs_of("bert")).logits, wanted, atol=1e-6, rtol=1e-5)
