"""The page of what goes with which task."""

import math
from typing import get_args

import pytest
from transformers import AutoConfig

import pairs
import tiny
from architectures import ARCHITECTURES as TINY
from finetune_api.job import TaskName
from finetune_api.support import ARCHITECTURES, OPTIONS, is_taken

ROWS = {name: asked for rows in OPTIONS.values() for name, asked in rows.items()}
TASKS = get_args(TaskName)


@pytest.mark.parametrize("task", TASKS)
def test_the_smallest_job_is_valid(task):
    assert is_taken(task, {})


@pytest.mark.parametrize("asked", ROWS.values(), ids=ROWS.keys())
def test_every_option_goes_with_a_task(asked):
    """A field that is misspelt would go with none."""
    assert any(is_taken(task, asked) for task in TASKS)


def test_an_option_that_a_task_lacks_is_refused():
    assert not is_taken("causal-lm", ROWS["mixup, CutMix"])


PROMISED = [
    (task, name)
    for task in ("token-classification", "sequence-to-sequence")
    for name, asked in ROWS.items()
    if is_taken(task, asked) and "distributed" not in asked
]
"""Of the tasks that no other test goes through by rows; several processes have theirs in ``test_gradients``."""


@pytest.mark.parametrize(("task", "name"), PROMISED, ids=map(": ".join, PROMISED))
def test_what_the_page_promises_is_trained(tmp_path, task, name):
    few = {"training": {"maxSteps": 2}, "evaluation": {"every": {"steps": 1}}}
    asked = tiny.merged(few, ROWS[name])
    if "tokensPerBatch" in asked["training"]:
        asked["training"]["batchSize"] = None
    tiny.trained(tiny.process_of(tiny.job(tmp_path, task, asked), tmp_path / "run"))
    assert len(tiny.steps_of(tmp_path / "run")) == 2


FIELDS = {one.kind: one.fields for one in TINY.values()} | {"deit": tiny.VIT}
SIZES = {"resnet": 32, "detr": 64, "rt_detr": 64, "d_fine": 64}
"""Pixels of an image, where the model does not say."""
CLS, SEP = 101, 102
STRATEGIES = {
    "its last layer": {
        "trainable": "lastLayers",
        "lastLayers": 1,
        "learningRate": {"value": 1e-3, "layerDecay": 0.9},
    },
    "an adapter": {"lora": {"r": 2}},
}
TRAINED = [(kind, task) for kind, tasks in ARCHITECTURES.items() for task in tasks]


def job_of(folder, kind, task, spec):
    """A tiny job of this task with a model of this architecture."""
    if task == "image-text-matching":
        return pairs.job(folder, kind, spec)
    fields = dict(FIELDS[kind])
    if (backbone := fields.get("backbone_config")) is not None:
        fields["backbone_config"] = backbone.to_dict()
    if "vocab_size" in fields:
        ends = {"bos_token_id": CLS, "eos_token_id": SEP, "pad_token_id": 0, "decoder_start_token_id": CLS}
        fields |= {"vocab_size": 30522} | (ends if task == "sequence-to-sequence" else {})
    if kind == "blip":
        fields = tiny.BLIP
    size = {"data": {"imageSize": SIZES[kind]}} if kind in SIZES else {}
    job = tiny.job(folder, task, tiny.merged(spec, size))
    known = vars(AutoConfig.for_model(kind)).keys()
    config = {name: value for name, value in fields.items() if name in known} | {"model_type": kind}
    model = job.spec.model.model_copy(update={"config": config})
    return job.model_copy(update={"spec": job.spec.model_copy(update={"model": model})})


@pytest.mark.parametrize("strategy", STRATEGIES.values(), ids=STRATEGIES)
@pytest.mark.parametrize(("kind", "task"), TRAINED, ids=map(": ".join, TRAINED))
def test_an_architecture_is_trained(tmp_path, kind, task, strategy):
    spec = {"training": {"maxSteps": 2}, "strategy": {"learningRate": {"value": 1e-3}} | strategy}
    loop = tiny.trained(tiny.process_of(job_of(tmp_path, kind, task, spec), tmp_path / "run"))
    steps = tiny.steps_of(tmp_path / "run")
    assert all(math.isfinite(step["loss"]) and step["gradNorm"] > 0 for step in steps)
    assert len(steps) == 2
    trained = [one for one in loop.inner.parameters() if one.requires_grad]
    assert 0 < sum(one.numel() for one in trained) < sum(one.numel() for one in loop.inner.parameters())
