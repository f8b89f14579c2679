"""What cleaning is made of: hashes of words and of images, twins, confident learning, models out of fold."""

import io
import itertools
import re
import unicodedata

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from finetune_trainer.cleaning.confident import (
    class_thresholds,
    confident_joint,
    estimated_counts,
    likely_mislabelled,
)
from finetune_trainer.cleaning.contents import Contents
from finetune_trainer.cleaning.features import text_features, text_width
from finetune_trainer.cleaning.folds import deal, out_of_fold
from finetune_trainer.cleaning.minhash import jaccard, minhash_keys, rows_of_band
from finetune_trainer.cleaning.perceptual import bit_keys, looks_alike, perceptual_hash, pixel_digest, thumbnail_of
from finetune_trainer.cleaning.text_hashes import normal, pairs_of_words, word_hashes
from finetune_trainer.cleaning.twins import choose_twins, find_pairs
from finetune_trainer.data.read import Samples

# Words ----------------------------------------------------------------------------------------------------------------


def naive_words(text):
    """Words by a loop: runs of letters, digits and marks; in Han, kana and the like each letter by itself."""
    words, run = [], ""
    for letter in text:
        is_part = unicodedata.category(letter)[0] in "LNM"
        alone = is_part and re.match(r"[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]", letter)
        if (alone or not is_part) and run:
            words.append(run)
            run = ""
        if alone:
            words.append(letter)
        elif is_part:
            run += letter
    return [*words, run] if run else words


LETTERS = st.text("ab1é -.,\n日本ไ\u0301\U0001f600", max_size=12)


@given(st.lists(LETTERS, max_size=6))
def test_two_words_have_the_same_hash_if_they_are_the_same_word(texts):
    texts = [normal(text) for text in texts]
    hashes, offsets = word_hashes(texts)
    found = [hashes[start:end].tolist() for start, end in itertools.pairwise(offsets)]
    expected = [naive_words(text) for text in texts]
    assert [len(words) for words in found] == [len(words) for words in expected]
    pairs = {*zip(itertools.chain(*expected), itertools.chain(*found), strict=True)}
    assert len({word for word, _ in pairs}) == len({number for _, number in pairs}) == len(pairs)


@given(st.lists(LETTERS, max_size=6))
def test_pairs_of_words_never_cross_texts(texts):
    texts = [normal(text) for text in texts]
    pairs, offsets = pairs_of_words(*word_hashes(texts))
    for text, (start, end) in zip(texts, itertools.pairwise(offsets), strict=True):
        words = naive_words(text)
        assert end - start == max(len(words) - 1, min(len(words), 1))
        alone, _ = pairs_of_words(*word_hashes([text]))
        assert pairs[start:end].tolist() == alone.tolist()


def test_case_width_and_blanks_do_not_count():
    assert normal("Ｈello\n  WORLD") == normal("hello world")


# MinHash --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", [0.5, 0.8, 0.95])
def test_sets_at_the_threshold_share_a_key_and_distant_ones_seldom(similarity):
    chosen = np.random.default_rng(0)
    rows = rows_of_band(similarity)
    met = {True: 0, False: 0}
    for is_near in (True, False):
        for _ in range(300):
            share = similarity if is_near else 0.1
            shared, own = round(200 * share), round(200 * (1 - share) / 2)
            values = chosen.integers(1, 2**63, shared + 2 * own).astype(np.uint64)
            both = np.concatenate([values[: shared + own], values[:shared], values[shared + own :]])
            keys = minhash_keys(both, np.array([0, shared + own, 2 * (shared + own)]), rows)
            met[is_near] += bool((keys[0] == keys[1]).any())
    assert met[True] >= 294
    assert met[False] <= (120 if similarity == 0.5 else 3)


def test_an_empty_set_has_no_key():
    assert minhash_keys(np.zeros(0, np.uint64), np.array([0, 0, 0]), 4).tolist() == [[0] * 16] * 2


def test_jaccard():
    numbers = [np.array(values, np.uint64) for values in ([1, 2, 2, 3], [2, 3, 4], [])]
    assert jaccard(numbers[0], numbers[1]) == 0.5
    assert jaccard(numbers[0], numbers[2]) == 0


# Images ---------------------------------------------------------------------------------------------------------------


def scene(seed):
    """A picture with shapes: a smooth random field, 64 by 48."""
    field = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(field).resize((64, 48), Image.Resampling.BICUBIC)


def compressed(image):
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=70)
    return Image.open(buffer).convert("RGB")


CHANGES = {
    "compressed": compressed,
    "smaller": lambda image: image.resize((48, 36), Image.Resampling.BICUBIC),
    "larger": lambda image: image.resize((128, 96), Image.Resampling.BICUBIC),
    "brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.1),
}


def alike(one, other, distance=4):
    hashes = [np.array([perceptual_hash(image)], np.uint64) for image in (one, other)]
    thumbnails = [thumbnail_of(image)[None] for image in (one, other)]
    return bool(looks_alike(tuple(hashes), tuple(thumbnails), distance)[0])


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_changed_image_looks_alike_and_another_does_not(change):
    found = [alike(scene(seed), change(scene(seed))) for seed in range(20)]
    assert sum(found) >= 19
    assert not any(alike(scene(seed), change(scene(seed + 100)), 12) for seed in range(20))
    assert pixel_digest(scene(1)) != pixel_digest(change(scene(1)))


def test_images_of_one_grey_are_like_none_but_by_their_pixels():
    grey = Image.new("RGB", (20, 20), (90, 90, 90))
    assert not alike(grey, Image.new("RGB", (20, 20), (91, 91, 91)))
    assert pixel_digest(grey) == pixel_digest(grey.copy())
    assert pixel_digest(grey) != pixel_digest(grey.resize((10, 40)))


def test_hashes_within_the_distance_share_a_key():
    chosen = np.random.default_rng(0)
    for distance in (0, 4, 8, 12):
        bits = rows_of_band(1 - distance / 64, bands=32)
        first = chosen.integers(0, 2**63, 500).astype(np.uint64)
        flips = [sum(1 << int(bit) for bit in chosen.permutation(64)[:distance]) for _ in first]
        keys = [bit_keys(hashes, bits, keys=32) for hashes in (first, first ^ np.array(flips, np.uint64))]
        assert (keys[0] == keys[1]).any(axis=1).mean() >= 0.97
        assert (keys[0] != 0).all()


# Twins ----------------------------------------------------------------------------------------------------------------


def twins_of(tmp_path, values, *, near, leaves=lambda _earlier, _later: True, asked=None):
    """Twins of numbers that are alike if they differ by ``near`` at most; all share one key."""
    numbers = np.array(values)
    (tmp_path / "band").write_bytes(np.ones(len(values), np.uint64).tobytes())
    asked = np.ones(len(values), bool) if asked is None else np.array(asked)

    def same(first, second):
        return abs(numbers[first] - numbers[second]) <= near

    pairs = find_pairs([tmp_path / "band"], len(values), asked, same, lambda: None)
    return choose_twins(pairs, len(values), leaves, same).tolist()


TWINS = {
    "none": ([1, 5, 9], 0, [-1, -1, -1]),
    "the first stays": ([1, 1, 1], 0, [-1, 0, 0]),
    "a chain ends where its members are no longer alike": ([10, 11, 12, 13], 1, [-1, 0, -1, 2]),
    "nobody": ([], 0, []),
}


@pytest.mark.parametrize(("values", "near", "expected"), TWINS.values(), ids=TWINS)
def test_twins(tmp_path, values, near, expected):
    assert twins_of(tmp_path, values, near=near) == expected


def test_one_that_may_not_leave_is_still_like_others(tmp_path):
    stays = twins_of(tmp_path, [10, 11, 12], near=1, leaves=lambda _earlier, later: later == 2)
    assert stays == [-1, 0, 1]


def test_rows_that_are_not_asked_for_have_no_twin(tmp_path):
    assert twins_of(tmp_path, [1, 1, 1], near=0, asked=[True, False, True]) == [-1, -1, 0]


def test_keys_that_differ_are_never_measured(tmp_path):
    (tmp_path / "band").write_bytes(np.array([1, 2, 0, 0], np.uint64).tobytes())
    pairs = find_pairs([tmp_path / "band"], 4, np.ones(4, bool), lambda *_: pytest.fail("measured"), lambda: None)
    assert pairs.tolist() == []


def test_many_keys_are_sorted_in_parts(tmp_path, monkeypatch):
    monkeypatch.setattr("finetune_trainer.cleaning.twins._SORTED", 3)
    keys = np.array([5, 6, 5, 7, 6, 5, 8, 7], np.uint64)
    (tmp_path / "band").write_bytes(keys.tobytes())
    pairs = find_pairs(
        [tmp_path / "band"], 8, np.ones(8, bool), lambda first, _second: np.ones(len(first), bool), lambda: None
    )
    assert pairs.tolist() == [[0, 2], [1, 4], [0, 5], [2, 5], [3, 7]]


# Confident learning ---------------------------------------------------------------------------------------------------

LABELS = np.array([0, 0, 0, 0, 1, 1, 1, 1])
PROBABILITIES = np.array(
    [[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.1, 0.9], [0.2, 0.8], [0.1, 0.9], [0.95, 0.05], [0.3, 0.7]]
)
"""Sample 3 says 0 and is likely to be 1, sample 6 the other way round."""


def test_confident_joint_of_the_paper():
    thresholds = class_thresholds(LABELS, PROBABILITIES)
    assert thresholds.tolist() == pytest.approx([0.625, 0.6125])
    joint = confident_joint(LABELS, PROBABILITIES, thresholds)
    assert joint.tolist() == [[3, 1], [1, 3]]
    assert estimated_counts(LABELS, joint).tolist() == [[3, 1], [1, 3]]
    assert likely_mislabelled(LABELS, PROBABILITIES).tolist() == [3, 6]


def test_a_sample_below_every_threshold_is_not_counted_yet_its_label_keeps_its_share():
    labels = np.array([0, 0, 1, 1])
    joint = confident_joint(labels, np.array([[0.9, 0.1], [0.5, 0.5], [0.1, 0.9], [0.1, 0.9]]), np.array([0.7, 0.9]))
    assert joint.tolist() == [[1, 0], [0, 2]]
    assert estimated_counts(labels, joint).tolist() == [[2, 0], [0, 2]]


def test_a_class_without_samples_is_nobodys():
    labels = np.array([0, 2, 0, 2])
    probabilities = np.array([[0.5, 0.4, 0.1], [0.1, 0.5, 0.4], [0.6, 0.3, 0.1], [0.0, 0.1, 0.9]])
    assert class_thresholds(labels, probabilities)[1] == np.inf
    assert likely_mislabelled(labels, probabilities).tolist() == []


def test_confident_learning_finds_planted_noise():
    chosen = np.random.default_rng(0)
    truth = chosen.integers(0, 5, 4000)
    scores = chosen.normal(size=(4000, 5)) + 4 * np.eye(5)[truth]
    probabilities = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    wrong = chosen.random(4000) < 0.1
    labels = np.where(wrong, (truth + chosen.integers(1, 5, 4000)) % 5, truth)
    found = np.zeros(4000, bool)
    found[likely_mislabelled(labels, probabilities)] = True
    assert (found & wrong).sum() / wrong.sum() >= 0.9
    assert (found & wrong).sum() / found.sum() >= 0.9


# Out-of-fold models ---------------------------------------------------------------------------------------------------


def test_folds_hold_every_class_alike_and_follow_the_seed():
    labels = np.repeat([0, 1, 2], [10, 20, 5])
    fold = deal(labels, 5, seed=3)
    counts = np.array([[((labels == label) & (fold == number)).sum() for number in range(5)] for label in range(3)])
    assert counts.tolist() == [[2] * 5, [4] * 5, [1] * 5]
    assert deal(labels, 5, seed=3).tolist() == fold.tolist()
    assert deal(labels, 5, seed=4).tolist() != fold.tolist()


def contents_of(texts):
    return Contents({"source": Samples(pa.table({"text": texts}), (), {})})


def probabilities_of(folder, texts, labels, *, seed=0):
    folder.mkdir()
    features = text_features(contents_of(texts), 1024, folder, lambda: None)
    fold = deal(labels, 4, seed)
    file = folder / "probabilities"
    return np.array(out_of_fold(features, labels, fold, 2, seed=seed, file=file, beat=lambda: None)), fold


def test_models_know_other_folds_and_never_a_samples_own_label(tmp_path):
    chosen = np.random.default_rng(0)
    words = [["red", "hot", "fire"], ["blue", "cold", "ice"]]
    labels = np.arange(200) % 2
    texts = [" ".join(chosen.choice(words[label], 5)) for label in labels]
    before, fold = probabilities_of(tmp_path / "a", texts, labels)
    assert (before.argmax(axis=1) == labels).mean() >= 0.95
    assert before.sum(axis=1) == pytest.approx(np.ones(200), abs=1e-5)
    again, _ = probabilities_of(tmp_path / "b", texts, labels)
    assert (again == before).all()
    flipped = labels.copy()
    flipped[fold == 0] ^= 1
    features = text_features(contents_of(texts), 1024, tmp_path / "a", lambda: None)
    after = out_of_fold(features, flipped, fold, 2, seed=0, file=tmp_path / "c", beat=lambda: None)
    assert (np.array(after)[fold == 0] == before[fold == 0]).all()
    assert (np.array(after)[fold == 1] != before[fold == 1]).any()


@pytest.mark.parametrize(("models", "width"), [(10, 2**18), (60, 2**18), (100, 2**17), (5000, 2**11), (10**6, 2**10)])
def test_features_grow_fewer_with_the_models(models, width):
    assert text_width(models) == width
