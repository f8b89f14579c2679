"""Samples to batches: padding, masks, pairs, stand-ins; and images changed by (seed, epoch, index) alone."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import ViTImageProcessor

import tiny
from finetune_api.job import ImageAugmentation
from finetune_trainer.data.augment.images import ImageChanges
from finetune_trainer.data.dataset import Batch, Encoded, ImagePart, TextPart, load_batches, targets_tensor
from finetune_trainer.data.order import BatchSize, epoch_batches
from finetune_trainer.data.passes import Share
from finetune_trainer.data.prepare import pixels as _pixels
from finetune_trainer.data.prepare import read_channels as _read_channels
from finetune_trainer.tasks import IGNORED, Target

IDS = np.array([5, 6, 7, 8, 9, 1, 2, 3, 4, 11, 12], np.int32)
OFFSETS = np.array([0, 3, 5, 9, 11])
"""Rows: [5 6 7] [8 9] [1 2 3 4] [11 12]."""


def texts(rows=(0, 1, 2, 3), *, second=None, targets=None, **options) -> TextPart:
    pairs = None if second is None else np.array(second, np.int32)
    return TextPart(np.array(rows), Encoded(IDS, OFFSETS, pairs), targets, pad_id=0, **options)


def shown(batch: Batch) -> dict:
    """A batch as plain lists."""
    inputs = {name: value.tolist() for name, value in batch.inputs.items()}
    return inputs | {"target": batch.target.tolist(), "indices": batch.indices.tolist()}


LABELS = torch.tensor([10, 11, 12, 13])
BATCHES = {
    "padded to the longest": (
        texts(targets=LABELS),
        [1, 0],
        {
            "input_ids": [[8, 9, 0], [5, 6, 7]],
            "attention_mask": [[1, 1, 0], [1, 1, 1]],
            "target": [11, 10],
            "indices": [1, 0],
        },
    ),
    "nothing is padded: no mask": (
        texts(targets=LABELS),
        [1, 3],
        {"input_ids": [[8, 9], [11, 12]], "target": [11, 13], "indices": [1, 3]},
    ),
    "a mask always": (
        texts(targets=LABELS, always_mask=True),
        [1, 3],
        {"input_ids": [[8, 9], [11, 12]], "attention_mask": [[1, 1], [1, 1]], "target": [11, 13], "indices": [1, 3]},
    ),
    "a fixed length": (
        texts(targets=LABELS, fixed_length=5),
        [2],
        {"input_ids": [[1, 2, 3, 4, 0]], "attention_mask": [[1, 1, 1, 1, 0]], "target": [12], "indices": [2]},
    ),
    "a multiple of 8": (
        texts(targets=LABELS, multiple=8),
        [1],
        {
            "input_ids": [[8, 9, 0, 0, 0, 0, 0, 0]],
            "attention_mask": [[1, 1, 0, 0, 0, 0, 0, 0]],
            "target": [11],
            "indices": [1],
        },
    ),
    "some rows of the source": (
        texts(rows=(3, 0), targets=LABELS),
        [1, 0],
        {
            "input_ids": [[5, 6, 7], [11, 12, 0]],
            "attention_mask": [[1, 1, 1], [1, 1, 0]],
            "target": [10, 13],
            "indices": [1, 0],
        },
    ),
    "pairs: padding is of the first type": (
        texts(second=[1, 2, 3, 1], targets=LABELS),
        [0, 1, 2],
        {
            "input_ids": [[5, 6, 7, 0], [8, 9, 0, 0], [1, 2, 3, 4]],
            "attention_mask": [[1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1]],
            "token_type_ids": [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 1]],
            "target": [10, 11, 12],
            "indices": [0, 1, 2],
        },
    ),
    "the tokens are the target": (
        texts(),
        [0, 1],
        {
            "input_ids": [[5, 6, 7], [8, 9, 0]],
            "attention_mask": [[1, 1, 1], [1, 1, 0]],
            "target": [[5, 6, 7], [8, 9, IGNORED]],
            "indices": [0, 1],
        },
    ),
}


@pytest.mark.parametrize(("part", "indices", "expected"), BATCHES.values(), ids=BATCHES)
def test_text_batches(part, indices, expected):
    (batch,) = part.__getitems__([[(0, index) for index in indices]])
    assert shown(batch) == expected
    assert batch.is_counted
    assert {value.dtype for value in batch.inputs.values()} == {torch.int64}


def test_a_token_that_looks_like_padding_is_a_target():
    """The mask says what is padding, not the id: GPT-2 pads with its end-of-text token."""
    part = TextPart(np.arange(2), Encoded(np.array([7, 0, 7], np.int32), np.array([0, 2, 3]), None), None, pad_id=0)
    assert part.batch(0, np.array([0, 1]), is_counted=True).target.tolist() == [[7, 0], [7, IGNORED]]


def test_lengths_are_those_of_the_part():
    assert texts(rows=(3, 0, 2)).lengths.tolist() == [2, 3, 4]


def test_a_stand_in_is_computed_and_not_counted():
    part = texts(targets=LABELS)
    stand_in, real = part.__getitems__([[(0, -3)], [(0, 2)]])
    assert shown(stand_in) == shown(real)
    assert (stand_in.is_counted, real.is_counted) == (False, True)


@pytest.mark.parametrize("workers", [0, 2])
def test_loader_gives_our_passes_in_order(workers):
    part = texts(targets=LABELS)
    batches = [np.array([2, 0, 3]), np.array([1])]
    loader = load_batches(part, batches, BatchSize(3, None), Share(1, 2, 2), epoch=4, workers=workers, pin=False)
    found = [[(one.indices.tolist(), one.is_counted) for one in passes] for passes in loader]
    assert found == [[([0], True), ([2], False)], [([1], False)]]


TARGETS = {
    "class": (Target.CLASS, np.array([0, 2]), torch.tensor([0, 2])),
    "classes": (Target.CLASSES, np.array([[0, 1.0]], np.float32), torch.tensor([[0.0, 1.0]])),
    "number": (Target.NUMBER, np.array([0.5, -2]), torch.tensor([0.5, -2.0])),
}


@pytest.mark.parametrize(("target", "values", "expected"), TARGETS.values(), ids=TARGETS)
def test_targets(target, values, expected):
    found = targets_tensor(target, values)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


# ── images ───────────────────────────────────────────────────────────────────────────────────────────────────────

CHANGES = {
    "rotated": ImageAugmentation(rotateDegrees=30),
    "cropped": ImageAugmentation(cropMinArea=0.5),
    "flipped": ImageAugmentation(horizontalFlip=0.5),
    "all": ImageAugmentation(rotateDegrees=15, cropMinArea=0.6, horizontalFlip=0.5),
}


def image(seed: int = 0, size: tuple[int, int] = (12, 10)) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8))


@pytest.mark.parametrize("spec", CHANGES.values(), ids=CHANGES)
def test_a_change_is_a_function_of_seed_epoch_and_index(spec):
    """Whatever was changed before, by another object, in another order."""
    keys = [(epoch, index) for epoch in range(3) for index in range(6)]

    def changed(seed, order):
        augment = ImageChanges(spec, seed)
        return {key: augment(image(), *key).tobytes() for key in order}

    first = changed(1, keys)
    assert changed(1, keys[::-1]) == first
    assert changed(2, keys) != first
    assert any(first[0, index] != first[1, index] for index in range(6)), "epochs differ"
    assert len({first[0, index] for index in range(6)}) > 1, "samples differ"
    assert all(len(pixels) == len(image().tobytes()) for pixels in first.values()), "of the same size"


def test_no_change_is_no_change():
    augment = ImageChanges(ImageAugmentation(), 0)
    assert all(augment(image(), 0, index).tobytes() == image().tobytes() for index in range(5))


def test_flips_are_as_frequent_as_asked_for():
    augment, mirrored = ImageChanges(ImageAugmentation(horizontalFlip=0.25), 0), image().transpose(0).tobytes()
    found = [augment(image(), 0, index).tobytes() for index in range(400)]
    assert set(found) == {image().tobytes(), mirrored}
    assert 70 < found.count(mirrored) < 130


def processor(channels: int = 3) -> ViTImageProcessor:
    scale = [0.5] * channels
    return ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=scale, image_std=scale)


def images(folder: Path, *, augment=None, channels: int = 3) -> ImagePart:
    tiny.write_images(folder, 6)
    paths = sorted(map(str, folder.rglob("*.png")))
    return ImagePart(
        np.array([4, 0, 2]),
        paths,
        torch.arange(6),
        partial(_read_channels, channels=channels),
        partial(_pixels, processor(channels)),
        augment,
    )


def test_image_batches(tmp_path):
    part = images(tmp_path)
    (batch,) = part.__getitems__([[(0, 1), (0, 0)]])
    raw = np.stack([np.asarray(Image.open(part.paths[row])) for row in (0, 4)])
    wanted = torch.from_numpy(raw).permute(0, 3, 1, 2).float() / 127.5 - 1
    torch.testing.assert_close(batch.inputs["pixel_values"], wanted, atol=1e-6, rtol=0)
    assert (batch.target.tolist(), batch.indices.tolist(), len(part)) == ([0, 4], [1, 0], 3)


def test_grey_images(tmp_path):
    part = images(tmp_path, channels=1)
    (batch,) = part.__getitems__([[(0, 0)]])
    raw = np.asarray(Image.open(part.paths[4]).convert("L"), np.float32)
    torch.testing.assert_close(batch.inputs["pixel_values"][0, 0].numpy(), raw / 127.5 - 1, atol=1e-6, rtol=0)


def test_images_of_different_sizes(tmp_path):
    paths = []
    for number, size in enumerate([(8, 8), (20, 10)]):
        paths.append(str(tmp_path / f"{number}.png"))
        image(number, size).save(paths[-1])
    read, process = partial(_read_channels, channels=3), partial(_pixels, processor())
    part = ImagePart(np.arange(2), paths, torch.arange(2), read, process)
    assert part.__getitems__([[(0, 0), (0, 1)]])[0].inputs["pixel_values"].shape == (2, 3, 8, 8)


def test_a_resumed_epoch_sees_the_same_changes(tmp_path):
    """From batch to batch, on one process or two."""
    part = images(tmp_path, augment=ImageChanges(CHANGES["all"], 7))
    batches = epoch_batches(3, None, BatchSize(2, None), seed=0, epoch=1)

    def pixels(share, start=0):
        loader = load_batches(part, batches[start:], BatchSize(2, None), share, epoch=1, workers=0, pin=False)
        return {
            index: pixel.tolist()
            for passes in loader
            for batch in passes
            if batch.is_counted
            for index, pixel in zip(batch.indices.tolist(), batch.inputs["pixel_values"], strict=True)
        }

    whole = pixels(Share(0, 1, 1))
    assert whole.keys() == {0, 1, 2}
    assert pixels(Share(0, 2, 1)) | pixels(Share(1, 2, 1)) == whole
    rest = pixels(Share(0, 1, 2), start=1)
    assert rest == {index: whole[index] for index in rest}
    assert rest.keys() == set(batches[1].tolist())
