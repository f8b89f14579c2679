"""What image-text-matching minimises: a contrastive part and a classification part."""

from typing import Annotated

from pydantic import Field

from finetune_api.base import ApiModel, Rule

Weight = Annotated[float, Field(ge=0, le=1000)]


class Matching(ApiModel):
    """The loss of image-text-matching: `contrastiveWeight` × contrastive + `classificationWeight` × cross-entropy.

    Contrastive: of all pairs in the batch, over all processes, each image finds its text and each text its image
    (symmetric InfoNCE, https://arxiv.org/abs/2103.00020). Pairs with the same image or the same text count as right.
    """

    contrastive_weight: Weight = 1
    """Weight of the contrastive part."""
    classification_weight: Weight = 1
    """Weight of the classification part: with `labels` the class of the image, with BLIP whether image and text belong
    together."""
    labels: bool = False
    """Train a classifier of the images, too, on `columns.label` (CLIP): the exported folder then also loads as
    AutoModelForImageClassification."""
    temperature: Annotated[float, Field(gt=0, le=10)] | None = None
    """What similarities are divided by where the model does not learn it (BLIP). Unset: 0.07."""


MATCHING_RULES = (
    Rule(
        cel="!has(self.training) || !has(self.training.matching) || self.task == 'image-text-matching'",
        check=lambda spec: spec.training.matching is None or spec.task == "image-text-matching",
        message="goes with task image-text-matching only",
        field="training.matching",
    ),
)
"""What a spec as a whole must keep to."""
