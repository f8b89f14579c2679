"""LoRA on every architecture: what is adapted, what is kept, and that merging changes nothing; or is refused."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoTokenizer

import tiny
from architectures import ARCHITECTURES, Architecture
from finetune_api.job import Lora, Strategy
from finetune_trainer import run
from finetune_trainer.adapters import NEW_WEIGHTS, add_adapter, head_modules, layer_lists, mark_new, shared_weights
from finetune_trainer.errors import PlatformError, SpecFault, TrainerError
from finetune_trainer.export import export, merge, output_tensors
from finetune_trainer.quantized import check_bits
from finetune_trainer.strategies import apply_strategy
from test_capabilities import save
from whole import whole_run

BLIP = ARCHITECTURES["blip, captioning"]
PREDICTIONS = {"logits", "pred_boxes", "logits_per_image", "logits_per_text", "itm_score"}
KINDS = {"lora": Lora(r=2), "dora": Lora(r=2, useDora=True), "rslora": Lora(r=4, useRslora=True)}


def adapted(architecture: Architecture, lora: Lora) -> nn.Module:
    """The model with an adapter that changes something, as after training."""
    model = add_adapter(architecture.build(), lora, has_new_head=architecture.has_new_head)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    return model.eval()


def adapters_of(model: nn.Module) -> set[str]:
    return {name for name, module in model.get_base_model().named_modules() if hasattr(module, "lora_A")}


@torch.no_grad()
def outputs(model: nn.Module, probe) -> dict[str, torch.Tensor]:
    return output_tensors(model(**probe))


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_projection_and_convolution_of_the_layers_is_adapted_and_the_head_is_trained_whole(name):
    architecture = ARCHITECTURES[name]
    base = architecture.build()
    lists = layer_lists(base)
    model = add_adapter(base, Lora(r=2), has_new_head=architecture.has_new_head)
    found = adapters_of(model)
    assert all(any(path in one for path in lists) for one in found)
    kept = {one.removesuffix(".modules_to_save") for one, _ in base.named_modules() if one.endswith(".modules_to_save")}
    assert kept == set(architecture.heads)
    assert len(found) == architecture.adapted


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_merged_is_the_adapter_s_equal(name, kind, tmp_path):
    architecture = ARCHITECTURES[name]
    model = adapted(architecture, KINDS[kind])
    probe = architecture.inputs()
    wanted = outputs(model, probe)
    with model.disable_adapter():
        without = outputs(model, probe)
    assert max((wanted[key] - without[key]).abs().max() for key in wanted) > 1e-5, "the adapter does something"
    export(model, [], to=tmp_path / "model", adapter_to=tmp_path / "adapter", probe=probe)
    loaded = type(architecture.build()).from_pretrained(tmp_path / "model").eval()
    again = outputs(loaded, probe)
    assert again.keys() == wanted.keys()
    worst = {key: float((again[key] - wanted[key]).abs().max()) for key in wanted}
    assert max(value for key, value in worst.items() if key in PREDICTIONS) <= 1e-4, worst


@pytest.mark.parametrize("name", [name for name, one in ARCHITECTURES.items() if one.heads])
def test_the_adapter_s_folder_alone_has_the_trained_head(name, tmp_path):
    from peft import PeftModel

    architecture = ARCHITECTURES[name]
    model = adapted(architecture, Lora(r=2))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.01)
    probe = architecture.inputs()
    wanted = outputs(model, probe)
    model.save_pretrained(tmp_path / "adapter", save_embedding_layers=False)
    again = outputs(PeftModel.from_pretrained(architecture.build(), tmp_path / "adapter").eval(), probe)
    assert {key: float((again[key] - wanted[key]).abs().max()) for key in wanted} == pytest.approx(
        dict.fromkeys(wanted, 0), abs=1e-5
    )


def test_classifiers_inside_the_backbone_are_trained_whole_when_the_labels_are_others(tmp_path):
    """RT-DETR's lie in its decoder: with other labels they are drawn anew, and an adapter on noise learns little."""
    architecture = ARCHITECTURES["rt-detr"]
    model = architecture.build()
    model.save_pretrained(tmp_path)
    loaded, found = type(model).from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    mark_new(loaded, found)
    heads = head_modules(loaded, has_new_head=True)
    assert heads == ("model.decoder.class_embed.0", "model.decoder.class_embed.1", "model.enc_score_head")
    adapter = add_adapter(loaded, Lora(r=2), has_new_head=True)
    trained = {name for name, value in adapter.named_parameters() if value.requires_grad and ".lora_" not in name}
    assert trained == {
        f"base_model.model.{head}.modules_to_save.default.{kind}" for head in heads for kind in ("weight", "bias")
    }


# ── merges that would be wrong ───────────────────────────────────────────────────────────────────────────────────


def test_all_linear_of_peft_corrupts_blip_and_is_refused_at_export(tmp_path):
    """Its output layer shares its matrix with the word embeddings: merged into one, the adapter changes both."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    base = BLIP.build()
    assert shared_weights(base) == {
        "text_decoder.bert.embeddings.word_embeddings": "text_decoder.cls.predictions.decoder",
        "text_decoder.cls.predictions.decoder": "text_decoder.bert.embeddings.word_embeddings",
    }
    config = LoraConfig(r=2, target_modules="all-linear", init_lora_weights=False)
    model = get_peft_model(base, config).eval()
    assert "text_decoder.cls.predictions.decoder" in adapters_of(model)
    with pytest.raises(
        PlatformError, match=r"^the merged model differs from its adapter \(\w+ by .*, 0.0001 is allowed\)"
    ):
        export(model, [], to=tmp_path / "model", adapter_to=tmp_path / "adapter", probe=BLIP.inputs())
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`:UserWarning")
def test_ties_that_a_trained_head_has_torn_are_refused(tmp_path):
    """In memory all is well; loaded again, transformers would lay the embeddings over the trained output layer."""
    from peft import LoraConfig, get_peft_model

    tied = ARCHITECTURES["qwen3, tied"]
    model = get_peft_model(tied.build(), LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"]))
    with torch.no_grad():
        model.get_output_embeddings().weight.add_(0.1)
    with pytest.raises(PlatformError) as refused:
        merge(model.eval(), tied.inputs())
    assert str(refused.value) == (
        "the merged model differs from its adapter (lm_head.weight and model.embed_tokens.weight are one weight in this"
        " architecture, and two now); the adapter is exported, the merged model is not"
    )


def test_a_merge_that_changes_a_prediction_is_refused():
    bert = ARCHITECTURES["bert"]
    model = adapted(bert, Lora(r=2))

    def spoil():
        next(model.parameters()).data.normal_()

    model.merge_adapter = model.unmerge_adapter = spoil
    with pytest.raises(PlatformError, match=r"^the merged model differs from its adapter \(logits by "):
        merge(model, bert.inputs())


FAULTS = {
    "a weight that is shared": (
        "blip, captioning",
        Lora(targetModules=("predictions.decoder",)),
        (
            "spec.strategy.lora.targetModules: 'predictions.decoder' (text_decoder.cls.predictions.decoder) shares its"
            " weight with text_decoder.bert.embeddings.word_embeddings: merged, an adapter on one would change the"
            " other; leave it out"
        ),
    ),
    "no module of that name": (
        "resnet",
        Lora(targetModules=("query",)),
        ("spec.strategy.lora.targetModules: no module that can be adapted is named 'query'; there are convolution"),
    ),
    "the head, which is trained whole": (
        "vit",
        Lora(targetModules=("classifier",)),
        (
            "spec.strategy.lora.targetModules: no module that can be adapted is named 'classifier';"
            " there are fc1, fc2, k_proj, o_proj, projection, q_proj, v_proj"
        ),
    ),
}


@pytest.mark.parametrize(("name", "lora", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(name, lora, message):
    with pytest.raises(SpecFault) as fault:
        apply_strategy(ARCHITECTURES[name].build(), Strategy(lora=lora), has_new_head=True)
    assert str(fault.value) == message


def test_a_new_weight_of_the_model_itself():
    clip = ARCHITECTURES["clip"].build()
    setattr(clip, NEW_WEIGHTS, frozenset({"logit_scale"}))
    with pytest.raises(SpecFault) as fault:
        add_adapter(clip, Lora(), has_new_head=False)
    assert str(fault.value) == (
        "spec.strategy.lora: logit_scale is new to the checkpoint and cannot be kept with an adapter"
    )


# ── a base in few bits ───────────────────────────────────────────────────────────────────────────────────────────

SOURCE = {"model": {"source": "file:///model", "config": None, "tokenizer": None}}
BITS = {
    "without a GPU": (
        SOURCE,
        {"has_gpu": False},
        "spec.strategy.lora.baseBits: 4 bits need a GPU, and there is none; leave it out, or ask for a GPU",
    ),
    "without the library": (
        SOURCE,
        {"has_gpu": True, "has_library": False},
        "spec.strategy.lora.baseBits: 4 bits need the library bitsandbytes, which the trainer's image lacks",
    ),
    "of a new model": (
        {},
        {"has_gpu": True},
        (
            "spec.strategy.lora.baseBits: needs spec.model.source: a model made from its configuration has no weights"
            " to keep"
        ),
    ),
    "sharded": (
        SOURCE | {"distributed": {"strategy": "fsdp"}},
        {"has_gpu": True},
        "spec.strategy.lora.baseBits: goes with spec.distributed.strategy ddp; a base in 4 bits is not sharded",
    ),
}


@pytest.mark.parametrize(("spec", "machine", "message"), BITS.values(), ids=BITS)
def test_few_bits_are_refused(tmp_path, spec, machine, message):
    job = tiny.job(tmp_path, "text-classification", {"strategy": {"lora": {"baseBits": 4}}} | spec)
    with pytest.raises(TrainerError) as fault:
        check_bits(job.spec, **machine)
    assert str(fault.value) == message


@pytest.mark.parametrize("bits", [4, 8])
def test_an_adapter_on_a_base_in_few_bits(bits, tmp_path, monkeypatch):
    """It learns, and is merged into the base in full precision. (bitsandbytes has slow kernels for CPUs, too.)"""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    monkeypatch.setattr(run, "check_bits", lambda *_, **__: None)
    tokenizer = AutoTokenizer.from_pretrained(tiny.TOKENIZER)
    sizes = {"hidden_size": 64, "intermediate_size": 64, "vocab_size": len(tokenizer)}
    save("BertModel", {**tiny.BERT, **sizes}, tokenizer, tmp_path / "base")
    spec = {
        "model": {"source": f"file://{tmp_path / 'base'}", "config": None, "tokenizer": None},
        "strategy": {"lora": {"r": 8, "baseBits": bits}, "learningRate": {"value": 5e-3}},
        "training": {"maxSteps": 30, "batchSize": 12, "precision": "bf16"},
    }
    process = tiny.process_of(tiny.job(tmp_path, "text-classification", spec, samples=60), tmp_path / "run")
    material = run.prepare(process)
    model, _ = run.build_model(process.spec, material)
    few = {name for name, module in model.named_modules() if isinstance(module, Linear4bit | Linear8bitLt)}
    assert len(few) == 12
    assert all(".encoder.layer." in name for name in few)
    result = whole_run(process)
    losses = [step["loss"] for step in tiny.steps_of(tmp_path / "run")]
    assert sum(losses[-5:]) < sum(losses[:5])
    exported, base = (load_file(folder / "model.safetensors") for folder in (Path(result.model), tmp_path / "base"))
    assert {value.dtype for value in exported.values()} == {torch.float32}
    changed = {name for name, value in base.items() if not torch.equal(exported[f"bert.{name}"], value)}
    assert {name.split(".")[-2] for name in changed} == {"query", "key", "value", "dense"}
    assert all(name.startswith("encoder.layer.") for name in changed)
