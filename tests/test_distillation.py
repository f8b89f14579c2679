"""Distillation: the divergence, teachers that fit and that do not, the cache, and gradients however a batch is cut."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch.distributions import Bernoulli, kl_divergence
from torch.nn import functional as f
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTImageProcessor,
)

import ranks
import tiny
from finetune_api.errors import SpecError
from finetune_trainer import teacher_cache
from finetune_trainer.distillation import binary_divergence, divergence
from finetune_trainer.errors import NotFoundError, PlatformError, SpecFault
from finetune_trainer.loop import Loop
from finetune_trainer.run import Process, prepare
from finetune_trainer.teacher import Folders, Student, find_teacher, load_teacher, load_teacher_config, make_lens
from whole import whole_run

# ── the divergence ───────────────────────────────────────────────────────────────────────────────────────────────


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=random, requires_grad=True), torch.randn(*shape, generator=random)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_divergence_is_that_of_torch(temperature):
    student, teacher = pair(20, 5)
    expected = f.kl_div(
        (student / temperature).log_softmax(-1), (teacher / temperature).softmax(-1), reduction="batchmean"
    )
    found = divergence(student, teacher, temperature).mean()
    assert found.item() == pytest.approx(expected.item() * temperature**2, rel=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
def test_binary_divergence_is_that_of_bernoulli(temperature):
    student, teacher = pair(20, 5)
    expected = kl_divergence(Bernoulli(logits=teacher / temperature), Bernoulli(logits=student / temperature))
    found = binary_divergence(student, teacher, temperature)
    assert torch.allclose(found, expected.mean(-1) * temperature**2, rtol=1e-4, atol=1e-6)


def test_at_a_high_temperature_logits_are_matched():
    """The gradient becomes (student - teacher) / N for logits of mean 0 (Hinton et al., equation 4)."""
    student, teacher = pair(8, 5)
    student, teacher = (each.detach() - each.detach().mean(-1, keepdim=True) for each in (student, teacher))
    student.requires_grad_()
    divergence(student.double(), teacher.double(), 1000.0).sum().backward()
    assert torch.allclose(student.grad, (student - teacher).detach() / 5, atol=2e-3)


@pytest.mark.parametrize("function", [divergence, binary_divergence])
def test_nothing_is_lacking_of_oneself(function):
    student, _ = pair(8, 5)
    assert function(student, student.detach(), 2.0).abs().max().item() == pytest.approx(0, abs=1e-6)


def test_columns_that_pad_a_vocabulary_are_left_out():
    student, teacher = pair(8, 5)
    padded = torch.cat([teacher, torch.full((8, 3), 9.0)], dim=-1)
    assert torch.equal(divergence(student, padded, 2.0), divergence(student, teacher, 2.0))


# ── teachers ─────────────────────────────────────────────────────────────────────────────────────────────────────

HEADS = {
    "text-classification": AutoModelForSequenceClassification,
    "multi-label": AutoModelForSequenceClassification,
    "causal-lm": AutoModelForCausalLM,
    "image-classification": AutoModelForImageClassification,
}


def save_teacher(folder: Path, kind: str, *, labels: str = "abc", seed: int = 7, **fields: Any) -> Path:
    """A teacher twice as wide as the student, with logits that are far from even."""
    architecture = {**tiny.TASKS[kind]["model"], **fields}
    width = "n_embd" if kind == "causal-lm" else "hidden_size"
    config = AutoConfig.for_model(architecture.pop("model_type"), **{**architecture, width: 32})
    if kind == "causal-lm":
        config.pad_token_id = 0
    else:
        config.id2label = dict(enumerate(labels))
        config.label2id = {label: index for index, label in enumerate(labels)}
    torch.manual_seed(seed)
    model = HEADS[kind].from_config(config)
    head = model.lm_head if kind == "causal-lm" else model.classifier
    with torch.no_grad():
        head.weight.mul_(30)
    model.save_pretrained(folder)
    if kind == "image-classification":
        ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3).save_pretrained(
            folder
        )
    else:
        AutoTokenizer.from_pretrained(tiny.TOKENIZER).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("distillation")
    for kind in HEADS:
        save_teacher(folder / f"{kind} teacher", kind)
    return folder


def taught(folder: Path, kind: str, **more: Any) -> dict[str, Any]:
    return {
        "strategy": {"distillation": {"teacher": (folder / f"{kind} teacher").as_uri(), **more}},
        "training": {"maxSteps": 4},
    }


def assembled(process: Process) -> Loop:
    """The loop of a run, which nobody will run."""
    loop, _ = tiny.assembled(process)
    loop.history.close()
    return loop


DIVISIONS = {
    "whole": (1, {}, False),
    "4 parts": (1, {"training": {"gradientAccumulation": 4}}, False),
    "cached": (1, {}, True),
    "2 processes, 2 parts": (2, {"training": {"gradientAccumulation": 2}}, False),
    "2 processes, cached": (2, {}, True),
}


@pytest.fixture(scope="module")
def runs(folder, group):
    for world_size in (1, 2):
        wanted = {
            folder / f"{kind}, {name}": (kind, tiny.merged(taught(folder, kind, cacheTeacher=cached), spec))
            for kind in HEADS
            for name, (processes, spec, cached) in DIVISIONS.items()
            if processes == world_size
        }
        group.run(ranks.train_all, world_size, wanted)
    return folder


@pytest.mark.parametrize("division", [name for name in DIVISIONS if name != "whole"])
@pytest.mark.parametrize("kind", HEADS)
def test_gradient_does_not_depend_on_the_division(runs, kind, division):
    """Nor on where the teacher's outputs come from, but for the rounding of those that are kept in half precision."""
    whole, divided = (tiny.steps_of(runs / f"{kind}, {name}") for name in ("whole", division))
    is_rounded = kind == "causal-lm" and "cached" in division
    for one, other in zip(whole, divided, strict=True):
        near = {key: pytest.approx(one[key], rel=2e-3 if is_rounded else 1e-5) for key in ("gradNorm", "loss")}
        assert other == one | near


@pytest.mark.parametrize("kind", HEADS)
def test_loss_is_the_weighted_sum_of_both(folder, tmp_path, kind):
    """Of the first batch, computed plainly, one sample at a time."""
    process = tiny.process_of(tiny.job(folder, kind, taught(folder, kind, weight=0.7, temperature=3.0)), tmp_path / "r")
    loop = assembled(process)
    teacher = HEADS[kind].from_pretrained(folder / f"{kind} teacher").eval()
    total = count = 0.0
    for index in range(6):
        batch = loop.train_part.batch(0, np.array([index]), is_counted=True)
        student, theirs = loop.inner(**batch.inputs).logits, teacher(**batch.inputs).logits
        target = batch.target
        if kind == "causal-lm":
            student, theirs, target = student[0, :-1], theirs[0, :-1], target[0, 1:]
        if kind == "multi-label":
            labels = f.binary_cross_entropy_with_logits(student, target, reduction="none").mean(-1)
            distance = kl_divergence(Bernoulli(logits=theirs / 3), Bernoulli(logits=student / 3)).mean(-1)
        else:
            labels = f.cross_entropy(student, target, reduction="none")
            distance = f.kl_div((student / 3).log_softmax(-1), (theirs / 3).softmax(-1), reduction="none").sum(-1)
        total += (0.3 * labels + 0.7 * 9 * distance).sum().item()
        count += len(labels)
    whole = loop.train_part.batch(0, np.arange(6), is_counted=True)
    losses = loop.objective.losses(loop.objective.forward(loop.inner, whole), whole)
    assert losses.sum().item() / float(loop.objective.counts(whole).sum()) == pytest.approx(total / count, rel=1e-4)


def test_a_sharded_student(runs, group):
    kind, run = "text-classification", runs / "sharded"
    spec = tiny.merged(taught(runs, kind), {"distributed": {"strategy": "fsdp"}})
    group.run(ranks.train_all, 2, {run: (kind, spec)})
    losses = [[step["loss"] for step in tiny.steps_of(each)] for each in (run, runs / f"{kind}, whole")]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_weights_of_classes_are_those_of_both_parts(folder, tmp_path, group):
    loss = {"name": "crossEntropy", "classWeights": {"a": 3.0, "b": 0.5}}
    spec = tiny.merged(taught(folder, "text-classification"), {"training": {"loss": loss}})
    divisions = {"whole": {}, "4 parts": {"training": {"gradientAccumulation": 4}}}
    wanted = {
        tmp_path / name: ("text-classification", tiny.merged(spec, division)) for name, division in divisions.items()
    }
    group.run(ranks.train_all, 1, wanted)
    group.run(ranks.train_all, 2, {tmp_path / "shared": ("text-classification", spec)})
    whole, *others = ([step["loss"] for step in tiny.steps_of(tmp_path / name)] for name in (*divisions, "shared"))
    for other in others:
        assert other == pytest.approx(whole, rel=1e-5)


def test_a_student_that_is_its_teacher_has_nothing_to_learn(folder, tmp_path):
    kind = "text-classification"
    spec = tiny.merged(
        taught(folder, kind, weight=1.0), {"model": {"source": (folder / f"{kind} teacher").as_uri(), "config": None}}
    )
    run = tmp_path / "run"
    tiny.trained(tiny.process_of(tiny.job(folder, kind, spec), run))
    assert tiny.steps_of(run)[0]["loss"] == pytest.approx(0, abs=1e-6)


def test_a_teacher_in_bfloat16_teaches_nearly_the_same(folder, tmp_path):
    kind, losses = "text-classification", []
    for precision in ("fp32", "bf16"):
        run = tmp_path / precision
        tiny.trained(tiny.process_of(tiny.job(folder, kind, taught(folder, kind, precision=precision)), run))
        losses.append([step["loss"] for step in tiny.steps_of(run)])
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=0.05)


# ── the cache ────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("kind", ["text-classification", "causal-lm"])
def test_kept_outputs_do_not_depend_on_the_processes(runs, tmp_path, group, kind):
    """To the bit; and 1 and 2 processes name the same entry."""
    spec = taught(runs, kind, cacheTeacher=True)
    kept = []
    for world_size in (1, 2):
        base = tmp_path / str(world_size)
        base.mkdir()
        (base / kind).symlink_to(runs / kind)
        group.run(ranks.train_all, world_size, {base / "run": (kind, spec)})
        kept.append({path.parent.name: path.read_bytes() for path in base.glob("cache/teacher-*/outputs.npy")})
    assert len(kept[0]) == 1
    assert kept[0] == kept[1]


def test_kept_outputs_are_used_by_the_next_run(runs, tmp_path):
    kind = "text-classification"
    process = tiny.process_of(tiny.job(runs, kind, taught(runs, kind, cacheTeacher=True)), runs / f"{kind}, used again")
    with mock.patch("finetune_trainer.teacher.hire", side_effect=AssertionError("the teacher is loaded again")):
        loop = assembled(process)
    batch = loop.train_part.batch(0, np.array([3, 1]), is_counted=True)
    teacher = AutoModelForSequenceClassification.from_pretrained(runs / f"{kind} teacher").eval()
    assert torch.allclose(
        loop.objective.forward(loop.inner, batch).teacher.logits, teacher(**batch.inputs).logits, atol=1e-4
    )


def test_another_teacher_is_another_entry(runs, tmp_path):
    kind = "text-classification"
    save_teacher(tmp_path / f"{kind} teacher", kind, seed=8)
    before = set(runs.glob("cache/teacher-*"))
    assembled(tiny.process_of(tiny.job(runs, kind, taught(tmp_path, kind, cacheTeacher=True)), runs / f"{kind}, other"))
    assert len(set(runs.glob("cache/teacher-*")) - before) == 2  # the entry and its lock


def test_no_space_for_the_outputs(folder, tmp_path):
    kind = "text-classification"
    (tmp_path / kind).symlink_to(folder / kind)
    process = tiny.process_of(tiny.job(folder, kind, taught(folder, kind, cacheTeacher=True)), tmp_path / "run")
    with (
        mock.patch.object(teacher_cache.shutil, "disk_usage", return_value=SimpleNamespace(free=10)),
        pytest.raises(PlatformError) as error,
    ):
        assembled(process)
    assert str(error.value).startswith(
        "spec.strategy.distillation.cacheTeacher: the teacher's outputs take 1.45e-07 GiB, and "
    )


# ── what does not fit ────────────────────────────────────────────────────────────────────────────────────────────


def without(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).unlink()


def drop_head(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    save_file(
        {k: v for k, v in weights.items() if not k.startswith("classifier")},
        folder / "model.safetensors",
        metadata={"format": "pt"},
    )


def other_tokenizer(folder: Path) -> None:
    path = folder / "tokenizer.json"
    told = json.loads(path.read_text())
    vocabulary = told["model"]["vocab"]
    first, second = list(vocabulary)[3000:3002]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    path.write_text(json.dumps(told))


UNFIT: dict[str, tuple[str, dict[str, Any], Any, type[Exception], str]] = {
    "number of classes": ("text-classification", {"labels": "ab"}, None, SpecFault, "has 2 classes, the data has 3"),
    "order of classes": (
        "text-classification",
        {"labels": "bca"},
        None,
        SpecFault,
        "has the classes in another order; set spec.data.labels: [b, c, a]",
    ),
    "other classes": (
        "image-classification",
        {"labels": "abd"},
        None,
        SpecFault,
        "has the class 'd', which the data does not have",
    ),
    "tokens": (
        "causal-lm",
        {},
        other_tokenizer,
        SpecFault,
        (
            "reads other tokens: of the student's 30,522 it has 30,520 under the same id; set spec.model.tokenizer to"
            " the teacher's, or take another teacher"
        ),
    ),
    "no tokenizer": (
        "text-classification",
        {},
        lambda folder: without(folder, "tokenizer.json", "tokenizer_config.json"),
        NotFoundError,
        "has no tokenizer beside it; it must be seen to be that of the student",
    ),
    "positions": (
        "text-classification",
        {"max_position_embeddings": 32},
        None,
        SpecFault,
        (
            "its texts are too short (spec.data.maxLength: must be at most 32 (the positions of the model), got 64);"
            " lower spec.data.maxLength"
        ),
    ),
    "channels": (
        "image-classification",
        {"num_channels": 1},
        None,
        SpecFault,
        "takes images of 1 channels, the student of 3",
    ),
    "a head that was never trained": (
        "text-classification",
        {},
        drop_head,
        SpecFault,
        "has no trained classifier.bias; it must be trained for text-classification",
    ),
}


@pytest.mark.parametrize(("kind", "fields", "change", "error", "message"), UNFIT.values(), ids=UNFIT)
def test_a_teacher_that_does_not_fit(folder, tmp_path, kind, fields, change, error, message):
    teacher = save_teacher(tmp_path / f"{kind} teacher", kind, **fields)
    if change is not None:
        change(teacher)
    process = tiny.process_of(tiny.job(folder, kind, taught(tmp_path, kind)), tmp_path / "run")
    with pytest.raises(error) as fault:
        assembled(process)
    assert str(fault.value) == f"spec.strategy.distillation.teacher: {message}"


def test_a_folder_without_a_model(folder, tmp_path):
    (tmp_path / "causal-lm teacher").mkdir()
    process = tiny.process_of(tiny.job(folder, "causal-lm", taught(tmp_path, "causal-lm")), tmp_path / "run")
    with pytest.raises(NotFoundError, match=r"^spec\.strategy\.distillation\.teacher: file:.* has no config\.json;"):
        assembled(process)


REFUSED = {
    "a task without a teacher": (
        {"task": "text-regression"},
        "spec.strategy.distillation: goes with the tasks text-classification, image-classification, causal-lm only",
    ),
    "weight": (
        {"strategy": {"distillation": {"weight": 1.5}}},
        "spec.strategy.distillation.weight: must be ≤ 1, got 1.5",
    ),
    "temperature": (
        {"strategy": {"distillation": {"temperature": 0}}},
        "spec.strategy.distillation.temperature: must be > 0, got 0",
    ),
    "cached outputs of changing samples": (
        {
            "strategy": {"distillation": {"cacheTeacher": True}},
            "task": "image-classification",
            "model": {"config": tiny.VIT},
            "data": {"augmentation": {"image": {"horizontalFlip": 0.5}}},
        },
        (
            "spec.strategy.distillation.cacheTeacher: keeps outputs of samples that augmentation changes; remove"
            " data.augmentation or set it to false"
        ),
    ),
}


@pytest.mark.parametrize(("changes", "message"), REFUSED.values(), ids=REFUSED)
def test_what_a_spec_may_not_ask_for(folder, changes, message):
    spec = tiny.merged(taught(folder, "text-classification"), changes)
    with pytest.raises(SpecError) as error:
        tiny.job(folder, "text-classification", spec)
    assert [str(fault) for fault in error.value.faults] == [message]


# ── adapters and images ──────────────────────────────────────────────────────────────────────────────────────────

TEXTS = torch.randint(1000, 2000, (4, 9), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", ["text-classification", "causal-lm"])
@pytest.mark.parametrize("lora", [{"r": 4}, {"r": 4, "useDora": True}], ids=["lora", "dora"])
def test_an_adapter_teaches_what_its_merged_model_does(folder, tmp_path, kind, lora):
    """Trained, exported and loaded as a teacher: the head that came with the adapter included."""
    base = save_teacher(tmp_path / "base", kind)
    spec = {
        "model": {"source": base.as_uri(), "config": None},
        "strategy": {"learningRate": {"value": 0.01}, "lora": lora},
        "training": {"maxSteps": 4},
    }
    process = tiny.process_of(tiny.job(folder, kind, spec), tmp_path / "run")
    whole_run(process)
    asked = tiny.job(folder, kind, {**taught(folder, kind)})
    material = prepare(tiny.process_of(asked, tmp_path / "student"))
    student = Student(material.task, material.prepared.labels, material.companion, material.max_length, 3)
    logits = []
    for name in ("adapter", "model"):
        source = (tmp_path / "run" / name).as_uri()
        chosen = asked.spec.strategy.distillation.model_copy(update={"teacher": source})
        folders = find_teacher(chosen, process.context)
        config = load_teacher_config(folders, asked.spec, student)
        model = load_teacher(folders, config, asked.spec, material.task, torch.float32)
        logits.append(model(input_ids=TEXTS).logits)
    start = HEADS[kind].from_pretrained(base).eval()(input_ids=TEXTS).logits
    assert torch.allclose(logits[0], logits[1], atol=1e-4)
    assert not torch.allclose(logits[0], start, atol=1e-2)


LENSES = {
    "the same": ({}, {}),
    "mean and spread": ({"image_mean": [0.1, 0.2, 0.3], "image_std": [0.3, 0.2, 0.1]}, {}),
    "steps of 255": ({"do_rescale": False, "image_mean": [100.0] * 3, "image_std": [50.0] * 3}, {}),
    "not normalised": ({"do_normalize": False}, {}),
}


@pytest.mark.parametrize(("theirs", "ours"), LENSES.values(), ids=LENSES)
def test_a_teacher_sees_what_its_own_processor_would_show_it(tmp_path, theirs, ours):
    fixed = {"size": {"height": 8, "width": 8}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    student, teacher = (ViTImageProcessor(**{**fixed, **each}) for each in (ours, theirs))
    teacher.save_pretrained(tmp_path)
    lens = make_lens(Folders(tmp_path, None), SimpleNamespace(image_size=8), Student(None, None, student, None, 3))
    images = list(np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), np.uint8))
    seen, expected = (each(images=images, return_tensors="pt")["pixel_values"] for each in (student, teacher))
    assert torch.allclose(lens(seen), expected, atol=1e-4, rtol=1e-5)


def test_a_teacher_for_larger_images():
    student = ViTImageProcessor(size={"height": 8, "width": 8}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    lens = make_lens(
        Folders(Path("none"), None), SimpleNamespace(image_size=[16, 32]), Student(None, None, student, None, 3)
    )
    assert lens(torch.ones(2, 3, 8, 8)).shape == (2, 3, 16, 32)
    assert torch.allclose(lens(torch.ones(2, 3, 8, 8)), torch.ones(()))
