"""A checkpoint in a model of another shape: what it has learned is carried over, or the run does not begin.

transformers draws every weight that does not fit at random, and tells its log alone. Here position embeddings of an
image's patches are interpolated for another ``image_size``, and the first convolution is fitted to other channels; the
head and what counts labels are new, as asked for; anything else is refused.
"""

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune_trainer.errors import SpecFault
from finetune_trainer.layers import find_layers

Misfit = tuple[str, Sequence[int], Sequence[int]]
"""Qualified name of a weight, its shape in the checkpoint and in the model."""
_MOST_CLASS_TOKENS = 2
"""DeiT's class and distillation tokens; YOLOS has more, behind the patches, and fits any size by itself."""


def refit(model: nn.Module, before: Any, misfits: Iterable[Misfit], load: Callable[[], nn.Module]) -> set[str]:
    """Carry over into ``model`` what of ``misfits`` can be; returns their names.

    Args:
        model: As transformers loaded it, the misfits drawn at random.
        before: The checkpoint's own configuration.
        misfits: What did not fit.
        load: Loads the checkpoint as it is.

    Raises:
        SpecFault: Something would be lost that is neither the head nor counts labels.
    """
    after: Any = model.config
    _check_grid(_grid(before), _grid(after))
    head = find_layers(model).groups[-1].parameters
    wanted = {
        name: tuple(new)
        for name, old, new in misfits
        if name not in head and not _counts_labels(old, new, before.num_labels, after.num_labels)
    }
    if not wanted:
        return set()
    learned = load().state_dict()
    for name, shape in wanted.items():
        old = learned[name]
        fitted = _for_channels(old, shape, before, after)
        fitted = _for_patches(old, shape, before, after) if fitted is None else fitted
        if fitted is None:
            raise SpecFault(
                f"spec.model.config: {name} is {tuple(old.shape)} in the checkpoint and {shape} with these fields, so"
                " what it has learned would be lost; leave out the field that changes it"
            )
        model.get_parameter(name).data.copy_(fitted)
    return set(wanted)


def _check_grid(before: tuple[int, int] | None, after: tuple[int, int] | None) -> None:
    """As many patches in another arrangement would fit, each at another's place, and nobody would notice."""
    if before is not None and after is not None and before != after and prod(before) == prod(after):
        raise SpecFault(
            f"spec.model.config.image_size: makes {after[0]} x {after[1]} patches, as many as the checkpoint's"
            f" {before[0]} x {before[1]} in another arrangement; choose a size with more or fewer"
        )


def _counts_labels(old: Sequence[int], new: Sequence[int], labels_before: int, labels_after: int) -> bool:
    """Whether nothing but the number of labels differs; detectors may count one more, for nothing at all."""
    if len(old) != len(new):
        return False
    differing = {(a - labels_before, b - labels_after) for a, b in zip(old, new, strict=True) if a != b}
    return differing <= {(0, 0), (1, 1)}


def _for_channels(old: Tensor, shape: tuple[int, ...], before: Any, after: Any) -> Tensor | None:
    """(out, C, h, w) to another C: grey is the sum over the colours, for each of which it stands."""
    channels = _of_images(before, "num_channels"), _of_images(after, "num_channels")
    given = (*old.shape[:1], channels[1], *old.shape[2:])
    if old.ndim != 4 or old.shape[1] != channels[0] or shape != given or None in channels:  # noqa: PLR2004
        return None
    if shape[1] == 1:
        return old.sum(dim=1, keepdim=True)
    return old[:, [channel % old.shape[1] for channel in range(shape[1])]] * (old.shape[1] / shape[1])


def _for_patches(old: Tensor, shape: tuple[int, ...], before: Any, after: Any) -> Tensor | None:
    """(…, class tokens + patches, d) to another number of patches, as ViT's ``interpolate_pos_encoding`` does."""
    grids = _grid(before), _grid(after)
    if grids[0] is None or grids[1] is None or old.ndim < 2:  # noqa: PLR2004
        return None
    tokens = old.shape[-2] - prod(grids[0])
    if not 0 <= tokens <= _MOST_CLASS_TOKENS or shape != (*old.shape[:-2], tokens + prod(grids[1]), old.shape[-1]):
        return None
    classes, patches = torch.split(old, [tokens, prod(grids[0])], dim=-2)
    picture = patches.reshape(-1, *grids[0], old.shape[-1]).movedim(-1, 1)
    fitted = interpolate(picture, size=grids[1], mode="bicubic", align_corners=False).movedim(1, -1)
    return torch.cat([classes, fitted.reshape(*old.shape[:-2], -1, old.shape[-1])], dim=-2)


def _grid(config: Any) -> tuple[int, int] | None:
    """Patches of an image: rows, columns."""
    size, patch = _of_images(config, "image_size"), _of_images(config, "patch_size")
    if size is None or patch is None:
        return None
    (height, width), (rows, columns) = _both(size), _both(patch)
    return height // rows, width // columns


def _of_images(config: Any, field: str) -> Any:
    """The field of the part that sees images: a tower, a backbone or the model itself."""
    parts = (getattr(config, name, None) for name in ("vision_config", "backbone_config"))
    return next((getattr(part, field) for part in (config, *parts) if getattr(part, field, None) is not None), None)


def _both(value: Any) -> tuple[int, int]:
    first, second = value if isinstance(value, list | tuple) else (value, value)
    return int(first), int(second)
