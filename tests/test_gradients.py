"""The gradient of a step does not depend on how its batch is divided over processes and forward passes."""

import numpy as np
import pytest
import torch

import ranks
import tiny
from finetune_trainer.course import RunState
from finetune_trainer.data.order import epoch_batches
from finetune_trainer.run import batch_size_of, build_model, prepare

WHOLE = "1 process"
FSDP = {"distributed": {"strategy": "fsdp"}}
DIVISIONS = {
    WHOLE: (1, {}),
    "1 process, 4 parts": (1, {"training": {"gradientAccumulation": 4}}),
    "1 process, recomputed": (1, {"training": {"gradientCheckpointing": True}}),
    "2 processes": (2, {}),
    "2 processes, 2 parts": (2, {"training": {"gradientAccumulation": 2}}),
    "2 processes, fsdp": (2, FSDP),
    "2 processes, 2 parts, fsdp": (2, FSDP | {"training": {"gradientAccumulation": 2}}),
}
"""Processes, and what the spec says."""
TOLERANCE = 1e-5
STEPS = 5
KINDS = {
    "text-classification": ("text-classification", {"batchSize": 6}),
    "text-classification by tokens": ("text-classification", {"tokensPerBatch": 60}),
    "multi-label": ("multi-label", {"batchSize": 6}),
    "text-regression": ("text-regression", {"batchSize": 6}),
    "causal-lm": ("causal-lm", {"batchSize": 6}),
    "causal-lm by tokens": ("causal-lm", {"tokensPerBatch": 60}),
    "image-classification": ("image-classification", {"batchSize": 6}),
    "answers": ("answers", {"batchSize": 6}),
    "object-detection": ("object-detection", {"batchSize": 6}),
    "image-captioning": ("image-captioning", {"batchSize": 6}),
    "token-classification": ("token-classification", {"batchSize": 6}),
    "sequence-to-sequence": ("sequence-to-sequence", {"batchSize": 6}),
    "sequence-to-sequence by tokens": ("sequence-to-sequence", {"tokensPerBatch": 60}),
}
"""13 samples, 6 a batch: the third batch has 1 sample for 4 parts, so that three of them are stand-ins."""


def spec_of(training: dict, division: dict) -> dict:
    return tiny.merged({"training": {"batchSize": None, **training}}, division)


@pytest.fixture(scope="module")
def folder(tmp_path_factory, group):
    folder = tmp_path_factory.mktemp("gradients")
    for world_size in (1, 2):
        runs = {
            folder / f"{name}, {division}": (kind, spec_of(training, spec))
            for name, (kind, training) in KINDS.items()
            for division, (processes, spec) in DIVISIONS.items()
            if processes == world_size
        }
        group.run(ranks.train_all, world_size, runs)
    return folder


@pytest.mark.parametrize("division", [name for name in DIVISIONS if name != WHOLE])
@pytest.mark.parametrize("name", KINDS)
def test_gradient_does_not_depend_on_the_division(folder, name, division):
    whole, divided = (tiny.steps_of(folder / f"{name}, {each}") for each in (WHOLE, division))
    assert len(whole) == len(divided) == STEPS
    for one, other in zip(whole, divided, strict=True):
        near = {key: pytest.approx(one[key], rel=TOLERANCE) for key in ("gradNorm", "loss")}
        assert other == one | near


@pytest.mark.parametrize("name", KINDS)
def test_gradient_is_that_of_the_mean_over_all_targets(folder, tmp_path, name):
    """The first step's, computed plainly: one sample at a time, without padding."""
    kind, training = KINDS[name]
    process = tiny.process_of(tiny.job(tmp_path, kind, spec_of(training, {})), tmp_path / "run")
    material = prepare(process)
    model, _ = build_model(process.spec, material)
    part, size = material.parts["train"], batch_size_of(process.spec)
    first = epoch_batches(len(part), part.lengths, size, seed=0, epoch=RunState().epoch)[0]
    total, count = torch.zeros(1), torch.zeros(1)
    for index in first:
        batch = part.batch(0, np.array([index]), is_counted=True)
        objective = material.task.objective
        total = total + objective.losses(objective.forward(model, batch), batch).sum(0).reshape(-1)
        count = count + objective.counts(batch).sum(0).reshape(-1)
    loss = (total / count).sum()
    loss.backward()
    norm = torch.cat([each.grad.flatten() for each in model.parameters() if each.grad is not None]).double().norm()
    step = tiny.steps_of(folder / f"{name}, {WHOLE}")[0]
    assert (step["loss"], step["gradNorm"]) == pytest.approx((loss.item(), norm.item()), rel=TOLERANCE)
