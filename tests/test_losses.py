"""Losses against closed forms and torch's own, whole and in parts."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch import nn
from torch.nn import functional as f
from torchvision.ops import sigmoid_focal_loss

import tiny
from finetune_api.job import Columns, Loss
from finetune_trainer.data.dataset import Batch
from finetune_trainer.errors import SpecFault
from finetune_trainer.losses import LARGE_VOCABULARY, Classes, chosen_objective, class_weights, cross_entropy
from finetune_trainer.memory import LiveMemory
from finetune_trainer.objectives import classes_of
from finetune_trainer.run import prepare
from finetune_trainer.task import IGNORED, Objective, Task
from finetune_trainer.tasks import TASKS

LABELS = ("a", "b", "c")
COUNTS = np.array([60, 30, 10])
ONE = Classes(LABELS, COUNTS, 100, is_multi=False)
MANY = Classes(LABELS, COUNTS, 100, is_multi=True)
WEIGHTS = {"a": 0.5, "c": 4.0}
WEIGHED = torch.tensor([0.5, 1.0, 4.0])


def task(name: str, *, multi_label: bool = False) -> Task:
    data = SimpleNamespace(multi_label=multi_label, columns=Columns())
    return TASKS[name](SimpleNamespace(data=data))


def batch_of(target: torch.Tensor) -> Batch:
    return Batch({}, target, np.arange(len(target)))


def losses_of(objective: Objective, logits: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return objective.losses(SimpleNamespace(logits=logits), batch_of(target))


def objective_of(loss: Loss, classes: Classes | None) -> Objective:
    if classes is None:
        return chosen_objective(task("text-regression"), loss, None)
    return chosen_objective(task("text-classification", multi_label=classes.is_multi), loss, classes)


def one(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 3), and one class each."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 3, generator=random) * 3
    return logits.requires_grad_(), torch.randint(3, (count,), generator=random)


def many(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, 3), and any of the classes each."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 3, generator=random) * 3
    return logits.requires_grad_(), torch.randint(2, (count, 3), generator=random).float()


def numbers(count: int = 40) -> tuple[torch.Tensor, torch.Tensor]:
    """Predictions (n, 1) and numbers (n,)."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(count, 1, generator=random) * 3
    return logits.requires_grad_(), torch.randn(count, generator=random)


def probability(logits, target):
    return logits.softmax(-1)[torch.arange(len(target)), target]


def sure(logits, target):
    """Probability of what is right, each class by itself."""
    return torch.where(target > 0, logits.sigmoid(), 1 - logits.sigmoid())


CASES = {
    "cross-entropy": (one, ONE, {"name": "crossEntropy"}, f.cross_entropy),
    "label smoothing": (
        one,
        ONE,
        {"name": "crossEntropy", "labelSmoothing": 0.1},
        lambda x, y: f.cross_entropy(x, y, label_smoothing=0.1),
    ),
    "class weights": (
        one,
        ONE,
        {"name": "crossEntropy", "classWeights": WEIGHTS},
        lambda x, y: f.cross_entropy(x, y, weight=WEIGHED),
    ),
    "class weights and label smoothing": (
        one,
        ONE,
        {"name": "crossEntropy", "classWeights": WEIGHTS, "labelSmoothing": 0.2},
        lambda x, y: f.cross_entropy(x, y, weight=WEIGHED, label_smoothing=0.2),
    ),
    "focal": (
        one,
        ONE,
        {"name": "focal"},
        lambda x, y: (-((1 - probability(x, y)) ** 2) * probability(x, y).log()).mean(),
    ),
    "focal of gamma 0": (one, ONE, {"name": "focal", "focalGamma": 0.0}, f.cross_entropy),
    "focal with weights": (
        one,
        ONE,
        {"name": "focal", "focalGamma": 1.5, "classWeights": WEIGHTS},
        lambda x, y: (
            (-((1 - probability(x, y)) ** 1.5) * probability(x, y).log() * WEIGHED[y]).sum() / WEIGHED[y].sum()
        ),
    ),
    "bce": (many, MANY, {"name": "bce"}, f.binary_cross_entropy_with_logits),
    "bce with weights": (
        many,
        MANY,
        {"name": "bce", "classWeights": WEIGHTS},
        lambda x, y: f.binary_cross_entropy_with_logits(x, y, pos_weight=WEIGHED),
    ),
    "bce with label smoothing": (
        many,
        MANY,
        {"name": "bce", "labelSmoothing": 0.1},
        lambda x, y: f.binary_cross_entropy_with_logits(x, y * 0.9 + 0.05),
    ),
    "binary focal": (
        many,
        MANY,
        {"name": "focal", "focalGamma": 2.0},
        lambda x, y: sigmoid_focal_loss(x, y, alpha=-1, gamma=2, reduction="mean"),
    ),
    "binary focal with weights": (
        many,
        MANY,
        {"name": "focal", "focalGamma": 3.0, "classWeights": WEIGHTS},
        lambda x, y: (-((1 - sure(x, y)) ** 3) * sure(x, y).log() * torch.where(y > 0, WEIGHED, torch.ones(3))).mean(),
    ),
    "mse": (numbers, None, {"name": "mse"}, lambda x, y: f.mse_loss(x[:, 0], y)),
    "mae": (numbers, None, {"name": "mae"}, lambda x, y: f.l1_loss(x[:, 0], y)),
    "huber": (numbers, None, {"name": "huber"}, lambda x, y: f.huber_loss(x[:, 0], y)),
    "huber of delta 0.3": (
        numbers,
        None,
        {"name": "huber", "huberDelta": 0.3},
        lambda x, y: torch.where(
            (x[:, 0] - y).abs() < 0.3, (x[:, 0] - y) ** 2 / 2, 0.3 * ((x[:, 0] - y).abs() - 0.15)
        ).mean(),
    ),
}


@pytest.mark.parametrize(("data", "classes", "spec", "expected"), CASES.values(), ids=CASES)
@pytest.mark.parametrize("parts", [1, 7])
def test_loss_and_gradient(data, classes, spec, expected, parts):
    """Sum of losses over sum of counts is the mean that torch or the paper has, also where the batch is cut."""
    objective, (logits, target) = objective_of(Loss.model_validate(spec), classes), data()
    wanted = expected(logits, target)
    (gradient,) = torch.autograd.grad(wanted, logits)
    count = sum(float(objective.counts(batch_of(part)).sum()) for part in target.split(parts))
    pieces = zip(logits.split(parts), target.split(parts), strict=True)
    loss = sum(losses_of(objective, piece, part).sum() for piece, part in pieces) / count
    (found,) = torch.autograd.grad(loss, logits)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    assert torch.allclose(found, gradient, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_tokens(smoothing):
    """Position t predicts token t + 1; ignored ones count for nothing."""
    random = torch.Generator().manual_seed(0)
    logits, target = torch.randn(5, 7, 11, generator=random), torch.randint(11, (5, 7), generator=random)
    target[torch.rand(5, 7, generator=random) < 0.4] = IGNORED
    objective = chosen_objective(task("causal-lm"), Loss(name="crossEntropy", labelSmoothing=smoothing), None)
    found = losses_of(objective, logits, target).sum() / objective.counts(batch_of(target)).sum()
    expected = f.cross_entropy(
        logits[:, :-1].flatten(0, 1), target[:, 1:].flatten(), ignore_index=IGNORED, label_smoothing=smoothing
    )
    assert found.item() == pytest.approx(expected.item(), rel=1e-6)


def test_the_tasks_own_loss():
    own = task("text-classification")
    assert chosen_objective(own, None, ONE) is own.objective


EXTREMES = {
    "right beyond float32": (torch.tensor([[200.0, -200, -200]]), torch.tensor([0]), ONE),
    "wrong beyond float32": (torch.tensor([[200.0, -200, -200]]), torch.tensor([1]), ONE),
    "right, any of the classes": (torch.tensor([[200.0, -200, -200]]), torch.tensor([[1.0, 0, 0]]), MANY),
    "wrong, any of the classes": (torch.tensor([[-200.0, 200, 200]]), torch.tensor([[1.0, 0, 0]]), MANY),
}


@pytest.mark.parametrize(("logits", "target", "classes"), EXTREMES.values(), ids=EXTREMES)
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_focal_is_finite_at_the_ends(logits, target, classes, gamma):
    """A power below 1 has an infinite slope where nothing is left to learn."""
    logits = logits.requires_grad_()
    loss = losses_of(objective_of(Loss(name="focal", focalGamma=gamma), classes), logits, target).sum()
    loss.backward()
    assert math.isfinite(loss.item())
    assert torch.isfinite(logits.grad).all()


def test_logits_of_half_precision():
    logits, target = one()
    found = losses_of(objective_of(Loss(name="focal"), ONE), logits.bfloat16(), target)
    assert found.dtype == torch.float32


def test_balanced_is_that_of_scikit_learn():
    names = np.repeat(LABELS, COUNTS)
    expected = compute_class_weight("balanced", classes=np.array(LABELS), y=names)
    for name in ("crossEntropy", "focal"):
        assert class_weights(Loss(name=name, balanced=True), ONE).tolist() == pytest.approx(expected.tolist())


BALANCED = {
    "bce: negative over positive": (Loss(name="bce", balanced=True), MANY, [40 / 60, 70 / 30, 90 / 10]),
    "a class without samples": (
        Loss(name="crossEntropy", balanced=True),
        Classes(LABELS, np.array([6, 4, 0]), 10, is_multi=False),
        [10 / 18, 10 / 12, 1],
    ),
    "a class that every sample has": (
        Loss(name="bce", balanced=True),
        Classes(LABELS, np.array([10, 5, 0]), 10, is_multi=True),
        [0.1, 1, 1],
    ),
    "some are named": (Loss(name="crossEntropy", classWeights=WEIGHTS), ONE, [0.5, 1, 4]),
}


@pytest.mark.parametrize(("loss", "classes", "expected"), BALANCED.values(), ids=BALANCED)
def test_weights(loss, classes, expected):
    assert class_weights(loss, classes).tolist() == pytest.approx(expected)


def test_no_weights():
    assert class_weights(Loss(name="crossEntropy"), ONE) is None


def test_an_unknown_class():
    with pytest.raises(SpecFault) as fault:
        class_weights(Loss(name="crossEntropy", classWeights={"d": 2.0}), ONE)
    assert str(fault.value) == "spec.training.loss.classWeights: there is no class 'd'; there are a, b, c"


@pytest.mark.parametrize("kind", ["text-classification", "multi-label", "image-classification"])
def test_classes_are_counted_among_the_training_samples(tmp_path, kind):
    material = prepare(tiny.process_of(tiny.job(tmp_path, kind), tmp_path / "run"))
    found, part = classes_of(material.prepared, material.task), material.parts["train"]
    targets = part.targets[part.rows]
    counts = targets.sum(0).long() if kind == "multi-label" else targets.bincount(minlength=3)
    assert found.counts.tolist() == counts.tolist()
    assert (found.samples, found.is_multi, tuple(found.labels)) == (13, kind == "multi-label", LABELS)


@pytest.mark.parametrize("kind", ["text-regression", "causal-lm"])
def test_numbers_and_tokens_have_no_classes(tmp_path, kind):
    material = prepare(tiny.process_of(tiny.job(tmp_path, kind), tmp_path / "run"))
    assert classes_of(material.prepared, material.task) is None


VOCABULARY = LARGE_VOCABULARY + 3
"""Of the models that write; some rows more than one block."""


def many_words(rows: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (rows, VOCABULARY), and targets of which every third counts for nothing."""
    chosen = torch.Generator().manual_seed(0)
    logits = torch.randn(rows, VOCABULARY, generator=chosen).mul(3).to(dtype)
    target = torch.randint(VOCABULARY, (rows,), generator=chosen)
    target[::3] = IGNORED
    return logits.requires_grad_(), target


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)], ids=["fp32", "bf16"])
def test_a_large_vocabulary_is_judged_in_blocks_as_in_one_piece(dtype, tolerance):
    logits, target = many_words(600, dtype)
    share = torch.rand(600, generator=torch.Generator().manual_seed(1))
    wanted = f.cross_entropy(logits.float(), target, reduction="none")
    (wanted * share).sum().backward()
    expected, logits.grad = logits.grad, None
    losses = cross_entropy(logits, target)
    (losses * share).sum().backward()
    assert losses.dtype == torch.float32
    torch.testing.assert_close(losses, wanted, rtol=1e-6, atol=1e-6)
    assert logits.grad.dtype == dtype
    torch.testing.assert_close(logits.grad, expected, rtol=tolerance, atol=1e-8)
    assert not logits.grad[target == IGNORED].any()
    with torch.no_grad():
        torch.testing.assert_close(cross_entropy(logits, target), wanted.detach(), rtol=1e-6, atol=1e-6)


def test_a_large_vocabulary_takes_a_third_of_the_memory():
    """Beside the logits in bf16 only their gradient, where torch's own has three of their size in fp32."""
    logits, target = many_words(2000, torch.bfloat16)
    peaks = []
    for judge in (cross_entropy, lambda logits, target: f.cross_entropy(logits.float(), target, reduction="none")):
        memory = LiveMemory(nn.ParameterList([nn.Parameter(logits.detach())]))
        with memory:
            judge(logits, target).sum().backward()
        peaks.append(memory.peak / logits.nbytes)
        logits.grad = None
    print("peaks beside the logits, of their size:", *(f"{peak:.1f}" for peak in peaks))
    assert peaks[0] < 2.5
    assert peaks[1] > 5
