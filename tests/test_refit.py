"""A checkpoint for images of another size or other channels: what it has learned is kept, or the run does not begin."""

import numpy as np
import pytest
import torch
import transformers
from transformers import AutoConfig

import architectures
import tiny
from finetune_api.job import ModelSpec
from finetune_trainer.adapters import NEW_WEIGHTS
from finetune_trainer.errors import SpecFault
from finetune_trainer.models import load_config, load_detection_processor, load_model, load_processor
from finetune_trainer.tasks import task_of

ENCODER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
IMAGE = ENCODER | {"image_size": 16, "patch_size": 4}
STAGES = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}


def save(folder, kind, fields, model_class):
    """A checkpoint of three classes whose every weight is drawn at random; the model, in eval mode."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **fields)
    model = getattr(transformers, model_class)._from_config(config).eval()
    for parameter in model.parameters():
        parameter.data.normal_(std=0.3)
    model.save_pretrained(folder)
    return model


def load(folder, changes, task="image-classification", labels=None, **spec):
    """As a run loads it; (task and spec)'s own classes, if ``labels`` are given."""
    wanted = tiny.job(folder, task, spec).spec
    wanted = wanted.model_copy(update={"model": ModelSpec(source=f"file://{folder}", config=changes)})
    config = load_config(wanted.model, folder, task_of(wanted), labels)
    return load_model(wanted, folder, config, task_of(wanted)).eval()


def logits(model, pixels, **options):
    with torch.no_grad():
        return model(pixel_values=pixels, **options).logits


@pytest.mark.parametrize("size", [32, 8, 20, [8, 24]])
@pytest.mark.parametrize("kind", ["vit", "deit"])
def test_positions_are_interpolated_as_the_model_would(kind, size, tmp_path):
    """transformers' own interpolation at another size is the oracle."""
    model_class = {"vit": "ViTForImageClassification", "deit": "DeiTForImageClassification"}[kind]
    model = save(tmp_path, kind, IMAGE, model_class)
    resized = load(tmp_path, {"image_size": size})
    height, width = size if isinstance(size, list) else (size, size)
    pixels = torch.randn(2, 3, height, width)
    torch.testing.assert_close(logits(resized, pixels), logits(model, pixels, interpolate_pos_encoding=True))
    assert getattr(resized, NEW_WEIGHTS) == frozenset()


def test_positions_in_a_tower_are_interpolated(tmp_path):
    fields = {name: value for name, value in tiny.BLIP.items() if name != "model_type"} | {"vision_config": IMAGE}
    model = save(tmp_path, "blip", fields, "BlipForConditionalGeneration").vision_model
    resized = load(tmp_path, {"vision_config": {"image_size": 32}}, "image-captioning").vision_model
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(pixels, interpolate_pos_encoding=True).pooler_output
        torch.testing.assert_close(resized(pixels).pooler_output, expected)


CHANNELS = {
    "vit": (IMAGE, "ViTForImageClassification", 16),
    "resnet": (STAGES, "ResNetForImageClassification", 32),
}


@pytest.mark.parametrize("kind", CHANNELS)
def test_grey_is_seen_as_its_three_colours_were(kind, tmp_path):
    fields, model_class, size = CHANNELS[kind]
    model = save(tmp_path, kind, fields, model_class)
    grey = torch.randn(2, 1, size, size)
    found = logits(load(tmp_path, {"num_channels": 1}), grey)
    torch.testing.assert_close(found, logits(model, grey.expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", CHANNELS)
def test_three_equal_colours_are_seen_as_grey_was(kind, tmp_path):
    fields, model_class, size = CHANNELS[kind]
    model = save(tmp_path, kind, fields | {"num_channels": 1}, model_class)
    grey = torch.randn(2, 1, size, size)
    found = logits(load(tmp_path, {"num_channels": 3}), grey.expand(-1, 3, -1, -1))
    torch.testing.assert_close(found, logits(model, grey), rtol=1e-4, atol=1e-4)


def test_a_new_head_is_new_and_nothing_else(tmp_path):
    model = save(tmp_path, "vit", IMAGE, "ViTForImageClassification")
    changed = load(tmp_path, {"image_size": 32, "num_channels": 1}, labels=tuple("abcde"))
    assert getattr(changed, NEW_WEIGHTS) == {"classifier.weight", "classifier.bias"}
    before = dict(model.named_parameters())
    differing = {name for name, one in changed.named_parameters() if not torch.equal(one, before[name])}
    assert differing == getattr(changed, NEW_WEIGHTS) | {
        "vit.embeddings.position_embeddings",
        "vit.embeddings.patch_embeddings.projection.weight",
    }


LOST = {
    "the width": ("vit", IMAGE, "ViTForImageClassification", {"hidden_size": 32}, "image-classification"),
    "another patch": ("vit", IMAGE, "ViTForImageClassification", {"patch_size": 8}, "image-classification"),
    "the vocabulary": ("bert", ENCODER, "BertForSequenceClassification", {"vocab_size": 40}, "text-classification"),
    "positions of texts": (
        "bert",
        ENCODER,
        "BertForSequenceClassification",
        {"max_position_embeddings": 600},
        "text-classification",
    ),
    "detection tokens": ("yolos", IMAGE | {"image_size": [16, 16]}, "YolosForObjectDetection", {"image_size": [32, 32]},
                         "object-detection"),
    "queries": ("detr", architectures.ARCHITECTURES["detr"].fields, "DetrForObjectDetection", {"num_queries": 7},
                "object-detection"),
}  # fmt: skip


@pytest.mark.parametrize(("kind", "fields", "model_class", "changes", "task"), LOST.values(), ids=LOST)
def test_what_would_be_lost_is_refused(kind, fields, model_class, changes, task, tmp_path):
    save(tmp_path, kind, fields, model_class)
    told = r"^spec\.model\.config: .+ is \(.+\) in the checkpoint and \(.+\) with these fields.+ leave out the field"
    with pytest.raises(SpecFault, match=told):
        load(tmp_path, changes, task)


def test_the_same_patches_in_another_arrangement_are_refused(tmp_path):
    save(tmp_path, "vit", IMAGE, "ViTForImageClassification")
    with pytest.raises(SpecFault, match=r"config\.image_size: makes 2 x 8 patches, as many as .+ 4 x 4 in"):
        load(tmp_path, {"image_size": [8, 32]})


PROCESSORS = ("ViT", "CLIP", "DeiT", "ConvNext", "Bit", "Blip")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", PROCESSORS)
def test_a_checkpoint_s_processor_puts_out_what_the_model_takes(name, channels, tmp_path):
    getattr(transformers, f"{name}ImageProcessor")().save_pretrained(tmp_path)
    config = AutoConfig.for_model("resnet", num_channels=channels)
    processor = load_processor(ModelSpec(source="file:///m"), tmp_path, config, 48)
    image = np.zeros((60, 100, channels), np.uint8)
    made = processor(images=[image], return_tensors="pt", input_data_format="channels_last")
    assert made["pixel_values"].shape == (1, channels, 48, 48)


def test_proportions_of_a_processor_stay(tmp_path):
    """DeiT's cuts 224 of 256 pixels; where the model takes 224, nothing is changed."""
    transformers.DeiTImageProcessor().save_pretrained(tmp_path)
    model = ModelSpec(source="file:///m")
    kept = load_processor(model, tmp_path, AutoConfig.for_model("deit"), None)
    assert (dict(kept.size), dict(kept.crop_size)) == ({"height": 256, "width": 256}, {"height": 224, "width": 224})
    larger = load_processor(model, tmp_path, AutoConfig.for_model("deit", image_size=448), None)
    assert (dict(larger.size), dict(larger.crop_size)) == (
        {"height": 512, "width": 512},
        {"height": 448, "width": 448},
    )


@pytest.mark.parametrize("is_new", [True, False], ids=["of a new model", "of a checkpoint"])
def test_a_detector_s_processor_takes_grey(is_new, tmp_path):
    transformers.YolosImageProcessor().save_pretrained(tmp_path)
    config = AutoConfig.for_model("yolos", num_channels=1)
    processor = load_detection_processor(ModelSpec(source="file:///m"), None if is_new else tmp_path, config, 48)
    image = np.zeros((60, 100, 1), np.uint8)
    made = processor(images=[image], return_tensors="pt", input_data_format="channels_last")
    assert made["pixel_values"].shape == (1, 1, 48, 48)


def test_other_channels_than_grey_and_rgb_are_refused(tmp_path):
    with pytest.raises(SpecFault, match=r"spec\.model\.config\.num_channels: must be 1 \(grey\) or 3 \(RGB\), got 4"):
        load_processor(ModelSpec(config={}), None, AutoConfig.for_model("vit", num_channels=4), None)


def test_a_run_on_larger_grey_images(tmp_path):
    """The checkpoint of 16 pixels and three colours learns from grey images of 32."""
    checkpoint = tmp_path / "checkpoint"
    save(checkpoint, "vit", IMAGE, "ViTForImageClassification")
    transformers.ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(checkpoint)
    job = tiny.job(tmp_path, "image-classification")
    changes = {"image_size": 32, "num_channels": 1}
    model = ModelSpec(source=f"file://{checkpoint}", config=changes)
    job = job.model_copy(update={"spec": job.spec.model_copy(update={"model": model})})
    loop = tiny.trained(tiny.process_of(job, tmp_path / "run"))
    assert loop.train_part.batch(0, np.arange(2), is_counted=True).inputs["pixel_values"].shape == (2, 1, 32, 32)
