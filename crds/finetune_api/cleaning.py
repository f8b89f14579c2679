"""What is looked for in the samples before they are divided, and what becomes of what is found."""

from typing import Annotated, Any, Literal

from pydantic import Field

from finetune_api.base import ApiModel, Rule

Action = Literal["drop", "report", "error"]


class NearDuplicates(ApiModel):
    """Samples that are almost the same: texts by the words they share, images by what they look like."""

    threshold: Annotated[float, Field(ge=0.5, le=1)] = 0.8
    """Texts: Jaccard similarity of the sets of word pairs, from which on two are near duplicates, 0.5 to 1."""
    hamming_distance: Annotated[int, Field(ge=0, le=12)] = 4
    """Images: bits of 64, at most, in which the perceptual hashes of two near duplicates differ."""
    action: Action = "drop"
    """Keep the first of them; report them only; or end the run. Those whose labels differ are reported only: the little
    that differs may be what the label is about."""


class LabelNoise(ApiModel):
    """Samples whose label is likely to be wrong, by confident learning (https://doi.org/10.1613/jair.1.12125).

    A light model, trained on the other folds, is confident of another class. For tasks with one class a sample.
    """

    action: Literal["report", "drop", "downWeight"] = "report"
    """Report them only; drop them from the training set; or give them the weight in the loss that the light model gives
    to their label. What is measured by (validation, test) keeps them. Dropping all that a class has to train on is an
    error."""
    folds: Annotated[int, Field(ge=2, le=20)] = 5
    """Parts that the samples are divided into; each is judged by a model of the others."""


class Cleaning(ApiModel):
    """What is looked for in the samples before they are divided; the run's folder and report tell what was found."""

    empty: Literal["drop", "error"] = "error"
    """Samples with an empty text, no label, or an image that is absent or does not decode: drop them or end the run."""
    duplicates: Action | None = None
    """Samples of the same content (letter case and blanks do not count): keep the first, report them only, or end the
    run. Unset: not looked for. Those with different labels are reported as such."""
    near_duplicates: NearDuplicates | None = None
    """Samples of almost the same content. Unset: not looked for."""
    leakage: Literal["drop", "error"] = "error"
    """Duplicates (as looked for above) between `source`, `validationSource` and `testSource`: drop them from what is
    trained on (from validation, if also in test), or end the run."""
    label_noise: LabelNoise | None = None
    """Samples of `source` that are likely to be mislabelled. Unset: not looked for."""


def _noise(spec: Any) -> LabelNoise | None:
    cleaning: Cleaning | None = spec.data.cleaning
    return cleaning.label_noise if cleaning else None


def _mixes(spec: Any) -> bool:
    augmentation = spec.data.augmentation
    return bool(augmentation and augmentation.image and augmentation.image.mixes)


_HAS_NOISE = "has(self.data.cleaning) && has(self.data.cleaning.labelNoise)"
_IMAGE = "self.data.augmentation.image"
CLEANING_RULES = (
    Rule(
        cel=f"!({_HAS_NOISE}) || (self.task in ['text-classification', 'image-classification']"
        " && !self.data.multiLabel)",
        check=lambda spec: (
            _noise(spec) is None
            or (spec.task in ("text-classification", "image-classification") and not spec.data.multi_label)
        ),
        message="goes with task text-classification or image-classification, one class a sample",
        field="data.cleaning.labelNoise",
    ),
    Rule(
        cel=f"!({_HAS_NOISE}) || self.data.cleaning.labelNoise.action != 'downWeight' || !has(self.data.augmentation)"
        f" || !has({_IMAGE}) || (!has({_IMAGE}.mixup) && !has({_IMAGE}.cutmix))",
        check=lambda spec: (noise := _noise(spec)) is None or noise.action != "downWeight" or not _mixes(spec),
        message="does not go with mixup and cutmix, which blend labels; drop, or report",
        field="data.cleaning.labelNoise.action",
    ),
)
"""Rules of the whole spec on what is cleaned for which task."""
