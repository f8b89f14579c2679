"""The loop's decisions that cost a process to see from outside: clipping, divergence, the best of a broken-off run."""

import copy
import math

import pytest
import torch

import tiny
from finetune_trainer.clip import clip_gradients
from finetune_trainer.course import BestSeen
from finetune_trainer.errors import Diverged, Preempted
from finetune_trainer.evaluate import Judge
from finetune_trainer.finish import restore_best

GRADIENTS = {
    "small": [torch.tensor([3.0]), torch.tensor([[4.0]])],
    "0 dimensions": [torch.tensor(3.0), torch.tensor([4.0])],
    "no rows": [torch.empty(0, 4), torch.ones(2, 2)],
    "none": [],
    "one is large, many are small": [torch.eye(40_000, 16) + 3e-5],
}


def parameters_of(gradients: list[torch.Tensor]) -> list[torch.nn.Parameter]:
    parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in gradients]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    return [*parameters, torch.nn.Parameter(torch.ones(2))]  # one that has no gradient


@pytest.mark.parametrize("gradients", GRADIENTS.values(), ids=GRADIENTS)
@pytest.mark.parametrize("share", [0.5, 2.0, math.inf], ids=["clipped", "within the limit", "no limit"])
def test_clipping(gradients, share):
    exact = math.sqrt(sum(gradient.double().square().sum().item() for gradient in gradients))
    parameters = parameters_of(gradients)
    assert clip_gradients(parameters, share * exact if exact else share) == pytest.approx(exact, rel=1e-6)
    for parameter, gradient in zip(parameters, gradients, strict=False):
        torch.testing.assert_close(parameter.grad, gradient * min(1.0, share), atol=0, rtol=2e-6)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norm_of_what_is_not_finite(bad):
    assert not math.isfinite(clip_gradients(parameters_of([torch.tensor([1.0, bad])]), 1.0))


def judged(monkeypatch, answers):
    """Let every evaluation answer with the next of ``answers``, or raise it."""
    remaining = list(answers)

    def evaluate(_judge, _model, _part, **_options):
        answer = remaining.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {"loss": answer, "accuracy": 1 - answer, "f1": 0.0}

    monkeypatch.setattr(Judge, "evaluate", evaluate)


def started(folder, **training):
    spec = {
        "training": {"maxSteps": 4} | training,
        "evaluation": {"every": {"steps": 2}},
        "checkpoint": {"every": {"steps": 2}},
    }
    process = tiny.process_of(tiny.job(folder, "image-classification", spec), folder / "run")
    return process, *tiny.assembled(process)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_validation_loss_that_is_not_finite_ends_the_run(tmp_path, monkeypatch, bad):
    judged(monkeypatch, [0.5, bad])
    _, loop, state = started(tmp_path)
    with pytest.raises(Diverged) as diverged:
        loop.run(state)
    loop.history.close()
    assert str(diverged.value) == (
        f"loss {bad:g} on the validation set after step 4; the checkpoint of step 2 is intact."
        " Lower spec.strategy.learningRate, set spec.training.maxGradNorm, or look for extreme values in the data"
    )


def test_the_best_of_an_evaluation_that_was_broken_off(tmp_path, monkeypatch):
    """SIGTERM within an evaluation: the checkpoint is older than the evaluation that makes it the best."""
    judged(monkeypatch, [Preempted(), 0.25, 0.75])
    _, loop, state = started(tmp_path)
    with pytest.raises(Preempted, match=r"^asked to leave; step 2 is saved$"):
        loop.run(state)
    loop.history.close()
    at_two = copy.deepcopy(loop.inner.state_dict())
    process, loop, state = started(tmp_path)
    assert (state.step, state.best) == (2, None)
    state = loop.run(state)
    loop.history.close()
    metrics = {"loss": 0.25, "accuracy": 0.75, "f1": 0.0}
    assert state.best == BestSeen(0.75, 2, metrics)
    assert not all(torch.equal(value, at_two[name]) for name, value in loop.inner.state_dict().items())
    assert restore_best(loop, state, process.context) == metrics
    assert all(torch.equal(value, at_two[name]) for name, value in loop.inner.state_dict().items())
