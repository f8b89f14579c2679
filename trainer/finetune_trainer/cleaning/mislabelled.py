"""Samples of the main source whose label is likely to be wrong; found once, kept in the cache."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.cleaning import LabelNoise
from finetune_api.job import JobSpec
from finetune_trainer.cleaning.confident import likely_mislabelled
from finetune_trainer.cleaning.contents import Contents
from finetune_trainer.cleaning.duplicates import MAIN, Finding, Kind, Outcome, as_line
from finetune_trainer.cleaning.encoder import network_of
from finetune_trainer.cleaning.features import image_features, text_features, text_width
from finetune_trainer.cleaning.folds import Features, deal, out_of_fold
from finetune_trainer.cleaning.text_hashes import Indices
from finetune_trainer.context import Context
from finetune_trainer.data.cache import Beat, cached
from finetune_trainer.data.read import Samples
from finetune_trainer.errors import DataError

_FORMAT = 1
_FIELD = "spec.data.cleaning.labelNoise"


@dataclass(frozen=True)
class Mislabelled:
    """Samples that are likely to be mislabelled, (m,) each."""

    rows: Indices
    classes: Indices
    """The class that is likelier."""
    own: NDArray[np.float32]
    """Probability of the label that it has."""
    other: NDArray[np.float32]
    """Probability of the likelier class."""

    def weights(self, count: int) -> NDArray[np.float32]:
        """(count,) weight of each sample in the loss: the probability of its label, 1 for those without suspicion."""
        weights = np.ones(count, np.float32)
        weights[self.rows] = self.own
        return weights


def find_mislabelled(
    samples: Samples, values: Indices, labels: tuple[str, ...], spec: JobSpec, context: Context, beat: Beat
) -> Mislabelled:
    """Samples whose label the models of the other folds doubt.

    A class with fewer samples than folds is not judged: some fold's model may not know it.

    Args:
        samples: The samples.
        values: (N,) their classes.
        labels: The classes' names.
        spec: The spec; ``data.cleaning.labelNoise`` is set.
        context: The run.
        beat: Called for every chunk.

    Raises:
        DataError: Fewer than two classes have as many samples as there are folds.
    """
    assert spec.data.cleaning is not None
    noise = spec.data.cleaning.label_noise
    assert noise is not None
    counts = np.bincount(values, minlength=len(labels))
    is_judged = (counts >= noise.folds)[values]
    if (counts >= noise.folds).sum() < 2:  # noqa: PLR2004 - two classes to tell apart
        raise DataError(
            f"{_FIELD}.folds: is {noise.folds}, but fewer than two classes have that many samples; lower it, or remove"
            " labelNoise"
        )
    seed = spec.data.split.seed
    key = {
        "version": _FORMAT,
        "samples": dict(samples.key),
        "labels": labels,
        "folds": noise.folds,
        "seed": seed,
        "model": [spec.model.source, spec.model.revision, spec.data.image_size]
        if "image" in samples.table.column_names
        else None,
    }

    def build(folder: Path) -> None:
        with TemporaryDirectory(dir=folder) as scratch:
            found = _find(
                samples, values, np.flatnonzero(is_judged), (noise, len(labels)), Path(scratch), spec, context, beat
            )
        np.savez(folder / "found.npz", **found)

    return cached(context.cache, "mislabelled", key, build=build, load=_load, beat=beat)


def _load(folder: Path) -> Mislabelled:
    with np.load(folder / "found.npz") as found:
        return Mislabelled(**found)


def _find(
    samples: Samples,
    values: Indices,
    judged: Indices,
    size: tuple[LabelNoise, int],
    scratch: Path,
    spec: JobSpec,
    context: Context,
    beat: Beat,
) -> Mapping[str, Any]:
    noise, classes = size
    contents, seed = Contents({MAIN: samples}), spec.data.split.seed
    features = _features(contents, noise.folds * classes, scratch, spec, context, beat)
    mine = values[judged]
    fold = deal(mine, noise.folds, seed)
    probabilities = out_of_fold(
        _Some(features, judged), mine, fold, classes, seed=seed, file=scratch / "probabilities", beat=beat
    )
    rows = likely_mislabelled(mine, probabilities)
    some = np.asarray(probabilities[rows])
    own = some[np.arange(len(rows)), mine[rows]]
    some[np.arange(len(rows)), mine[rows]] = -1
    return {"rows": judged[rows], "classes": some.argmax(axis=1), "own": own, "other": some.max(axis=1, initial=0)}


def _features(contents: Contents, models: int, scratch: Path, spec: JobSpec, context: Context, beat: Beat) -> Features:
    if contents.has_images:
        return image_features(contents, network_of(spec, context), scratch, beat)
    return text_features(contents, text_width(models), scratch, beat)


@dataclass(frozen=True)
class _Some:
    """Features of some rows, which count from 0."""

    features: Features
    rows: Indices

    @property
    def width(self) -> int:
        return self.features.width

    def take(self, rows: Indices) -> Any:
        return self.features.take(self.rows[rows])


def mislabelled_lines(
    found: Mislabelled, samples: Samples, labels: tuple[str, ...], train: Indices, noise: LabelNoise
) -> Iterator[dict[str, Any]]:
    """What the run's folder tells of each; only what is in the training set (rows ``train``) is dropped or weighted."""
    contents = Contents({MAIN: samples})
    done = {"report": Outcome.REPORTED, "drop": Outcome.DROPPED, "downWeight": Outcome.DOWN_WEIGHTED}[noise.action]
    in_train = np.isin(found.rows, train)
    for place in np.argsort(found.own - found.other, kind="stable").tolist():
        name = labels[int(found.classes[place])]
        why = f'is likely to be "{name}" ({found.other[place]:.0%}); its own label has {found.own[place]:.0%}'
        outcome = done if in_train[place] else Outcome.REPORTED
        finding = Finding(int(found.rows[place]), Kind.LABEL, outcome, why)
        yield as_line(contents, finding) | {"likelier": name}
