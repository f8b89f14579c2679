"""How sure the test metrics are: what is asked for, and what is told."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Count


class Intervals(ApiModel):
    """Confidence intervals of the test metrics: percentiles over resamples of the test set (the bootstrap)."""

    resamples: Annotated[int, Field(ge=0, le=10_000)] = 1000
    """Resamples; 0 for no intervals. Fewer are drawn where there are so many classes that they would take more than
    128 MiB."""
    confidence: Annotated[float, Field(ge=0.5, le=0.999)] = 0.95
    """Share of the resamples whose metric lies within."""
    seed: Count = 0
    """Seed of the resamples."""


class Interval(ApiModel):
    """Where a metric would probably lie on another test set of the same kind and size."""

    low: float
    """Its lower end."""
    high: float
    """Its upper end."""
