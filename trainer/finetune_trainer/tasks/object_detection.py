"""Which objects are where in an image: YOLOS, and the DETR family as ``AutoModelForObjectDetection`` has it.

The loss is the model's own (a matching of predictions and boxes, https://arxiv.org/abs/2005.12872), its parts taken as
sums: classes are divided by the weighted number of queries (YOLOS, DETR), the rest by the number of boxes, over the
whole batch. In RT-DETR and D-FINE how many denoising queries there are depends on the fullest image of a pass, and
D-FINE's distillation between its layers is a mean over the pass: these two follow how a batch is cut, as dropout does.
"""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from finetune_api.job import Columns, JobSpec
from finetune_trainer.data.dataset import Batch
from finetune_trainer.data.detection import WEIGHTED_ARCHITECTURES
from finetune_trainer.examples import Gallery, Shown
from finetune_trainer.materials import detection_material
from finetune_trainer.task import Objective, Target, Task
from finetune_trainer.thumbnails import boxes_thumbnail

LEAST_SHOWN = 0.5
"""Score from which a prediction is drawn in the report."""


def build(_spec: JobSpec) -> Task:
    """Boxes of one class or more."""
    return Task(
        name="object-detection",
        target=Target.BOXES,
        auto_class="AutoModelForObjectDetection",
        pipeline="object-detection",
        metrics=("map", "map50"),
        monitor="map",
        objective=Objective(set_losses, counts, forward),
        roles=roles,
        material=detection_material,
        judged=judged,
        reads_images=True,
        adapt=sum_losses,
        show=show,
    )


def roles(columns: Columns) -> dict[str, str]:
    """An image and its objects."""
    return {"image": columns.image, "objects": columns.objects}


def forward(model: nn.Module, batch: Batch) -> Any:
    """The model's output with its loss."""
    return model(**batch.inputs, labels=batch.target)


def set_losses(outputs: Any, _batch: Batch) -> Tensor:
    """Of the pass: (1, 2), what is divided by boxes and what by weighted queries."""
    loss: Tensor = outputs.loss
    return loss.unsqueeze(0)


def counts(batch: Batch) -> Tensor:
    """Boxes and weighted queries of each image: (n, 2)."""
    return torch.stack([one["counts"] for one in batch.target])


def judged(outputs: Any, batch: Batch, processor: Any) -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """Boxes (left, top, right, bottom in pixels of the original) with scores and classes; and those that are there."""
    frames = torch.stack([one["frame"] for one in batch.target])
    found = processor.post_process_object_detection(outputs, threshold=0.0, target_sizes=frames)
    for one, wanted in zip(found, batch.target, strict=True):
        height, width = wanted["size"]
        one["boxes"] = one["boxes"].float().minimum(torch.stack([width, height, width, height])).clamp(min=0)
    return found, [{"boxes": one["corners"], "labels": one["class_labels"]} for one in batch.target]


def sum_losses(model: Any) -> None:
    """Let the model give the sums (2,) of its loss instead of means over the pass."""
    is_weighted = model.config.model_type in WEIGHTED_ARCHITECTURES
    own: Callable[..., Any] = _weighted_sums if is_weighted else model.loss_function
    inside = weakref.ref(model)

    def loss(logits: Tensor, labels: list[dict[str, Tensor]], *rest: Any, **options: Any) -> tuple[Tensor, Any, Any]:
        total, parts, auxiliary = own(logits, labels, *rest, **options)
        if total.ndim == 0:
            boxes = sum(len(one["class_labels"]) for one in labels)
            total = torch.stack([total * max(1, boxes), total * 0])
        # DDP wants every weight in every pass, also that of the denoising queries where no image has a box.
        embeddings = (one for one in inside().modules() if isinstance(one, nn.Embedding))  # type: ignore[union-attr]
        return total + sum(one.weight.sum() for one in embeddings) * 0, parts, auxiliary

    model.loss_function = loss


def _weighted_sums(
    logits: Tensor,
    labels: list[dict[str, Tensor]],
    device: torch.device,
    boxes: Tensor,
    config: Any,
    outputs_class: Tensor | None = None,
    outputs_coord: Tensor | None = None,
    **_options: Any,
) -> tuple[Tensor, None, None]:
    """``ForObjectDetectionLoss`` of transformers as sums, without its average of box counts over processes."""
    from transformers.loss.loss_for_object_detection import HungarianMatcher, ImageLoss

    matcher = HungarianMatcher(class_cost=config.class_cost, bbox_cost=config.bbox_cost, giou_cost=config.giou_cost)
    criterion = ImageLoss(matcher, config.num_labels, config.eos_coefficient, []).to(device)
    layers = [(logits, boxes)]
    if config.auxiliary_loss:
        assert outputs_class is not None
        assert outputs_coord is not None
        layers += list(zip(outputs_class[:-1], outputs_coord[:-1], strict=True))
    weight = sum(one["counts"][1] for one in labels)
    total = torch.zeros(2, device=device)
    for each in layers:
        outputs = dict(zip(("logits", "pred_boxes"), each, strict=True))
        matched = matcher(outputs, labels)
        place = criterion.loss_boxes(outputs, labels, matched, 1)
        kind = criterion.loss_labels(outputs, labels, matched, 1)["loss_ce"] * weight
        regression = (
            config.bbox_loss_coefficient * place["loss_bbox"] + config.giou_loss_coefficient * place["loss_giou"]
        )
        total = total + torch.stack([regression.float(), kind.float()])
    return total, None, None


def show(gallery: Gallery) -> Sequence[Shown]:
    """Images with the boxes that were found drawn into them."""
    shown = []
    for number in range(gallery.count):
        batch = gallery.batch(number)
        with torch.no_grad():
            (found,), _ = judged(forward(gallery.model, batch), batch, gallery.companion)
        sure = found["scores"] >= LEAST_SHOWN
        boxes, names = found["boxes"][sure].tolist(), gallery.names(found["labels"][sure])
        wanted = batch.target[0]["corners"].tolist()
        shown.append(
            Shown(
                origin=gallery.origin(number),
                image=boxes_thumbnail(gallery.cell("image", number), expected=wanted, predicted=boxes),
                expected=", ".join(gallery.names(batch.target[0]["class_labels"])),
                predicted=", ".join(
                    f"{name} {score:.0%}" for name, score in zip(names, found["scores"][sure].tolist(), strict=True)
                ),
            )
        )
    return shown
