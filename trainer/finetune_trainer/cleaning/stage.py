"""Cleaning as a run has it: before the division what is the same in every part, after it what concerns training."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from finetune_api.job import JobSpec
from finetune_trainer.cleaning.clean import Cleaned, clean, require_clean
from finetune_trainer.cleaning.duplicates import MAIN
from finetune_trainer.cleaning.mislabelled import find_mislabelled, mislabelled_lines
from finetune_trainer.cleaning.record import write_record
from finetune_trainer.cleaning.text_hashes import Indices
from finetune_trainer.context import Context
from finetune_trainer.data.cache import Beat
from finetune_trainer.data.columns import listing
from finetune_trainer.data.read import Samples
from finetune_trainer.errors import DataError


def clean_sources(
    main: Samples, brought: Mapping[str, Samples], spec: JobSpec, context: Context, beat: Beat
) -> tuple[Samples, dict[str, Samples], Cleaned | None]:
    """The main source and those that are brought, without what shall not be in them; and what was found.

    Raises DataError if something was found that shall end the run; rank 0 has then written what it is.
    """
    if spec.data.cleaning is None:
        return main, dict(brought), None
    sources = {MAIN: main, **{f"{name}Source": samples for name, samples in brought.items()}}
    cleaned = clean(sources, spec.data.cleaning, context, beat)
    if cleaned.refusals and context.is_main:
        write_record(context.run, cleaned)
    require_clean(cleaned)
    kept = {name: cleaned.sources[f"{name}Source"] for name in brought}
    return cleaned.sources[MAIN], kept, cleaned


def judge_labels(
    cleaned: Cleaned | None,
    values: Any,
    labels: tuple[str, ...] | None,
    train: Indices,
    spec: JobSpec,
    context: Context,
    beat: Beat,
) -> tuple[Indices, NDArray[np.float32] | None]:
    """The training rows without those that are likely to be mislabelled, and every row's weight in the loss if asked.

    Rank 0 writes the record of all cleaning. Raises DataError if there are too few samples to judge labels by, or if
    a class would have no training samples left.
    """
    if cleaned is None or spec.data.cleaning is None:
        return train, None
    noise, samples = spec.data.cleaning.label_noise, cleaned.sources[MAIN]
    if noise is None or labels is None:
        if context.is_main:
            write_record(context.run, cleaned)
        return train, None
    found = find_mislabelled(samples, values, labels, spec, context, beat)
    if context.is_main:
        write_record(context.run, cleaned, mislabelled_lines(found, samples, labels, train, noise))
    if noise.action != "drop":
        return train, found.weights(len(samples.table)) if noise.action == "downWeight" else None
    kept = np.setdiff1d(train, found.rows)
    if lost := [labels[index] for index in np.setdiff1d(values[train], values[kept])]:
        raise DataError(
            f"spec.data.cleaning.labelNoise.action: is drop, which leaves no training sample of {listing(lost)}; use"
            " downWeight or report, or add samples of it"
        )
    return kept, None
