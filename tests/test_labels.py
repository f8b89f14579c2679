"""Labels to classes and numbers; samples to training, validation and test set."""

import logging
from fractions import Fraction
from math import ceil, floor

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune_trainer.data.label_values import label_array, label_column, label_text
from finetune_trainer.data.labels import find_labels, find_numbers
from finetune_trainer.data.split import split_indices
from finetune_trainer.errors import DataError

LABEL = "spec.data.columns.label"


def origin(index: int) -> str:
    return f"d.csv:{index + 2}"


def find(values, given_labels=None, *, multi=False, train=None):
    halves = [values[: len(values) // 2], values[len(values) // 2 :]]  # a column in two chunks, as tables are
    column = pa.chunked_array(halves, label_array(values).type)
    train = np.arange(len(values)) if train is None else np.array(train)
    return find_labels(column, train, given_labels, origin, multi=multi, separator="|")


CLASSES = {
    "by code point": (["b", "a", "ä", "B"], None, ("B", "a", "b", "ä"), [2, 1, 3, 0]),
    "by number": (["10", "9", "-1"], None, ("-1", "9", "10"), [2, 1, 0]),
    "numbers and a word": (["10", "9", "x"], None, ("10", "9", "x"), [0, 1, 2]),
    "as given": (["b", "a"], ("b", "c", "a"), ("b", "c", "a"), [0, 2]),
    "blanks do not count": ([" a", "a ", "b"], None, ("a", "b"), [0, 0, 1]),
}


@pytest.mark.parametrize(("values", "given_labels", "labels", "ids"), CLASSES.values(), ids=CLASSES)
def test_classes(values, given_labels, labels, ids):
    found, encoded = find(values, given_labels)
    assert (found, encoded.tolist(), encoded.dtype) == (labels, ids, np.int64)


SETS = {
    "strings": (["b|a", "", " a | a |", "c"], ("a", "b", "c"), [0, 2, 2, 3, 4], [0, 1, 0, 2]),
    "lists": ([["b", "a"], [], ["a"], ["c", " "]], ("a", "b", "c"), [0, 2, 2, 3, 4], [0, 1, 0, 2]),
}


@pytest.mark.parametrize(("values", "labels", "offsets", "ids"), SETS.values(), ids=SETS)
def test_sets_of_classes(values, labels, offsets, ids):
    found, (found_offsets, found_ids) = find(values, multi=True)
    assert (found, found_offsets.tolist(), found_ids.tolist()) == (labels, offsets, ids)


def test_a_given_class_without_training_samples_is_only_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        find(["a", "b", "c"], ("a", "b", "c"), train=[0, 1])
    assert caplog.messages == ['spec.data.labels: no training sample has "c"']


BAD_CLASSES = {
    "outside the list": (
        {"values": ["positive", "Negativ"], "given_labels": ("positive", "negative")},
        f'd.csv:3: {LABEL}: "Negativ" is not in spec.data.labels ("positive", "negative"); did you mean "negative"?',
    ),
    "outside the list, several": (
        {"values": ["a|b", "a|x"], "given_labels": ("a", "b"), "multi": True},
        f'd.csv:3: {LABEL}: "x" is not in spec.data.labels ("a", "b")',
    ),
    "empty": ({"values": ["a", " "]}, f"d.csv:3: {LABEL}: is empty; label the sample or remove it"),
    "one class": (
        {"values": ["a"] * 3000},
        f'{LABEL}: all 3,000 labels of the training samples are "a"; there must be two classes at least: ',
    ),
    "not in training": (
        {"values": ["a", "b", "c", "d"], "train": [0, 1]},
        f'{LABEL}: no training sample has "c", "d", yet others have; add training samples of it, ',
    ),
    "nothing at all": (
        {"values": ["", ""], "multi": True},
        f"{LABEL}: no training sample has any class; is it the right column?",
    ),
    "too many": (
        {"values": [f"text {i}" for i in range(10_001)]},
        f"{LABEL}: has 10,001 different values in 10,001 samples, more than 10,000 classes; is it the right column? ",
    ),
    "a list for one class": (
        {"values": [["a"], ["b"]]},
        f"d.csv:2: {LABEL}: is a list; set spec.data.multiLabel: true if a sample may have several",
    ),
}


@pytest.mark.parametrize(("arguments", "message"), BAD_CLASSES.values(), ids=BAD_CLASSES)
def test_refuses_classes(arguments, message):
    with pytest.raises(DataError) as error:
        find(**arguments)
    assert str(error.value).startswith(message)


def test_numbers():
    column = pa.chunked_array([["1", " -2.5 "], ["1e-3"]])
    assert find_numbers(column, origin).tolist() == [1, -2.5, 1e-3]


BAD_NUMBERS = {
    "word": (["1", "2", "x3", "y"], f'd.csv:4: {LABEL}: "x3" is not a finite number'),
    "NaN": (["1", "nan"], f'd.csv:3: {LABEL}: "nan" is not a finite number'),
    "infinite": (["1", "-inf"], f'd.csv:3: {LABEL}: "-inf" is not a finite number'),
    "too large": (["1", "1e999"], f'd.csv:3: {LABEL}: "1e999" is not a finite number'),
    "empty": (["1", " "], f"d.csv:3: {LABEL}: is empty, must be a number"),
    "list": ([["1"]], f"d.csv:2: {LABEL}: is a list, must be a number"),
}


@pytest.mark.parametrize(("values", "message"), BAD_NUMBERS.values(), ids=BAD_NUMBERS)
def test_refuses_numbers(values, message):
    with pytest.raises(DataError) as error:
        find_numbers(pa.chunked_array([values]), origin)
    assert str(error.value) == message


@given(st.lists(st.floats(allow_nan=False), min_size=1) | st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1))
def test_json_and_parquet_agree_on_a_label_and_it_reads_back_the_same(values):
    texts = label_column(pa.array(values)).to_pylist()
    assert [float(text) for text in texts] == [float(value) for value in values]
    for value, text in zip(values, texts, strict=True):
        if isinstance(value, int) or (value.is_integer() and abs(value) < 2**53):
            assert label_text(value) == text == str(int(value))


# Splitting ------------------------------------------------------------------------------------------------------------

PARTS = ("train", "validation", "test")
shares = st.integers(0, 20) | st.sampled_from([0.7, 0.2, 0.1, 0.05, 1 / 3])
positive = shares.filter(bool)
proportions = st.builds(lambda *share: dict(zip(PARTS, share, strict=True)), positive, shares, shares)


def split(count, share, *, seed=0, strata=None):
    return split_indices(count, proportions=share, seed=seed, strata=strata)


def quota(count, share, name):
    exact = {part: Fraction(repr(float(value))) for part, value in share.items()}
    return count * exact[name] / sum(exact.values())


def assert_partition(parts, count):
    assert sorted(np.concatenate(list(parts.values())).tolist()) == list(range(count))
    assert all((np.diff(part) > 0).all() and part.dtype == np.int64 for part in parts.values())


@given(count=st.integers(3, 300), share=proportions, seed=st.integers(0, 2**31 - 1))
def test_split_without_strata(count, share, seed):
    parts = split(count, share, seed=seed)
    assert_partition(parts, count)
    for name, part in parts.items():
        exact = quota(count, share, name)
        least = 1 if name != "test" and share[name] else 0
        assert max(floor(exact), least) - 1 <= len(part) <= max(ceil(exact), least)
        assert len(part) >= least
        assert len(part) == 0 or share[name] > 0


@settings(deadline=None)
@given(
    sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12),
    share=st.sampled_from([(7, 2, 1), (0.7, 0.2, 0.1), (8, 1, 1), (9, 1, 0), (1, 1, 1), (5, 0, 1), (1, 19, 3)]),
    seed=st.integers(0, 9),
)
def test_split_keeps_the_classes_shares(sizes, share, seed):
    share = dict(zip(PARTS, share, strict=True))
    strata = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(sizes)), sizes))
    try:
        parts = split(len(strata), share, seed=seed, strata=strata)
    except DataError:
        assert sum(sizes) - len(sizes) < 5  # hardly anything is left once every class has its training sample
        return
    assert_partition(parts, len(strata))
    for stratum, size in enumerate(sizes):
        cells = {name: int((strata[part] == stratum).sum()) for name, part in parts.items()}
        assert all(abs(cells[name] - quota(size, share, name)) < 1 for name in parts)
        assert cells["train"] >= 1
    if min(sizes) * share["train"] >= sum(share.values()):  # no class gets its only training sample out of turn
        assert all(abs(len(part) - quota(len(strata), share, name)) <= 1 for name, part in parts.items())


EXACT = {
    "10 by 7:2:1": (10, (7, 2, 1), (7, 2, 1)),
    "0.7:0.2:0.1 is 7:2:1": (10_000, (0.7, 0.2, 0.1), (7000, 2000, 1000)),
    "largest remainder": (11, (7, 2, 1), (8, 2, 1)),
    "a tie goes to the earlier": (3, (1, 1, 0), (2, 1, 0)),
    "validation is never empty": (3, (98, 1, 1), (2, 1, 0)),
    "no test": (4, (3, 1, 0), (3, 1, 0)),
    "no validation": (4, (3, 0, 1), (3, 0, 1)),
    "one sample, all for training": (1, (1, 0, 0), (1, 0, 0)),
}


@pytest.mark.parametrize(("count", "share", "sizes"), EXACT.values(), ids=EXACT)
def test_split_sizes(count, share, sizes):
    parts = split(count, dict(zip(PARTS, share, strict=True)))
    assert tuple(len(part) for part in parts.values()) == sizes


STRATA = {
    "exact in each and overall": ([10, 20, 30], [(7, 2, 1), (14, 4, 2), (21, 6, 3)]),
    "overall too": ([5, 5], [(4, 1, 0), (3, 1, 1)]),
    "small classes": ([1, 1, 2, 16], [(1, 0, 0), (1, 0, 0), (1, 1, 0), (11, 3, 2)]),
}


@pytest.mark.parametrize(("sizes", "expected"), STRATA.values(), ids=STRATA)
def test_split_of_strata(sizes, expected):
    strata = np.repeat(np.array(["a", "b", "c", "d"])[: len(sizes)], sizes)
    parts = split(len(strata), dict(zip(PARTS, (7, 2, 1), strict=True)), strata=strata)
    counts = [tuple(int((strata[part] == name).sum()) for part in parts.values()) for name in np.unique(strata)]
    totals = tuple(map(sum, zip(*expected, strict=True)))
    assert tuple(map(sum, zip(*counts, strict=True))) == totals
    assert sorted(counts) == sorted(expected)


def test_split_is_the_same_on_every_platform():
    parts = split(12, {"train": 7, "validation": 2, "test": 1}, seed=3, strata=np.array([0, 1] * 6))
    assert {name: part.tolist() for name, part in parts.items()} == {
        "train": [0, 1, 4, 5, 6, 7, 8, 9, 10],
        "validation": [2, 11],
        "test": [3],
    }


def test_seeds_differ():
    first, second = (split(100, {"train": 1, "validation": 1}, seed=seed)["train"] for seed in (0, 1))
    assert first.tolist() != second.tolist()


@pytest.mark.parametrize(
    ("count", "strata", "message"),
    [
        (1, None, "1 sample cannot be divided: none is left for validation; add"),
        (
            3,
            [0, 1, 2],
            "3 samples cannot be divided, with one of every class in training: none is left for validation;",
        ),
    ],
    ids=["one sample", "one sample a class"],
)
def test_refuses_to_leave_validation_empty(count, strata, message):
    with pytest.raises(DataError, match=f"^spec.data.split.validation: {message}"):
        split(count, {"train": 7, "validation": 2, "test": 1}, strata=None if strata is None else np.array(strata))
