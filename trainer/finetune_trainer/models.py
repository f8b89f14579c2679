"""Loading: the model with its head, its tokenizer or image processor, and what of its configuration is changed."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from torch import nn

from finetune_api.job import JobSpec, ModelSpec
from finetune_trainer.adapters import mark_new
from finetune_trainer.context import Context
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import NotFoundError, SpecFault
from finetune_trainer.quantized import bits_of, loading_options
from finetune_trainer.refit import refit
from finetune_trainer.task import Target, Task

DEFAULT_MAX_LENGTH = 512
DEFAULT_IMAGE_SIZE = 224
_CHANNELS = (1, 3)
_IMAGE_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
"""Files that hold an image processor: alone, or beside a tokenizer."""


def model_folder(spec: ModelSpec, context: Context) -> Path | None:
    """Local folder of the checkpoint; None for a model made from its configuration."""
    if spec.source is None:
        return None
    folder = resolve_source(
        spec.source, spec.revision, field="spec.model.source", volumes=context.volumes, kind="model"
    )
    if not (folder / "config.json").is_file():
        raise NotFoundError(
            f"spec.model.source: {spec.source} has no config.json; it must be a folder that transformers saved"
        )
    return folder


def load_config(spec: ModelSpec, folder: Path | None, task: Task, labels: Sequence[str] | None) -> Any:
    """The model's configuration with the user's changes, dropout and labels.

    Raises:
        SpecFault: ``spec.model.config`` names no architecture, or a field that it does not have.
    """
    from transformers import AutoConfig

    changes = dict(spec.config or {})
    if folder is not None:
        _check_fields(_own_config(spec, folder), changes)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **changes)
    else:
        config = _new_config(changes)
    if spec.dropout is not None:
        _set_dropout(config, spec.dropout)
    _set_labels(config, task, labels)
    return config


def _own_config(spec: ModelSpec, folder: Path) -> Any:
    """The checkpoint's configuration, unchanged."""
    from transformers import AutoConfig

    return AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)


def _new_config(changes: dict[str, Any]) -> Any:
    from transformers import AutoConfig

    kind = changes.pop("model_type", None)
    try:
        config = AutoConfig.for_model(kind)
    except (ValueError, KeyError) as error:
        raise SpecFault(
            f"spec.model.config.model_type: must be an architecture of transformers, got {kind!r}"
        ) from error
    _check_fields(config, changes)
    config = AutoConfig.for_model(kind, **changes)
    config.architectures = []  # of two heads for one task (DeiT's) transformers looks for the one that is named here
    return config


def _check_fields(config: Any, changes: dict[str, Any]) -> None:
    for name in changes:
        if not hasattr(config, name):
            raise SpecFault(f"spec.model.config.{name}: {type(config).__name__} has no such field")


def _set_dropout(config: Any, dropout: float) -> None:
    for name, value in list(config.to_dict().items()):
        is_rate = isinstance(value, float | int | None) and not isinstance(value, bool)
        if is_rate and (name.endswith("_pdrop") or "dropout" in name):
            setattr(config, name, dropout)


def _set_labels(config: Any, task: Task, labels: Sequence[str] | None) -> None:
    if task.target == Target.NUMBER:
        config.id2label = {0: "LABEL_0"}
        config.label2id = {"LABEL_0": 0}
    elif labels is not None:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    if task.problem_type is not None:
        config.problem_type = task.problem_type


def load_model(spec: JobSpec, folder: Path | None, config: Any, task: Task) -> nn.Module:
    """The model in fp32 on the CPU; what the checkpoint lacks (a new head) is drawn from the run's seed.

    Raises:
        SpecFault: The checkpoint is not of an architecture that the task has a head for.
        NotFoundError: The folder has no weights.
    """
    import transformers

    own = task.model_classes.get(config.model_type)
    kind = getattr(transformers, own or task.auto_class)
    trust: dict[str, Any] = {} if own else {"trust_remote_code": spec.model.trust_remote_code}
    torch.manual_seed(spec.training.seed)
    new = partial(kind, config) if own else partial(kind.from_config, config, **trust)
    try:
        model = new() if folder is None else _load(spec, folder, config, kind, trust, new)
    except OSError as error:
        raise NotFoundError(f"spec.model.source: {spec.model.source}: {_first_line(error)}") from error
    except ValueError as error:
        raise SpecFault(f"spec.model: cannot be used for {task.name}: {_first_line(error)}") from error
    model = model.float() if bits_of(spec) is None else model
    if task.adapt is not None:
        task.adapt(model)
    model.name_or_path = model.config.name_or_path = base_name(spec.model)  # what an adapter tells of its base
    if spec.model.dropout is not None:
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = spec.model.dropout
    if spec.training.gradient_checkpointing:
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    loaded: nn.Module = model
    return loaded


def _load(
    spec: JobSpec, folder: Path, config: Any, kind: Any, trust: dict[str, Any], new: Callable[[], nn.Module]
) -> Any:
    """The checkpoint as ``config`` has it; noted on it is which of its weights are new."""
    model, found = kind.from_pretrained(
        folder,
        config=config,
        dtype=torch.float32,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
        **loading_options(spec, new, torch.cuda.current_device() if torch.cuda.is_available() else "cpu"),
        **trust,
    )
    misfits = found["mismatched_keys"]
    as_it_is = partial(kind.from_pretrained, folder, dtype=torch.float32, **trust)
    carried = refit(model, _own_config(spec.model, folder), misfits, as_it_is)
    mark_new(model, {**found, "mismatched_keys": [misfit for misfit in misfits if misfit[0] not in carried]})
    return model


def base_name(spec: ModelSpec) -> str:
    """The base model as others find it: ``owner/name`` on the hub, else the source as written; empty for a new one."""
    scheme, _, rest = (spec.source or "").partition("://")
    is_repository = scheme == "hf" and rest.strip("/").count("/") == 1
    return rest.strip("/") if is_repository else spec.source or ""


def load_tokenizer(spec: ModelSpec, folder: Path | None, context: Context, **options: Any) -> Any:
    """The tokenizer beside the model, or that of ``spec.model.tokenizer``; ``options`` go to ``from_pretrained``.

    Raises:
        SpecFault: The model has none and none is named.
        NotFoundError: There is none where it is said to be.
    """
    from transformers import AutoTokenizer

    if spec.tokenizer is not None:
        folder = resolve_source(
            spec.tokenizer, None, field="spec.model.tokenizer", volumes=context.volumes, kind="model"
        )
    if folder is None:
        raise SpecFault("spec.model.tokenizer: is required for a text model that is made from its configuration")
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **options)
    except (OSError, ValueError) as error:
        field = "spec.model.tokenizer" if spec.tokenizer else "spec.model.source"
        raise NotFoundError(f"{field}: no tokenizer in {folder}: {_first_line(error)}") from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
    return tokenizer


def load_processor(spec: ModelSpec, folder: Path | None, config: Any, asked: int | None) -> Any:
    """The image processor beside the model; for a new model one that scales to its input size and to -1..1.

    Args:
        spec: The model.
        folder: Of its checkpoint.
        config: Of the part that sees images.
        asked: ``spec.data.imageSize``.

    Raises:
        SpecFault: ``asked`` is not the size that the model was made for, or it takes neither grey nor RGB.
    """
    from transformers import AutoImageProcessor, ViTImageProcessor

    fixed = getattr(config, "image_size", None)
    if asked is not None and fixed not in (None, asked, [asked, asked]):
        raise SpecFault(
            f"spec.data.imageSize: must be {fixed}, the model's own (spec.model.config.image_size), got {asked}"
        )
    channels = _channels_of(config)
    size = asked or fixed or DEFAULT_IMAGE_SIZE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if folder is None or not any((folder / name).is_file() for name in _IMAGE_PROCESSORS):
        return ViTImageProcessor(
            size={"height": height, "width": width}, image_mean=[0.5] * channels, image_std=[0.5] * channels
        )
    trust = {"trust_remote_code": spec.trust_remote_code}
    processor = AutoImageProcessor.from_pretrained(folder, **trust)
    changes = _for_size(processor, height, width) if asked or fixed else {}
    changes |= _for_channels(processor, channels)
    return AutoImageProcessor.from_pretrained(folder, **trust, **changes) if changes else processor


def _channels_of(config: Any) -> int:
    channels: int = getattr(config, "num_channels", 3)
    if channels not in _CHANNELS:
        raise SpecFault(f"spec.model.config.num_channels: must be 1 (grey) or 3 (RGB), got {channels}")
    return channels


def _for_size(processor: Any, height: int, width: int) -> dict[str, Any]:
    """What makes it put out this size, in the proportions that it has (DeiT's cuts 256 to 224); nothing if it does."""
    names = ("size", "crop_size") if getattr(processor, "do_center_crop", False) else ("size",)
    sizes = {name: dict(getattr(processor, name)) for name in names}
    crops = len(names) > 1 or getattr(processor, "crop_pct", None) is not None  # ConvNeXt's, which ResNet has as well
    made = sizes[names[-1]]
    side = made.get("shortest_edge") if crops else None
    output = made.get("height", side), made.get("width", side)
    if output == (height, width):
        return {}
    if height != width or output[0] != output[1] or output[0] is None:
        return {name: {"height": height, "width": width} for name in names}
    scale = height / output[0]
    return {name: {key: round(value * scale) for key, value in size.items()} for name, size in sizes.items()}


def _for_channels(processor: Any, channels: int) -> dict[str, Any]:
    """What makes it take so many channels: of each statistic their mean; nothing if it does already."""
    statistics = {name: getattr(processor, name, None) for name in ("image_mean", "image_std")}
    changes: dict[str, Any] = {
        name: [fmean(values)] * channels
        for name, values in statistics.items()
        if isinstance(values, list | tuple) and len(values) != channels
    }
    if channels == 1 and getattr(processor, "do_convert_rgb", False):
        changes["do_convert_rgb"] = False
    return changes


def load_detection_processor(spec: ModelSpec, folder: Path | None, config: Any, asked: int | None) -> Any:
    """The image processor beside the model; for a new model its architecture's, scaling to one size if one is known.

    Position embeddings of these architectures fit any size, so ``asked`` (``spec.data.imageSize``) is free.

    Raises:
        SpecFault: The model takes neither grey nor RGB.
    """
    from transformers import AutoImageProcessor, RTDetrImageProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    size = asked or (getattr(config, "image_size", None) if folder is None else None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if folder is not None and any((folder / name).is_file() for name in _IMAGE_PROCESSORS):
        make = partial(AutoImageProcessor.from_pretrained, folder, trust_remote_code=spec.trust_remote_code)
    else:
        known = IMAGE_PROCESSOR_MAPPING.get(type(config), None)
        make = known["torchvision"] if known else RTDetrImageProcessor
    changes = {"size": {"height": height, "width": width}} if size else {}
    return make(**changes, **_for_channels(make(), _channels_of(config)))


def max_length_of(asked: int | None, tokenizer: Any, config: Any) -> int:
    """Longest sequence in tokens: what is asked for, else the model's limit, 512 at most.

    Raises:
        SpecFault: More is asked for than the model has positions.
    """
    limits = (getattr(tokenizer, "model_max_length", None), _positions(config))
    limit = min((value for value in limits if value), default=DEFAULT_MAX_LENGTH)
    if asked is not None and (positions := _positions(config)) and asked > positions:
        raise SpecFault(f"spec.data.maxLength: must be at most {positions} (the positions of the model), got {asked}")
    return asked or min(limit, DEFAULT_MAX_LENGTH)


def _positions(config: Any) -> int | None:
    positions = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", None)
    offset = (
        2 if config.model_type in {"roberta", "xlm-roberta", "camembert"} else 0
    )  # positions start after the padding id
    return positions - offset if positions else None


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
