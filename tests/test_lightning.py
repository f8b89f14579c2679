"""Lightning's Trainer on a spec's module and data: the same losses as our loop's, step for step."""

import copy
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForSequenceClassification

import pairs
import tiny
from finetune_trainer.errors import SpecFault

lightning = pytest.importorskip("lightning")
from finetune_trainer.lightning import from_job, trainer_options  # noqa: E402 - after the check

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*treespec, LeafSpec:FutureWarning"),
]
STEPS = 20
SPEC = {
    "model": {"dropout": 0.1},
    "training": {"maxSteps": STEPS, "gradientAccumulation": 2, "weightDecay": 0.1, "warmup": {"steps": 3}},
    "strategy": {"learningRate": {"value": None, "bottom": 1e-3, "top": 3e-3}},
}


class Losses(lightning.Callback):
    """Every step's loss."""

    def __init__(self) -> None:
        self.values = []

    def on_train_batch_end(self, trainer, *_):
        self.values.append(float(trainer.callback_metrics["train/loss"]))


def fitted(job, out: Path):
    """A module that Lightning has trained to the job's end, the losses of its steps, and the last metrics."""
    module, data = from_job(job, out=out, cache=out.parent / "cache")
    losses = Losses()
    trainer = lightning.Trainer(
        **trainer_options(module),
        accelerator="cpu",
        devices=1,
        callbacks=[losses],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=out,
    )
    trainer.fit(module, data)
    return module, losses.values, dict(trainer.callback_metrics)


@pytest.mark.parametrize("kind", [*tiny.TASKS, *pairs.MODELS])
def test_twenty_steps_have_the_loop_s_losses_and_weights(kind, tmp_path):
    job = pairs.tiny_or_pairs(tmp_path, kind, copy.deepcopy(SPEC))
    loop = tiny.trained(tiny.process_of(job, tmp_path / "ours"))
    module, losses, _ = fitted(job, tmp_path / "theirs")
    wanted = [step["loss"] for step in tiny.steps_of(tmp_path / "ours")]
    assert len(wanted) == STEPS
    assert losses == pytest.approx(wanted, rel=1e-6)
    ours = loop.inner.state_dict()
    for name, value in module.model.state_dict().items():
        torch.testing.assert_close(value, ours[name], rtol=1e-5, atol=1e-7)


def test_validation_has_the_loop_s_metrics_and_the_model_is_exported(tmp_path):
    spec = {"training": {"maxSteps": None, "epochs": 2}, "evaluation": {"every": {"steps": None, "epochs": 1}}}
    job = tiny.job(tmp_path, "text-classification", spec | {"strategy": {"lora": {"r": 2}}})
    loop = tiny.trained(tiny.process_of(job, tmp_path / "ours"))
    module, _, metrics = fitted(job, tmp_path / "theirs")
    wanted = loop.judge.evaluate(loop.model, loop.validation_part)
    assert {name: float(metrics[f"validation/{name}"]) for name in wanted} == pytest.approx(wanted, rel=1e-5)
    exported = module.export(tmp_path / "theirs")
    assert exported.adapter is not None
    AutoModelForSequenceClassification.from_pretrained(exported.model)


FAULTS = {
    "fp16": ({"precision": "fp16"}, "spec.training.precision: fp16 does not go with Lightning here; use bf16 or fp32"),
    "auto": ({"batchSize": "auto"}, "spec.training.batchSize: auto does not go with Lightning; set a number"),
}


@pytest.mark.parametrize(("training", "message"), FAULTS.values(), ids=FAULTS)
def test_faults(tmp_path, training, message):
    with pytest.raises(SpecFault) as fault:
        from_job(tiny.job(tmp_path, "causal-lm", {"training": training}), out=tmp_path / "run")
    assert str(fault.value) == message
