"""Matching images and texts: a step does not depend on how its batch is divided, and is that of a plain loop."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import get_linear_schedule_with_warmup

import contrasting
import pairs
import tiny
from finetune_trainer.data.order import epoch_batches
from finetune_trainer.run import batch_size_of, build_model, prepare

WHOLE = "1 process"
DIVISIONS = {
    WHOLE: (1, {}),
    "1 process, 4 parts": (1, {"training": {"gradientAccumulation": 4}}),
    "2 processes": (2, {}),
    "2 processes, 2 parts": (2, {"training": {"gradientAccumulation": 2}}),
}
"""Processes, and what the spec says. 13 pairs, 6 a batch: the third batch has 1 pair, and a process a stand-in."""
STEPS = 3
TOLERANCE = 1e-5
KINDS = {
    "clip": ("clip", {"training": {"maxSteps": STEPS}}),
    "clip with labels": ("clip", {"training": {"maxSteps": STEPS, "matching": {"labels": True}}}),
    "blip": ("blip", {"training": {"maxSteps": STEPS, "matching": {"temperature": 0.1}}}),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, group):
    folder = tmp_path_factory.mktemp("gradients")
    pairs.write(folder / "pairs", 20)
    for world_size in (1, 2):
        runs = {
            folder / f"{name}, {division}": (kind, tiny.merged(fixed, spec))
            for name, (kind, fixed) in KINDS.items()
            for division, (processes, spec) in DIVISIONS.items()
            if processes == world_size
        }
        if world_size == 2:
            fsdp = {"distributed": {"strategy": "fsdp"}, "training": {"gradientAccumulation": 2}}
            runs[folder / "blip, fsdp"] = ("blip", tiny.merged(KINDS["blip"][1], fsdp))
        group.run(contrasting.train_all, world_size, runs)
    return folder


@pytest.mark.parametrize(
    ("name", "division"),
    [(name, division) for name in KINDS for division in DIVISIONS if division != WHOLE] + [("blip", "fsdp")],
)
def test_gradient_does_not_depend_on_the_division(folder, name, division):
    whole, divided = (tiny.steps_of(folder / f"{name}, {each}") for each in (WHOLE, division))
    assert len(whole) == len(divided) == STEPS
    for one, other in zip(whole, divided, strict=True):
        near = {key: pytest.approx(one[key], rel=TOLERANCE) for key in ("gradNorm", "loss")}
        assert other == one | near


def clip_loss(model, batch):
    """The loss that CLIPModel itself computes."""
    return type(model).forward(model, **batch.inputs, return_loss=True).loss


def blip_loss(model, batch):
    """Contrastive and matching loss by the outputs of BlipForImageTextRetrieval.

    Args:
        model: The model.
        batch: Its texts are the right ones, then as many wrong ones.
    """
    count, forward = len(batch.indices), type(model).forward
    mask = batch.inputs.get("attention_mask", torch.ones_like(batch.inputs["input_ids"]))
    right, wrong = (
        {
            "input_ids": batch.inputs["input_ids"][half],
            "attention_mask": mask[half],
            "pixel_values": batch.inputs["pixel_values"],
        }
        for half in (slice(count), slice(count, None))
    )
    similarity = forward(model, **right, use_itm_head=False).itm_score / 0.07
    order = torch.arange(count)
    contrastive = (cross_entropy(similarity, order) + cross_entropy(similarity.T, order)) / 2
    scores = [forward(model, **texts).itm_score for texts in (right, wrong)]
    return contrastive + cross_entropy(torch.cat(scores), torch.tensor([1] * count + [0] * count))


PLAIN = {"clip": clip_loss, "blip": blip_loss}


@pytest.mark.parametrize("kind", PLAIN)
def test_losses_are_those_of_a_plain_loop(tmp_path, kind):
    """50 steps, the same seed, order and settings; all captions of the set differ."""
    steps = 50
    spec = {
        "data": {"split": {"train": 24, "validation": 6}},
        "training": {"batchSize": 8, "maxSteps": steps, "weightDecay": 0, "warmup": {"steps": 5}, "maxGradNorm": 1},
    }
    pairs.write(tmp_path / "pairs", 30, distinct=True)
    process = tiny.process_of(pairs.job(tmp_path, kind, spec), tmp_path / "run")
    tiny.trained(process)
    material = prepare(process)
    model, _ = build_model(process.spec, material)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0)
    schedule = get_linear_schedule_with_warmup(optimizer, 5, steps)
    part, losses = material.parts["train"], []
    model.train()
    for step in range(steps):
        epoch, number = divmod(step, 3)
        rows = epoch_batches(len(part), None, batch_size_of(process.spec), seed=0, epoch=epoch)[number]
        loss = PLAIN[kind](model, part.batch(epoch, rows, is_counted=True))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert [line["loss"] for line in tiny.steps_of(tmp_path / "run")] == pytest.approx(losses, rel=1e-4)
