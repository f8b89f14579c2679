"""Tiny models of every architecture that fine-tuning is promised for, and inputs that each takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig

TEXT = {"vocab_size": 50, "max_position_embeddings": 16}
ENDS = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = {"image_size": 16, "patch_size": 8}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1], "layer_type": "basic"}
TOWERS = {
    "text_config": ENCODER | TEXT | ENDS | {"encoder_hidden_size": 16, "sep_token_id": 2},
    "vision_config": ENCODER | IMAGE,
    "projection_dim": 8,
}
DETR_LAYERS = {
    "d_model": 16,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "decoder_layers": 2,
    "num_queries": 5,
    "use_timm_backbone": False,
    "use_pretrained_backbone": False,
    "backbone": None,
}
RT_DETR = DETR_LAYERS | {
    "encoder_hidden_dim": 16,
    "encoder_in_channels": [16, 16, 16],
    "decoder_in_channels": [16, 16, 16],
    "num_denoising": 0,
}


def texts() -> dict[str, Tensor]:
    """``input_ids`` (4, 12)."""
    return {"input_ids": torch.randint(3, 50, (4, 12))}


def pixels(size: int) -> Callable[[], dict[str, Tensor]]:
    """``pixel_values`` (4, 3, size, size)."""
    return lambda: {"pixel_values": torch.randn(4, 3, size, size)}


def both_sides() -> dict[str, Tensor]:
    """``input_ids`` (4, 12), and ``decoder_input_ids`` (4, 6)."""
    return texts() | {"decoder_input_ids": torch.randint(3, 50, (4, 6))}


@dataclass(frozen=True)
class Architecture:
    """One architecture with one head."""

    model_class: str
    kind: str
    fields: dict[str, Any]
    inputs: Callable[[], dict[str, Tensor]]
    heads: tuple[str, ...]
    """Modules beside the backbone."""
    adapted: int
    """Modules that LoRA adapts."""
    has_new_head: bool = True

    def build(self) -> nn.Module:
        """The model without dropout, in eval mode, always the same; batch norms as if they had seen data."""
        config = AutoConfig.for_model(self.kind, **self.fields)
        for field in config.to_dict():
            if "dropout" in field or field.endswith("_pdrop"):
                setattr(config, field, 0.0)
        torch.manual_seed(0)
        model = getattr(transformers, self.model_class)._from_config(config)
        for name, buffer in model.named_buffers():
            if name.endswith("running_mean"):
                buffer.normal_(std=0.1)
            if name.endswith("running_var"):
                buffer.uniform_(0.5, 1.5)
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        return model.eval()


def both() -> dict[str, Tensor]:
    """Texts and images."""
    return texts() | pixels(16)()


def _detr() -> dict[str, Any]:
    backbone = transformers.ResNetConfig(**STAGES, out_features=["stage4"])
    return DETR_LAYERS | {"encoder_layers": 2, "backbone_config": backbone}


def _rt_detr() -> dict[str, Any]:
    backbone = transformers.RTDetrResNetConfig(**STAGES, out_features=["stage2", "stage3", "stage4"])
    return RT_DETR | {"backbone_config": backbone}


def _d_fine() -> dict[str, Any]:
    backbone = transformers.HGNetV2Config(
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 8, 16, 16],
        stage_mid_channels=[8, 8, 8, 8],
        stage_out_channels=[8, 16, 16, 16],
        stage_num_blocks=[1, 1, 1, 1],
        stage_numb_of_layers=[1, 1, 1, 1],
        hidden_sizes=[8, 16, 16, 16],
        depths=[1, 1, 1, 1],
        embedding_size=8,
        out_features=["stage2", "stage3", "stage4"],
    )
    return RT_DETR | {"backbone_config": backbone, "depth_mult": 0.34}


T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 2, "vocab_size": 50}
BART = {
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
}
MARIAN = BART | {"decoder_start_token_id": 0, "decoder_vocab_size": 50, "forced_eos_token_id": 2}
CLASSIFIER = "ForSequenceClassification"
LLAMA = ENCODER | TEXT | ENDS | {"num_key_value_heads": 1, "head_dim": 8}
ARCHITECTURES = {
    "bert": Architecture(f"Bert{CLASSIFIER}", "bert", ENCODER | TEXT, texts, ("classifier",), 12),
    "roberta": Architecture(f"Roberta{CLASSIFIER}", "roberta", ENCODER | TEXT, texts, ("classifier",), 12),
    "distilbert": Architecture(
        f"DistilBert{CLASSIFIER}",
        "distilbert",
        {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32} | TEXT,
        texts,
        ("pre_classifier", "classifier"),
        12,
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "gpt2",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 50, "n_positions": 16} | ENDS,
        texts,
        (),
        8,
        has_new_head=False,
    ),
    "llama": Architecture("LlamaForCausalLM", "llama", LLAMA, texts, (), 14, has_new_head=False),
    "llama classifier": Architecture(f"Llama{CLASSIFIER}", "llama", LLAMA, texts, ("score",), 14),
    "qwen2": Architecture("Qwen2ForCausalLM", "qwen2", LLAMA, texts, (), 14, has_new_head=False),
    "qwen3, tied": Architecture(
        "Qwen3ForCausalLM", "qwen3", LLAMA | {"tie_word_embeddings": True}, texts, (), 14, has_new_head=False
    ),
    "vit": Architecture("ViTForImageClassification", "vit", ENCODER | IMAGE, pixels(16), ("classifier",), 12),
    "resnet": Architecture("ResNetForImageClassification", "resnet", STAGES, pixels(32), ("classifier",), 11),
    "yolos": Architecture(
        "YolosForObjectDetection",
        "yolos",
        ENCODER | {"image_size": [16, 16], "patch_size": 8, "num_detection_tokens": 4},
        pixels(16),
        ("class_labels_classifier", "bbox_predictor"),
        12,
    ),
    "detr": Architecture(
        "DetrForObjectDetection", "detr", _detr(), pixels(64), ("class_labels_classifier", "bbox_predictor"), 43
    ),
    "rt-detr": Architecture("RTDetrForObjectDetection", "rt_detr", _rt_detr(), pixels(64), (), 93),
    "d-fine": Architecture("DFineForObjectDetection", "d_fine", _d_fine(), pixels(64), (), 103),
    "bert tagger": Architecture("BertForTokenClassification", "bert", ENCODER | TEXT, texts, ("classifier",), 12),
    "t5": Architecture("T5ForConditionalGeneration", "t5", T5, both_sides, (), 42, has_new_head=False),
    "bart": Architecture(
        "BartForConditionalGeneration", "bart", BART | TEXT | ENDS, both_sides, (), 42, has_new_head=False
    ),
    "marian": Architecture("MarianMTModel", "marian", MARIAN | TEXT | ENDS, both_sides, (), 42, has_new_head=False),
    "clip": Architecture("CLIPModel", "clip", TOWERS, both, (), 24),
    "blip, matching": Architecture("BlipForImageTextRetrieval", "blip", TOWERS, both, (), 28),
    "blip, captioning": Architecture("BlipForConditionalGeneration", "blip", TOWERS, both, (), 28),
}
