"""Changes of images and of their boxes, mixtures of images, changes of words: each a function of its numbers alone."""

from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import cross_entropy

import tiny
from finetune_api.job import ColorJitter, Erasing, ImageAugmentation
from finetune_trainer.data.augment.images import Change, ImageChanges, _change_boxes, _change_image
from finetune_trainer.data.augment.mixing import Mix, Mixing, mix_images, mixed_objective
from finetune_trainer.data.augment.words import WordChanges, words_in
from finetune_trainer.data.dataset import Batch, ImagePart
from finetune_trainer.task import Objective

WHOLE = (0.0, 0.0, 1.0, 1.0)
STILL = Change(0, WHOLE, False, False, 1, 1, 1, 0, None)
SIZE = (40, 30)


def pixels_of(seed: int = 0, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), np.uint8)


def erased(pixels: np.ndarray) -> np.ndarray:
    pixels = pixels.copy()
    pixels[15:21, 10:30] = 0
    return pixels


def enlarged(pixels: np.ndarray) -> np.ndarray:
    """The upper left quarter, as large as the whole."""
    return np.asarray(Image.fromarray(pixels).resize(SIZE, Image.Resampling.BILINEAR, box=(0, 0, 20, 15)))


EFFECTS = {
    "none": (STILL, lambda pixels: pixels),
    "rotated": (replace(STILL, angle=180), lambda pixels: pixels[::-1, ::-1]),
    "cropped": (replace(STILL, crop=(0, 0, 0.5, 0.5)), enlarged),
    "mirrored": (replace(STILL, is_mirrored=True), lambda pixels: pixels[:, ::-1]),
    "upside down": (replace(STILL, is_upside_down=True), lambda pixels: pixels[::-1]),
    "darker": (replace(STILL, brightness=0.5), lambda pixels: pixels // 2),
    "without contrast": (
        replace(STILL, contrast=0),
        lambda pixels: np.full_like(pixels, round(np.asarray(Image.fromarray(pixels).convert("L")).mean())),
    ),
    "without colour": (
        replace(STILL, saturation=0),
        lambda pixels: np.asarray(Image.fromarray(pixels).convert("L").convert("RGB")),
    ),
    "erased": (replace(STILL, erased=(0.25, 0.5, 0.5, 0.2)), erased),
}


@pytest.mark.parametrize(("change", "expected"), EFFECTS.values(), ids=EFFECTS)
def test_what_a_change_does(change, expected):
    pixels = pixels_of()
    found = _change_image(Image.fromarray(pixels), change)
    np.testing.assert_array_equal(np.asarray(found), expected(pixels))


def test_half_a_turn_of_the_hue_makes_red_cyan():
    red = Image.new("RGB", (2, 2), (255, 0, 0))
    np.testing.assert_allclose(_change_image(red, replace(STILL, hue=0.5)), [[[0, 255, 255]] * 2] * 2, atol=4)


def test_grey_images_take_every_change():
    every = ImageAugmentation(
        rotateDegrees=20,
        cropMinArea=0.5,
        horizontalFlip=0.5,
        verticalFlip=0.5,
        color=ColorJitter(brightness=0.5, contrast=0.5, saturation=0.5, hueDegrees=90),
        erasing=Erasing(probability=0.5),
    )
    changes, grey = ImageChanges(every, 0), Image.fromarray(pixels_of()).convert("L")
    found = [changes(grey, 0, index) for index in range(10)]
    assert {(each.mode, each.size) for each in found} == {("L", SIZE)}
    assert len({each.tobytes() for each in found}) == 10


OPTIONS = {
    "rotateDegrees": ({"rotateDegrees": 30}, lambda change: change.angle, (-30, 30), 0),
    "verticalFlip": ({"verticalFlip": 0.25}, lambda change: change.is_upside_down, (0, 1), 0.25),
    "brightness": ({"color": ColorJitter(brightness=0.4)}, lambda change: change.brightness, (0.6, 1.4), 1),
    "contrast": ({"color": ColorJitter(contrast=0.4)}, lambda change: change.contrast, (0.6, 1.4), 1),
    "saturation": ({"color": ColorJitter(saturation=0.4)}, lambda change: change.saturation, (0.6, 1.4), 1),
    "hueDegrees": ({"color": ColorJitter(hueDegrees=36)}, lambda change: change.hue, (-0.1, 0.1), 0),
    "cropMinArea": ({"cropMinArea": 0.5}, lambda change: change.crop[2] * change.crop[3], (0.49, 1), 0.74),
    "erasing": (
        {"erasing": Erasing(probability=1, maxArea=0.2)},
        lambda change: change.erased[2] * change.erased[3],
        (0.02, 0.2),
        0.11,
    ),
    "erasing, how often": (
        {"erasing": Erasing(probability=0.3)},
        lambda change: change.erased is not None,
        (0, 1),
        0.3,
    ),
}
"""What is asked for, what is drawn for it, its range and its mean."""


@pytest.mark.parametrize(("spec", "of", "bounds", "mean"), OPTIONS.values(), ids=OPTIONS)
def test_what_is_drawn(spec, of, bounds, mean):
    changes = [ImageChanges(ImageAugmentation(**spec), 3)._draw(0, index) for index in range(1000)]
    drawn = np.array([of(change) for change in changes], float)
    low, high = bounds
    assert low - 1e-9 <= drawn.min() < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < drawn.max() <= high + 1e-9
    assert drawn.mean() == pytest.approx(mean, abs=0.05 * (high - low))


def test_an_option_does_not_change_what_another_draws():
    alone = ImageChanges(ImageAugmentation(rotateDegrees=10), 0)
    together = ImageChanges(
        ImageAugmentation(rotateDegrees=10, cropMinArea=0.5, color=ColorJitter(hueDegrees=5), erasing=Erasing()), 0
    )
    assert [alone._draw(0, index).angle for index in range(9)] == [together._draw(0, index).angle for index in range(9)]


# ── boxes ────────────────────────────────────────────────────────────────────────────────────────────────────────

RECTANGLE = (60, 40, 100, 70)
MOVES = {
    "still": STILL,
    "rotated": replace(STILL, angle=25),
    "rotated the other way": replace(STILL, angle=-70),
    "cropped": replace(STILL, crop=(0.2, 0.1, 0.7, 0.8)),
    "mirrored": replace(STILL, is_mirrored=True),
    "upside down": replace(STILL, is_upside_down=True),
    "all": replace(STILL, angle=-15, crop=(0.2, 0.1, 0.7, 0.8), is_mirrored=True, is_upside_down=True),
}


@pytest.mark.parametrize("change", MOVES.values(), ids=MOVES)
def test_a_box_goes_where_its_pixels_go(change):
    image = Image.new("L", (200, 120))
    image.paste(255, RECTANGLE)
    boxes, kept = _change_boxes(np.array([RECTANGLE], float), image.size, change)
    rows, columns = np.nonzero(np.asarray(_change_image(image, change)) > 100)
    seen = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(boxes, [seen], atol=2)
    assert kept.tolist() == [0]


BOXES = np.array([[0, 0, 90, 90], [100, 0, 150, 60], [150, 60, 200, 120]], float)


def test_boxes_that_are_cut_away_go():
    moved, kept = _change_boxes(BOXES, (200, 120), replace(STILL, crop=(0.5, 0, 0.5, 1)))
    assert kept.tolist() == [1, 2]
    np.testing.assert_allclose(moved, [[0, 0, 100, 60], [100, 60, 200, 120]])
    moved, kept = _change_boxes(BOXES, (200, 120), replace(STILL, crop=(0.35, 0, 0.65, 1)))
    assert kept.tolist() == [1, 2], "of the first a fifth is left"
    moved, kept = _change_boxes(BOXES, (200, 120), replace(STILL, crop=(0.3, 0, 0.7, 1)))
    assert kept.tolist() == [0, 1, 2], "of the first a third is left"
    assert moved[0].tolist() == pytest.approx([0, 0, 30 / 0.7, 90])
    moved, kept = _change_boxes(BOXES, (200, 120), replace(STILL, crop=(0, 0.95, 0.4, 0.05)))
    assert (moved.shape, kept.tolist()) == ((0, 4), [])


def test_an_image_without_boxes():
    changes = ImageChanges(ImageAugmentation(rotateDegrees=90, cropMinArea=0.5), 0)
    image = Image.fromarray(pixels_of())
    changed, boxes, kept = changes.with_boxes(image, np.zeros((0, 4)), 0, 5)
    assert (boxes.shape, kept.tolist()) == ((0, 4), [])
    assert changed.tobytes() == changes(image, 0, 5).tobytes(), "the image is changed as it is without boxes"


# ── mixup and cutmix ─────────────────────────────────────────────────────────────────────────────────────────────


def test_mixup_blends():
    own, other = torch.rand(2, 3, 8, 6)
    found, share = mix_images(own, other, Mix(partner=1, share=0.3, center=None))
    torch.testing.assert_close(found, 0.3 * own + 0.7 * other)
    assert share == 0.3


CUTS = {
    "inside": ((0.5, 0.5), 0.75, (slice(2, 6), slice(2, 4))),
    "over the edge": ((0.0, 1.0), 0.75, (slice(6, 8), slice(0, 2))),
    "all": ((0.5, 0.5), 0.0, (slice(0, 8), slice(0, 6))),
    "nothing": ((0.5, 0.5), 1.0, (slice(4, 4), slice(3, 3))),
}


@pytest.mark.parametrize(("center", "share", "where"), CUTS.values(), ids=CUTS)
def test_cutmix_pastes(center, share, where):
    own, other = torch.zeros(3, 8, 6), torch.ones(3, 8, 6)
    found, left = mix_images(own, other, Mix(1, share, center))
    expected = own.clone()
    expected[:, *where] = 1
    torch.testing.assert_close(found, expected)
    assert left == pytest.approx(1 - expected.mean().item())


MIXES = {
    "mixup": {"mixup": 0.4},
    "cutmix": {"cutmix": 1.0},
    "either": {"mixup": 0.4, "cutmix": 1.0, "mixProbability": 0.5, "horizontalFlip": 0.5},
}


def part_of(folder, spec, samples=9):
    tiny.write_images(folder, samples)
    paths = sorted(map(str, folder.rglob("*.png")))
    augmentation = ImageAugmentation(**spec)
    return ImagePart(
        np.arange(samples)[::-1].copy(),
        paths,
        torch.arange(samples) % 3,
        Image.open,
        lambda images: torch.stack([torch.from_numpy(np.array(each)).permute(2, 0, 1) / 255 for each in images]),
        ImageChanges(augmentation, 5),
        Mixing(augmentation, 5, samples),
    )


@pytest.mark.parametrize("spec", MIXES.values(), ids=MIXES)
def test_a_mixture_does_not_depend_on_the_batch(tmp_path, spec):
    part = part_of(tmp_path, spec)
    whole = part.batch(1, np.arange(9), is_counted=True)
    for cut in ([8, 3], [0], [7, 6, 5, 4]):
        batch = part.batch(1, np.array(cut), is_counted=True)
        assert torch.equal(batch.inputs["pixel_values"], whole.inputs["pixel_values"][cut])
        assert {name: value.tolist() for name, value in batch.target.items()} == {
            name: value[cut].tolist() for name, value in whole.target.items()
        }
    other = part.batch(2, np.arange(9), is_counted=True)
    assert not torch.equal(other.inputs["pixel_values"], whole.inputs["pixel_values"])


def test_a_mixture_is_of_two_samples_as_the_epoch_has_them(tmp_path):
    part = part_of(tmp_path, MIXES["either"])
    plain = replace(part, mixing=None).batch(0, np.arange(9), is_counted=True)
    mixed = part.batch(0, np.arange(9), is_counted=True)
    drawn = [part.mixing.draw(0, index) for index in range(9)]
    assert {None} < {mix and (mix.center is None) for mix in drawn} == {None, True, False}
    for index, mix in enumerate(drawn):
        partner, share = (mix.partner, None) if mix else (index, 1.0)
        images = plain.inputs["pixel_values"]
        image, share = mix_images(images[index], images[partner], mix) if mix else (images[index], share)
        torch.testing.assert_close(mixed.inputs["pixel_values"][index], image, rtol=0, atol=0)
        found = {name: value[index].item() for name, value in mixed.target.items()}
        own, other = plain.target[index].item(), plain.target[partner].item()
        assert found == {"own": own, "other": other, "share": pytest.approx(share)}


def test_how_mixtures_are_drawn():
    mixing = Mixing(ImageAugmentation(mixup=2.0, cutmix=0.5, mixProbability=0.8), 0, 50)
    drawn = [mixing.draw(0, index) for index in range(2000)]
    mixes = [mix for mix in drawn if mix]
    assert len(mixes) / 2000 == pytest.approx(0.8, abs=0.03)
    assert {mix.partner for mix in mixes} == set(range(50))
    blends = [mix.share for mix in mixes if mix.center is None]
    cuts = [mix.share for mix in mixes if mix.center is not None]
    assert len(blends) / len(mixes) == pytest.approx(0.5, abs=0.04)
    assert (np.var(blends), np.var(cuts)) == pytest.approx((1 / 20, 1 / 8), rel=0.1), "variances of the two Betas"


def test_the_loss_of_a_mixture_is_that_of_the_mixed_class():
    logits = torch.randn(5, 3)
    own, other, share = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([2, 1, 0, 1, 1]), torch.rand(5)
    target = {"own": own, "other": other, "share": share}
    objective = mixed_objective(
        Objective(lambda outputs, batch: cross_entropy(outputs.logits, batch.target, reduction="none"))
    )
    batch = Batch({}, target, np.arange(5))
    soft = torch.zeros(5, 3)
    soft[range(5), own] += share
    soft[range(5), other] += 1 - share
    found = objective.losses(SimpleNamespace(logits=logits), batch)
    torch.testing.assert_close(found, cross_entropy(logits, soft, reduction="none"))
    torch.testing.assert_close(objective.counts(batch), torch.ones(5))


# ── words ────────────────────────────────────────────────────────────────────────────────────────────────────────

SYNONYMS = {"good": ["fine"], "film": ["movie"]}
random_of = partial(np.random.default_rng, 1)
WORDS = {
    "none": ({}, "A Good film, isn't it?", "A Good film, isn't it?"),
    "synonyms": ({"synonyms": SYNONYMS, "synonym_rate": 1}, "A Good film, isn't it?", "A Fine movie, isn't it?"),
    "synonyms never": ({"synonyms": SYNONYMS, "synonym_rate": 0}, "A good film", "A good film"),
    "one word stays": ({"deletion_rate": 1}, "only", "only"),
    "no words": ({"deletion_rate": 1, "swap_rate": 1}, "?!", "?!"),
    "nothing": ({"deletion_rate": 1}, "", ""),
}


@pytest.mark.parametrize(("rates", "text", "expected"), WORDS.values(), ids=WORDS)
def test_changed_words(rates, text, expected):
    assert WordChanges(**rates)(text, random_of()) == expected


def test_words_change_as_often_as_asked_for():
    words = [f"w{index}" for index in range(2000)]
    text = " ".join(words)
    deleted = WordChanges(deletion_rate=0.2)(text, random_of()).split(" ")
    assert deleted == sorted(deleted, key=words.index), "in order"
    assert len(deleted) == pytest.approx(1600, abs=60)
    swapped = WordChanges(swap_rate=0.1)(text, random_of()).split(" ")
    assert sorted(swapped) == sorted(words)
    assert sum(one != other for one, other in zip(words, swapped, strict=True)) == pytest.approx(380, abs=50)
    replaced = WordChanges({word: ["x", "y"] for word in words}, synonym_rate=0.3)(text, random_of()).split(" ")
    assert replaced.count("x") == pytest.approx(300, abs=50)
    assert replaced.count("y") == pytest.approx(300, abs=50)


def test_the_words_of_a_text():
    assert words_in("The cat's 2 well-known Äpfel … d’or") == ["the", "cat's", "2", "well-known", "äpfel", "d’or"]
