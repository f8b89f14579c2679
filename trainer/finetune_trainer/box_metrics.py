"""Average precision of boxes, as COCO has it (https://cocodataset.org/#detection-eval).

Imports torchmetrics and pycocotools: import this module at the first evaluation, not before.
"""

from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

THRESHOLDS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""IoU from which a box is found. COCO's own; torchmetrics would take their neighbours in float32."""
LEVELS = tuple(np.linspace(0, 1, 101).tolist())
"""Recalls at which the precision is read."""


class BoxPrecision(MeanAveragePrecision):
    """Mean over classes and IoU thresholds of the area under the precision-recall curve; 0 if there is no object.

    Holds the 100 surest boxes of each image (2.4 kB), no pixels.
    """

    def __init__(self, thresholds: list[float] | None) -> None:
        """``thresholds``: IoU from which a box is found; None for 0.50, 0.55 … 0.95."""
        super().__init__(iou_thresholds=thresholds or list(THRESHOLDS), rec_thresholds=list(LEVELS))
        self.warn_on_many_detections = False
        self._most = max(self.max_detection_thresholds)

    def update(self, found: list[dict[str, Tensor]], wanted: list[dict[str, Tensor]]) -> None:
        """Take in boxes (left, top, right, bottom), scores and labels of each image; and what is there."""
        super().update([self._surest(one) for one in found], wanted)

    def _surest(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        best = found["scores"].float().topk(min(self._most, len(found["scores"]))).indices
        return {name: found[name][best].detach() for name in ("boxes", "scores", "labels")}

    def _sync_dist(self, dist_sync_fn: Any = None, process_group: Any = None) -> None:  # noqa: ARG002 - torchmetrics' name
        """Gather what all processes hold. torchmetrics gathers image by image, for which all must have as many."""
        own = {name: [each.cpu() for each in getattr(self, name)] for name in self._defaults}
        gathered: list[Any] = [None] * dist.get_world_size(process_group)
        dist.all_gather_object(gathered, own, group=process_group)
        for name in own:
            setattr(self, name, [each.to(self.device) for one in gathered for each in one[name]])

    def compute(self) -> Any:
        """() float32."""
        value: Tensor = super().compute()["map"]
        return torch.clamp(value, min=0.0)
