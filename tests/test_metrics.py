"""Metrics against scikit-learn, taken in batch by batch; and evaluation's memory, which does not grow with the data."""

import warnings
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sklearn import metrics as reference

import ranks
from finetune_api.job import Columns
from finetune_trainer.data.dataset import Batch
from finetune_trainer.entities import entity_counts, entity_scores, scheme_of
from finetune_trainer.errors import SpecFault
from finetune_trainer.metrics import METRICS, Scores, check_metric, choose_metrics, summary
from finetune_trainer.streamed import Auroc, log_odds
from finetune_trainer.tasks import IGNORED, TASKS, Target, Task
from finetune_trainer.tasks.token_classification import judged

CPU = torch.device("cpu")


class Spec:
    """As much of a spec as a task looks at."""

    class data:  # noqa: N801 - a field of the spec
        multi_label = False
        columns = Columns()

    class training:  # noqa: N801 - a field of the spec
        matching = None


class MultiLabel(Spec):
    class data:  # noqa: N801 - a field of the spec
        multi_label = True
        columns = Columns()


def task(name: str, spec=Spec) -> Task:
    return TASKS[name](spec)


ONE, MANY = task("text-classification"), task("text-classification", MultiLabel)
NUMBER, TOKENS, IMAGE = task("text-regression"), task("causal-lm"), task("image-classification")
TAGS = task("token-classification")


def stream(wanted: Task, classes: int, logits: torch.Tensor, target: torch.Tensor, names=None) -> dict[str, float]:
    """Every metric of the task, in batches of odd sizes."""
    names = names or [name for name, each in METRICS.items() if wanted.target in each.targets and not each.is_of_texts]
    scores = Scores(wanted, names, classes, CPU)
    sizes = [1, 7, 64, 3] * len(logits)
    start = 0
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        while start < len(logits):
            part = slice(start, start + sizes.pop())
            batch = Batch({}, target[part], np.arange(len(target[part])))
            outputs = SimpleNamespace(logits=logits[part])
            scores.add_loss(wanted.objective.losses(outputs, batch), wanted.objective.counts(batch))
            scores.update(*wanted.judged(outputs, batch, None))
            start = part.stop
        return scores.compute(list)


def classified(classes: int, sureness: float, seed: int = 0, count: int = 2000) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (n, C) and the right classes (n,), some of which they find; rare classes are rarer."""
    random = torch.Generator().manual_seed(seed)
    logits = torch.randn(count, classes, generator=random) - torch.arange(classes) / classes
    target = (logits + torch.randn(count, classes, generator=random)).argmax(-1)
    return logits * sureness, target


CLASSES = {
    "two": (2, 1.0),
    "three": (3, 1.0),
    "thirty": (30, 1.0),
    "sure": (3, 30.0),
    "very sure": (3, 300.0),
    "unsure": (4, 0.05),
    "has learnt nothing but how rare each class is": (4, 0.001),
}


@pytest.mark.parametrize(("classes", "sureness"), CLASSES.values(), ids=CLASSES)
@pytest.mark.parametrize("wanted", [ONE, IMAGE], ids=["text", "image"])
def test_one_class(wanted, classes, sureness):
    logits, target = classified(classes, sureness)
    guess, odds = logits.argmax(-1), log_odds(logits)
    area = np.mean([reference.roc_auc_score(target == each, odds[:, each]) for each in range(classes)])
    assert stream(wanted, classes, logits, target) == {
        "loss": pytest.approx(torch.nn.functional.cross_entropy(logits.double(), target).item(), rel=1e-5),
        "accuracy": pytest.approx(reference.accuracy_score(target, guess), abs=1e-6),
        "f1": pytest.approx(reference.f1_score(target, guess, average="macro"), abs=1e-6),
        "f1Micro": pytest.approx(reference.f1_score(target, guess, average="micro"), abs=1e-6),
        "f1Weighted": pytest.approx(reference.f1_score(target, guess, average="weighted"), abs=1e-6),
        "auroc": pytest.approx(area, abs=0.005),
    }


ODDS = {
    "even": ([0.0, 0.0], [0.0, 0.0]),
    "two": ([3.0, 1.0], [2.0, -2.0]),
    "sure beyond float64": ([4000.0, 0.0, 0.0], [4000 - np.log(2), -4000, -4000]),
    "infinite": ([np.inf, 0.0], [np.inf, -np.inf]),
    "three": ([1.0, 0.0, -1.0], [1 - np.log(1 + 1 / np.e), -np.log(np.e + 1 / np.e), -1 - np.log(np.e + 1)]),
}


@pytest.mark.parametrize(("logits", "expected"), ODDS.values(), ids=ODDS)
def test_log_odds(logits, expected):
    assert log_odds(torch.tensor([logits]))[0].tolist() == pytest.approx(expected, rel=1e-12)


def test_area_is_that_of_probabilities():
    """As scikit-learn's users compute it, and with the memory of 10,000 classes still to be had."""
    logits, target = classified(3, 1.0)
    area = reference.roc_auc_score(target, logits.double().softmax(-1), multi_class="ovr")
    assert stream(ONE, 3, logits, target, ["auroc"])["auroc"] == pytest.approx(area, abs=0.005)
    assert Auroc(10_000, exclusive=True).counts.nbytes < 100e6


@pytest.mark.parametrize("sureness", [0.2, 1.0, 30.0])
def test_many_classes(sureness):
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(2000, 5, generator=random)
    target = (logits + torch.randn(2000, 5, generator=random) > 0.5).float()
    logits = logits * sureness
    guess = logits > 0
    assert stream(MANY, 5, logits, target) == {
        "loss": pytest.approx(
            torch.nn.functional.binary_cross_entropy_with_logits(logits.double(), target.double()).item(), rel=1e-5
        ),
        "accuracy": pytest.approx((guess == target).double().mean().item(), abs=1e-6),
        "f1": pytest.approx(reference.f1_score(target, guess, average="macro"), abs=1e-6),
        "f1Micro": pytest.approx(reference.f1_score(target, guess, average="micro"), abs=1e-6),
        "f1Weighted": pytest.approx(reference.f1_score(target, guess, average="weighted"), abs=1e-6),
        "auroc": pytest.approx(reference.roc_auc_score(target, logits.double(), average="macro"), abs=0.005),
    }


@pytest.mark.parametrize(("mean", "spread"), [(0, 1), (2000, 5), (250_000, 1000)], ids=["unit", "years", "prices"])
def test_numbers(mean, spread):
    random = torch.Generator().manual_seed(0)
    target = mean + spread * torch.randn(1500, generator=random)
    logits = (target + spread / 2 * torch.randn(1500, generator=random)).unsqueeze(-1)
    mse = reference.mean_squared_error(target.double(), logits[:, 0].double())
    assert stream(NUMBER, 1, logits, target) == {
        "loss": pytest.approx(mse, rel=1e-6),
        "mse": pytest.approx(mse, rel=1e-6),
        "mae": pytest.approx(reference.mean_absolute_error(target.double(), logits[:, 0].double()), rel=1e-6),
        "r2": pytest.approx(reference.r2_score(target.double(), logits[:, 0].double()), abs=1e-6),
    }


def test_tokens():
    """Position t predicts token t + 1; ignored positions count nowhere."""
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 9, 11, generator=random) * 2
    target = torch.randint(11, (300, 9), generator=random)
    target[torch.rand(300, 9, generator=random) < 0.3] = IGNORED
    keep = target[:, 1:] != IGNORED
    wanted, found = target[:, 1:][keep], logits[:, :-1][keep]
    loss = torch.nn.functional.cross_entropy(found.double(), wanted).item()
    assert stream(TOKENS, 11, logits, target) == {
        "loss": pytest.approx(loss, rel=1e-5),
        "perplexity": pytest.approx(np.exp(loss), rel=1e-4),
        "tokenAccuracy": pytest.approx(reference.accuracy_score(wanted, found.argmax(-1)), abs=1e-6),
    }


def test_tags():
    """Of words; what begins none counts nowhere."""
    labels = ("O", "B-A", "I-A", "B-B")
    random = torch.Generator().manual_seed(0)
    logits = torch.randn(300, 9, len(labels), generator=random)
    target = (logits + torch.randn(300, 9, len(labels), generator=random)).argmax(-1)
    target[torch.rand(300, 9, generator=random) < 0.3] = IGNORED
    keep = target != IGNORED
    counts = entity_counts(scheme_of(labels), logits.argmax(-1), target).double().sum(0)
    wanted = replace(TAGS, judged=partial(judged, scheme_of(labels)))
    assert stream(wanted, len(labels), logits, target) == {
        "loss": pytest.approx(torch.nn.functional.cross_entropy(logits.double()[keep], target[keep]).item(), rel=1e-5),
        "tokenAccuracy": pytest.approx(reference.accuracy_score(target[keep], logits[keep].argmax(-1)), abs=1e-6),
        **{name: pytest.approx(value.item()) for name, value in entity_scores(counts).items()},
    }


SPARSE = {
    "a class without samples is left out": (
        ONE,
        torch.tensor([[2.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 2, 0]]),
        torch.tensor([0, 1, 1, 0]),
        {"auroc": 0.5, "accuracy": 0.5},
    ),
    "one class alone": (ONE, torch.randn(3, 2), torch.zeros(3, dtype=torch.int64), {"auroc": 0.5}),
    "all right": (ONE, torch.eye(3) * 50, torch.arange(3), {"auroc": 1.0, "f1": 1.0}),
    "all equal": (ONE, torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]), {"auroc": 0.5}),
    "infinite and NaN": (
        ONE,
        torch.tensor([[float("inf"), 0], [0, float("inf")], [float("nan"), 0]]),
        torch.tensor([0, 1, 0]),
        {"accuracy": 1.0},
    ),
    "one number": (NUMBER, torch.tensor([[1.0]]), torch.tensor([2.0]), {"r2": 0.0, "mse": 1.0, "mae": 1.0}),
    "numbers all alike": (NUMBER, torch.tensor([[1.0], [2]]), torch.tensor([2.0, 2]), {"r2": 0.0}),
    "no token": (TOKENS, torch.randn(1, 3, 5), torch.full((1, 3), IGNORED), {"loss": 0.0, "perplexity": 1.0}),
}


@pytest.mark.parametrize(("wanted", "logits", "target", "expected"), SPARSE.values(), ids=SPARSE)
def test_few_samples(wanted, logits, target, expected):
    """Always a number, and no warning."""
    assert stream(wanted, logits.shape[-1], logits, target, list(expected)) == pytest.approx(expected)


def test_perplexity_of_a_hopeless_model_is_finite():
    scores = Scores(TOKENS, ("perplexity",), 5, CPU)
    scores.add_loss(torch.tensor([1e9]), torch.tensor([1]))
    assert np.isfinite(scores.compute(list)["perplexity"])


CHOSEN = {
    "the task's": (ONE, None, ("loss", "accuracy", "f1", "auroc")),
    "those asked for": (ONE, ("f1Micro",), ("loss", "f1Micro")),
    "loss is asked for": (NUMBER, ("r2", "loss"), ("loss", "r2")),
    "language model": (TOKENS, None, ("loss", "perplexity", "tokenAccuracy")),
}


@pytest.mark.parametrize(("wanted", "asked", "chosen"), CHOSEN.values(), ids=CHOSEN)
def test_choice(wanted, asked, chosen):
    assert choose_metrics(wanted, asked) == chosen


def test_a_metric_of_another_task():
    with pytest.raises(SpecFault) as fault:
        choose_metrics(NUMBER, ("mse", "f1"))
    assert str(fault.value) == "spec.evaluation.metrics: text-regression has the metrics loss, mse, mae, r2, got f1"
    with pytest.raises(SpecFault, match=r"^spec\.earlyStopping\.metric: causal-lm has the metrics .*, got meteor$"):
        check_metric(TOKENS, "meteor", field="spec.earlyStopping.metric")


def test_every_task_has_what_it_computes_and_watches():
    for build in TASKS.values():
        for spec in (Spec, MultiLabel):
            wanted = build(spec)
            for name in (*wanted.metrics, wanted.monitor):
                check_metric(wanted, name, field="")


ROLES = {
    "text": (ONE, Columns(), {"text": "text", "label": "label"}),
    "pair": (NUMBER, Columns(text="a", textPair="b", label="c"), {"text": "a", "text_pair": "b", "label": "c"}),
    "no label": (TOKENS, Columns(text="a"), {"text": "a"}),
    "image": (IMAGE, Columns(textPair="b"), {"image": "image", "label": "label"}),
}


@pytest.mark.parametrize(("wanted", "columns", "roles"), ROLES.values(), ids=ROLES)
def test_roles_of_columns(wanted, columns, roles):
    assert wanted.roles(columns) == roles


def test_summary():
    assert summary({"loss": 0.123456, "f1": 1.0}) == "loss=0.1235 f1=1"


@pytest.mark.parametrize("target", [Target.CLASS, Target.TOKENS, Target.TAGS], ids=str)
def test_memory_of_an_evaluation_does_not_grow_with_the_data(group, target):
    """What 10x the data takes more is the samples' order; logits that were kept would take 65 times that."""
    small, large, logits = group.run(ranks.evaluation_peaks, 1, target)[0]
    assert large - small < logits / 20
