"""The base model's own view of an image, frozen: features that label noise is found with."""

from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from finetune_api.job import JobSpec
from finetune_trainer.cleaning.features import Network, thumbnails
from finetune_trainer.context import Context


def network_of(spec: JobSpec, context: Context) -> Network:
    """Images → features (n, F): the checkpoint's last hidden states, pooled; thumbnails for a model that is new."""
    from finetune_trainer.models import load_processor, model_folder

    folder = model_folder(spec.model, context)
    if folder is None:
        return thumbnails
    from transformers import AutoModel

    model = AutoModel.from_pretrained(folder, trust_remote_code=spec.model.trust_remote_code)
    tower = getattr(model, "vision_model", model).float().eval()
    device = torch.device("cuda", context.local_rank) if torch.cuda.is_available() else torch.device("cpu")
    processor = load_processor(spec.model, folder, model.config, spec.data.image_size)
    return partial(_features, tower.to(device), processor, getattr(model.config, "num_channels", 3))


def _features(tower: Any, processor: Any, channels: int, images: list[Any]) -> Tensor:
    grey = channels == 1
    arrays = [np.array(image.convert("L"))[..., None] if grey else np.array(image) for image in images]
    pixels = processor(images=arrays, return_tensors="pt", input_data_format="channels_last")["pixel_values"]
    device = next(tower.parameters()).device
    with torch.no_grad():
        outputs = tower(pixel_values=pixels.to(device))
    return _pooled(outputs)


def _pooled(outputs: Any) -> Tensor:
    """(n, F): the pooler's output, else the mean over patches (n, T, F) or places (n, F, H, W)."""
    pooled = getattr(outputs, "pooler_output", None)
    if pooled is not None:
        return torch.flatten(pooled, 1)
    hidden: Tensor = outputs.last_hidden_state
    return hidden.mean(dim=1) if hidden.ndim == 3 else hidden.flatten(2).mean(dim=2)  # noqa: PLR2004 - patches
