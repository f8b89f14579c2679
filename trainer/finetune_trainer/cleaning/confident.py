"""Confident learning: which labels are likely to be wrong, from probabilities that no sample's own label has shaped.

Northcutt, Jiang, Chuang 2021, "Confident Learning: Estimating Uncertainty in Dataset Labels", Journal of Artificial
Intelligence Research 70, https://doi.org/10.1613/jair.1.12125. Pure functions of arrays; n samples, C classes.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Integers = NDArray[np.int64]
_CHUNK = 65_536


def class_thresholds(labels: Integers, probabilities: Floats) -> Floats:
    """(C,) mean probability of each class over the samples that bear its label (equation 2); infinite where none do."""
    classes = probabilities.shape[1]
    given = np.asarray(probabilities[np.arange(len(labels)), labels], np.float64)
    counts = np.bincount(labels, minlength=classes)
    return np.where(counts > 0, np.bincount(labels, given, classes) / np.maximum(counts, 1), np.inf)


def confident_joint(labels: Integers, probabilities: Floats, thresholds: Floats) -> NDArray[np.int64]:
    """(C, C) samples by label (row) and by the class that they belong to with confidence (equation 1).

    That is the likeliest of the classes that reach their threshold; a sample in which none does is not counted.
    """
    joint = np.zeros((len(thresholds), len(thresholds)), np.int64)
    for start in range(0, len(labels), _CHUNK):
        some = np.asarray(probabilities[start : start + _CHUNK])
        above = some >= thresholds
        sure = above.any(axis=1)
        likeliest = np.where(above, some, -1).argmax(axis=1)
        np.add.at(joint, (labels[start : start + _CHUNK][sure], likeliest[sure]), 1)
    return joint


def estimated_counts(labels: Integers, joint: NDArray[np.int64]) -> Floats:
    """(C, C) samples by label and true class, as estimated: each row sums to the samples of its label (equation 3)."""
    given = np.bincount(labels, minlength=len(joint)).astype(np.float64)
    rows = joint.sum(axis=1, keepdims=True)
    shares = np.where(rows > 0, joint / np.maximum(rows, 1), np.eye(len(joint)))
    return shares * given[:, None]


def likely_mislabelled(labels: Integers, probabilities: Floats) -> Integers:
    """Indices of the samples that are both among the least likely of their label and the likeliest of another class.

    As many as the estimated joint distribution says (section 3.2, method 5, "C+NR"): of each label, as many of the
    lowest own probability as it has wrong ones (prune by class), and of each pair of label and class as many of the
    largest margin (prune by noise rate); what both choose. Ascending.
    """
    counts = estimated_counts(labels, confident_joint(labels, probabilities, class_thresholds(labels, probabilities)))
    found = [_of_label(np.flatnonzero(labels == label), label, probabilities, counts[label]) for label in _used(labels)]
    return np.sort(np.concatenate([*found, np.zeros(0, np.int64)]))


def _used(labels: Integers) -> list[int]:
    return list(np.unique(labels).tolist())


def _of_label(rows: Integers, label: int, probabilities: Floats, counts: Floats) -> Integers:
    own = np.asarray(probabilities[rows, label])
    wrong = round(float(counts.sum() - counts[label]))
    by_class = np.zeros(len(rows), bool)
    by_class[np.argsort(own, kind="stable")[:wrong]] = True
    by_rate = np.zeros(len(rows), bool)
    for other in np.flatnonzero(counts >= 0.5).tolist():  # noqa: PLR2004 - rounds to one sample at least
        if other != label:
            margin = np.asarray(probabilities[rows, other]) - own
            by_rate[np.argsort(-margin, kind="stable")[: round(float(counts[other]))]] = True
    return rows[by_class & by_rate]
