"""``docs/support.md``: what goes with which task.

Invariant: a cell is the answer of the models themselves to the smallest job that asks for it; of an architecture, that
a test trains it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, get_args

from finetune_api.errors import SpecError
from finetune_api.job import TaskName
from finetune_api.load import parse_job
from finetune_api.metrics import TASK_METRICS

_CLASSES = {"labels": ["a", "b"]}
_SYNONYMS = {"synonyms": {"source": "file:///synonyms.tsv"}}
_TRANSLATION = {"backTranslation": {"forward": "file:///there", "backward": "file:///back"}}
_TEACHER = {"teacher": "hf://owner/teacher"}

OPTIONS: Mapping[str, Mapping[str, Mapping[str, dict[str, Any]]]] = {
    "What is trained, and how": {
        "the head alone": {"strategy": {"trainable": "head"}},
        "the last N layers": {"strategy": {"trainable": "lastLayers", "lastLayers": 2}},
        "all but the first N layers": {"strategy": {"freeze": {"bottomLayers": 2}}},
        "a rate a layer": {"strategy": {"learningRate": {"value": 1e-4, "layerDecay": 0.9}}},
        "LoRA, DoRA, rsLoRA": {"strategy": {"lora": {"useDora": True}}},
        "a teacher": {"strategy": {"distillation": _TEACHER}},
        "batches by tokens": {"training": {"tokensPerBatch": 1024}},
        "`batchSize: auto`": {"training": {"batchSize": "auto"}},
        "several processes, DDP": {"distributed": {"workers": 2}},
        "several processes, FSDP": {"distributed": {"workers": 2, "strategy": "fsdp"}},
    },
    "Losses": {
        "cross-entropy with label smoothing": {"training": {"loss": {"name": "crossEntropy", "labelSmoothing": 0.1}}},
        "class weights": {"training": {"loss": {"name": "crossEntropy", "balanced": True}}},
        "focal": {"training": {"loss": {"name": "focal"}}},
        "binary cross-entropy": {"training": {"loss": {"name": "bce"}}, "data": {"multiLabel": True}},
        "MSE, MAE, Huber": {"training": {"loss": {"name": "huber"}}},
        "contrastive and classification": {"training": {"matching": {"labels": True}}},
    },
    "Data": {
        "empty and broken samples": {"data": {"cleaning": {"empty": "drop"}}},
        "exact duplicates": {"data": {"cleaning": {"duplicates": "drop"}}},
        "near duplicates": {"data": {"cleaning": {"nearDuplicates": {"action": "drop"}}}},
        "wrong labels": {"data": {"cleaning": {"labelNoise": {"action": "drop"}}}},
        "images rotated, cropped, flipped, coloured": {"data": {"augmentation": {"image": {"rotateDegrees": 10}}}},
        "mixup, CutMix": {"data": {"augmentation": {"image": {"mixup": 0.2}}}},
        "synonyms, swaps, deletions": {"data": {"augmentation": {"text": _SYNONYMS}}},
        "back-translation": {"data": {"augmentation": {"text": _TRANSLATION}}},
    },
}
"""Title of a table → title of a row → the part of a spec that asks for it."""

ARCHITECTURES: Mapping[str, tuple[TaskName, ...]] = {
    "bert": ("text-classification", "text-regression", "token-classification"),
    "roberta": ("text-classification", "text-regression", "token-classification"),
    "distilbert": ("text-classification", "text-regression", "token-classification"),
    "gpt2": ("text-classification", "causal-lm", "token-classification"),
    "llama": ("text-classification", "causal-lm", "token-classification"),
    "qwen2": ("text-classification", "causal-lm", "token-classification"),
    "qwen3": ("text-classification", "causal-lm", "token-classification"),
    "vit": ("image-classification",),
    "deit": ("image-classification",),
    "resnet": ("image-classification",),
    "yolos": ("object-detection",),
    "detr": ("object-detection",),
    "rt_detr": ("object-detection",),
    "d_fine": ("object-detection",),
    "clip": ("image-text-matching",),
    "blip": ("image-text-matching", "image-captioning"),
    "t5": ("sequence-to-sequence",),
    "bart": ("sequence-to-sequence",),
    "marian": ("sequence-to-sequence",),
}
"""transformers' ``model_type`` → tasks that a test trains it for."""


def support(notice: str) -> str:
    """The page."""
    tasks = get_args(TaskName)
    parts = [f"<!-- {notice} -->", "# What goes with which task", ""]
    parts += ["A ✓ is a job that the models take; the others they refuse, with the field's name and what to do.", ""]
    for title, rows in OPTIONS.items():
        cells = {name: [is_taken(task, asked) for task in tasks] for name, asked in rows.items()}
        parts += [f"## {title}", "", *_ticks(tasks, cells), ""]
    parts += ["## Architectures", ""]
    parts += [
        "A ✓ is trained by a test: its last layer alone with a rate a layer, and with LoRA in every layer. Others"
    ]
    parts += ["of transformers with the task's head are taken too: depth and adapters go by a model's structure.", ""]
    taken = {f"`{kind}`": [task in known for task in tasks] for kind, known in ARCHITECTURES.items()}
    parts += [*_ticks(tasks, taken), ""]
    parts += ["## Metrics", "", "| Task | If none are named | Others | Watched |", "| --- | --- | --- | --- |"]
    parts += [_metrics_row(task) for task in tasks]
    return "\n".join(parts) + "\n"


def is_taken(task: str, asked: Mapping[str, dict[str, Any]]) -> bool:
    """Whether the smallest job of this task that asks for this is valid."""
    least: dict[str, Any] = {
        "task": task,
        "model": {"source": "hf://owner/model"},
        "data": {"source": "file:///data.csv"},
    }
    spec = {**least, **asked, "data": {**least["data"], **asked.get("data", {})}}
    try:
        parse_job(
            {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "x"}, "spec": spec}
        )
    except SpecError:
        return False
    return True


def _ticks(tasks: Sequence[str], rows: Mapping[str, Sequence[bool]]) -> list[str]:
    """A table of the tasks: name of a row → whether it goes with each."""
    head = [_row(["", *(f"`{task}`" for task in tasks)]), _row(["---", *[":-:"] * len(tasks)])]
    return head + [_row([name, *("✓" if one else "" for one in cells)]) for name, cells in rows.items()]


def _metrics_row(task: str) -> str:
    known = TASK_METRICS[task]
    others = [name for name in known.modes if name not in known.usual and name != "loss"]
    listed = [", ".join(f"`{name}`" for name in names) for names in (known.usual, others)]
    return _row([f"`{task}`", *listed, f"`{known.watched}`"])


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"
