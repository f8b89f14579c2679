"""The teacher of a distillation: loaded, seen to fit the student, and asked batch by batch.

Invariant: a teacher that would teach something else is an error that names the field: other classes or another order of
them, another vocabulary, a head without trained weights, fewer positions.
"""

import inspect
import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from finetune_api.job import Distillation, JobSpec
from finetune_trainer.context import Context
from finetune_trainer.data.dataset import Batch
from finetune_trainer.data.sources import resolve_source
from finetune_trainer.errors import NotFoundError, SpecFault
from finetune_trainer.models import max_length_of
from finetune_trainer.task import Task

log = logging.getLogger(__name__)

FIELD = "spec.strategy.distillation.teacher"
_ADAPTER = "adapter_config.json"
_BASE_ONLY = "base_model_name_or_path"


@dataclass(frozen=True)
class Folders:
    """Where a teacher lies."""

    model: Path
    """The checkpoint; the base of an adapter."""
    adapter: Path | None

    @property
    def own(self) -> Path:
        """What the user named: configuration and tokenizer lie here, of an adapter perhaps in its base."""
        return self.adapter or self.model

    def having(self, *names: str) -> Path | None:
        """The folder that has one of these files."""
        found = (each for each in (self.own, self.model) if any((each / name).is_file() for name in names))
        return next(found, None)


def find_teacher(asked: Distillation, context: Context) -> Folders:
    """The teacher's folders on this machine; an adapter's base is found as the adapter names it.

    Raises:
        NotFoundError: There is no checkpoint.
    """
    folder = resolve_source(asked.teacher, asked.revision, field=FIELD, volumes=context.volumes, kind="model")
    if not (folder / _ADAPTER).is_file():
        if not (folder / "config.json").is_file():
            raise NotFoundError(f"{FIELD}: {asked.teacher} has no config.json; name a folder that transformers saved")
        return Folders(folder, None)
    told = json.loads((folder / _ADAPTER).read_text(encoding="utf-8"))
    base = str(told.get(_BASE_ONLY) or "")
    if not base:
        raise NotFoundError(f"{FIELD}: the adapter in {asked.teacher} names no base; name the merged model")
    source = base if "://" in base else Path(base).as_uri() if Path(base).is_absolute() else f"hf://{base}"
    return Folders(
        resolve_source(source, told.get("revision"), field=FIELD, volumes=context.volumes, kind="model"), folder
    )


@dataclass(frozen=True)
class Student:
    """What a teacher must fit."""

    task: Task
    labels: tuple[str, ...] | None
    companion: Any
    """Tokenizer or image processor."""
    max_length: int | None
    channels: int


def load_teacher_config(folders: Folders, spec: JobSpec, student: Student) -> Any:
    """The teacher's configuration, seen to be of the same classes, vocabulary and length.

    Raises:
        SpecFault: It does not fit.
    """
    from transformers import AutoConfig

    trust = spec.model.trust_remote_code
    config = AutoConfig.from_pretrained(folders.having("config.json") or folders.own, trust_remote_code=trust)
    if student.labels is not None:
        has_labels = folders.adapter is None or (folders.adapter / "config.json").is_file()
        _check_labels(config, student.labels, known=has_labels)
    if student.max_length is not None:
        _check_tokens(folders, config, student, trust=trust)
    elif getattr(config, "num_channels", student.channels) != student.channels:
        raise SpecFault(f"{FIELD}: takes images of {config.num_channels} channels, the student of {student.channels}")
    return config


def _check_labels(config: Any, labels: tuple[str, ...], *, known: bool) -> None:
    if not known:  # an adapter that others saved: its weights will show the number of classes, nothing their order
        log.warning("%s: the adapter does not say what its classes are; they are taken to be %s", FIELD, labels)
        config.num_labels = len(labels)
        return
    found = tuple(str(config.id2label[index]) for index in sorted(config.id2label))
    if len(found) != len(labels):
        raise SpecFault(f"{FIELD}: has {len(found)} classes, the data has {len(labels)}")
    if found == tuple(f"LABEL_{index}" for index in range(len(found))):
        log.warning("%s: its classes have no names; they are taken to be %s", FIELD, labels)
    elif sorted(found) == sorted(labels) and found != labels:
        raise SpecFault(f"{FIELD}: has the classes in another order; set spec.data.labels: [{', '.join(found)}]")
    elif found != labels:
        other = next(label for label in found if label not in labels)
        raise SpecFault(f"{FIELD}: has the class {other!r}, which the data does not have")


def _check_tokens(folders: Folders, config: Any, student: Student, *, trust: bool) -> None:
    from transformers import AutoTokenizer

    folder = folders.having("tokenizer.json", "tokenizer_config.json", "vocab.txt", "vocab.json")
    if folder is None:
        raise NotFoundError(f"{FIELD}: has no tokenizer beside it; it must be seen to be that of the student")
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust).get_vocab()
    ours = student.companion.get_vocab()
    if theirs != ours:
        alike = sum(theirs.get(token) == number for token, number in ours.items())
        raise SpecFault(
            f"{FIELD}: reads other tokens: of the student's {len(ours):,} it has {alike:,} under the same id;"
            " set spec.model.tokenizer to the teacher's, or take another teacher"
        )
    try:
        max_length_of(student.max_length, student.companion, config)
    except SpecFault as fault:
        raise SpecFault(f"{FIELD}: its texts are too short ({fault}); lower spec.data.maxLength") from fault


def load_teacher(folders: Folders, config: Any, spec: JobSpec, task: Task, dtype: torch.dtype) -> nn.Module:
    """The teacher, frozen, in evaluation mode, on the CPU; an adapter is merged into it in fp32.

    Raises:
        SpecFault: It is not of the task, or its head was never trained.
    """
    import transformers

    own = task.model_classes.get(config.model_type)
    kind = getattr(transformers, own or task.auto_class)
    trust: dict[str, Any] = {} if own else {"trust_remote_code": spec.model.trust_remote_code}
    options = {"config": config, "output_loading_info": True, **trust}
    loading = torch.float32 if folders.adapter else dtype
    try:
        model, found = kind.from_pretrained(
            folders.model, dtype=loading, ignore_mismatched_sizes=folders.adapter is not None, **options
        )
        new = {*found["missing_keys"], *(name for name, *_ in found["mismatched_keys"])}
        if folders.adapter is not None:
            model, brought = _with_adapter(model, folders.adapter)
            new = {name for name in new if not any(name.startswith(f"{module}.") for module in brought)}
    except OSError as error:
        raise NotFoundError(f"{FIELD}: {_first_line(error)}") from error
    except (ValueError, RuntimeError) as error:
        raise SpecFault(f"{FIELD}: cannot be used for {task.name}: {_first_line(error)}") from error
    if new:
        raise SpecFault(f"{FIELD}: has no trained {min(new)}; it must be trained for {task.name}")
    teacher: nn.Module = model.to(dtype).eval().requires_grad_(requires_grad=False)
    return teacher


def _with_adapter(model: Any, folder: Path) -> tuple[Any, list[str]]:
    """The model with the adapter merged, and the modules whose weights came whole with it."""
    from peft import PeftConfig, PeftModel

    brought = PeftConfig.from_pretrained(folder).modules_to_save or []
    return PeftModel.from_pretrained(model, folder).merge_and_unload(), list(brought)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@dataclass(frozen=True)
class Lens:
    """Pixels as the student has them → as the teacher has them: (student × scale + shift), then to its size."""

    scale: Tensor
    """(C, 1, 1)."""
    shift: Tensor
    size: tuple[int, int] | None
    """Height and width; None where any will do."""

    def __call__(self, pixels: Tensor) -> Tensor:
        """(n, C, H, W) to the same in the teacher's values and size."""
        changed = pixels * self.scale.to(pixels.device) + self.shift.to(pixels.device)
        if self.size is None or tuple(pixels.shape[-2:]) == self.size:
            return changed
        return interpolate(changed, self.size, mode="bilinear", antialias=True)


def make_lens(folders: Folders, config: Any, student: Student) -> Lens:
    """From the image processors of both."""
    from transformers import AutoImageProcessor

    folder = folders.having("preprocessor_config.json", "processor_config.json")
    theirs = AutoImageProcessor.from_pretrained(folder) if folder else student.companion
    (our_mean, our_spread), (mean, spread) = (_normal(each, student.channels) for each in (student.companion, theirs))
    size = getattr(config, "image_size", None)
    height, width = (size, size) if isinstance(size, int) else size or (0, 0)
    return Lens(our_spread / spread, (our_mean - mean) / spread, (height, width) if size else None)


def _normal(processor: Any, channels: int) -> tuple[Tensor, Tensor]:
    """Mean and spread (C, 1, 1) that a processor takes from the pixels, in its own unit (1, or 255 steps)."""
    unit = 1.0 if processor.do_rescale else 255.0
    mean, spread = torch.zeros(channels, 1, 1), torch.ones(channels, 1, 1)
    if processor.do_normalize:
        mean = torch.tensor(processor.image_mean, dtype=torch.float32).view(-1, 1, 1)
        spread = torch.tensor(processor.image_std, dtype=torch.float32).view(-1, 1, 1)
    return mean / unit, spread / unit


@dataclass(frozen=True)
class Teacher:
    """A teacher at work."""

    model: nn.Module
    lens: Lens | None
    """Images only."""

    def __call__(self, batch: Batch) -> Tensor:
        """Its logits for the batch's inputs, float32, without gradient."""
        inputs = self._inputs(batch.inputs)
        device = next(iter(inputs.values())).device
        with torch.no_grad(), torch.autocast(device.type, enabled=False):
            logits: Tensor = self.model(**inputs).logits
        return logits.float()

    def _inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        known = inspect.signature(self.model.forward).parameters
        taken = {name: value for name, value in inputs.items() if name in known}
        if self.lens is not None:
            taken["pixel_values"] = self.lens(taken["pixel_values"])
        dtype = next(self.model.parameters()).dtype
        return {name: value.to(dtype) if value.is_floating_point() else value for name, value in taken.items()}


def dtype_of(asked: Distillation, device: torch.device) -> torch.dtype:
    """Of the teacher's weights and arithmetic."""
    has_bf16 = device.type == "cuda" and torch.cuda.is_bf16_supported()
    return torch.bfloat16 if asked.precision == "bf16" or (asked.precision == "auto" and has_bf16) else torch.float32


def hire(spec: JobSpec, student: Student, folders: Folders, config: Any, device: torch.device) -> Teacher:
    """The teacher on ``device``, ready to be asked."""
    asked = spec.strategy.distillation
    assert asked is not None
    model = load_teacher(folders, config, spec, student.task, dtype_of(asked, device))
    lens = make_lens(folders, config, student) if student.max_length is None else None
    return Teacher(model.to(device), lens)
