"""Loading: the model with its head, its tokenizer or image processor, and what of its configuration is changed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from finetune_api.job import JobSpec, ModelSpec
from finetune_trainer.adapters import mark_new
from finetune_trainer.context import Context
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import NotFoundError, SpecFault
from finetune_trainer.quantized import bits_of, loading_options
from finetune_trainer.task import Target, Task

DEFAULT_MAX_LENGTH = 512
DEFAULT_IMAGE_SIZE = 224
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
        config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code)
        _check_fields(config, changes)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **changes)
    else:
        config = _new_config(changes)
    if spec.dropout is not None:
        _set_dropout(config, spec.dropout)
    _set_labels(config, task, labels)
    return config


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
    return AutoConfig.for_model(kind, **changes)


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
    try:
        if folder is not None:
            model, found = kind.from_pretrained(
                folder,
                config=config,
                dtype=torch.float32,
                ignore_mismatched_sizes=True,
                output_loading_info=True,
                **loading_options(spec),
                **trust,
            )
            mark_new(model, found)
        else:
            model = kind(config) if own else kind.from_config(config, **trust)
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

    Raises:
        SpecFault: ``asked`` (``spec.data.imageSize``) is not the size that the model was made for.
    """
    from transformers import AutoImageProcessor, ViTImageProcessor

    fixed = getattr(config, "image_size", None)
    if asked is not None and fixed not in (None, asked, [asked, asked]):
        raise SpecFault(
            f"spec.data.imageSize: must be {fixed}, the model's own (spec.model.config.image_size), got {asked}"
        )
    size = asked or fixed or DEFAULT_IMAGE_SIZE
    height, width = size if isinstance(size, list | tuple) else (size, size)
    if folder is not None and any((folder / name).is_file() for name in _IMAGE_PROCESSORS):
        changes = {"size": {"height": height, "width": width}} if asked is not None else {}
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **changes)
    channels = getattr(config, "num_channels", 3)
    return ViTImageProcessor(
        size={"height": height, "width": width}, image_mean=[0.5] * channels, image_std=[0.5] * channels
    )


def load_detection_processor(spec: ModelSpec, folder: Path | None, config: Any, asked: int | None) -> Any:
    """The image processor beside the model; for a new model its architecture's, scaling to one size if one is known.

    Position embeddings of these architectures fit any size, so ``asked`` (``spec.data.imageSize``) is free.
    """
    from transformers import AutoImageProcessor, RTDetrImageProcessor
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING

    size = asked or (getattr(config, "image_size", None) if folder is None else None)
    height, width = size if isinstance(size, list | tuple) else (size, size)
    changes = {"size": {"height": height, "width": width}} if size else {}
    if folder is not None and any((folder / name).is_file() for name in _IMAGE_PROCESSORS):
        return AutoImageProcessor.from_pretrained(folder, trust_remote_code=spec.trust_remote_code, **changes)
    known = IMAGE_PROCESSOR_MAPPING.get(type(config), None)
    return (known["torchvision"] if known else RTDetrImageProcessor)(**changes)


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
